"""The native engine: its modifiers by name, and the manager that asks them in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.model.weights import is_quantized
from yolact.sparsify.catalog import EngineName, facts_of
from yolact.sparsify.document import Entry
from yolact.sparsify.engine import GradientSamples
from yolact.sparsify.native.acdc import ACDCPruningModifier
from yolact.sparsify.native.distillation import (
    DistillationModifier,
    PerLayerDistillationModifier,
)
from yolact.sparsify.native.modifier import MaskingModifier, Modifier, first_step
from yolact.sparsify.native.parameters import (
    GradualParamModifier,
    SetParamModifier,
    TrainableParamsModifier,
)
from yolact.sparsify.native.pruning import (
    ConstantPruningModifier,
    GlobalMagnitudePruningModifier,
    GMPruningModifier,
    MagnitudePruningModifier,
    course,
)
from yolact.sparsify.native.quantization import QuantizationModifier, adopt
from yolact.sparsify.native.rates import (
    EpochRangeModifier,
    LearningRateFunctionModifier,
    LearningRateModifier,
    SetLearningRateModifier,
    SetWeightDecayModifier,
)
from yolact.sparsify.native.thinning import ChannelThinningModifier, LayerPruningModifier
from yolact.sparsify.native.totals import SparsificationLoggingModifier

_CLASSES: tuple[type[Modifier], ...] = (
    *(EpochRangeModifier, LearningRateFunctionModifier, LearningRateModifier),
    *(SetLearningRateModifier, SetWeightDecayModifier),
    *(GMPruningModifier, MagnitudePruningModifier, GlobalMagnitudePruningModifier),
    *(ConstantPruningModifier, ACDCPruningModifier),
    *(ChannelThinningModifier, LayerPruningModifier, QuantizationModifier),
    *(TrainableParamsModifier, SetParamModifier, GradualParamModifier),
    *(DistillationModifier, PerLayerDistillationModifier, SparsificationLoggingModifier),
)
MODIFIERS = {kind.__name__: kind for kind in _CLASSES}
"""Every modifier by the name that recipes use."""

_FOR_LOGS = frozenset({"log_types"})
"""Fields that sparseml's modifiers take, and that change nothing in the network."""


class NativeEngine:
    """Makes this package's own modifiers; see :class:`yolact.sparsify.engine.Engine`."""

    name: EngineName = "native"

    def fields(self) -> Mapping[str, frozenset[str]]:
        """Names of the modifiers there are, with the fields of each."""
        return {
            name: frozenset(f.name for f in fields(kind) if f.init) | _FOR_LOGS
            for name, kind in MODIFIERS.items()
        }

    def build(self, entry: Entry) -> Modifier:
        """The modifier of a recipe's entry.

        Raises:
            TypeError: A field is missing.
            ValueError: A field has a value that cannot be.
        """
        given = {name: value for name, value in entry.fields.items() if name not in _FOR_LOGS}
        return MODIFIERS[entry.name](**given)

    def manager(self, stages: Mapping[str, Sequence[Any]]) -> NativeManager:
        """A manager of modifiers that :meth:`build` made, by the stage of the recipe."""
        return NativeManager(_in_order(stages))

    def sparsities(
        self, modifier: Any, model: nn.Module, epochs: Sequence[float], steps_per_epoch: int
    ) -> tuple[list[str], list[list[float]]]:
        """The course of a pruning modifier; see :meth:`yolact.sparsify.engine.Engine.sparsities`.

        Raises:
            ValueError: The modifier has to see weights.
        """
        return course(modifier, model, epochs)


