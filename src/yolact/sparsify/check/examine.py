"""Everything that can be said of a recipe and a model before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from yolact.config import YolactConfig
from yolact.errors import RecipeError
from yolact.optim_config import OptimConfig
from yolact.sizes import ImageSize
from yolact.sparsify.catalog import EngineName, facts_of
from yolact.sparsify.check.curves import Curves, trace_curves
from yolact.sparsify.check.forecast import Forecast, forecast
from yolact.sparsify.check.parameters import (
    Parameters,
    Problem,
    from_error,
    misfits,
    raise_errors,
)
from yolact.sparsify.check.timetable import (
    ModifierRow,
    clashes,
    freezing,
    missing_groups,
    rows_of,
    run_end,
)
from yolact.sparsify.recipe import Recipe, read_document
from yolact.sparsify.sparsity import convolutions, layer_sparsity
from yolact.sparsify.structure import rehearse
from yolact.sparsify.variables import Variable, listing, override, resolve

_SPARSE = 0.2
"""A layer with a smaller share of zeros is dense. Layers of EfficientNet-Lite0 and Lite2 have up to
7 and 13 % in their ImageNet weights, which nobody pruned."""


@dataclass(frozen=True)
class PlannedRun:
    """What is known of a training run before it begins."""

    epochs: float | None = None
    """Its length by the command line, for recipes that set none."""
    teacher: bool = False
    """Whether there is one to distill from, or somebody else asks for one."""


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe says, for one model, and what is wrong with it."""

    recipe: Recipe
    rows: tuple[ModifierRow, ...]
    """Its modifiers, but for those that cannot be built."""
    unpruned: tuple[str, ...]
    """Weights of the convolutions that no modifier prunes or thins."""
    problems: tuple[Problem, ...]
    """Errors and warnings, in the order of the modifiers they are about."""
    length: float | None
    """Of the run in epochs; None when nothing tells."""

    @property
    def label(self) -> str:
        """Where the recipe came from."""
        return self.recipe.label

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What will not work."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is probably not meant."""
        return tuple(p for p in self.problems if p.severity == "warning")


@dataclass(frozen=True)
class Outlook:
    """What a recipe will do to a model."""

    curves: Curves
    forecast: Forecast


@dataclass(frozen=True)
class Draft:
    """A recipe that has been read, before anyone knows whether it works."""

    recipe: Recipe
    variables: tuple[Variable, ...]
    problem: Problem | None
    """Why :func:`yolact.sparsify.recipe.load_recipe` refuses it; None if it does not."""


def examine(recipe: Recipe, model: nn.Module, run: PlannedRun | None) -> RecipeReport:
    """Check a recipe against a model and a run; every problem is named, none is raised.

    Args:
        recipe: As read; its modifiers need not be right, nor even known.
        model: What the run begins with; without weights (on the meta device) will do.
        run: What is known of it. None stands for one shot without training, in which epochs and
            teachers do not matter.
    """
    parameters = Parameters.of(model)
    rows, problems = rows_of(recipe, parameters)
    end = run_end(rows, run.epochs if run else None)
    problems += [p for row in rows for p in _alone(row, parameters, model)]
    if run is None:
        learning = {n: e.name for n, e in enumerate(recipe.entries, 1) if _learns(e)}
        problems = [problem for problem in problems if problem.number not in learning]
        problems += [_needs_training(number, name) for number, name in learning.items()]
    else:
        problems += [
            _no_calibration(row) for row in rows if row.fields.get("num_calibration_steps")
        ]
        problems += [_no_teacher(row) for row in rows if row.facts.distils and not run.teacher]
        problems += clashes(rows, end)
        problems += freezing(rows, parameters)
        problems += missing_groups(rows)
        problems += _lost_zeros(model, rows)
    pruned = {n for row in rows if row.kind in ("pruning", "thinning") for n in row.parameters}
    return RecipeReport(
        recipe=recipe,
        rows=tuple(rows),
        unpruned=tuple(name for name in convolutions(model) if name not in pruned),
        problems=tuple(sorted(problems, key=lambda p: p.number or 0)),
        length=end.epoch if end else None,
    )


def require_sound(recipe: Recipe, model: nn.Module, run: PlannedRun | None) -> tuple[Problem, ...]:
    """Refuse a recipe that will not work, with everything that is wrong with it.

    Whoever gives a recipe to a :class:`yolact.sparsify.driver.RecipeDriver` asks this first. The
    model is not changed; ``run`` is as for :func:`examine`.

    Returns:
        What is probably not meant.

    Raises:
        RecipeError: It has errors, all of which the message names; or the model cannot be
            quantized, or does not run, as the recipe wants it later.
    """
    report = examine(recipe, model, run)
    raise_errors(report.problems, recipe.label)
    if run is not None:
        rehearse(model, recipe)
    return report.warnings


