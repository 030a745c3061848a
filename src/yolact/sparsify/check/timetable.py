"""The modifiers of a recipe on a time line: what begins, ends and is frozen when; what clashes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.catalog import Kind, ModifierFacts, facts_of
from yolact.sparsify.check.parameters import Parameters, Problem, Severity, from_error, matched
from yolact.sparsify.document import Entry
from yolact.sparsify.modifiers import build_modifier
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.recipe_engines import recipe_engine

_SLACK = 1e-6
"""Epochs are sums and products of floats: windows that overlap by less only touch."""
_MOMENT = 2 * _SLACK
"""How long a learning rate that is set once is being set."""


@dataclass(frozen=True)
class ModifierRow:
    """One modifier of a recipe."""

    number: int
    """Its place in the recipe, from 1."""
    name: str
    kind: Kind
    begin: float
    """Epoch of its first effect; 0 when it begins at once."""
    end: float | None
    """Epoch of its last effect; None when the end of the run is its end."""
    frequency: float | None
    """Epochs between its updates; None when it acts at every step, or once."""
    fields: dict[str, Any]
    """As the recipe has them, variables resolved."""
    parameters: tuple[str, ...]
    """Names of the parameters it is for; empty when it names none."""

    @property
    def entry(self) -> Entry:
        """The modifier as a recipe has it."""
        return Entry(self.name, self.fields)

    @property
    def facts(self) -> ModifierFacts:
        """What is true of all modifiers of its name."""
        return facts_of(self.name)

    def problem(self, severity: Severity, sentence: str, hint: str) -> Problem:
        """One with this modifier."""
        return Problem(severity, sentence, hint, self.name, self.number)


def rows_of(recipe: Recipe, parameters: Parameters) -> tuple[list[ModifierRow], list[Problem]]:
    """A row for every modifier that can be built, a problem for every other one.

    Args:
        recipe: Whose modifiers need not be right.
        parameters: Of the model the recipe is for.
    """
    rows, problems, label = [], [], recipe.label
    engine = recipe_engine(recipe.engine_name)
    for number, entry in enumerate(recipe.entries, 1):
        try:
            modifier = build_modifier(entry, label, engine)
        except RecipeError as error:
            name = getattr(entry, "name", None)
            problems.append(from_error(error, label, name, number))
            continue
        rows.append(_row(number, entry, modifier, matched(entry, parameters)))
    return rows, problems


def _row(number: int, entry: Entry, modifier: Any, parameters: tuple[str, ...]) -> ModifierRow:
    end = float(getattr(modifier, "end_epoch", -1.0))
    frequency = float(getattr(modifier, "update_frequency", -1.0))
    return ModifierRow(
        number=number,
        name=entry.name,
        kind=facts_of(entry.name).kind,
        begin=max(float(getattr(modifier, "start_epoch", 0.0)), 0.0),
        end=end if end >= 0 else None,
        frequency=frequency if frequency > 0 else None,
        fields=entry.fields,
        parameters=parameters,
    )


@dataclass(frozen=True)
class RunEnd:
    """When a run ends, and who says so."""

    epoch: float
    by_recipe: bool
    """An EpochRangeModifier sets it; otherwise --epochs or --max_iter do."""

    @property
    def severity(self) -> Severity:
        """Of modifiers beyond it: a command line may cut a run short on purpose."""
        return "error" if self.by_recipe else "warning"


def run_end(rows: Sequence[ModifierRow], epochs: float | None) -> RunEnd | None:
    """The end of a run, or None when nothing tells.

    ``epochs``, its length by the command line, counts when the recipe sets none.
    """
    ends = [row.end for row in rows if row.kind == "length" and row.end is not None]
    if ends:
        return RunEnd(max(ends), by_recipe=True)
    return None if epochs is None else RunEnd(epochs, by_recipe=False)


def clashes(rows: Sequence[ModifierRow], end: RunEnd | None) -> Iterator[Problem]:
    """Everything about the epochs of a recipe that will not work or is probably not meant.

    Without the end of the run, what depends on it is left out.
    """
    if rows and end is None:
        yield Problem(
            "warning",
            "no EpochRangeModifier says how long the run is",
            "add one, or give train --epochs or --max_iter",
        )
    for row in rows:
        if end is not None and row.kind != "length":
            yield from _beyond_end(row, end)
        yield from _slow(row)
    yield from _two_learning_rates(rows)
    yield from _two_prunings(rows)
    yield from _quantized_too_early(rows)


def _beyond_end(row: ModifierRow, end: RunEnd) -> Iterator[Problem]:
    longer = "the EpochRangeModifier's end_epoch" if end.by_recipe else "--epochs"
    if row.begin >= end.epoch - _SLACK:
        yield row.problem(
            end.severity,
            f"begins at epoch {row.begin:g}, when the run is over: it ends at {end.epoch:g}",
            f"lower its start_epoch, or raise {longer}",
        )
    elif row.end is not None and row.end > end.epoch + _SLACK:
        yield row.problem(
            end.severity,
            f"ends at epoch {row.end:g}, after the run, which ends at {end.epoch:g}",
            f"lower its end_epoch, or raise {longer}",
        )
    if row.kind != "quantization":
        return
    for field in ("disable_quantization_observer_epoch", "freeze_bn_stats_epoch"):
        epoch = _number(row.fields.get(field))
        if epoch is not None and row.begin < end.epoch < epoch - _SLACK:
            yield row.problem(
                "warning",
                f"{field} is {epoch:g}, after the run, which ends at {end.epoch:g}",
                f"set it between {row.begin:g} and {end.epoch:g}",
            )


def _slow(row: ModifierRow) -> Iterator[Problem]:
    if row.frequency is None or row.end is None:
        return
    length = row.end - row.begin
    if row.frequency - _SLACK > length > 0:
        yield row.problem(
            "warning",
            f"updates every {row.frequency:g} epochs, but lasts only {length:g}: "
            "it acts at its start and at its end alone",
            "lower update_frequency",
        )


def _two_learning_rates(rows: Sequence[ModifierRow]) -> Iterator[Problem]:
    for one, other in combinations([row for row in rows if row.kind == "lr"], 2):
        first, second = _lr_window(one), _lr_window(other)
        begin, end = max(first[0], second[0]), min(first[1], second[1])
        if _share_groups(one, other) and end - begin > _SLACK:
            yield other.problem(
                "error",
                f"sets the learning rate {_span(begin, end)}, "
                f"and so does {one.name} (no. {one.number})",
                "let one end where the other begins",
            )


def _lr_window(row: ModifierRow) -> tuple[float, float]:
    """When a modifier sets the learning rate again and again, or for a moment."""
    if row.end is not None:
        return row.begin, row.end
    return row.begin, row.begin + _MOMENT if row.facts.momentary else math.inf


def _share_groups(one: ModifierRow, other: ModifierRow) -> bool:
    mine, theirs = (row.fields.get("param_groups") for row in (one, other))
    if not isinstance(mine, list) or not isinstance(theirs, list):
        return True
    return not mine or not theirs or any(group in theirs for group in mine)


def missing_groups(rows: Sequence[ModifierRow]) -> Iterator[Problem]:
    """Modifiers of the optimizer that are for groups of parameters there are not."""
    distilled = [row for row in rows if row.facts.distils == "layers"]
    own = any(row.fields.get("project_features", True) for row in distilled)
    there = ["group 0 (the network)"] + ["group 1 (the maps from student to teacher)"] * own
    for row in rows:
        wanted = row.fields.get("param_groups")
        if not row.facts.optimizer_only or wanted is None:
            continue
        groups = wanted if isinstance(wanted, list) else [None]
        if not all(type(group) is int and 0 <= group < len(there) for group in groups):
            yield row.problem(
                "error",
                f"param_groups is {wanted!r}, and the optimizer has {' and '.join(there)}",
                "leave param_groups out, or the modifier when it is for groups of another network",
            )


def _two_prunings(rows: Sequence[ModifierRow]) -> Iterator[Problem]:
    for one, other in combinations([row for row in rows if row.kind == "pruning"], 2):
        begin = max(one.begin, other.begin)
        end = min(_or_inf(one.end), _or_inf(other.end))
        shared = [name for name in other.parameters if name in set(one.parameters)]
        if shared and end - begin > _SLACK:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            yield other.problem(
                "error",
                f"prunes {shared[0]}{more} {_span(begin, end)}, "
                f"and so does {one.name} (no. {one.number})",
                "name each parameter in one of them, or let one end where the other begins",
            )


def _quantized_too_early(rows: Sequence[ModifierRow]) -> Iterator[Problem]:
    ends = [row.end for row in rows if row.kind == "pruning" and row.end is not None]
    for row in rows:
        if row.kind == "quantization" and ends and row.begin < max(ends) - _SLACK:
            yield row.problem(
                "warning",
                f"begins at epoch {row.begin:g}, before pruning ends at {max(ends):g}",
                "ranges settle on weights that stay: let it begin when pruning has ended",
            )


@dataclass(frozen=True)
class Span:
    """A stretch of a run in which the same parameters are frozen."""

    begin: float
    """Epoch."""
    end: float
    """Epoch; inf for the end of the run."""
    row: ModifierRow
    """The modifier that acts at its beginning."""
    frozen: frozenset[str]
    """Names of parameters."""

    def overlaps(self, row: ModifierRow) -> bool:
        """Whether a modifier's window and this stretch have a step in common."""
        end = math.inf if row.end is None else row.end
        return self.begin <= end and row.begin < self.end


