"""Staged recipes: what was applied to a model in earlier runs and in this one, in one text."""

from __future__ import annotations

import math
from typing import Any

from yolact.sparsify.document import Document, Entry, dump, entry_lists, parse, stages
from yolact.sparsify.thinning import ChannelThinningModifier


def compose(earlier: str | None, recipe: str) -> str:
    """Both recipes as stages of one, the second's epochs counted from the end of the first.

    Args:
        earlier: Resolved text of the recipes before, or None.
        recipe: Resolved text of the recipe of this run.
    """
    if earlier is None:
        return recipe
    first, second = parse(earlier, "the checkpoint's recipe"), parse(recipe, "the recipe")
    staged: Document = {}
    for name, stage in stages(first).items():
        staged[name or "stage_0"] = stage
    begin = last_epoch(first)
    for name, stage in stages(second).items():
        staged[_free_name(name, staged)] = {
            key: [_shifted(entry, begin) for entry in items]
            for key, items in entry_lists(stage).items()
        }
    return dump(staged)


def until(recipe: str, steps: int, steps_per_epoch: int) -> str:
    """The part of a recipe that a run went through in the first ``steps`` of its last stage.

    What had not begun is left out. Of what had not ended, that much is kept as happened: weights
    pruned so far stay zero, channels removed so far stay away.
    """
    document = parse(recipe, "the checkpoint's recipe")
    *_, (name, stage) = stages(document).items()
    clock = steps / steps_per_epoch
    begins = last_stage_begins(document)

    def begun(entry: Entry) -> bool:
        start = float(entry.fields.get("start_epoch", 0)) - begins
        return math.ceil(start * steps_per_epoch) < steps

    def ended(entry: Entry) -> bool:
        end = float(entry.fields.get("end_epoch", -1)) - begins
        return round(end * steps_per_epoch) <= steps

    shortened = {
        key: [e if ended(e) else _ended_at(e, begins + clock) for e in items if begun(e)]
        for key, items in entry_lists(stage).items()
    }
    return dump({**document, **({name: shortened} if name else shortened)})


def _ended_at(entry: Entry, epoch: float) -> Entry:
    """What a modifier did if its run stopped at ``epoch``, before its end."""
    fields = {**entry.fields, "end_epoch": epoch}
    if entry.name == ChannelThinningModifier.__name__:
        width = ChannelThinningModifier(**entry.fields).fraction_at(epoch)
        return Entry(entry.name, {**fields, "final_width": width})
    final = fields.get("final_sparsity")
    if final is None:
        return Entry(entry.name, fields)
    params = fields.get("params", [])
    if isinstance(final, dict):
        params = [name for names in final.values() for name in names]
    begin = fields.get("start_epoch", -1.0)
    return Entry(
        "ConstantPruningModifier", {"start_epoch": begin, "end_epoch": epoch, "params": params}
    )


def last_stage_begins(document: Document) -> float:
    """The epoch at which the last stage of a composed recipe begins; 0 without stages."""
    *before, _ = stages(document).items()
    return last_epoch(dict(before)) if before else 0.0


def last_epoch(document: Document) -> float:
    """The largest start or end epoch of any modifier; 0 when none has one."""
    epochs = [
        float(value)
        for stage in stages(document).values()
        for items in entry_lists(stage).values()
        for entry in items
        for name, value in entry.fields.items()
        if name in ("start_epoch", "end_epoch")
    ]
    return max([0.0, *epochs])


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