def read_draft(
    source: str,
    recipe_args: Mapping[str, Any] | None = None,
    label: str | None = None,
    engine: EngineName | None = None,
) -> Draft:
    """Read a recipe as far as possible.

    Everything given is as for :func:`yolact.sparsify.recipe.load_recipe`.

    Raises:
        RecipeError: Nothing can be listed: the recipe is missing, is not YAML, or its variables
            cannot be computed.
    """
    written, label = read_document(source, label)
    used = override(written, recipe_args, label) if recipe_args else written
    recipe = Recipe(resolve(used, label), label, engine)
    problem = None
    try:
        recipe.manager()
    except RecipeError as error:
        problem = from_error(error, label)
    return Draft(recipe, tuple(listing(written, used, label)), problem)


def check_draft(
    draft: Draft, model: nn.Module, config: YolactConfig, epochs: float | None = None
) -> tuple[RecipeReport, Outlook | None]:
    """The report with every problem in it, and what the recipe will do.

    Args:
        draft: The recipe.
        model: As for :func:`examine`.
        config: Of the model; its schedule is that of the run.
        epochs: Length of the run by the command line, for recipes that set none.
    """
    report = examine(draft.recipe, model, PlannedRun(epochs))
    if draft.problem is not None and not report.errors:
        report = replace(report, problems=(draft.problem, *report.problems))
    outlook, problem = look_ahead(report, model, config.optim, config.model.image_size)
    if problem is not None and problem not in report.problems:
        report = replace(report, problems=(*report.problems, problem))
    return report, outlook


def look_ahead(
    report: RecipeReport, model: nn.Module, optim: OptimConfig, image_size: ImageSize
) -> tuple[Outlook | None, Problem | None]:
    """What the recipe will do, as far as its modifiers fit the model.

    Args:
        report: Of the recipe and this model.
        model: As for :func:`examine`; unchanged.
        optim: Of the configuration, fitted to the batch size.
        image_size: Of the network input.

    Returns:
        The outlook, or why there is none.
    """
    broken = {problem.number for problem in report.errors}
    rows = [row for row in report.rows if row.number not in broken]
    ends = [epoch for row in report.rows for epoch in (row.begin, row.end) if epoch]
    try:
        end = report.length or max(ends, default=1.0)
        curves = trace_curves(report.recipe, rows, model, optim, end)
        return Outlook(curves, forecast(rows, curves, model, image_size)), None
    except RecipeError as error:
        return None, from_error(error, report.label)


def _alone(row: ModifierRow, parameters: Parameters, model: nn.Module) -> Iterator[Problem]:
    """What is wrong with a modifier whatever the others do."""
    yield from misfits(row.entry, row.number, parameters, model)
    yield from _values(row)


def _values(row: ModifierRow) -> Iterator[Problem]:
    for name, value in _sparsities(row):
        if not 0 <= value < 1:
            yield row.problem(
                "error",
                f"{name} {value:g} is not a fraction from 0 to below 1",
                "0.9 means that nine of ten weights become zero",
            )
    first = row.fields.get("init_sparsity")
    for name, value in _sparsities(row):
        if name == "final_sparsity" and isinstance(first, int | float) and value < first:
            yield row.problem(
                "error",
                f"final_sparsity {value:g} is below init_sparsity {first:g}",
                "pruning only ever takes weights away: lower init_sparsity",
            )


def _sparsities(row: ModifierRow) -> Iterator[tuple[str, float]]:
    for name in row.facts.sparsities:
        value = row.fields.get(name)
        values = list(value) if isinstance(value, dict) else [value]
        yield from ((name, float(v)) for v in values if isinstance(v, int | float))


def _learns(entry: Any) -> bool:
    facts = facts_of(getattr(entry, "name", ""))
    return facts.kind in ("pruning", "constant", "thinning") and not facts.at_once


def _needs_training(number: int, name: str) -> Problem:
    return Problem(
        "error",
        f"!{name} learns from training what to prune, and there is none in one shot",
        "use !GMPruningModifier, or train with sparseml.yolact.train --recipe",
        name,
        number,
    )


def _no_teacher(row: ModifierRow) -> Problem:
    return row.problem(
        "warning",
        "needs a teacher",
        "give train the teacher's checkpoint with --distill_teacher",
    )


def _no_calibration(row: ModifierRow) -> Problem:
    return row.problem(
        "warning",
        "num_calibration_steps has no effect on training: "
        "the training images set the ranges of quantizers",
        "quantize without training by export_onnx --one-shot",
    )


def _lost_zeros(model: nn.Module, rows: Sequence[ModifierRow]) -> Iterator[Problem]:
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    kept = {n for row in rows if row.kind in ("pruning", "constant") for n in row.parameters}
    layers = [layer for layer in layer_sparsity(model) if layer.sparsity > _SPARSE]
    lost = [layer.name for layer in layers if layer.name not in kept]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Problem(
            "warning",
            f"{lost[0]}{more} have zeros that training will fill",
            "to keep them, add - !ConstantPruningModifier {params: __ALL_PRUNABLE__}",
        )
