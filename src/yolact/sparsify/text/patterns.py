"""How recipes name parameters."""

from __future__ import annotations

import re

_TOKENS = ("__ALL__", "__ALL_PRUNABLE__")


def matches(pattern: str, name: str) -> bool:
    """Whether a recipe's name, ``re:`` expression or token stands for the parameter ``name``."""
    if pattern in _TOKENS:
        return True
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name
