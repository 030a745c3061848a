"""Quantizing a model by the older fields of the modifier: everything inside some submodules.

Weights are rounded, inputs of layers with weights, and outputs of those and of some others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import QuantWrapper, round_output
from yolact.sparsify.native.fuse import fuse, to_device, with_rounded_weights, wrap_batch_norms
from yolact.sparsify.native.quantization_scheme import QuantizationArgs

LINEAR = frozenset({"Linear", "LinearReLU"})
CONVOLUTIONS = frozenset(
    f"Conv{rest}{n}d" for rest in ("", "Bn", "ReLU", "BnReLU") for n in (1, 2, 3)
)
"""Classes of convolutions, fused or not."""

_ROUND_OUTPUTS = frozenset(
    {
        *("ELU", "Hardswish", "LeakyReLU", "PReLU", "ReLU6", "GroupNorm", "LayerNorm"),
        *("BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
        *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    }
)
"""Classes of layers without rounded weights whose outputs are rounded."""


@dataclass(frozen=True, kw_only=True)
class OlderFields:
    """What the older fields come to."""

    submodules: Collection[str] | None
    """Names; None is the whole model."""
    weights: QuantizationArgs
    activations: QuantizationArgs
    signed_activations: bool
    """Whether their integers begin at -128 or at 0."""
    also: Collection[str]
    """Classes of further layers whose inputs are rounded."""
    keep_outputs: Collection[str]
    """Classes of layers whose outputs are not rounded."""
    exclude: Collection[str]
    """Classes of layers of which nothing but the inputs is rounded."""


def quantize(model: nn.Module, how: OlderFields, *, fused: bool) -> None:
    """Let ``model`` round, in place.

    Args:
        model: Not quantized.
        how: What is rounded.
        fused: Whether layers are fused before.

    Raises:
        ValueError: A submodule is missing, or disappears as layers are fused; or a convolution is
            excluded and not what it is fused into.
    """
    targets = _targets(model, how.submodules)
    if fused:
        fuse(model)
    for name, target in targets.items():
        if model.get_submodule(name) is not target:
            raise ValueError(f"submodules names {name!r}, which is fused: name what it is in")
    inside = [module for target in targets.values() for module in target.modules()]
    rounded = {m for m in inside if type(m).__name__ not in how.exclude}
    wrap_batch_norms(model, rounded)
    seen: set[nn.Module] = set()
    for name, target in targets.items():
        _round_inputs(model, name, target, how, seen - {target})
        seen.update(target.modules())
    _round_weights(model, rounded, how)
    _round_outputs(model, rounded, how)
    to_device(model)


def _targets(model: nn.Module, submodules: Collection[str] | None) -> Mapping[str, nn.Module]:
    if submodules is None:
        return {"": model}
    found = {name: module for name, module in model.named_modules() if name in submodules}
    missing = sorted(set(submodules) - set(found))
    if missing:
        raise ValueError(f"submodules names {missing[0]!r}, and the network has no such layer")
    return found


def _round_inputs(
    model: nn.Module, name: str, target: nn.Module, how: OlderFields, seen: Collection[nn.Module]
) -> None:
    new = _with_rounded_inputs(target, how, seen)
    if new is not target and not list(target.children()):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def _with_rounded_inputs(
    module: nn.Module, how: OlderFields, seen: Collection[nn.Module]
) -> nn.Module:
    """What takes the place of a module; a second time, if submodules are inside of each other."""
    kind = type(module).__name__
    if is_fused(module) or type(module) in (nn.Conv2d, nn.Linear) or kind in how.also:
        if module in seen and kind in how.keep_outputs:
            return QuantWrapper(module, nn.Identity())  # as sparseml does it
        return QuantWrapper(module, how.activations.quantizer(signed=how.signed_activations))
    for name, child in list(module.named_children()):
        new = _with_rounded_inputs(child, how, seen)
        if new is not child:
            setattr(module, name, new)
    return module


def _round_weights(module: nn.Module, rounded: set[nn.Module], how: OlderFields) -> None:
    for name, child in list(module.named_children()):
        if not is_fused(child):
            _round_weights(child, rounded, how)
        if child in rounded:
            new = with_rounded_weights(child, lambda inner: _weights(inner, rounded, how))
            if new is not None:
                setattr(module, name, new)
                rounded.add(new)


def _weights(layer: nn.Module, rounded: Collection[nn.Module], how: OlderFields) -> nn.Module:
    if layer not in rounded:
        kind = type(layer).__name__
        raise ValueError(f"exclude_module_types has {kind}, but not what a {kind} is fused into")
    return how.weights.quantizer()


def _round_outputs(module: nn.Module, rounded: Collection[nn.Module], how: OlderFields) -> None:
    """Round what layers inside ``module`` return; inside of fused ones, none does."""
    for child in list(module.children()):
        kind = type(child).__name__
        if kind == "Dropout":
            continue
        with_weights = is_fused(child) or hasattr(child, "weight_fake_quant")
        at_the_end = kind in _ROUND_OUTPUTS and not list(child.children())
        if not with_weights:
            _round_outputs(child, rounded, how)
        if (with_weights or at_the_end) and child in rounded and kind not in how.keep_outputs:
            round_output(child, how.activations.quantizer(signed=how.signed_activations))
