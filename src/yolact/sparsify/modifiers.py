"""From the entries of a recipe to an engine's modifiers, with errors that name what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.catalog import CATALOG, facts_of
from yolact.sparsify.distillation import what_it_distils
from yolact.sparsify.document import (
    FROM_PARAM,
    NM_TOLERANCE,
    Document,
    Entry,
    entry_lists,
    is_number,
    nm_of,
    stages,
)
from yolact.sparsify.engine import Engine, Manager
from yolact.sparsify.recipe_engines import how_to_use_sparseml

_LONGEST = 100_000
"""Epochs; no run has more."""

_EPOCHS = ("start_epoch", "end_epoch", "update_frequency", "cycle_epochs")
_LATER = ("disable_quantization_observer_epoch", "freeze_bn_stats_epoch")
_AMOUNTS = ("init_lr", "final_lr", "learning_rate", "weight_decay", "active_weight_decay")

_COUNTS = ("fisher_block_size", "num_pages", "num_recomputations")

_SCHEME = frozenset({"input_activations", "weights", "output_activations", "target_hardware"})
"""Keys of a quantization scheme."""

_QUANTIZED = frozenset({"num_bits", "symmetric", "strategy", "kwargs"})
"""Keys of one part of a scheme."""

_Finding = tuple[str, str]

_FINE = ("", "")


def build_manager(document: Document, label: str, engine: Engine) -> Manager:
    """The engine's manager of all modifiers of a resolved document.

    Raises:
        RecipeError: The recipe has no modifiers, or one is unknown, unsupported, has unknown or
            missing fields or impossible values.
    """
    built: dict[str, list[Any]] = {}
    for name, stage in stages(document).items():
        items = [item for items in entry_lists(stage).values() for item in items]
        if items:  # sparseml fails on a stage without modifiers
            built[name] = [build_modifier(item, label, engine) for item in items]
    if not built:
        raise RecipeError(
            f"{label} contains no modifiers",
            hint="list !Modifier entries under keys like training_modifiers, pruning_modifiers",
        )
    for modifiers in built.values():
        _require_alone(modifiers, label)
    return engine.manager(built)


def build_modifier(item: Any, label: str, engine: Engine) -> Any:
    """The engine's modifier of an entry, which need not be one.

    Raises:
        RecipeError: It is none, or unknown, unsupported, has unknown or missing fields or
            impossible values.
    """
    if not isinstance(item, Entry):
        raise RecipeError(
            f"{label}: {shorten(repr(item), 60)} in a list of modifiers is not one",
            hint="entries begin with !, like - !GMPruningModifier",
        )
    _check(item, label, engine)
    # sparseml would demand a loader of calibration images; ranges are calibrated here otherwise.
    fields = {k: v for k, v in item.fields.items() if k != "num_calibration_steps"}
    try:
        modifier = engine.build(Entry(item.name, fields))
    except (TypeError, ValueError) as error:
        missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
        problem = f" needs {', '.join(missing)}" if missing else f": {error}"
        raise RecipeError(f"{label}: {item.name}{problem}", hint=_hint_for_values(item)) from error
    lasts = facts_of(item.name).kind == "length" and modifier.end_epoch >= 0
    if (lasts or hasattr(modifier, "init_sparsity")) and modifier.end_epoch <= modifier.start_epoch:
        raise RecipeError(
            f"{label}: {item.name} ends at epoch {modifier.end_epoch:g}, "
            f"but starts at {modifier.start_epoch:g}",
            hint=_hint_for_values(item),
        )
    _refuse_values(modifier, label)
    what_it_distils(modifier, label)
    return modifier


def _require_alone(modifiers: Sequence[Any], label: str) -> None:
    """Refuse stages in which other modifiers need a network that keeps its channels.

    Args:
        modifiers: Of one stage, of either engine.
        label: What to call the recipe in errors.

    Raises:
        RecipeError: Weights are pruned in the same stage, or quantized before thinning ends.
    """
    facts = [(facts_of(type(modifier).__name__), modifier) for modifier in modifiers]
    ends = [m.end_epoch for f, m in facts if f.kind == "thinning" and not f.removes_layers]
    if not ends:
        return
    if any(f.kind in ("pruning", "constant") for f, _ in facts):
        raise RecipeError(
            f"{label} prunes weights and removes channels in one stage",
            hint="remove channels in a first run, and prune its checkpoint in a second",
        )
    end = max(ends)
    if any(f.kind == "quantization" and modifier.start_epoch < end for f, modifier in facts):
        raise RecipeError(
            f"{label} quantizes before the last channels are removed, at epoch {end:g}",
            hint="let the QuantizationModifier start when the ChannelThinningModifier has ended",
        )


def _check(item: Entry, label: str, engine: Engine) -> None:
    if refused := facts_of(item.name).refused:
        raise RecipeError(f"{label}: {item.name} {refused[0]}", hint=refused[1])
    known = engine.fields()
    if item.name not in known and item.name in CATALOG:
        raise RecipeError(
            f"{label}: {item.name} is a modifier that only sparseml has, not the {engine.name} "
            "engine",
            hint=how_to_use_sparseml(),
        )
    if item.name not in known:
        near = get_close_matches(item.name, known, n=1)
        raise RecipeError(
            f"{label}: unknown modifier !{item.name}",
            hint=f"did you mean !{near[0]}?" if near else "see the modifiers of sparseml 1.8",
        )
    _check_fields(item.fields, known[item.name], f"{label}: {item.name}")
    _check_numbers(item.fields, f"{label}: {item.name}")
    _check_counts(item.fields, f"{label}: {item.name}")
    _check_sparsities(item, f"{label}: {item.name}")
    overrides = item.fields.get("scheme_overrides")
    schemes = list(overrides.values()) if isinstance(overrides, dict) else []
    for scheme in (item.fields.get("scheme"), *schemes):
        if isinstance(scheme, dict):
            _check_scheme(scheme, f"{label}: {item.name}: scheme")


def _check_scheme(scheme: Mapping[str, Any], owner: str) -> None:
    """Refuse unknown keys of a quantization scheme, which sparseml would ignore."""
    _check_fields(scheme, _SCHEME, owner)
    for name, arguments in scheme.items():
        if isinstance(arguments, dict):
            _check_fields(arguments, _QUANTIZED, f"{owner}: {name}")


def _check_fields(fields: Mapping[str, Any], known: frozenset[str], owner: str) -> None:
    for name in fields:
        if name not in known:
            near = get_close_matches(str(name), known, n=1) or sorted(known)
            raise RecipeError(f"{owner} has no field {name!r}", hint=f"try: {', '.join(near)}")


def _check_numbers(fields: Mapping[str, Any], owner: str) -> None:
    """Refuse what is no number, or none that can be: sparseml fails on it when its epoch comes."""
    for name in (*_EPOCHS, *_LATER, *_AMOUNTS):
        value = fields.get(name, 0)
        if value is None and name in _LATER:
            continue
        if not is_number(value) or not abs(value) <= _LONGEST:
            unquoted = ", without quotes" if isinstance(value, str) else ""
            raise RecipeError(
                f"{owner}: {name} is {value!r}", hint=f"give a number up to {_LONGEST}{unquoted}"
            )
        if value < 0 and (name in _AMOUNTS or value != -1):
            raise RecipeError(f"{owner}: {name} is {value!r}", hint="give a number from 0 on")


def _check_counts(fields: Mapping[str, Any], owner: str) -> None:
    """The same of whole numbers, and of what M-FAC and OBS divide by and compute on."""
    grads = fields.get("num_grads", 1)
    counts = [("num_grads", n) for n in (grads.values() if isinstance(grads, dict) else [grads])]
    for name, value in [*counts, *((name, fields.get(name, 1)) for name in _COUNTS)]:
        if type(value) is not int or value < 1:
            raise RecipeError(
                f"{owner}: {name} is {value!r}", hint="give a whole number, at least 1"
            )
    for name in ("damp", "init_update_fraction"):
        value = fields.get(name, 1.0)
        if not is_number(value) or not value > 0:
            raise RecipeError(f"{owner}: {name} is {value!r}", hint="give a number above 0")
    devices = fields.get("available_devices") or ["cpu"]
    known = isinstance(devices, list) and all(
        isinstance(device, str) and re.fullmatch(r"cpu|cuda(:\d+)?", device) for device in devices
    )
    if not known:
        raise RecipeError(
            f"{owner}: available_devices is {devices!r}",
            hint="give a list such as [cpu] or [cuda:0]",
        )


def _check_sparsities(item: Entry, owner: str) -> None:
    """Refuse what is no sparsity; whether it is one that can be, is seen later."""
    facts = facts_of(item.name)
    for name in facts.sparsities:
        value = item.fields.get(name, 0.0)
        by_layer = isinstance(value, dict) and name == "final_sparsity" and value
        if by_layer and all(map(is_number, value)) and all(map(_are_names, value.values())):
            continue
        if not is_number(value) and not (name == "init_sparsity" and value == FROM_PARAM):
            raise RecipeError(
                f"{owner}: {name} is {value!r}",
                hint="give a fraction such as 0.9"
                + (", or {0.9: [names of parameters]}" if name == "final_sparsity" else ""),
            )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _hint_for_values(item: Entry) -> str:
    epochs = {k: v for k, v in item.fields.items() if k.endswith("_epoch")}
    if not epochs:
        return "check the fields of this modifier"
    shown = ", ".join(f"{name} {value}" for name, value in epochs.items())
    return f"check its fields; it has {shown}, which may follow from the recipe's variables"


def _refuse_values(modifier: Any, label: str) -> None:
    """Refuse what sparseml accepts and then ignores, or fails on in the middle of training."""
    name = type(modifier).__name__
    for problem, hint in (
        _masks(modifier),
        _global(modifier),
        _cycle(modifier),
        _phases(modifier),
        _samples(modifier),
        _window(modifier),
    ):
        if problem:
            raise RecipeError(f"{label}: {name}: {problem}", hint=hint)


def _masks(modifier: Any) -> _Finding:
    mask_type = getattr(modifier, "mask_type", "unstructured")
    if facts_of(type(modifier).__name__).mask == "filter":
        return _FINE
    if mask_type in ("filter", "channel"):
        return (
            f"mask_type {mask_type} is that of StructuredPruningModifier",
            "use that, or ChannelThinningModifier to remove channels",
        )
    nm = nm_of(mask_type)
    block = isinstance(mask_type, list) and [type(side) for side in mask_type] == [int, int]
    if not (block or nm or mask_type in ("unstructured", "block4")):
        return (
            f"mask_type is {mask_type!r}",
            "use unstructured, block4, N:M such as 2:4, or a block such as [1, 4]",
        )
    return _nm(modifier, nm)


def _nm(modifier: Any, nm: tuple[int, int] | None) -> _Finding:
    if nm is None:
        return _FINE
    kept, group = nm
    if not 0 < kept < group:
        return f"{kept}:{group} keeps {kept} of {group} weights", "write for instance 2:4"
    sparsity = 1 - kept / group
    for field in facts_of(type(modifier).__name__).sparsities:
        for value in _numbers(getattr(modifier, field, None)):
            if abs(value - sparsity) > NM_TOLERANCE:
                return (
                    f"{field} {value:g} does not go with {kept}:{group} masks",
                    f"they are always {sparsity:g} sparse: give {sparsity:g} everywhere",
                )
    return _FINE


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else list(value) if isinstance(value, dict) else value
    if not isinstance(values, list):
        values = [values]
    return [float(v) for v in values if isinstance(v, int | float)]


def _global(modifier: Any) -> _Finding:
    if not getattr(modifier, "global_sparsity", False):
        return _FINE
    if len(set(_numbers(getattr(modifier, "final_sparsity", None)))) > 1:
        return "one global sparsity cannot be several", "give one number as final_sparsity"
    if getattr(modifier, "init_sparsity", None) == FROM_PARAM:
        return (
            f"init_sparsity {FROM_PARAM} has a value for each layer, not a global one",
            "give a number as init_sparsity",
        )
    return _FINE


def _cycle(modifier: Any) -> _Finding:
    if getattr(modifier, "lr_func", None) == "cyclic_linear" and modifier.cycle_epochs <= 0:
        return f"cycle_epochs is {modifier.cycle_epochs:g}", "give the epochs of a cycle, above 0"
    return _FINE


def _phases(modifier: Any) -> _Finding:
    if hasattr(modifier, "compression_sparsity") and modifier.update_frequency < 1:
        return (
            f"update_frequency, the epochs of a phase, is {modifier.update_frequency:g}",
            "give a whole number of epochs, at least 1",
        )
    return _FINE


def _samples(modifier: Any) -> _Finding:
    if not facts_of(type(modifier).__name__).samples:
        return _FINE
    unknown = set(modifier.grad_sampler_kwargs or {}) - {"batch_size"}
    if unknown:
        return f"grad_sampler_kwargs has no {min(unknown)!r}", "it has batch_size only"
    if getattr(modifier, "use_gradient_buffering", None):
        return (
            "buffered gradients are too few whenever masks are due within num_grads steps",
            "leave use_gradient_buffering out: gradients of training batches are computed then",
        )
    if isinstance(modifier.num_grads, dict) and not hasattr(modifier, "use_gradient_buffering"):
        return f"num_grads is {modifier.num_grads!r}", "give one number; MFAC may have several"
    if isinstance(modifier.num_grads, dict) and 0.0 not in modifier.num_grads:
        return "num_grads has no entry for sparsity 0.0", "add one, such as {0.0: 64, 0.9: 256}"
    return _FINE


def _window(modifier: Any) -> _Finding:
    if facts_of(type(modifier).__name__).removes_layers and modifier.end_epoch != -1:
        return (
            "checkpoints written before end_epoch would lack the layers that come back then",
            "leave end_epoch out: layers that are removed stay removed",
        )
    return _FINE
