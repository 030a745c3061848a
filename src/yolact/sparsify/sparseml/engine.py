"""sparseml as a recipe engine: its modifiers, and its manager asked at the right moments."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from yolact.model.weights import is_quantized
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry, dump
from yolact.sparsify.engine import GradientSamples
from yolact.sparsify.native.engine import NativeEngine
from yolact.sparsify.native.rates import LearningRateModifier
from yolact.sparsify.native.thinning import forget_removed
from yolact.sparsify.sparseml import (
    BasePruningModifier,
    ConstantPruningModifier,
    LayerPruningModifier,
    Modifier,
    ScheduledModifierManager,
    SparsificationLoggingModifier,
    lift_masks,
    log_loggers,
    quiet_loggers,
)
from yolact.sparsify.sparseml import thinning as _thinning  # noqa: F401 - for its tag
from yolact.sparsify.sparseml.replay import adopt_structure, replay

logger = logging.getLogger(__name__)


class SparsemlEngine:
    """Makes sparseml's modifiers; see :class:`yolact.sparsify.engine.Engine`."""

    name: EngineName = "sparseml"

    def fields(self) -> Mapping[str, frozenset[str]]:
        """Names of the modifiers there are, with the fields of each."""
        return _fields()

    def build(self, entry: Entry) -> Any:
        """The modifier of a recipe's entry.

        Raises:
            TypeError: A field is missing.
            ValueError: A field has a value that cannot be.
        """
        if entry.name == LearningRateModifier.__name__:
            NativeEngine().build(entry)  # looks at lr_kwargs now, not when their epoch comes
        # The tag of sparseml's own constructors; each picks among classes of one name by their
        # fields.
        text = dump({"modifier": Entry(f"pytorch.{entry.name}", entry.fields)})
        try:
            modifier = yaml.safe_load(text)["modifier"]
        except (
            *(KeyError, AttributeError, RuntimeError, AssertionError),
            yaml.YAMLError,  # a modifier inside a modifier
        ) as error:
            raise ValueError(str(error)) from error
        return modifier

    def manager(self, stages: Mapping[str, Sequence[Any]]) -> SparsemlManager:
        """A manager of modifiers that :meth:`build` made, by the stage of the recipe."""
        unstaged = stages.keys() == {""}
        built = {name: list(modifiers) for name, modifiers in stages.items()}
        return SparsemlManager(ScheduledModifierManager(built[""] if unstaged else built))

    def sparsities(
        self, modifier: Any, model: nn.Module, epochs: Sequence[float], steps_per_epoch: int
    ) -> tuple[list[str], list[list[float]]]:
        """The course of a pruning modifier; see :meth:`yolact.sparsify.engine.Engine.sparsities`.

        Raises:
            ValueError: The modifier has to see weights, gradients or data.
        """
        try:
            modifier.initialize(model, 0, loggers=quiet_loggers())
            return _run(modifier, model, epochs, steps_per_epoch)
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(modifier).__name__} cannot run ahead: {error}") from error


