"""Do the layers that a quantization modifier names exist? sparseml asks when its epoch has come."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from torch import nn

from yolact.model.quantized import is_quantized
from yolact.sparsify.check.problems import Problem
from yolact.sparsify.text.document import Entry

_FUSED = ("ConvBn2d", "ConvBnReLU2d", "ConvReLU2d")
"""Classes that layers have by the time they are quantized."""
_FUSE = (None, "none", "None", "conv_bn_relus", "no_fuse")
"""Values of ``model_fuse_fn_name``; any other would be a method of the network, which has none."""


def layer_problems(entry: Entry, number: int, model: nn.Module) -> Iterator[Problem]:
    """What a quantization modifier says of layers and cannot mean.

    Args:
        entry: Any modifier, its variables resolved.
        number: Its place in the recipe, from 1.
        model: What the run begins with. Of a quantized one nothing is asked: its quantizers stay.
    """
    if entry.name != "QuantizationModifier":
        return
    for sentence, hint in _errors(entry, model):
        yield Problem("error", sentence, hint, entry.name, number)
    if entry.fields.get("num_calibration_steps"):
        yield Problem(
            "warning",
            "num_calibration_steps has no effect on training: "
            "the training images set the ranges of quantizers",
            "quantize without training by export_onnx --one-shot",
            entry.name,
            number,
        )


def _errors(entry: Entry, model: nn.Module) -> Iterator[tuple[str, str]]:
    fuse = entry.fields.get("model_fuse_fn_name")
    if fuse not in _FUSE:
        yield (
            f"model_fuse_fn_name {fuse!r} is no way to fuse this network",
            "give conv_bn_relus (the default) or no_fuse",
        )
    if is_quantized(model):
        return
    modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
    kinds = {*modules.values(), *_FUSED}
    if entry.fields.get("strict", True):
        for field in ("ignore", "scheme_overrides"):
            for text in _names(entry.fields.get(field)):
                begins = isinstance(text, str) and any(n.startswith(text) for n in modules)
                if not begins and text not in kinds:
                    yield _unmatched(field, text, [*modules, *kinds])
    for text in _names(entry.fields.get("submodules")):
        if text not in modules:
            yield _unmatched("submodules", text, list(modules))
    for text in _names(entry.fields.get("exclude_module_types")):
        if text not in kinds:
            yield _unmatched("exclude_module_types", text, sorted(kinds))


def _names(value: Any) -> list[Any]:
    """The names in a list, in the keys of a mapping, or the one that is given."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | dict) else [value]


def _unmatched(field: str, text: Any, known: list[str]) -> tuple[str, str]:
    near = get_close_matches(str(text), known, n=1, cutoff=0.5)
    return (
        f"{field} names {text!r}, and the network has no such layer",
        f"did you mean {near[0]!r}?" if near else "give the name or the class of a layer",
    )
