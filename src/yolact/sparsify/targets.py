"""The sparsity that pruning modifiers end with, read from their fields: what a recipe promises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import Entry, matches

Mask = str | tuple[int, ...]
"""A recipe's ``mask_type``: a name, ``N:M``, or the shape of a block."""


@dataclass(frozen=True)
class PruningTarget:
    """The sparsity that one pruning modifier ends with."""

    end: float
    """Epoch at which it is reached."""
    patterns: tuple[str, ...]
    """Names, ``re:`` expressions and tokens of parameters."""
    sparsity: float
    """0..1."""
    mask: Mask
    """``unstructured``, a block such as [1, 4], ``N:M``, ``block4``, ``filter`` or ``channel``."""
    shared: bool
    """Of all its parameters together, not of each."""

    def covers(self, name: str) -> bool:
        """Whether the parameter ``name`` is one of those."""
        return any(matches(pattern, name) for pattern in self.patterns)


def targets_of(entry: Entry) -> Iterator[PruningTarget]:
    """What a modifier promises; one target for each of its final sparsities."""
    facts = facts_of(entry.name)
    final = entry.fields.get(facts.final) if facts.final else None
    params = entry.fields.get("params") or ["__ALL_PRUNABLE__"]
    mask: Any = entry.fields.get("mask_type", facts.mask)
    shared = entry.fields.get("global_sparsity", facts.shared == "unless told")
    for value, patterns in (final if isinstance(final, dict) else {final: params}).items():
        if value is not None:
            yield PruningTarget(
                end=float(entry.fields.get("end_epoch", -1)),
                patterns=tuple([patterns] if isinstance(patterns, str) else patterns),
                sparsity=float(value),
                mask=tuple(mask) if isinstance(mask, list) else str(mask),
                shared=bool(shared) or facts.shared == "always",
            )


def targets_by_parameter(
    names: Sequence[str], entries: Iterable[Entry], epoch: float
) -> dict[str, PruningTarget]:
    """For each parameter with a target due by ``epoch``, the last one to be reached.

    Args:
        names: Of parameters, as recipes spell them.
        entries: All modifiers of a recipe.
        epoch: As the recipe counts them; targets that are due later are left out.
    """
    due = [target for entry in entries for target in targets_of(entry) if target.end <= epoch]
    found = {}
    for name in names:
        mine = [target for target in due if target.covers(name)]
        if mine:
            found[name] = max(reversed(mine), key=lambda target: target.end)
    return found


def nm_of(mask_type: Any) -> tuple[int, int] | None:
    """N and M of a ``mask_type`` such as ``2:4``, or None."""
    if mask_type == "tensorrt":
        return 2, 4
    found = re.fullmatch(r"(\d+):(\d+)", str(mask_type))
    return (int(found[1]), int(found[2])) if found else None
