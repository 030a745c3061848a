"""How the convolutions of a model are quantized, and how its recipe wanted them to be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolact.model.fake_quantize import is_fake_quantize
from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import is_quant_wrapper
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.native.quantization import QuantizationModifier
from yolact.sparsify.native.quantization_scheme import QuantizationArgs, QuantizationScheme
from yolact.sparsify.native.quantize import match
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparsity import convolutions


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a quantizer rounds, or is to round by a recipe."""

    bits: int
    symmetric: bool
    per_channel: bool

    @property
    def scheme(self) -> str:
        """For instance ``symmetric per tensor``."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"{symmetry} per {'channel' if self.per_channel else 'tensor'}"

    def __str__(self) -> str:
        """For instance ``8 bits, symmetric per tensor``."""
        return f"{self.bits} bits, {self.scheme}"


@dataclass(frozen=True, kw_only=True)
class Quantizer(Rounding):
    """One fake quantizer of a model: how it rounds, and the values it can represent."""

    scale: tuple[float, float]
    """Smallest and largest step between representable values; the same for one per tensor."""
    range: tuple[float, float]
    """Smallest and largest representable value."""
    learnt: bool
    """Whether its range follows from values it has seen."""

    @property
    def problem(self) -> str | None:
        """Why it cannot work, in words, or None."""
        if not self.learnt:
            return "has seen no values"
        if not all(math.isfinite(scale) and scale > 0 for scale in self.scale):
            return "has a range that is not finite"
        return None

    def as_json(self) -> dict[str, Any]:
        """As reports have it; numbers that are not finite are null."""
        numbers = {
            "scale_min": self.scale[0],
            "scale_max": self.scale[1],
            "range_min": self.range[0],
            "range_max": self.range[1],
        }
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        return {"bits": self.bits, "scheme": self.scheme, **finite}


@dataclass(frozen=True)
class WantedQuantization:
    """What a recipe says of one convolution; None where it is to stay float."""

    weights: Rounding | None
    inputs: Rounding | None


def weight_quantizer(conv: nn.Conv2d) -> Quantizer | None:
    """The fake quantizer of a convolution's weights, if it has one."""
    return _read(getattr(conv, "weight_fake_quant", None))


def input_quantizers(model: nn.Module) -> dict[nn.Module, Quantizer]:
    """Module to the fake quantizer of its input, for all that have one."""
    found = {}
    for wrapper in model.modules():
        if is_quant_wrapper(wrapper):
            quantizer = _read(getattr(wrapper.quant, "activation_post_process", None))
            if quantizer is not None:
                found[wrapper.module] = quantizer
    return found


def wanted_quantization(
    model: nn.Module, recipe: Recipe, epoch: float
) -> dict[str, WantedQuantization]:
    """What the recipe's first quantization due by ``epoch`` says of each convolution.

    It alone decides: later ones find the model quantized and only learn its ranges again.

    Args:
        model: Quantized or not.
        recipe: Possibly with stages.
        epoch: Epochs done, counted as the recipe counts them.

    Returns:
        By the name that recipes have for the convolution's weight.
    """
    entries = [e for e in recipe.entries if facts_of(e.name).kind == "quantization"]
    modifiers = [_modifier(entry.fields) for entry in entries]
    due = [modifier for modifier in modifiers if modifier and modifier.start_epoch <= epoch]
    if not due:
        return {}
    modifier = min(due, key=lambda m: m.start_epoch)
    rule = _by_submodule if modifier.older else _by_scheme
    kinds = _kinds(model)
    return {
        name: wanted
        for name, conv in convolutions(model).items()
        if (wanted := rule(modifier, name.removesuffix(".weight"), kinds[conv]))
    }


def quantization_problems(
    name: str, part: str, found: Quantizer | None, wanted: Rounding | None
) -> Iterator[str]:
    """What is wrong with one quantizer, in words.

    Args:
        name: Of the convolution's weight.
        part: Of the convolution: ``weights`` or ``inputs``.
        found: What the model has.
        wanted: What the recipe says.
    """
    if found is not None and found.problem:
        yield f"the quantizer of the {part} of {name} {found.problem}"
    if wanted is not None and found is None:
        yield f"the {part} of {name} are not quantized"
    elif wanted is not None and str(found) != str(wanted):
        yield f"the {part} of {name} are {found} instead of {wanted}"


def _kinds(model: nn.Module) -> dict[nn.Module, str]:
    """The class that a recipe has to name to mean a convolution: that of what it is fused into."""
    kinds: dict[nn.Module, str] = {}
    for module in model.modules():
        for inner in module.modules() if is_fused(module) else (module,):
            kinds.setdefault(inner, type(module).__name__)
    return kinds


def _modifier(fields: Mapping[str, Any]) -> QuantizationModifier | None:
    """As this package reads it; None if only sparseml can do what it says."""
    known = {f.name for f in dataclasses.fields(QuantizationModifier) if f.init}
    try:
        return QuantizationModifier(**{name: fields[name] for name in fields if name in known})
    except ValueError:
        return None


def _by_scheme(modifier: QuantizationModifier, name: str, kind: str) -> WantedQuantization | None:
    if match(name, kind, modifier.ignore or ()):
        return None
    # Beside a ReLU alone, the convolution inside the fused layer says how its weights are rounded.
    own_kind = "Conv2d" if kind == "ConvReLU2d" else kind
    weights = _wanted(_scheme(modifier, name, own_kind).weights)
    inputs = _wanted(_scheme(modifier, name, kind).input_activations)
    return WantedQuantization(weights, inputs) if weights or inputs else None


def _scheme(modifier: QuantizationModifier, name: str, kind: str) -> QuantizationScheme:
    override = match(name, kind, modifier.scheme_overrides)
    found: QuantizationScheme = modifier.scheme_overrides.get(override, modifier.scheme)
    return found


def _by_submodule(
    modifier: QuantizationModifier, name: str, kind: str
) -> WantedQuantization | None:
    """The older fields of the modifier: everything inside some submodules."""
    inside = modifier.submodules is None or any(
        part in ("", name) or name.startswith(f"{part}.") for part in modifier.submodules
    )
    if not inside or kind in (modifier.exclude_module_types or []):
        return None
    bits = modifier.weight_bits or 8
    return WantedQuantization(Rounding(bits=bits, symmetric=True, per_channel=False), None)


def _wanted(arguments: QuantizationArgs | None) -> Rounding | None:
    if arguments is None:
        return None
    return Rounding(
        bits=_bits(*arguments.limits()),
        symmetric=bool(arguments.symmetric),
        per_channel=arguments.strategy == "channel",
    )


_CHANNELWISE = (torch.per_channel_affine, torch.per_channel_symmetric)
_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def _read(module: Any) -> Quantizer | None:
    if not is_fake_quantize(module):
        return None
    low, high = int(module.quant_min), int(module.quant_max)
    scale, zero = module.scale.double(), module.zero_point.double()
    seen = module.activation_post_process.min_val
    return Quantizer(
        bits=_bits(low, high),
        symmetric=module.qscheme in _SYMMETRIC,
        per_channel=module.qscheme in _CHANNELWISE,
        scale=(float(scale.min()), float(scale.max())),
        range=(float((scale * (low - zero)).min()), float((scale * (high - zero)).max())),
        learnt=seen.numel() > 0 and bool(seen.isfinite().all()),
    )


def _bits(low: int, high: int) -> int:
    return round(math.log2(high - low + 1))
