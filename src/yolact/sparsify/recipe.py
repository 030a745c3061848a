"""Recipes: reading, checking and resolving them into self-contained text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.modifiers import build_manager
from yolact.sparsify.text.document import dump, parse
from yolact.sparsify.text.sources import read_source
from yolact.sparsify.text.variables import override, resolve


@dataclass(frozen=True)
class Recipe:
    """A recipe that is known to be well formed."""

    text: str
    """YAML of its modifiers with every variable resolved; loading it gives an equal recipe."""
    label: str
    """Where it came from, for messages."""


def load_recipe(
    source: str, recipe_args: Mapping[str, Any] | None = None, label: str | None = None
) -> Recipe:
    """Read a recipe and check everything that can be checked without a model.

    Args:
        source: Path of a ``.md`` (YAML front matter) or ``.yaml`` file, the short name of a
            packaged recipe such as ``yolact.pruned``, or YAML text.
        recipe_args: Values for the recipe's variables, e.g. ``{"num_epochs": 2}``.
        label: What messages call it, such as the stub that ``source`` is the file of; None lets
            its path or name say so.

    Raises:
        RecipeError: The recipe is missing, is not YAML, is empty, names unknown modifiers, fields
            or variables, or has impossible values.
    """
    text, own_label = read_source(source)
    label = label or own_label
    if not text.strip():
        raise RecipeError(f"{label} is empty", hint="a recipe is a list of modifiers in YAML")
    document = parse(text, label)
    if recipe_args:
        document = override(document, recipe_args, label)
    document = resolve(document, label)
    build_manager(document, label)
    return Recipe(text=dump(document), label=label)
