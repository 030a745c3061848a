"""A recipe that may be wrong: what can be read of it, and what is wrong with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.check.problems import Problem, from_error
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.text.document import Entry, entries, parse
from yolact.sparsify.text.sources import read_source
from yolact.sparsify.text.variables import Variable, listing, override, resolve


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
