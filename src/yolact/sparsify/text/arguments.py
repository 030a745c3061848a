"""What ``--recipe_args`` accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from yolact.errors import RecipeError
from yolact.sparsify.text.document import parse_value

_HINT = "write num_epochs=2 init_lr=1e-3, or {num_epochs: 2, init_lr: 1e-3}"


def parse_recipe_args(texts: Sequence[str]) -> dict[str, Any]:
    """Overrides of a recipe's variables.

    Args:
        texts: Each is ``key=value``, several of them separated by commas, or a mapping in JSON,
            YAML or Python spelling (``{"num_epochs": 2}``). Values are read as YAML. A later
            mention of a key wins.

    Returns:
        Variable name to value.

    Raises:
        RecipeError: A text is none of these.
    """
    values: dict[str, Any] = {}
    for text in texts:
        values.update(_mapping(text) if text.lstrip().startswith("{") else _pairs(text))
    return values


def _mapping(text: str) -> dict[str, Any]:
    found = _argument(text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise RecipeError(f"recipe argument {text!r} does not map names to values", hint=_HINT)
    return found


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    for part in _split(text):
        name, separator, value = part.partition("=" if "=" in part else ":")
        if not separator or not name.strip().isidentifier():
            raise RecipeError(f"recipe argument {part.strip()!r} is not name=value", hint=_HINT)
        yield name.strip(), _argument(value)


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that are not inside brackets."""
    part, depth = "", 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            yield part
            part = ""
        else:
            part += character
    if part.strip():
        yield part


def _argument(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe argument {text!r} cannot be read", hint=_HINT) from error
