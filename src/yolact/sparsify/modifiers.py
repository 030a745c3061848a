"""From the entries of a recipe to sparseml's modifiers, with errors that name what is wrong."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from textwrap import shorten
from typing import Any

import yaml

from yolact.errors import RecipeError
from yolact.sparsify.catalog import refuse_kind, refuse_values
from yolact.sparsify.distillation import what_it_distils
from yolact.sparsify.document import Document, Entry, dump, entry_lists, stages
from yolact.sparsify.sparseml import (
    Modifier,
    QuantizationArgs,
    QuantizationScheme,
    ScheduledModifierManager,
)
from yolact.sparsify.thinning import require_alone


def build_manager(document: Document, label: str) -> Any:
    """The manager of all modifiers of a resolved document.

    Raises:
        RecipeError: The recipe has no modifiers, or one is unknown, unsupported, has unknown or
            missing fields or impossible values.
    """
    built: dict[str, list[Any]] = {}
    for name, stage in stages(document).items():
        items = [item for items in entry_lists(stage).values() for item in items]
        if items:  # sparseml fails on a stage without modifiers
            built[name] = [_build(item, label) for item in items]
    if not built:
        raise RecipeError(
            f"{label} contains no modifiers",
            hint="list !Modifier entries under keys like training_modifiers, pruning_modifiers",
        )
    for modifiers in built.values():
        require_alone(modifiers, label)
    unstaged = built.keys() == {""}
    return ScheduledModifierManager(modifiers=built[""] if unstaged else built)


def _build(item: Any, label: str) -> Any:
    if not isinstance(item, Entry):
        raise RecipeError(
            f"{label}: {shorten(repr(item), 60)} in a list of modifiers is not one",
            hint="entries begin with !, like - !GMPruningModifier",
        )
    _check(item, label)
    # sparseml would demand a loader of calibration images; ranges are calibrated here otherwise.
    fields = {k: v for k, v in item.fields.items() if k != "num_calibration_steps"}
    # The tag of sparseml's own constructors; each picks among classes of one name by their fields.
    text = dump({"modifier": Entry(f"pytorch.{item.name}", fields)})
    try:
        modifier = yaml.safe_load(text)["modifier"]
    except (
        *(TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError),
        yaml.YAMLError,  # a modifier inside a modifier
    ) as error:
        missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
        problem = f" needs {', '.join(missing)}" if missing else f": {error}"
        raise RecipeError(f"{label}: {item.name}{problem}", hint=_hint_for_values(item)) from error
    for name in ("start_epoch", "end_epoch"):
        if not math.isfinite(getattr(modifier, name, 0.0)):
            raise RecipeError(f"{label}: {item.name}: {name} is not finite", hint="give a number")
    if hasattr(modifier, "init_sparsity") and modifier.end_epoch <= modifier.start_epoch:
        raise RecipeError(
            f"{label}: {item.name} ends at epoch {modifier.end_epoch:g}, "
            f"but starts at {modifier.start_epoch:g}",
            hint=_hint_for_values(item),
        )
    refuse_values(modifier, label)
    what_it_distils(modifier, label)
    return modifier


def _check(item: Entry, label: str) -> None:
    refuse_kind(item.name, label)
    known = _known_fields()
    if item.name not in known:
        near = get_close_matches(item.name, known, n=1)
        raise RecipeError(
            f"{label}: unknown modifier !{item.name}",
            hint=f"did you mean !{near[0]}?" if near else "see the modifiers of sparseml 1.8",
        )
    _check_fields(item.fields, known[item.name], f"{label}: {item.name}")
    overrides = item.fields.get("scheme_overrides")
    schemes = list(overrides.values()) if isinstance(overrides, dict) else []
    for scheme in (item.fields.get("scheme"), *schemes):
        if isinstance(scheme, dict):
            _check_scheme(scheme, f"{label}: {item.name}: scheme")


def _check_scheme(scheme: Mapping[str, Any], owner: str) -> None:
    """Refuse unknown keys of a quantization scheme, which sparseml would ignore."""
    _check_fields(scheme, frozenset(QuantizationScheme.model_fields), owner)
    for name, arguments in scheme.items():
        if isinstance(arguments, dict):
            _check_fields(arguments, frozenset(QuantizationArgs.model_fields), f"{owner}: {name}")


def _check_fields(fields: Mapping[str, Any], known: frozenset[str], owner: str) -> None:
    for name in fields:
        if name not in known:
            near = get_close_matches(name, known, n=1) or sorted(known)
            raise RecipeError(f"{owner} has no field {name!r}", hint=f"try: {', '.join(near)}")


def _hint_for_values(item: Entry) -> str:
    epochs = {k: v for k, v in item.fields.items() if k.endswith("_epoch")}
    if not epochs:
        return "check the fields of this modifier"
    shown = ", ".join(f"{name} {value}" for name, value in epochs.items())
    return f"check its fields; it has {shown}, which may follow from the recipe's variables"


@cache
def _known_fields() -> dict[str, frozenset[str]]:
    """Field names by modifier; classes that share a name share them."""
    tags = yaml.SafeLoader.yaml_constructors
    known: dict[str, frozenset[str]] = {}
    for kind in _subclasses(Modifier):
        if f"!pytorch.{kind.__name__}" in tags:
            names = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
            known[kind.__name__] = known.get(kind.__name__, frozenset()) | names | {"log_types"}
    return known


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
