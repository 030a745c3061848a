"""What is wrong with a recipe, as records: collected, printed, or raised as one error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from yolact.errors import RecipeError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that will not work (an error), or that is probably not meant (a warning)."""

    severity: Severity
    sentence: str
    """What is wrong, without the name of the recipe."""
    hint: str
    """What to do about it."""
    modifier: str | None = None
    """Class name of the modifier it is about; None for the recipe as a whole."""
    number: int | None = None
    """Place of that modifier in the recipe, from 1."""

    def __str__(self) -> str:
        """The sentence, with the modifier that it is about."""
        if self.modifier is None or self.sentence.startswith(self.modifier):
            return self.sentence
        if f"!{self.modifier}" in self.sentence:
            return self.sentence
        return f"{self.modifier}: {self.sentence}"


def from_error(
    error: RecipeError, label: str, modifier: str | None = None, number: int | None = None
) -> Problem:
    """The problem that an error tells of.

    Args:
        error: Its message may begin with ``label`` and with ``modifier``.
        label: What messages call the recipe.
        modifier: As in :class:`Problem`.
        number: As in :class:`Problem`.
    """
    sentence = str(error).removeprefix(f"{label}: ").removeprefix(f"{modifier}: ")
    return Problem("error", sentence, error.hint or "", modifier, number)


def raise_errors(problems: Iterable[Problem], label: str) -> None:
    """Raise one error that names every problem that is one; warnings pass.

    Raises:
        RecipeError: There are errors among the problems.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    if len(errors) == 1:
        raise RecipeError(f"{label}: {errors[0]}", hint=errors[0].hint)
    hints = dict.fromkeys(problem.hint for problem in errors)
    raise RecipeError(
        f"{label} has {len(errors)} problems: {'; '.join(map(str, errors))}",
        hint="; ".join(hints),
    )
