"""Does a recipe fit a model? Checked before training, with every misfit named at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from yolact.errors import RecipeError
from yolact.sparsify.document import Entry, entries, parse
from yolact.sparsify.patterns import matches
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import recipe_names


def check_against(recipe: Recipe, model: nn.Module) -> None:
    """Check that a recipe's parameter names and mask shapes fit ``model``.

    Raises:
        RecipeError: A name or regular expression matches no parameter, or a block of the mask
            does not divide a parameter it is for.
    """
    renamed = recipe_names(model)
    parameters = {renamed[name]: value for name, value in model.named_parameters()}
    for entry in entries(parse(recipe.text, recipe.label)):
        patterns = list(_patterns(entry))
        _check_names(entry, patterns, list(parameters), recipe.label)
        _check_blocks(entry, patterns, parameters, recipe.label)


def _patterns(entry: Entry) -> Iterator[str]:
    params = entry.fields.get("params") or []
    yield from [params] if isinstance(params, str) else params
    final = entry.fields.get("final_sparsity")
    if isinstance(final, dict):
        for names in final.values():
            yield from names


def _check_names(entry: Entry, patterns: list[str], names: list[str], label: str) -> None:
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise RecipeError(
            f"{label}: {entry.name}: {patterns} are not all names of parameters",
            hint="give names such as proto_net.0.weight, or re: and a regular expression",
        )
    if entry.fields.get("params_strict") is False:
        return
    try:
        absent = [p for p in patterns if not any(matches(p, name) for name in names)]
    except re.error as error:
        raise RecipeError(
            f"{label}: {entry.name}: {error.pattern!r} is not a regular expression: {error}",
            hint="text after re: is a Python regular expression",
        ) from error
    if not absent:
        return
    plain = re.sub(r"[^\w.]", "", absent[0].removeprefix("re:"))
    near = get_close_matches(plain, names, n=1, cutoff=0.5)
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    raise RecipeError(
        f"{label}: {entry.name}: no parameter of the model matches {absent[0]!r}{more}",
        hint=f"did you mean {near[0]!r}?" if near else "use the recipe made for this --config",
    )


def _check_blocks(
    entry: Entry, patterns: list[str], parameters: Mapping[str, Tensor], label: str
) -> None:
    block: Any = entry.fields.get("mask_type")
    if not isinstance(block, list):
        return
    if len(block) != 2 or not all(isinstance(side, int) and side != 0 for side in block):
        raise RecipeError(
            f"{label}: {entry.name}: mask_type {block} is not a block shape",
            hint="give two whole numbers, output and input channels, such as [1, 4]",
        )
    for name, value in parameters.items():
        sides = list(zip(value.shape, block, strict=False))
        if any(matches(p, name) for p in patterns) and value.ndim > 1:
            if any(side > 0 and size % side for size, side in sides):
                raise RecipeError(
                    f"{label}: {entry.name}: blocks of {block} do not divide {name} "
                    f"{list(value.shape)}",
                    hint="leave that parameter out, or use mask_type: unstructured for it",
                )
