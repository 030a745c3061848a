"""Taking a recipe along with weights of which some layers begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.ao.quantization import FakeQuantizeBase

from yolact.sparsify.document import Entry, dump, entries, entry_lists, matches, parse, stages


def forget_layers(
    recipe_text: str, parameters: Sequence[str], forgotten: Sequence[str]
) -> str | None:
    """The same recipe, as if it had never pruned some layers.

    New layers are dense: nothing of what the recipe made of their predecessors is true of them.

    Args:
        recipe_text: Resolved, possibly with stages.
        parameters: Names of the model's parameters.
        forgotten: Beginnings of the names of those that begin anew.

    Returns:
        Text in which pruning modifiers that covered such a parameter name all others that they
        covered instead; None when nothing is left. How layers are quantized stays: that is
        structure, not weights.
    """
    document = parse(recipe_text, "the checkpoint's recipe")
    kept = [name for name in parameters if not name.startswith(tuple(forgotten))]
    for stage in stages(document).values():
        for key, items in entry_lists(stage).items():
            left = [_without(entry, parameters, kept) for entry in items]
            stage[key] = [entry for entry in left if entry is not None]
    return dump(document) if any(entries(document)) else None


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
    if not entry.name.endswith("PruningModifier"):
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
