"""What a recipe does over the epochs, found by letting its own modifiers run.

The modifiers see a stand-in: an optimizer with one number to train, and a meta copy of the model,
the same layers and shapes without weights on torch's meta device. So a schedule of 60 epochs takes
a moment, and is what training will do.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from yolact.optim_config import OptimConfig
from yolact.sparsify.check.timetable import ModifierRow
from yolact.sparsify.engine import Engine
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.recipe_engines import recipe_engine
from yolact.sparsify.sparsity import targets_by_parameter
from yolact.sparsify.structure import recipe_names

logger = logging.getLogger(__name__)

_POINTS = 2400
"""Of a curve: more than a picture can show."""

_FINEST = 100
"""Points of one epoch at most."""

_COCO_STEPS = 14_658
"""Of an epoch of COCO in batches of 8, by which the configurations count."""


@dataclass(frozen=True)
class GroupCurve:
    """Parameters that one modifier treats alike, and how sparse or narrow they become."""

    number: int
    """Of the modifier, from 1."""
    what: Literal["zeros", "channels"]
    """What is taken away: weights that become zero, or channels that disappear."""
    names: tuple[str, ...]
    """Of the parameters."""
    levels: tuple[float, ...]
    """Fraction taken away, at each epoch of :attr:`Curves.epochs`."""

    @property
    def final(self) -> float:
        """The fraction at the end of the run."""
        return self.levels[-1]


@dataclass(frozen=True)
class Phase:
    """A part of a run in which quantization does something."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Curves:
    """The course of a run by its recipe."""

    epochs: tuple[float, ...]
    """Moments at which the curves are known, from 0 to the end of the run."""
    lr: tuple[float, ...]
    lr_by_recipe: bool
    """Whether the recipe sets it; otherwise it is the configuration's own schedule."""
    weight_decay: tuple[float, ...]
    groups: tuple[GroupCurve, ...]
    phases: tuple[Phase, ...]


def trace_curves(
    recipe: Recipe, rows: Sequence[ModifierRow], model: nn.Module, optim: OptimConfig, end: float
) -> Curves:
    """Let the modifiers of a recipe run through its epochs.

    Args:
        recipe: Whose engine runs them.
        rows: Those of its modifiers that fit the model.
        model: The model they are for; unchanged.
        optim: What the run uses where the recipe says nothing.
        end: Length of the run in epochs, above 0.
    """
    per_epoch = max(1, math.floor(min(_FINEST, _POINTS / end)))
    count = max(1, math.ceil(end * per_epoch - 1e-9))
    epochs = [min(i / per_epoch, end) for i in range(count)] + [end]
    settings = recipe.of(row.entry for row in rows if row.facts.optimizer_only)
    lr, decay = _optimizer_curves(settings, optim, epochs, per_epoch)
    engine = recipe_engine(recipe.engine_name)
    courses = [_groups(row, engine, model, epochs, per_epoch) for row in rows]
    by_recipe = any(row.kind == "lr" for row in rows)
    return Curves(
        epochs=tuple(epochs),
        lr=tuple(lr if by_recipe else _own_schedule(optim, epochs)),
        lr_by_recipe=by_recipe,
        weight_decay=tuple(decay),
        groups=tuple(chain.from_iterable(courses)),
        phases=tuple(phase for row in rows for phase in _phases(row, end)),
    )


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shapes only; it takes no memory to speak of."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _empty(tensor)
    return copy.deepcopy(model, memo)


def with_values(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with values: its own, or ones where it has none."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_meta:
            values = torch.ones_like(tensor, device="cpu", requires_grad=False)
            memo[id(tensor)] = nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values
    return copy.deepcopy(model, memo)


def _optimizer_curves(
    settings: Recipe, optim: OptimConfig, epochs: Sequence[float], per_epoch: int
) -> tuple[list[float], list[float]]:
    """Learning rate and weight decay of the first parameter group at each epoch."""
    stand_in = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(stand_in.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer.add_param_group({"params": [torch.zeros(1)]})  # as with maps to a teacher
    manager = settings.manager() if settings.entries else None
    if manager is not None:
        manager.start(stand_in, optimizer, 0, per_epoch, None)
    lr, decay = [], []
    for epoch in epochs:
        if manager is not None:
            manager.before_forward(stand_in, optimizer, epoch)
        lr.append(float(optimizer.param_groups[0]["lr"]))
        decay.append(float(optimizer.param_groups[0]["weight_decay"]))
    return lr, decay


def _own_schedule(optim: OptimConfig, epochs: Sequence[float]) -> list[float]:
    steps = max(1, round(epochs[-1] * _COCO_STEPS))
    schedule = optim.fitted(steps)
    return [schedule.lr_at(min(round(epoch * _COCO_STEPS), steps - 1)) for epoch in epochs]


def _groups(
    row: ModifierRow, engine: Engine, model: nn.Module, epochs: Sequence[float], per_epoch: int
) -> list[GroupCurve]:
    if row.kind not in ("thinning", "pruning"):
        return []
    modifier = engine.build(row.entry)
    if row.kind == "thinning" and hasattr(modifier, "fraction_at"):
        gone = tuple(1.0 - float(modifier.fraction_at(epoch)) for epoch in epochs)
        return [GroupCurve(row.number, "channels", row.parameters, gone)]
    if row.kind == "thinning":
        return []
    try:
        meta = meta_copy(model)
        names, levels = engine.sparsities(modifier, meta, epochs, per_epoch)
        spelled = recipe_names(meta)
        names = [spelled[name] for name in names]
    except ValueError as error:
        logger.debug("%s: %s", row.name, error)
        names, levels = _declared(row, epochs)
    alike: dict[tuple[float, ...], list[str]] = {}
    for name, course in zip(names, zip(*levels, strict=True), strict=True):
        alike.setdefault(course, []).append(name)
    return [
        GroupCurve(row.number, "zeros", tuple(group), course) for course, group in alike.items()
    ]


def _declared(row: ModifierRow, epochs: Sequence[float]) -> tuple[list[str], list[list[float]]]:
    """The same for pruning that has to see weights or gradients: its target from its beginning."""
    targets = targets_by_parameter(row.parameters, [row.entry], math.inf)
    ends = [targets[name].sparsity if name in targets else 0.0 for name in row.parameters]
    return list(row.parameters), [
        [end if epoch >= row.begin else 0.0 for end in ends] for epoch in epochs
    ]


def _phases(row: ModifierRow, end: float) -> list[Phase]:
    if row.kind != "quantization" or row.begin >= end:
        return []
    fixed = row.fields.get("disable_quantization_observer_epoch")
    frozen = row.fields.get("freeze_bn_stats_epoch")
    observed = end if fixed is None else min(max(float(fixed), row.begin), end)
    phases = [Phase("ranges learned", row.begin, observed)]
    if observed < end:
        phases.append(Phase("ranges fixed", observed, end))
    if frozen is not None and float(frozen) < end:
        phases.append(Phase("batch norms frozen", max(float(frozen), row.begin), end))
    return phases


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
