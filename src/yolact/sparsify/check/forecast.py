"""What a recipe makes of a network: zeros, layers, bytes and multiplications, before training.

Bytes are those of weights in a model file, as they are and compressed. How far gzip gets depends
on where the zeros are as much as on how many there are, and no formula says it well. So a sample of
each weight is pruned as its recipe prunes, rounded if the recipe quantizes, and really compressed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from yolact.errors import RecipeError
from yolact.model.fake_quantize import is_fake_quantize
from yolact.model.weights import parameter_count
from yolact.sizes import ImageSize, sides_of
from yolact.sparsify.check.curves import Curves, meta_copy, with_values
from yolact.sparsify.check.timetable import ModifierRow
from yolact.sparsify.native.masks import pattern_of
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparsity import Mask, convolutions, targets_by_parameter
from yolact.sparsify.structure import apply_structure, removal_errors

_SAMPLE = 1 << 14
"""Weights that are compressed of each layer; the rest is taken to be like them."""

_GZIP_LEVEL = 6
"""The level at which exports report their compressed size."""

_ROWS = 8
"""Samples hold whole blocks of this many output channels."""


@dataclass(frozen=True)
class LayerForecast:
    """One convolution at the end of the run."""

    name: str
    """Of its weight, as recipes spell it."""
    shape: tuple[int, ...]
    """[O, I, h, w]"""
    sparsity: float
    """Fraction of zeros, 0..1."""
    int8: bool
    """Whether its weights are stored in 8 bits."""
    macs: int
    """Multiply-accumulate operations for one image; 0 for layers that only train."""
    group: int | None
    """Number of the modifier that prunes it."""
    size: int
    """Bytes of its weights and bias in an exported file."""
    compressed: float
    """Estimate of the same under gzip."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Totals:
    """A whole network, for one image."""

    parameters: int
    macs: int
    nonzero_macs: float
    """Those whose weight is not zero; no engine skips all others."""
    sparsity: float
    """Of all convolutions' weights together."""
    int8: bool
    """Whether any weights are stored in 8 bits."""
    size: int
    """Bytes of an exported file."""
    compressed: float
    """Estimated bytes of it under gzip."""


@dataclass(frozen=True)
class Forecast:
    """A network before a run and after it."""

    image_size: ImageSize
    """Of the network input, in pixels."""
    before: Totals
    after: Totals
    layers: tuple[LayerForecast, ...]
    """After it, in the model's order."""


def forecast(
    rows: Sequence[ModifierRow], curves: Curves, model: nn.Module, image_size: ImageSize
) -> Forecast:
    """Say what the network will be when the run ends.

    Zeros of today last in the layers that a modifier keeps them in.

    Args:
        rows: Modifiers that fit the model.
        curves: Of the same rows.
        model: With the weights the run begins with, or without any (on the meta device);
            unchanged.
        image_size: Of the network input.

    Raises:
        RecipeError: The layers that the recipe wants do not fit the model.
    """
    weights = {name: conv.weight for name, conv in convolutions(model).items()}
    today = {name: _Fate(_zeros(weight)) for name, weight in weights.items()}
    then = _fates(rows, curves, today)
    meta, int8 = meta_copy(model), _quantized_names(model, rows)
    thinning = [row for row in rows if row.kind == "thinning"]
    thinned = _restructured(model, thinning) if thinning else meta_copy(model)
    before = [
        _layer(name, look, today[name], weights[name])
        for name, look in _look(meta, image_size).items()
    ]
    with removal_errors(model):
        looks = _look(thinned, image_size)
    after = [
        _layer(name, replace(look, int8=name in int8), then[name], weights[name])
        for name, look in looks.items()
    ]
    return Forecast(
        image_size=image_size,
        before=_totals(before, meta),
        after=_totals(after, thinned),
        layers=tuple(after),
    )


def count_macs(model: nn.Module, image_size: ImageSize) -> int:
    """Multiply-accumulate operations of a network's convolutions for one image.

    Args:
        model: Quantized or not; it is not changed, and nothing is computed.
        image_size: Of the network input.
    """
    return sum(look.macs for look in _look(meta_copy(model), image_size).values())


@dataclass(frozen=True)
class _Look:
    """What one look at a network tells of a convolution."""

    shape: tuple[int, ...]
    macs: int
    int8: bool


@dataclass(frozen=True)
class _Fate:
    """What pruning makes of a weight."""

    sparsity: float
    mask: Mask = "unstructured"
    group: int | None = None


def _fates(
    rows: Sequence[ModifierRow], curves: Curves, today: dict[str, _Fate]
) -> dict[str, _Fate]:
    """What becomes of each weight; of several modifiers, the one that ends last decides."""
    by_number = {row.number: row for row in rows}
    held = {name for row in rows if row.kind == "constant" for name in row.parameters}
    fates = {name: fate if name in held else _Fate(0.0) for name, fate in today.items()}
    for curve in sorted(curves.groups, key=lambda curve: by_number[curve.number].end or 0.0):
        targets = targets_by_parameter(curve.names, [by_number[curve.number].entry], math.inf)
        for name, target in targets.items():
            fates[name] = _Fate(curve.final, target.mask, curve.number)
    return fates


