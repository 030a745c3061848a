"""The modifiers of a recipe, built and put in numbers: what they are, when, and for what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from yolact.errors import RecipeError
from yolact.sparsify._compat import BasePruningModifier, ConstantPruningModifier
from yolact.sparsify.check.fit import Parameters, matched
from yolact.sparsify.check.problems import Problem, from_error
from yolact.sparsify.modifiers import build_manager
from yolact.sparsify.text.document import Entry

Kind = Literal["length", "lr", "pruning", "constant", "quantization", "thinning", "other"]
"""What a modifier does, as far as a check has to tell modifiers apart."""


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


def rows_of(
    items: Iterable[Entry], parameters: Parameters, label: str
) -> tuple[list[ModifierRow], list[Problem]]:
    """A row for every modifier that can be built, a problem for every other one.

    Args:
        items: All modifiers of a recipe, variables resolved.
        parameters: Of the model the recipe is for.
        label: What messages call the recipe.
    """
    rows, problems = [], []
    for number, entry in enumerate(items, 1):
        try:
            manager = build_manager({"modifiers": [entry]}, label)
        except RecipeError as error:
            name = getattr(entry, "name", None)
            problems.append(from_error(error, label, name, number))
            continue
        rows.append(_row(number, entry, manager, matched(entry, parameters)))
    return rows, problems


def _row(number: int, entry: Entry, manager: Any, parameters: tuple[str, ...]) -> ModifierRow:
    modifier = next(iter(manager.iter_modifiers()))
    end = float(getattr(modifier, "end_epoch", -1.0))
    frequency = float(getattr(modifier, "update_frequency", -1.0))
    return ModifierRow(
        number=number,
        name=entry.name,
        kind=_kind(modifier, manager),
        begin=max(float(getattr(modifier, "start_epoch", 0.0)), 0.0),
        end=end if end >= 0 else None,
        frequency=frequency if frequency > 0 else None,
        fields=entry.fields,
        parameters=parameters,
    )


def _kind(modifier: Any, manager: Any) -> Kind:
    if isinstance(modifier, ConstantPruningModifier):
        return "constant"
    if isinstance(modifier, BasePruningModifier):
        return "pruning"
    if manager.epoch_modifiers:
        return "length"
    if manager.learning_rate_modifiers:
        return "lr"
    if manager.quantization_modifiers:
        return "quantization"
    return "thinning" if manager.structured_modifiers else "other"
