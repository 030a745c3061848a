"""The modifier that takes whole layers out of the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from yolact.sparsify.native.fields import require_names, require_order
from yolact.sparsify.native.modifier import Modifier


@dataclass(kw_only=True, eq=False)
class LayerPruningModifier(Modifier):
    """Puts identities in the place of layers, for good."""

    layers: list[str] = field()
    """Whole names."""
    update_frequency: float = -1.0
    """Without effect."""

    def __post_init__(self) -> None:
        """Check the fields."""
        self.layers = require_names("layers", self.layers)
        require_order(self)
        self.update_frequency = -1.0

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Look for the layers, and remove them if that is due by ``epoch``.

        Raises:
            ValueError: The model has no such layer.
        """
        for layer in self.layers:
            if not _is_there(model, layer) and not _is_gone(model, layer):
                raise ValueError(f"layers names {layer!r}, and the network has no such layer")
        if epoch >= self.start_epoch:
            self._remove(model)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Remove the layers, from the optimizer too: a run that resumes has none of them there."""
        if self.starts(epoch):
            self._remove(model)
            if optimizer is not None:
                forget_removed(optimizer, model)

    def _remove(self, model: nn.Module) -> None:
        for layer in self.layers:
            if _is_there(model, layer):
                model.set_submodule(layer, nn.Identity())


def _is_there(model: nn.Module, layer: str) -> bool:
    return bool(layer) and any(name == layer for name, _ in model.named_modules())


def _is_gone(model: nn.Module, layer: str) -> bool:
    """Whether it was inside of a layer that has been removed."""
    removed = [name for name, module in model.named_modules() if isinstance(module, nn.Identity)]
    return any(layer.startswith(f"{name}.") for name in removed)


def forget_removed(optimizer: Optimizer, model: nn.Module) -> None:
    """Take parameters that the model no longer has out of the optimizer's first group.

    The others are of the objective.
    """
    network, *_ = optimizer.param_groups
    there = set(model.parameters())
    for parameter in set(network["params"]) - there:
        optimizer.state.pop(parameter, None)
    network["params"] = [parameter for parameter in network["params"] if parameter in there]
