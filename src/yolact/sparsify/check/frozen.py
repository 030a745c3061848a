"""Parameters that a recipe freezes: when, whether any is left, and what cannot be done to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yolact.sparsify.check.parameters import Parameters, Problem
from yolact.sparsify.check.timetable import ModifierRow
from yolact.sparsify.sparseml import TrainableParamsModifier


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
    mine = [row for row in rows if row.name == TrainableParamsModifier.__name__]
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
