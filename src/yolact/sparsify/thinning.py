"""The modifier that removes whole channels while a model trains.

sparseml's own pair, StructuredPruningModifier and LayerThinningModifier, needs every group of
channels spelled out in the recipe and masks channels long before it removes them. YOLACT's groups
are known (:mod:`yolact.model.channels`), so here a recipe only names convolutions, and channels
disappear as soon as they are given up: the rest of the run trains, and is as fast as, the smaller
network.

How many channels are left is a function of the recipe and of the epoch alone. That is what lets a
checkpoint be loaded by its recipe, and a run continue in the middle of thinning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.model.channels import (
    ChannelGroup,
    channel_groups,
    channel_scores,
    remove_channels,
    width_of,
)
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact
from yolact.sparsify.document import matches
from yolact.sparsify.sparseml import (
    BasePruningModifier,
    Modifier,
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledUpdateModifier,
    SparsificationTypes,
)

_SLACK = 1e-9
"""Of a comparison of epochs, which are sums and quotients of floats."""


@PyTorchModifierYAML()
class ChannelThinningModifier(ScheduledUpdateModifier):  # type: ignore[misc]
    """Removes channels from convolutions and from everything that reads them.

    | Sample yaml:
    |   !ChannelThinningModifier
    |       start_epoch: 0.0
    |       end_epoch: 10.0
    |       update_frequency: 0.5
    |       final_width: 0.5
    |       params: ["re:backbone[.].*[.]conv1[.]0[.]weight"]

    Args:
        params: Convolution weights, by name or ``re:`` expression, whose output channels are
            removed. Channels tied to them by additions or shared readers go along.
        final_width: Fraction of the configured channels that is left at ``end_epoch``, 0..1.
        start_epoch: The first channels go here.
        end_epoch: The last channels go here; with ``start_epoch`` again, all go at once.
        update_frequency: Epochs between removals.
        init_width: Fraction that the first removal leaves.
        multiple_of: Widths are rounded up to multiples of it.
    """

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
        super().__init__(
            start_epoch=max(start_epoch, 0.0),
            end_epoch=max(end_epoch, start_epoch, 0.0),
            update_frequency=update_frequency,
            end_comparator=-1,
            min_end=-1,
        )
        self._params = [params] if isinstance(params, str) else list(params)
        self._init_width, self._final_width = float(init_width), float(final_width)
        self._multiple_of = multiple_of
        if not 0 < self._final_width <= self._init_width <= 1:
            raise ValueError(
                f"need 0 < final_width <= init_width <= 1, got {final_width} and {init_width}"
            )
        if type(multiple_of) is not int or multiple_of < 1:
            raise ValueError(f"multiple_of must be at least 1, got {multiple_of}")
        self._groups: list[ChannelGroup] = []
        self._fraction = 1.0

    @ModifierProp()  # type: ignore[untyped-decorator]
    def params(self) -> list[str]:
        """Names and expressions of convolution weights."""
        return self._params

    @ModifierProp()  # type: ignore[untyped-decorator]
    def init_width(self) -> float:
        """Fraction of the channels that the first removal leaves."""
        return self._init_width

    @ModifierProp()  # type: ignore[untyped-decorator]
    def final_width(self) -> float:
        """Fraction of the channels that the last removal leaves."""
        return self._final_width

    @ModifierProp()  # type: ignore[untyped-decorator]
    def multiple_of(self) -> int:
        """What widths are rounded up to."""
        return self._multiple_of

    @Modifier.sparsification_types.getter  # type: ignore[untyped-decorator]
    def sparsification_types(self) -> list[Any]:
        """Pruning that changes the structure."""
        return [SparsificationTypes.pruning, SparsificationTypes.structured]

    def fraction_at(self, epoch: float) -> float:
        """Fraction of the channels left after the last removal due by ``epoch``.

        It falls quickly at first and slowly at the end, as sparsity rises in GMPruning: a cubic
        (https://arxiv.org/abs/1710.01878).
        """
        if epoch < self.start_epoch - _SLACK:
            return 1.0
        length = self.end_epoch - self.start_epoch
        if epoch >= self.end_epoch - _SLACK or length <= 0:
            return self._final_width
        passed = epoch - self.start_epoch
        if self.update_frequency > 0:
            passed = math.floor(passed / self.update_frequency + _SLACK) * self.update_frequency
        left = (1 - passed / length) ** 3
        width: float = self._final_width + (self._init_width - self._final_width) * left
        return width

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the groups, and bring ``module`` to the widths of ``epoch``.

        Raises:
            RecipeError: The model is no YOLACT, or no channels can be removed where ``params`` say.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        self._groups = self.groups_of(module)
        self._thin(module, epoch, None)

    def groups_of(self, module: nn.Module) -> list[ChannelGroup]:
        """The groups that ``params`` name.

        Raises:
            RecipeError: There are none, or the channels are not free.
        """
        if not isinstance(module, Yolact):
            kind = type(module).__name__
            raise RecipeError(
                f"ChannelThinningModifier knows the channels of YOLACT, not of {kind}",
                hint="use StructuredPruningModifier and LayerThinningModifier",
            )
        groups = channel_groups(module.config)
        found = [g for g in groups if any(_names(p, g.weights) for p in self._params)]
        for pattern in self._params:
            if not any(_names(pattern, g.weights) for g in found):
                raise RecipeError(
                    f"ChannelThinningModifier cannot remove output channels of {pattern!r}",
                    hint="outputs of the network keep their channels; name a convolution inside it",
                )
        return found

    def update_ready(self, epoch: float, steps_per_epoch: int) -> bool:
        """Whether the widths of ``epoch`` are not those of the last update."""
        pending = super().update_ready(epoch, steps_per_epoch)
        return bool(self.enabled and (pending or self.fraction_at(epoch) != self._fraction))

    def update(
        self, module: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Remove the channels that are due."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        self._thin(module, epoch, optimizer)

    def _thin(self, module: nn.Module, epoch: float, optimizer: Optimizer | None) -> None:
        self._fraction = self.fraction_at(epoch)
        if is_quantized(module):
            return  # its convolutions are wrapped, and thinning was over before that
        for group in self._groups:
            wanted = self._width(group)
            if wanted < width_of(module, group):
                kept = channel_scores(module, group).topk(wanted).indices.sort().values
                remove_channels(module, group, kept, optimizer)

    def _width(self, group: ChannelGroup) -> int:
        multiples = math.ceil(group.width * self._fraction / self._multiple_of - _SLACK)
        return min(group.width, multiples * self._multiple_of)


def require_alone(modifiers: Sequence[Any], label: str) -> None:
    """Refuse stages in which other modifiers need a network that keeps its channels.

    Raises:
        RecipeError: Weights are pruned in the same stage, or quantized before thinning ends.
    """
    thinning = [m for m in modifiers if isinstance(m, ChannelThinningModifier)]
    if not thinning:
        return
    if any(isinstance(m, BasePruningModifier) for m in modifiers):
        raise RecipeError(
            f"{label} prunes weights and removes channels in one stage",
            hint="remove channels in a first run, and prune its checkpoint in a second",
        )
    end = max(modifier.end_epoch for modifier in thinning)
    quantized = [m for m in modifiers if SparsificationTypes.quantization in m.sparsification_types]
    if any(modifier.start_epoch < end for modifier in quantized):
        raise RecipeError(
            f"{label} quantizes before the last channels are removed, at epoch {end:g}",
            hint="let the QuantizationModifier start when the ChannelThinningModifier has ended",
        )


def _names(pattern: str, names: Iterable[str]) -> bool:
    return any(matches(pattern, name) for name in names)
