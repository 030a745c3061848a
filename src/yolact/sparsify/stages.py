"""Recipes over several runs: those of earlier runs and of this one, composed, cut, or cut down.

A recipe that was stored with weights has a stage for each run that they went through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from yolact.model.fake_quantize import is_fake_quantize
from yolact.sparsify.catalog import CONSTANT, facts_of
from yolact.sparsify.document import Document, Entry, entries, entry_lists, matches
from yolact.sparsify.native.engine import NativeEngine
from yolact.sparsify.native.thinning import ChannelThinningModifier
from yolact.sparsify.recipe import Recipe


def compose(earlier: Recipe | None, recipe: Recipe) -> Recipe:
    """Both recipes as stages of one, the second's epochs counted from the end of the first.

    ``earlier`` is composed already; without it, there is only the other.
    """
    if earlier is None:
        return recipe
    staged: Document = {name or "stage_0": stage for name, stage in earlier.stages.items()}
    begin = last_epoch(earlier)
    for name, stage in recipe.stages.items():
        staged[_free_name(name, staged)] = {
            key: [_shifted(entry, begin) for entry in items]
            for key, items in entry_lists(stage).items()
        }
    return replace(recipe, document=staged)


def until(recipe: Recipe, steps: int, steps_per_epoch: int) -> Recipe:
    """The part of a recipe that a run went through in the first ``steps`` of its last stage.

    What had not begun is left out. Of what had not ended, that much is kept as happened: weights
    pruned so far stay zero, channels removed so far stay away.
    """
    *_, (name, stage) = recipe.stages.items()
    clock = steps / steps_per_epoch
    begins = last_stage_begins(recipe)

    def begun(entry: Entry) -> bool:
        start = float(entry.fields.get("start_epoch", 0)) - begins
        return math.ceil(start * steps_per_epoch) < steps

    def ended(entry: Entry) -> bool:
        end = float(entry.fields.get("end_epoch", -1)) - begins
        return round(end * steps_per_epoch) <= steps

    shortened: Document = {
        key: [e if ended(e) else _ended_at(e, begins + clock) for e in items if begun(e)]
        for key, items in entry_lists(stage).items()
    }
    document = {**recipe.document, name: shortened} if name else shortened
    return replace(recipe, document=document)


def last_stage_begins(recipe: Recipe) -> float:
    """The epoch at which the last stage of a composed recipe begins; 0 without stages."""
    *before, _ = recipe.stages.values()
    return _last_epoch(entry for stage in before for entry in entries(stage))


def last_epoch(recipe: Recipe) -> float:
    """The largest start or end epoch of any modifier; 0 when none has one."""
    return _last_epoch(recipe.entries)


def _last_epoch(items: Iterable[Entry]) -> float:
    names = ("start_epoch", "end_epoch")
    return max([0.0, *(float(e.fields[name]) for e in items for name in names if name in e.fields)])


def _ended_at(entry: Entry, epoch: float) -> Entry:
    """What a modifier did if its run stopped at ``epoch``, before its end."""
    fields = {**entry.fields, "end_epoch": epoch}
    thins = entry.name == ChannelThinningModifier.__name__
    modifier = NativeEngine().build(entry) if thins else None
    if isinstance(modifier, ChannelThinningModifier):
        return Entry(entry.name, {**fields, "final_width": modifier.fraction_at(epoch)})
    final = fields.get("final_sparsity")
    if final is None:
        return Entry(entry.name, fields)
    params = fields.get("params", [])
    if isinstance(final, dict):
        params = [name for names in final.values() for name in names]
    begin = fields.get("start_epoch", -1.0)
    return Entry(
        CONSTANT,
        {"start_epoch": begin, "end_epoch": epoch, "params": params},
    )


def _free_name(wanted: str, taken: Document) -> str:
    if wanted and wanted not in taken:
        return wanted
    number = len(taken)
    while f"stage_{number}" in taken:
        number += 1
    return f"stage_{number}"


def _shifted(entry: Entry, by: float) -> Entry:
    fields = {"start_epoch": -1.0, **entry.fields}
    return Entry(entry.name, {name: _shift(name, value, by) for name, value in fields.items()})


def _shift(name: str, value: Any, by: float) -> Any:
    if name == "start_epoch":
        return max(float(value), 0.0) + by  # -1 means: from the start
    if name.endswith("_epoch") and value is not None and value != -1:
        return float(value) + by
    return value


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
    found = replace(recipe, document=stages.get("", stages))
    return found if found.entries else None


def learn_ranges(model: nn.Module, layers: Sequence[str]) -> None:
    """Let the quantizers of ``layers`` learn their ranges, which a recipe may have ended.

    ``layers`` are beginnings of names; the model need not be quantized.
    """
    for name, module in model.named_modules():
        if f"{name}.".startswith(tuple(layers)) and is_fake_quantize(module):
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
