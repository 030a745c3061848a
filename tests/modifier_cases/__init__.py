"""What every training-aware modifier does to YOLACT: one case for each class and variant.

The table ``recipes/modifiers.md`` is rendered from these cases, and ``test_sparsify_modifiers.py``
runs them: a row says only what a test has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["works", "patched", "cannot"]


@dataclass(frozen=True)
class Case:
    """One row of the table, with its evidence."""

    modifier: str
    """Class name, as after the ``!`` in a recipe."""
    variant: str
    """What of the class this row is about; empty when there is but one row."""
    recipe: str
    """YAML for a network of :func:`training.tiny_config`."""
    verdict: Verdict
    why: str
    """What was patched, or why it cannot and what to use instead; may be empty when it works."""
    check: Callable[[str], None]
    """Takes :attr:`recipe`, trains a few steps and asserts the modifier's effect; for "cannot",
    asserts the refusal."""

    def __str__(self) -> str:
        return f"{self.modifier} {self.variant}".strip()
