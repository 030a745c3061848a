"""Everything that can be said of a recipe and a model before the first step.

A recipe that may be wrong: what can be read of it, and what is wrong with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from yolact.config import OptimConfig, YolactConfig
from yolact.errors import RecipeError
from yolact.sparsify.check.curves import Curves, trace_curves
from yolact.sparsify.check.forecast import Prediction, predict
from yolact.sparsify.check.parameters import (
    Parameters,
    Problem,
    from_error,
    layer_problems,
    misfits,
    raise_errors,
)
from yolact.sparsify.check.timetable import ModifierRow, clashes, rows_of, run_end
from yolact.sparsify.document import Entry, entries, parse
from yolact.sparsify.recipe import Recipe, load_recipe, read_source
from yolact.sparsify.report.sparsity import convolutions, layer_sparsity
from yolact.sparsify.variables import Variable, listing, override, resolve

_SPARSE = 0.05
"""A layer with fewer zeros than this is dense: some weights are zero by chance."""


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe says, for one model, and what is wrong with it."""

    label: str
    """Where the recipe came from."""
    rows: tuple[ModifierRow, ...]
    """Its modifiers, but for those that cannot be built."""
    unpruned: tuple[str, ...]
    """Weights of the convolutions that no modifier prunes or thins."""
    problems: tuple[Problem, ...]
    """Errors and warnings, in the order of the modifiers they are about."""
    length: float | None
    """Of the run in epochs; None when nothing tells."""

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
    prediction: Prediction


def examine(
    items: Sequence[Entry],
    model: nn.Module,
    label: str,
    *,
    epochs: float | None = None,
    teacher: bool = False,
) -> RecipeReport:
    """Check a recipe against a model; every problem is named, none is raised.

    Args:
        items: All modifiers of the recipe, variables resolved.
        model: What the run begins with; without weights (on the meta device) will do.
        label: What messages call the recipe.
        epochs: Length of the run by the command line, for recipes that set none.
        teacher: Whether there is one to distill from.
    """
    parameters = Parameters.of(model)
    rows, problems = rows_of(items, parameters, label)
    end = run_end(rows, epochs)
    for row in rows:
        problems += misfits(row.entry, row.number, parameters)
        problems += layer_problems(row.entry, row.number, model)
        problems += _values(row)
        if row.name.endswith("DistillationModifier") and not teacher:
            problems.append(_no_teacher(row))
    problems += clashes(rows, end)
    convs = list(convolutions(model))
    pruned = {n for row in rows if row.kind in ("pruning", "thinning") for n in row.parameters}
    problems += _lost_zeros(model, rows)
    return RecipeReport(
        label=label,
        rows=tuple(rows),
        unpruned=tuple(name for name in convs if name not in pruned),
        problems=tuple(sorted(problems, key=lambda p: p.number or 0)),
        length=end.epoch if end else None,
    )


def require_sound(recipe: Recipe, model: nn.Module, epochs: float) -> tuple[Problem, ...]:
    """Refuse a recipe that will not work, with everything that is wrong with it.

    Whether there is a teacher to distill from is not looked at: training itself refuses without.

    Args:
        recipe: What the run follows.
        model: What it begins with.
        epochs: Length of the run by the command line, for recipes that set none.

    Returns:
        What is probably not meant.

    Raises:
        RecipeError: It has errors; the message names all of them.
    """
    items = list(entries(parse(recipe.text, recipe.label)))
    report = examine(items, model, recipe.label, epochs=epochs, teacher=True)
    raise_errors(report.problems, recipe.label)
    return report.warnings


def look_ahead(
    report: RecipeReport, model: nn.Module, optim: OptimConfig, image_size: int
) -> tuple[Outlook | None, Problem | None]:
    """What the recipe will do, as far as its modifiers fit the model.

    Args:
        report: Of the recipe and this model.
        model: As for :func:`examine`; unchanged.
        optim: Of the configuration, fitted to the batch size.
        image_size: Side of the network input in pixels.

    Returns:
        The outlook, or why there is none.
    """
    broken = {problem.number for problem in report.errors}
    rows = [row for row in report.rows if row.number not in broken]
    ends = [epoch for row in report.rows for epoch in (row.begin, row.end) if epoch]
    try:
        curves = trace_curves(rows, model, optim, report.length or max(ends, default=1.0))
        return Outlook(curves, predict(rows, curves, model, image_size)), None
    except RecipeError as error:
        return None, from_error(error, report.label)


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
    report = examine(draft.entries, model, draft.label, epochs=epochs)
    if draft.problem is not None and not report.errors:
        report = replace(report, problems=(draft.problem, *report.problems))
    outlook, problem = look_ahead(report, model, config.optim, config.model.image_size)
    if problem is not None:
        report = replace(report, problems=(*report.problems, problem))
    return report, outlook


def _values(row: ModifierRow) -> Iterator[Problem]:
    for name, value in _sparsities(row.fields):
        if not 0 <= value < 1:
            yield Problem(
                "error",
                f"{name} {value:g} is not a fraction from 0 to below 1",
                "0.9 means that nine of ten weights become zero",
                row.name,
                row.number,
            )
    first = row.fields.get("init_sparsity")
    for name, value in _sparsities(row.fields):
        if name == "final_sparsity" and isinstance(first, int | float) and value < first:
            yield Problem(
                "error",
                f"final_sparsity {value:g} is below init_sparsity {first:g}",
                "pruning only ever takes weights away: lower init_sparsity",
                row.name,
                row.number,
            )


def _sparsities(fields: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if name.endswith("sparsity") and not isinstance(value, bool):
            values = list(value) if isinstance(value, dict) else [value]
            yield from ((name, float(v)) for v in values if isinstance(v, int | float))


def _no_teacher(row: ModifierRow) -> Problem:
    return Problem(
        "warning",
        "needs a teacher",
        "give train the teacher's checkpoint with --distill_teacher",
        row.name,
        row.number,
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


@dataclass(frozen=True)
class Draft:
    """A recipe that has been read, before anyone knows whether it works."""

    label: str
    """Where it came from, for messages."""
    variables: tuple[Variable, ...]
    entries: tuple[Entry, ...]
    """Its modifiers, variables resolved."""
    problem: Problem | None
    """Why :func:`yolact.sparsify.recipe.load_recipe` refuses it; None if it does not."""


def read_draft(
    source: str, recipe_args: Mapping[str, Any] | None = None, label: str | None = None
) -> Draft:
    """Read a recipe as far as possible.

    Args:
        source: As for :func:`yolact.sparsify.recipe.load_recipe`.
        recipe_args: Values for the recipe's variables.
        label: As for it, too.

    Raises:
        RecipeError: Nothing can be listed: the recipe is missing, is not YAML, or its variables
            cannot be computed.
    """
    problem = None
    try:
        load_recipe(source, recipe_args, label)
    except RecipeError as error:
        problem = error
    text, own_label = read_source(source)
    label = label or own_label
    if problem is not None and not text.strip():
        raise problem
    written = parse(text, label)
    used = override(written, recipe_args, label) if recipe_args else written
    return Draft(
        label=label,
        variables=tuple(listing(written, used, label)),
        entries=tuple(entries(resolve(used, label))),
        problem=None if problem is None else from_error(problem, label),
    )
