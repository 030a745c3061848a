"""The modifier that removes channels, for sparseml: importing this file gives it its tag."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.sparsify.native import thinning
from yolact.sparsify.sparseml import (
    Modifier,
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledUpdateModifier,
    SparsificationTypes,
)


@PyTorchModifierYAML()
class ChannelThinningModifier(ScheduledUpdateModifier):  # type: ignore[misc]
    """:class:`yolact.sparsify.native.thinning.ChannelThinningModifier`, as sparseml calls it."""

    def __init__(
        self,
        params: str | list[str],
        final_width: float,
        start_epoch: float = 0.0,
        end_epoch: float = -1.0,
        update_frequency: float = -1.0,
        init_width: float = 1.0,
        multiple_of: int = 4,
    ) -> None:
        """Check the numbers; the model comes with :meth:`initialize`."""
        self._inner = thinning.ChannelThinningModifier(
            params=params,
            final_width=final_width,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            update_frequency=update_frequency,
            init_width=init_width,
            multiple_of=multiple_of,
        )
        super().__init__(
            start_epoch=self._inner.start_epoch,
            end_epoch=self._inner.end_epoch,
            update_frequency=update_frequency,
            end_comparator=-1,
            min_end=-1,
        )

    @ModifierProp()  # type: ignore[untyped-decorator]
    def params(self) -> str | list[str]:
        """Names and expressions of convolution weights."""
        return self._inner.params

    @ModifierProp()  # type: ignore[untyped-decorator]
    def init_width(self) -> float:
        """Fraction of the channels that the first removal leaves."""
        return self._inner.init_width

    @ModifierProp()  # type: ignore[untyped-decorator]
    def final_width(self) -> float:
        """Fraction of the channels that the last removal leaves."""
        return self._inner.final_width

    @ModifierProp()  # type: ignore[untyped-decorator]
    def multiple_of(self) -> int:
        """What widths are rounded up to."""
        return self._inner.multiple_of

    @Modifier.sparsification_types.getter  # type: ignore[untyped-decorator]
    def sparsification_types(self) -> list[Any]:
        """Pruning that changes the structure."""
        return [SparsificationTypes.pruning, SparsificationTypes.structured]

    def identifier(self, extra: Any = "") -> str:
        """What says which of several that begin and end together acts first."""
        return self._inner.identifier

    def fraction_at(self, epoch: float) -> float:
        """Fraction of the channels left after the last removal due by ``epoch``."""
        return self._inner.fraction_at(epoch)

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the groups, and bring ``module`` to the widths of ``epoch``."""
        super().initialize(module, epoch, loggers, **kwargs)
        self._inner.attach(module, epoch)

    def update_ready(self, epoch: float, steps_per_epoch: int) -> bool:
        """Whether the widths of ``epoch`` are not those of the last update."""
        return bool(self.enabled and self._inner.due(epoch)) or bool(
            super().update_ready(epoch, steps_per_epoch)
        )

    def update(
        self, module: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Remove the channels that are due."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        self._inner.update(module, optimizer, epoch, steps_per_epoch)
