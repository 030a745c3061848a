"""The modifiers that remove whole channels and whole layers while a model trains.

sparseml's own pair, StructuredPruningModifier and LayerThinningModifier, needs every group of
channels spelled out in the recipe and masks channels long before it removes them. YOLACT's groups
are found (:mod:`yolact.model.channel_groups`), so here a recipe only names convolutions, and
channels disappear as soon as they are given up: the rest of the run trains, and is as fast as, the
smaller network.

How many channels are left is a function of the recipe and of the epoch alone. That is what lets a
checkpoint be loaded by its recipe, and a run continue in the middle of thinning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.model.channel_groups import ChannelGroup, channel_groups
from yolact.model.channels import channel_scores, remove_channels, width_of
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact
from yolact.sparsify.document import matches
from yolact.sparsify.native.modifier import (
    MemorylessModifier,
    Modifier,
    require_names,
    require_order,
)

LR_FACTOR = "lr_factor"
"""Key of an optimizer's groups that follow the first one: the factor of their learning rates."""

_SLACK = 1e-9
"""Of a comparison of epochs, which are sums and quotients of floats."""


@dataclass(kw_only=True, eq=False)
class ChannelThinningModifier(MemorylessModifier):
    """Removes channels from convolutions and from everything that reads them.

    | Sample yaml:
    |   !ChannelThinningModifier
    |       start_epoch: 0.0
    |       end_epoch: 10.0
    |       update_frequency: 0.5
    |       final_width: 0.5
    |       params: ["re:backbone[.].*[.]conv1[.]0[.]weight"]

    The first channels go at ``start_epoch`` and the last at ``end_epoch``; without an end, all go
    at once. ``update_frequency`` is the epochs between removals.
    """

    params: str | list[str] = field()
    """Convolution weights, by name or ``re:`` expression, whose output channels are removed.
    Channels tied to them by additions or shared readers go along."""
    final_width: float = field()
    """Fraction of the configured channels that is left at the end, 0..1."""
    start_epoch: float = 0.0
    init_width: float = 1.0
    """Fraction that the first removal leaves."""
    multiple_of: int = 4
    """Widths are rounded up to multiples of it."""

    def __post_init__(self) -> None:
        """Check the numbers; the model comes with :meth:`attach`."""
        self.start_epoch = max(self.start_epoch, 0.0)
        self.end_epoch = max(self.end_epoch, self.start_epoch)
        self.params = [self.params] if isinstance(self.params, str) else list(self.params)
        given = f"{self.final_width} and {self.init_width}"
        self.init_width, self.final_width = float(self.init_width), float(self.final_width)
        if not 0 < self.final_width <= self.init_width <= 1:
            raise ValueError(f"need 0 < final_width <= init_width <= 1, got {given}")
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise ValueError(f"multiple_of must be at least 1, got {self.multiple_of}")
        self._weights: set[str] = set()
        self._fraction = 1.0

    @property
    def identifier(self) -> str:
        """By parameters: which channels score highest depends on those that went before."""
        return f"{type(self).__name__} {self.params}"

    def fraction_at(self, epoch: float) -> float:
        """Fraction of the channels left after the last removal due by ``epoch``.

        It falls quickly at first and slowly at the end, as sparsity rises in GMPruning: a cubic
        (https://arxiv.org/abs/1710.01878).
        """
        if epoch < self.start_epoch - _SLACK:
            return 1.0
        length = self.end_epoch - self.start_epoch
        if epoch >= self.end_epoch - _SLACK or length <= 0:
            return self.final_width
        passed = epoch - self.start_epoch
        if self.update_frequency > 0:
            passed = math.floor(passed / self.update_frequency + _SLACK) * self.update_frequency
        left = (1 - passed / length) ** 3
        return self.final_width + (self.init_width - self.final_width) * left

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the groups, and bring ``model`` to the widths of ``epoch``.

        Raises:
            RecipeError: The model is no YOLACT, or no channels can be removed where ``params`` say.
        """
        self._weights = self._weights_of(model)
        self._thin(model, epoch, None)

    def due(self, epoch: float) -> bool:
        """Whether the widths of ``epoch`` are not those of the last update."""
        return super().due(epoch) or self.fraction_at(epoch) != self._fraction

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Remove the channels that are due."""
        self._thin(model, epoch, optimizer)

    def _weights_of(self, model: nn.Module) -> set[str]:
        """All that write the channels of the groups, with those in layers that were removed."""
        if not isinstance(model, Yolact):
            kind = type(model).__name__
            raise RecipeError(
                f"ChannelThinningModifier knows the channels of YOLACT, not of {kind}",
                hint="use StructuredPruningModifier and LayerThinningModifier",
            )
        found: set[str] = set()
        for pattern in self.params:
            tied = [g.weights for g in channel_groups(model.config) if _names(pattern, g.weights)]
            found.update(*tied)
            if not tied:
                raise RecipeError(
                    f"ChannelThinningModifier cannot remove output channels of {pattern!r}",
                    hint="outputs of the network keep their channels; name a convolution inside it",
                )
        return found

    def _thin(self, model: nn.Module, epoch: float, optimizer: Optimizer | None) -> None:
        self._fraction = self.fraction_at(epoch)
        if is_quantized(model):
            return  # its convolutions are wrapped, and thinning was over before that
        assert isinstance(model, Yolact)
        for group in channel_groups(model.config, _removed(model)):
            wanted = self._width(group)
            named = not self._weights.isdisjoint(group.weights)
            if named and wanted < width_of(model, group):
                kept = channel_scores(model, group).topk(wanted).indices.sort().values
                remove_channels(model, group, kept, optimizer)

    def _width(self, group: ChannelGroup) -> int:
        multiples = math.ceil(group.width * self._fraction / self.multiple_of - _SLACK)
        return min(group.width, multiples * self.multiple_of)


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


def forget_removed(optimizer: Optimizer, model: nn.Module) -> None:
    """Take parameters that the model no longer has out of the optimizer's groups of the network.

    These are the first and those that follow it; another one is of the objective.
    """
    there = set(model.parameters())
    first, *others = optimizer.param_groups
    for group in (first, *(group for group in others if LR_FACTOR in group)):
        for parameter in set(group["params"]) - there:
            optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if parameter in there]


def _names(pattern: str, names: Iterable[str]) -> bool:
    return any(matches(pattern, name) for name in names)


def _is_there(model: nn.Module, layer: str) -> bool:
    return bool(layer) and any(name == layer for name, _ in model.named_modules())


def _is_gone(model: nn.Module, layer: str) -> bool:
    """Whether it was inside of a layer that has been removed."""
    return any(layer.startswith(f"{name}.") for name in _removed(model))


def _removed(model: nn.Module) -> frozenset[str]:
    """The layers in whose places identities are: torch's, or sparseml's of the same name."""
    return frozenset(n for n, m in model.named_modules() if type(m).__name__ == "Identity")
