"""Quantizing a model by schemes: which layers are rounded, and how.

Layers are those at the bottom of the model and those that were fused; a scheme for a class can
also mean others. Each has the scheme of the longest beginning of its name, else of its class, else
the common one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import QuantWrapper, round_output
from yolact.sparsify.native.fuse import fuse, to_device, with_rounded_weights, wrap_batch_norms
from yolact.sparsify.native.quantization_scheme import QuantizationScheme

_NO_LAYERS = frozenset(
    {
        *("Module", "Identity", "Flatten", "Unflatten", "DataParallel", "ModuleList", "Sequential"),
        *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
    }
)
"""Classes that only pass values on."""


@dataclass(frozen=True, kw_only=True)
class Schemes:
    """Which scheme each layer has."""

    common: QuantizationScheme
    overrides: Mapping[str, QuantizationScheme] = field(default_factory=dict)
    """By the beginning of a name, or by a class."""
    ignore: Collection[str] = ()
    """Beginnings of names, or classes, of layers that are left as they are."""
    strict: bool = True
    """Whether each of these names has to be that of a layer."""


def quantize(model: nn.Module, schemes: Schemes, *, fused: bool) -> None:
    """Let ``model`` round as ``schemes`` say, in place.

    Args:
        model: Not quantized.
        schemes: For names and classes that the layers have once they are fused.
        fused: Whether layers are fused before.

    Raises:
        ValueError: A name is that of no layer, or two classes contradict each other.
    """
    if fused:
        fuse(model)
    if schemes.strict:
        _require_layers(model, schemes)
    found = _assigned(model, schemes)
    wrap_batch_norms(model, found)
    _round_inputs(model, found)
    _round_weights(model, found)
    _round_outputs(model, found)
    to_device(model)


def match(name: str, kind: str, names_or_kinds: Collection[str]) -> str | None:
    """Which of these means a layer: the longest beginning of its name, else its class."""
    beginnings = [text for text in names_or_kinds if text and name.startswith(text)]
    if beginnings:
        return max(beginnings, key=len)
    return kind if kind in names_or_kinds else None


def _require_layers(model: nn.Module, schemes: Schemes) -> None:
    layers = [(name, type(module).__name__) for name, module in model.named_modules()]
    for owner, texts in (("scheme_overrides", schemes.overrides), ("ignore", schemes.ignore)):
        for text in texts:
            if not any(name.startswith(text) or kind == text for name, kind in layers):
                raise ValueError(f"{owner} names {text!r}, and the network has no such layer")


def _assigned(model: nn.Module, schemes: Schemes) -> dict[nn.Module, QuantizationScheme]:
    found = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if match(name, kind, schemes.ignore) is not None:
            continue
        key = match(name, kind, schemes.overrides)
        if key == kind or _is_layer(module):
            found[module] = schemes.common if key is None else schemes.overrides[key]
    return found


def _is_layer(module: nn.Module) -> bool:
    if type(module).__name__ in _NO_LAYERS:
        return False
    return is_fused(module) or all(isinstance(child, nn.Identity) for child in module.children())


def _round_inputs(module: nn.Module, found: Mapping[nn.Module, QuantizationScheme]) -> nn.Module:
    """What takes the place of ``module``; inside of one whose input is rounded, no other is."""
    scheme = found.get(module)
    if scheme is not None and scheme.input_activations is not None:
        return QuantWrapper(module, scheme.input_activations.quantizer())
    for name, child in list(module.named_children()):
        new = _round_inputs(child, found)
        if new is not child:
            setattr(module, name, new)
    return module


def _round_weights(module: nn.Module, found: dict[nn.Module, QuantizationScheme]) -> None:
    """Replace layers inside ``module``; inside of fused ones that are not replaced, none is."""
    for name, child in list(module.named_children()):
        if not is_fused(child):
            _round_weights(child, found)
        if child in found:
            new = _replacement(child, found)
            if new is not None:
                setattr(module, name, new)


def _replacement(layer: nn.Module, found: dict[nn.Module, QuantizationScheme]) -> nn.Module | None:
    decided: list[QuantizationScheme] = []

    def quantizer(decides: nn.Module) -> nn.Module:
        if decides not in found:
            raise ValueError(
                f"{type(decides).__name__} is ignored, but not the {type(layer).__name__} around it"
            )
        decided.append(found[decides])
        weights = found[decides].weights
        return nn.Identity() if weights is None else weights.quantizer()

    new = with_rounded_weights(layer, quantizer)
    if new is not None:
        for inner in layer.modules():
            found.pop(inner, None)
        found[new] = decided[0]
    return new


def _round_outputs(model: nn.Module, found: Mapping[nn.Module, QuantizationScheme]) -> None:
    """Round what layers return, of nested ones the innermost."""
    for module in list(model.modules()):
        scheme = found.get(module)
        if scheme is not None and scheme.output_activations is not None:
            if not any(map(_rounds_outputs, _inside(module, found))):
                round_output(module, scheme.output_activations.quantizer())


def _inside(
    module: nn.Module, found: Mapping[nn.Module, QuantizationScheme]
) -> Iterator[QuantizationScheme]:
    return (found[inner] for inner in module.modules() if inner is not module and inner in found)


def _rounds_outputs(scheme: QuantizationScheme) -> bool:
    return scheme.output_activations is not None