def spans(rows: Sequence[ModifierRow]) -> list[Span]:
    """What is frozen when, in order; a modifier that ends leaves things as it found them."""
    mine = [row for row in rows if row.facts.freezes]
    events = sorted(
        [(row.begin, row.number, True, row) for row in mine]
        + [(row.end, row.number, False, row) for row in mine if row.end is not None],
        key=lambda event: event[:2],
    )
    frozen: frozenset[str] = frozenset()
    found: dict[int, frozenset[str]] = {}
    stretches = []
    for index, (epoch, number, begins, row) in enumerate(events):
        names = frozenset(row.parameters)
        if begins:
            found[number] = frozen & names
            frozen = frozen - names if row.fields.get("trainable") else frozen | names
        else:
            frozen = (frozen - names) | found.get(number, frozenset())
        end = events[index + 1][0] if index + 1 < len(events) else math.inf
        stretches.append(Span(epoch, end, row, frozen))
    return [stretch for stretch in stretches if stretch.end > stretch.begin]


def freezing(rows: Sequence[ModifierRow], parameters: Parameters) -> Iterator[Problem]:
    """Runs in which nothing is trained, and pruning that would wait for frozen weights to move."""
    stretches = spans(rows)
    for stretch in stretches:
        if len(stretch.frozen) == len(parameters.shapes):
            alone = len(stretch.row.parameters) == len(stretch.frozen)
            yield stretch.row.problem(
                "error",
                f"freezes {'every parameter' if alone else 'what others have not frozen yet'}: "
                "nothing is left to train",
                "name some of them in params",
            )
            return
    for row in rows:
        if row.facts.by_movement:
            yield from _waiting(row, stretches)


def _waiting(row: ModifierRow, stretches: Sequence[Span]) -> Iterator[Problem]:
    for stretch in stretches:
        names = [name for name in row.parameters if name in stretch.frozen]
        if names and stretch.overlaps(row):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield row.problem(
                "error",
                f"prunes by how weights move in training, and {names[0]}{more} cannot move from "
                f"epoch {max(stretch.begin, row.begin):g} on: {stretch.row.name} "
                f"(no. {stretch.row.number}) freezes them",
                "prune frozen layers with !GMPruningModifier, or freeze them when pruning has "
                "ended",
            )
            return


def _span(begin: float, end: float) -> str:
    if end - begin <= _MOMENT:
        return f"at epoch {begin:g}"
    return f"from epoch {begin:g}" + ("" if math.isinf(end) else f" to {end:g}")


def _or_inf(epoch: float | None) -> float:
    return math.inf if epoch is None else epoch


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value >= 0 else None