class SparsemlManager:
    """A ScheduledModifierManager in a run; see :class:`yolact.sparsify.engine.Manager`."""

    def __init__(self, manager: ScheduledModifierManager) -> None:
        """Take a manager that is not initialized."""
        self._manager = manager
        self._steps_per_epoch = 1

    @property
    def modifiers(self) -> Sequence[Any]:
        """In the order in which they act."""
        return list(self._manager.iter_modifiers())

    def restructure(self, model: nn.Module, epoch: float) -> None:
        """Give ``model`` the channels, layers and quantizers that it has by ``epoch``."""
        for modifier in sorted(self._manager.structured_modifiers, key=lambda m: m.start_epoch):
            if not (modifier in self._manager.quantization_modifiers and is_quantized(model)):
                with _kept_generator():
                    modifier.initialize(model, epoch, loggers=quiet_loggers())

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int,
        steps_per_epoch: int,
        samples: GradientSamples | None,
    ) -> None:
        """Initialize the modifiers; bring all to where they are after ``steps`` steps."""
        self._steps_per_epoch = steps_per_epoch
        # An uninterrupted run last looked at the clock before its last step.
        clock = max(steps - 1, 0) / steps_per_epoch
        if is_quantized(model):
            adopt_structure(self._manager, model, fresh=steps == 0)
        more = {} if samples is None else {"grad_sampler": _grad_sampler(samples)}
        with _kept_generator():
            self._manager.initialize(model, clock, loggers=quiet_loggers(), **more)
        for modifier in self.modifiers:
            if isinstance(modifier, SparsificationLoggingModifier):
                modifier.initialize_loggers(log_loggers(logger))
        if steps > 0:
            replay(self._manager, model, optimizer, steps, steps_per_epoch)

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Do what a step begins with.

        ``manager.update`` would compute masks at this moment too, before there are gradients.
        """
        for modifier in self.modifiers:
            if not isinstance(modifier, BasePruningModifier):
                self._update(modifier, model, optimizer, epoch)

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""
        for modifier in self._masking():
            lift_masks(modifier.module_masks)
            self._update(modifier, model, optimizer, epoch)
        self._manager.optimizer_pre_step(model, optimizer, epoch, self._steps_per_epoch)

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set masked weights back to zero after the optimizer's step."""
        self._manager.optimizer_post_step(model, optimizer, epoch, self._steps_per_epoch)

    def finish(self, model: nn.Module, epoch: float) -> None:
        """Reach the targets of pruning that ends with the run itself, and let go of the model."""
        for modifier in self._masking():
            if not modifier.ended and 0 <= modifier.end_epoch <= epoch:
                self._update(modifier, model, None, epoch)
        self._manager.finalize(model)

    def _update(
        self, modifier: Any, model: nn.Module, optimizer: Optimizer | None, epoch: float
    ) -> None:
        """Ask one modifier, if something of it is due."""
        if not self._due(modifier, epoch):
            return
        prunes = isinstance(modifier, BasePruningModifier)
        # OBS and M-FAC do nothing when there is one step an epoch: to them that is a one-shot run.
        steps_per_epoch = max(self._steps_per_epoch, 2) if prunes else self._steps_per_epoch
        with nullcontext() if prunes else _kept_generator():
            modifier.scheduled_update(model, optimizer, epoch, steps_per_epoch)
        if modifier.ended and prunes:
            # Top-KAST would let momentum move masked weights between its end and the run's.
            modifier._allow_reintroduction = False
        if isinstance(modifier, LayerPruningModifier) and optimizer is not None:
            forget_removed(optimizer, model)

    def _masking(self) -> list[Any]:
        """The modifiers that prune weights by masks."""
        return [m for m in self.modifiers if isinstance(m, BasePruningModifier)]

    def _due(self, modifier: Any, epoch: float) -> bool:
        if isinstance(modifier, ConstantPruningModifier) and modifier.started:
            # sparseml computes constant masks anew in every step, which takes seconds.
            return bool(modifier.end_pending(epoch, self._steps_per_epoch))
        return bool(modifier.enabled and modifier.update_ready(epoch, self._steps_per_epoch))


def _kept_generator() -> Any:
    """Random numbers inside leave no trace: torch.ao draws weights for layers that it replaces."""
    return torch.random.fork_rng(devices=[])


@cache
def _fields() -> dict[str, frozenset[str]]:
    """Field names by modifier; classes that share a name share them."""
    tags = yaml.SafeLoader.yaml_constructors
    known: dict[str, frozenset[str]] = {}
    for kind in _subclasses(Modifier):
        if f"!pytorch.{kind.__name__}" in tags:
            names = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
            known[kind.__name__] = known.get(kind.__name__, frozenset()) | names | {"log_types"}
    return known


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _run(
    modifier: Any, model: nn.Module, epochs: Iterable[float], steps_per_epoch: int
) -> tuple[list[str], list[list[float]]]:
    names = [name.removesuffix(".sparsity_mask") for name in modifier.module_masks.names]
    current = [0.0] * len(names)

    def record(_: nn.Module, epoch: float, steps: int, **__: Any) -> None:
        level = modifier.get_applied_sparsity_for_epoch(epoch, steps)
        current[:] = level if isinstance(level, list) else [level] * len(names)

    modifier.check_mask_update = record
    levels = []
    for epoch in epochs:
        if modifier.enabled and modifier.update_ready(epoch, steps_per_epoch):
            modifier.scheduled_update(model, None, epoch, steps_per_epoch)
        levels.append([float(level) for level in current])
    return names, levels


def _grad_sampler(samples: GradientSamples) -> dict[str, Any]:
    def build(options: Mapping[str, Any] | None = None, **more: Any) -> Iterator[Any]:
        return samples.batches({**(options or {}), **more}.get("batch_size"))

    return {"data_loader_builder": build, "loss_function": samples.loss}
