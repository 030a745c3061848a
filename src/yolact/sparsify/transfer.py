"""Taking a recipe along with weights of which some layers begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.ao.quantization import FakeQuantizeBase

from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import Document, Entry, entry_lists, matches
from yolact.sparsify.recipe import Recipe


def forget_layers(
    recipe: Recipe, parameters: Sequence[str], forgotten: Sequence[str]
) -> Recipe | None:
    """The same recipe, as if it had never pruned some layers.

    New layers are dense: nothing of what the recipe made of their predecessors is true of them.

    Args:
        recipe: Possibly with stages.
        parameters: Names of the model's parameters.
        forgotten: Beginnings of the names of those that begin anew.

    Returns:
        A recipe in which pruning modifiers that covered such a parameter name all others that they
        covered instead; None when nothing is left. How layers are quantized stays: that is
        structure, not weights.
    """
    kept = [name for name in parameters if not name.startswith(tuple(forgotten))]

    def remaining(stage: Document) -> Document:
        return {
            key: [left for entry in items if (left := _without(entry, parameters, kept))]
            for key, items in entry_lists(stage).items()
        }

    stages = {name: remaining(stage) for name, stage in recipe.stages.items()}
    found = Recipe(stages.get("", stages), recipe.label)
    return found if found.entries else None


def learn_ranges(model: nn.Module, layers: Sequence[str]) -> None:
    """Let the quantizers of some layers learn their ranges, which a recipe may have ended.

    Args:
        model: Quantized or not.
        layers: Beginnings of the names of layers that begin anew.
    """
    for name, module in model.named_modules():
        if f"{name}.".startswith(tuple(layers)) and isinstance(module, FakeQuantizeBase):
            module.enable_observer()


def _without(entry: Entry, parameters: Sequence[str], kept: Sequence[str]) -> Entry | None:
    if facts_of(entry.name).kind not in ("pruning", "constant"):
        return entry
    fields = dict(entry.fields)
    for key in ("params", "final_sparsity"):
        if isinstance(fields.get(key), dict):
            groups = {v: _names(p, parameters, kept) for v, p in fields[key].items()}
            fields[key] = {value: names for value, names in groups.items() if names}
        elif key == "params" and fields.get(key):
            fields[key] = _names(fields[key], parameters, kept)
        if key in fields and fields[key] in ([], {}) and entry.fields[key] not in ([], {}):
            return None
    return Entry(entry.name, fields)


def _names(patterns: Any, parameters: Sequence[str], kept: Sequence[str]) -> Any:
    """``patterns``, or the names of the kept parameters among those they stand for."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    covered = [name for name in parameters if any(matches(p, name) for p in listed)]
    remaining = [name for name in covered if name in kept]
    return patterns if len(remaining) == len(covered) else remaining
