"""What sparseml accepts and then ignores, or fails on in the middle of training: refused here."""

from __future__ import annotations

import re
from typing import Any

import torch

from yolact.errors import RecipeError
from yolact.sparsify.sparseml import LR_SCHEDULERS, get_mask_creator_default

CANNOT = {
    "ASRegModifier": (
        "has no tag in sparseml, and its penalty is undefined before its first epoch",
        "remove it: no engine here is faster with zeros among the activations",
    ),
    "LayerThinningModifier": (
        "leaves no trace in the recipe of which channels it removed: its checkpoints do not load",
        "use ChannelThinningModifier, which knows this network's channels",
    ),
    "PowerpropagationModifier": (
        "renames the layers it wraps: checkpoints written meanwhile do not load",
        "use GMPruningModifier or ACDCPruningModifier",
    ),
}
"""Modifiers that cannot be used: why, and what to use instead."""

SAMPLED = ("MFACPruningModifier", "OBSPruningModifier", "RigLPruningModifier")
"""Modifiers that compute gradients of training batches themselves."""

_SPARSITIES = (
    *("init_sparsity", "final_sparsity", "compression_sparsity"),
    *("forward_sparsity", "backward_sparsity"),
)
_TOLERANCE = 0.01
"""Of sparseml, between a sparsity and that of N:M masks."""


def refuse_kind(name: str, label: str) -> None:
    """Refuse modifiers that cannot work at all.

    Raises:
        RecipeError: With the reason, and what to use instead.
    """
    if name in CANNOT:
        why, instead = CANNOT[name]
        raise RecipeError(f"{label}: {name} {why}", hint=instead)


def refuse_values(modifier: Any, label: str) -> None:
    """Refuse values that would fail later.

    Args:
        modifier: As sparseml constructed it.
        label: What messages call the recipe.

    Raises:
        RecipeError: It has some.
    """
    name = type(modifier).__name__
    for problem, hint in (
        _masks(modifier),
        _global(modifier),
        _scheduler(modifier),
        _cycle(modifier),
        _phases(modifier),
        _samples(modifier),
        _window(modifier),
    ):
        if problem:
            raise RecipeError(f"{label}: {name}: {problem}", hint=hint)


_Finding = tuple[str, str]
_FINE = ("", "")


def nm_of(mask_type: Any) -> tuple[int, int] | None:
    """N and M of a ``mask_type`` such as ``2:4``, or None."""
    if mask_type == "tensorrt":
        return 2, 4
    found = re.fullmatch(r"(\d+):(\d+)", str(mask_type))
    return (int(found[1]), int(found[2])) if found else None


def _masks(modifier: Any) -> _Finding:
    mask_type = getattr(modifier, "mask_type", None)
    if mask_type is None or type(modifier).__name__ == "StructuredPruningModifier":
        return _FINE
    if mask_type in ("filter", "channel"):
        return (
            f"mask_type {mask_type} is that of StructuredPruningModifier",
            "use that, or ChannelThinningModifier to remove channels",
        )
    try:
        get_mask_creator_default(mask_type)
    except (ValueError, TypeError) as error:
        return str(error), "use unstructured, block4, N:M such as 2:4, or a block such as [1, 4]"
    return _nm(modifier, nm_of(mask_type))


def _nm(modifier: Any, nm: tuple[int, int] | None) -> _Finding:
    if nm is None:
        return _FINE
    kept, group = nm
    if not 0 < kept < group:
        return f"{kept}:{group} keeps {kept} of {group} weights", "write for instance 2:4"
    sparsity = 1 - kept / group
    for field in _SPARSITIES:
        for value in _numbers(getattr(modifier, field, None)):
            if abs(value - sparsity) > _TOLERANCE:
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
    if getattr(modifier, "init_sparsity", None) == "__FROM_PARAM__":
        return (
            "init_sparsity __FROM_PARAM__ has a value for each layer, not a global one",
            "give a number as init_sparsity",
        )
    return _FINE


def _scheduler(modifier: Any) -> _Finding:
    """Build the scheduler for a throwaway optimizer: sparseml builds it when its epoch comes."""
    if not hasattr(modifier, "corrected_lr_info"):
        return _FINE
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=modifier.init_lr)
    try:
        kind, options = modifier.corrected_lr_info(1000, modifier.start_epoch, modifier.end_epoch)
        LR_SCHEDULERS[kind](optimizer, **options)
    except (ValueError, TypeError) as error:
        return str(error), f"check lr_kwargs, now {modifier.lr_kwargs}"
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
    if type(modifier).__name__ not in SAMPLED:
        return _FINE
    unknown = set(modifier.grad_sampler_kwargs or {}) - {"batch_size"}
    if unknown:
        return f"grad_sampler_kwargs has no {min(unknown)!r}", "it has batch_size only"
    if getattr(modifier, "use_gradient_buffering", None):
        return (
            "buffered gradients are too few whenever masks are due within num_grads steps",
            "leave use_gradient_buffering out: gradients of training batches are computed then",
        )
    if isinstance(modifier.num_grads, dict) and 0.0 not in modifier.num_grads:
        return "num_grads has no entry for sparsity 0.0", "add one, such as {0.0: 64, 0.9: 256}"
    return _FINE


def _window(modifier: Any) -> _Finding:
    if type(modifier).__name__ == "LayerPruningModifier" and modifier.end_epoch != -1:
        return (
            "checkpoints written before end_epoch would lack the layers that come back then",
            "leave end_epoch out: layers that are removed stay removed",
        )
    return _FINE
