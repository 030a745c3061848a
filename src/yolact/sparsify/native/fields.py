"""Checks of fields that several modifiers have, in words for who wrote the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yolact.sparsify.native.modifier import Modifier


def require_order(modifier: Modifier) -> None:
    """Refuse an end before the start; the same moment, and no end, are fine.

    Raises:
        ValueError: It ends before it starts.
    """
    if modifier.end_epoch != -1 and modifier.end_epoch < modifier.start_epoch:
        raise ValueError(_order(modifier, "before it starts"))


def require_length(modifier: Modifier) -> None:
    """Refuse what has no length: its values are between those of its start and its end.

    Raises:
        ValueError: It does not end, or not after it starts.
    """
    if modifier.end_epoch <= max(modifier.start_epoch, 0.0):
        raise ValueError(_order(modifier, "not after it starts"))


def require_names(field: str, value: Any) -> list[str]:
    """The names in a field that takes a list of them, possibly nested, or a token such as __ALL__.

    Raises:
        ValueError: It is something else.
    """
    names = list(_flat(value)) if isinstance(value, list | tuple) else [_token(value)]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{field} is {value!r}; give a list of names")
    return names


def is_number(value: Any) -> bool:
    """Whether a value of a recipe is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_true(value: Any) -> bool:
    """A switch as sparseml reads it: of texts, those with an f or a 0 in them are off."""
    if isinstance(value, str):
        return bool(value) and not set("f0") & set(value.lower())
    return bool(value)


def _order(modifier: Modifier, how: str) -> str:
    return f"ends at epoch {modifier.end_epoch:g}, {how}, at {modifier.start_epoch:g}"


def _token(value: Any) -> Any:
    known = isinstance(value, str) and value.upper() in ("__ALL__", "__ALL_PRUNABLE__")
    return value.upper() if known else None


def _flat(values: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