class NativeManager:
    """All modifiers of a recipe in a run; see :class:`yolact.sparsify.engine.Manager`."""

    def __init__(self, modifiers: Sequence[Modifier]) -> None:
        """Take them in the order in which they act."""
        self.modifiers = modifiers
        self._steps_per_epoch = 1

    def restructure(self, model: nn.Module, epoch: float) -> None:
        """Give ``model`` the channels, layers and quantizers that it has by ``epoch``."""
        structural = [m for m in self.modifiers if _kind(m) in ("thinning", "quantization")]
        for modifier in sorted(structural, key=lambda m: m.start_epoch):
            if not (_kind(modifier) == "quantization" and is_quantized(model)):
                modifier.attach(model, epoch)

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int,
        steps_per_epoch: int,
        samples: GradientSamples | None,
    ) -> None:
        """Attach the modifiers; bring all to where they are after ``steps`` steps.

        None of these modifiers takes gradient samples.
        """
        self._steps_per_epoch = steps_per_epoch
        # An uninterrupted run last looked at the clock before its last step.
        clock = max(steps - 1, 0) / steps_per_epoch
        if is_quantized(model):
            quantizes = any(_kind(modifier) == "quantization" for modifier in self.modifiers)
            adopt(model, quantizes=quantizes, fresh=steps == 0)
        for modifier in self.modifiers:
            modifier.attach(model, clock)
        if steps > 0:
            self._freeze_again(model, optimizer, steps)
            for modifier in self.modifiers:
                modifier.resume(model, optimizer, steps, steps_per_epoch)

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Do what a step begins with: learning rate, weight decay, structure, quantization."""
        changed = False
        for modifier in self.modifiers:
            if not isinstance(modifier, MaskingModifier) and modifier.due(epoch):
                modifier.update(model, optimizer, epoch, self._steps_per_epoch)
                changed = changed or not facts_of(type(modifier).__name__).optimizer_only
        if changed:
            for masking in self._masking():
                masking.mask()

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""
        for modifier in self._masking():
            if modifier.due(epoch):
                modifier.update(model, optimizer, epoch, self._steps_per_epoch)

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set masked weights back to zero after the optimizer's step."""
        for modifier in self._masking():
            modifier.after_optimizer(model, optimizer, epoch)

    def finish(self, model: nn.Module, epoch: float) -> None:
        """Reach the targets of pruning that ends with the run itself, and let go of the model."""
        for modifier in self._masking():
            if 0 <= modifier.end_epoch <= epoch and modifier.due(epoch):
                modifier.update(model, None, epoch, self._steps_per_epoch)
        for attached in self.modifiers:
            attached.detach(model)

    def _freeze_again(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        """Freeze parameters in the order of a run: each modifier gives back what it found."""
        freezing = [m for m in self.modifiers if facts_of(type(m).__name__).freezes]
        epochs = [epoch for m in freezing for epoch in (m.start_epoch, m.end_epoch)]
        for step in sorted({first_step(epoch, self._steps_per_epoch) for epoch in epochs}):
            epoch = step / self._steps_per_epoch
            for modifier in freezing:
                if step < steps and modifier.due(epoch):
                    modifier.update(model, optimizer, epoch, self._steps_per_epoch)

    def _masking(self) -> list[MaskingModifier]:
        return [m for m in self.modifiers if isinstance(m, MaskingModifier)]


def _in_order(stages: Mapping[str, Sequence[Modifier]]) -> list[Modifier]:
    """What ends first acts first, of those what begins first; stage by stage, as sparseml does."""
    sorted_stages = sorted((sorted(m, key=_place) for m in stages.values()), key=_stage_place)
    return [modifier for stage in sorted_stages for modifier in stage]


def _place(modifier: Modifier) -> tuple[float, float, str]:
    return _end(modifier.end_epoch), modifier.start_epoch, modifier.identifier


def _stage_place(stage: Sequence[Modifier]) -> tuple[float, float]:
    return _end(max(m.end_epoch for m in stage)), min(m.start_epoch for m in stage)


def _end(epoch: float) -> float:
    return math.inf if epoch == -1 else epoch


def _kind(modifier: Modifier) -> str:
    return facts_of(type(modifier).__name__).kind