def _zeros(weight: Tensor) -> float:
    if weight.is_meta:
        return 0.0
    return 1.0 - int(weight.count_nonzero()) / max(1, weight.numel())


def _restructured(model: nn.Module, rows: Sequence[ModifierRow]) -> nn.Module:
    """A copy of ``model`` without weights, after the modifiers that change its layers."""
    recipe = Recipe({"modifiers": [row.entry for row in rows]}, "the recipe")
    meta = meta_copy(model)
    try:
        apply_structure(meta, recipe)
    except RecipeError:  # some modifiers choose by the values of weights
        copy = with_values(model)
        apply_structure(copy, recipe)
        return meta_copy(copy)
    return meta


def _quantized_names(model: nn.Module, rows: Sequence[ModifierRow]) -> set[str]:
    """The convolutions whose weights the run leaves in 8 bits."""
    quantization = [row for row in rows if row.kind == "quantization"]
    after = _restructured(model, quantization) if quantization else model
    return {name for name, conv in convolutions(after).items() if _rounds_weights(conv)}


def _look(meta: nn.Module, image_size: ImageSize) -> dict[str, _Look]:
    """Every convolution of a network without weights; its fake quantizers are lost."""
    found = convolutions(meta)
    names = {conv: name for name, conv in found.items()}
    quantized = {name for name, conv in found.items() if _rounds_weights(conv)}
    macs = dict.fromkeys(found, 0)

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        macs[names[conv]] += math.prod(output.shape[2:]) * conv.weight.numel()

    for module in list(meta.modules()):
        for name, child in module.named_children():
            if is_fake_quantize(child):
                setattr(module, name, nn.Identity())  # it computes with values
    hooks = [conv.register_forward_hook(count) for conv in found.values()]
    meta.eval()
    with torch.no_grad():
        meta(torch.empty(1, 3, *sides_of(image_size), device="meta"))
    for hook in hooks:
        hook.remove()
    return {
        name: _Look(tuple(conv.weight.shape), macs[name], name in quantized)
        for name, conv in found.items()
    }


def _rounds_weights(conv: nn.Conv2d) -> bool:
    return is_fake_quantize(getattr(conv, "weight_fake_quant", None))


def _layer(name: str, look: _Look, fate: _Fate, weight: Tensor) -> LayerForecast:
    bias = 4 * look.shape[0]  # batch norms are folded into one number for each channel
    return LayerForecast(
        name=name,
        shape=look.shape,
        sparsity=fate.sparsity,
        int8=look.int8,
        macs=look.macs,
        group=fate.group,
        size=math.prod(look.shape) * (1 if look.int8 else 4) + bias,
        compressed=_compressed_bytes(look, fate, weight) + bias,
    )


def _totals(layers: Sequence[LayerForecast], network: nn.Module) -> Totals:
    weights = sum(layer.weights for layer in layers)
    exported = [layer for layer in layers if layer.macs]
    return Totals(
        parameters=parameter_count(network),
        macs=sum(layer.macs for layer in layers),
        nonzero_macs=sum(layer.macs * (1 - layer.sparsity) for layer in layers),
        sparsity=sum(layer.weights * layer.sparsity for layer in layers) / max(1, weights),
        int8=any(layer.int8 for layer in layers),
        size=sum(layer.size for layer in exported),
        compressed=sum(layer.compressed for layer in exported),
    )


def _compressed_bytes(look: _Look, fate: _Fate, weight: Tensor) -> float:
    """Estimated bytes of a weight under gzip."""
    sample = _sample(look.shape, weight)
    largest = float(sample.abs().max())
    sample = sample * _mask(fate, sample) + 0.0  # exports have no -0.0
    if look.int8:
        scale = max(largest, 1e-12) / 127
        sample = (sample / scale).round().to(torch.int8)
    packer = zlib.compressobj(level=_GZIP_LEVEL)
    packed = len(packer.compress(sample.numpy().tobytes())) + len(packer.flush())
    return packed * math.prod(look.shape) / sample.numel()


def _sample(shape: tuple[int, ...], weight: Tensor) -> Tensor:
    """The first output channels of a weight that will have ``shape``.

    A weight without values stands for normally distributed ones, as trained weights roughly are.
    """
    per_channel = max(1, math.prod(shape[1:]))
    channels = math.ceil(_SAMPLE / per_channel / _ROWS) * _ROWS
    shape = (min(channels, shape[0]), *shape[1:])
    if weight.is_meta:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weight.detach()[tuple(slice(side) for side in shape)].float().cpu().contiguous()


def _mask(fate: _Fate, sample: Tensor) -> Tensor:
    try:
        (mask,) = pattern_of(fate.mask).masks([sample.abs()], [fate.sparsity])
    except ValueError:  # filters, or other patterns
        (mask,) = pattern_of("unstructured").masks([sample.abs()], [fate.sparsity])
    return mask
