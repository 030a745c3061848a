"""The copy of a model that is traced, and what its graph has to reproduce.

The copy computes what the model computes, in a form that ONNX can say and engines run well: batch
norms are folded into convolutions, weights of quantized models may be rounded anew, and quantizers
of fewer than 8 bits become a limit and one of 8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolact.config import ModelConfig
from yolact.exporter.options import ExportOptions
from yolact.model.fake_quantize import (
    FakeQuantize,
    RangeObserver,
    fake_quantizers,
    is_fake_quantize,
)
from yolact.model.quantized_layers import (
    Conv2d,
    ConvBn2d,
    ConvBnReLU2d,
    ConvReLU2d,
    coarse_depthwise,
    round_output,
)
from yolact.model.weights import is_quantized
from yolact.model.yolact import InferenceModel, Yolact
from yolact.types import RawOutputs

logger = logging.getLogger(__name__)

SEVEN_BITS = (-64, 63)
"""Two products of such a weight with a uint8 fit into 16 bits: 2 * 255 * 64 < 2**15."""
_WIDE = ((-128, 127), (0, 255), (0, 127))
"""Ranges of integers that ONNX knows."""
_MOST_COMPARED = 8
"""Images in which detections are compared: each runs once in PyTorch."""


@dataclass(frozen=True)
class Reference:
    """What is traced, and what its graph is compared with before it replaces anything."""

    network: nn.Module
    """A copy of the model in evaluation mode, on the CPU, with its batch norms folded."""
    sample: Tensor
    """[B, 3, H, W]."""
    expected: RawOutputs
    """Of the model for the sample, before anything was folded."""
    unquantized: RawOutputs | None
    """Of a quantized model, with its quantization off."""
    images: tuple[Tensor, ...]
    """Like the sample, real ones, to compare the detections of a quantized network in."""

    @property
    def quantized(self) -> bool:
        """Whether the model is quantized."""
        return self.unquantized is not None


def prepare(
    model: Yolact,
    sample: Tensor,
    images: Iterable[Tensor] | None,
    options: ExportOptions,
    config: ModelConfig | None = None,
) -> Reference:
    """Compute what to reproduce, and make the copy to trace; the model stays as it is.

    Args:
        model: Float, pruned or quantization-aware.
        sample: [B, 3, H, W] input.
        images: Network inputs; a few of them become those of the reference.
        options: Whether the batch norms of a quantized model are folded too, and how its weights
            are rounded.
        config: With the size of input and the priors of the copy; None for the model's.
    """
    network = _copied(model, config)
    quantized = is_quantized(network)
    with torch.no_grad():
        expected: RawOutputs = network(sample)
        unquantized: RawOutputs | None = None
        if quantized:
            with without_quantization(network):
                unquantized = network(sample)
    if options.convert_qat or not quantized:
        fold_quantized_batch_norms(network)
        fold_batch_norms(network)
        _warn_of_coarse_weights(network, options)
    requantize_weights(network, per_channel=options.per_channel, reduce_range=options.reduce_range)
    widen_quantizers(network)
    first = islice(images or (), _MOST_COMPARED)
    few = tuple(image[:1].repeat(len(sample), 1, 1, 1) for image in first)
    return Reference(network, sample, expected, unquantized, few)


def as_exported(model: Yolact, options: ExportOptions) -> InferenceModel:
    """A copy of a quantized model that rounds as its graph will, all ranges kept.

    Args:
        model: Not changed.
        options: How weights are rounded.
    """
    network = _copied(model, None)
    fold_quantized_batch_norms(network)
    requantize_weights(network, per_channel=options.per_channel, reduce_range=options.reduce_range)
    return network


@contextmanager
def without_quantization(network: nn.Module) -> Iterator[None]:
    """Let a network compute in floats inside the block."""
    quantizers = [q for q in fake_quantizers(network) if bool(q.fake_quant_enabled)]
    for module in quantizers:
        module.disable_fake_quant()
    try:
        yield
    finally:
        for module in quantizers:
            module.enable_fake_quant()


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Fold every Conv2d followed by a BatchNorm2d inside one Sequential, in place.

    In evaluation mode BN(conv(x)) = (gamma / std) * conv(x) + (beta - mean * gamma / std), which is
    a convolution again. A weight that is zero stays exactly zero.
    """
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                module[index] = fused = fuse_conv_bn_eval(conv, norm)
                module[index + 1] = nn.Identity()
                # Zeros times a negative scale are -0.0, which does not compress as well.
                fused.weight.add_(0.0)


def fold_quantized_batch_norms(model: nn.Module) -> None:
    """Turn quantization-aware Conv+BN modules into quantization-aware convolutions, in place.

    Training computes BN(conv(x, fake_quant(w * gamma / std)) / (gamma / std)), so
    that the batch statistics stay those of the unscaled convolution. With frozen statistics the
    division and the BN cancel: a convolution with the same fake-quantized weight and one bias
    gives the same result, and is what runtimes have integer kernels for.
    """
    for name, child in model.named_children():
        if isinstance(child, ConvBn2d):
            setattr(model, name, _folded(child))
        else:
            fold_quantized_batch_norms(child)


@torch.no_grad()
def requantize_weights(
    model: nn.Module, *, per_channel: bool = False, reduce_range: bool = False
) -> None:
    """Round weights anew, in place; zeros stay zero.

    Args:
        model: In evaluation mode, its observers off, its batch norms folded.
        per_channel: Give each output channel the finest range that holds its weights. The largest
            weight of all limits how finely a tensor with one range is rounded; most channels have
            none as large.
        reduce_range: Use 7 of the 8 bits. CPUs with AVX2 or AVX-512 but without VNNI add pairs of
            products in 16 bits, where those of full 8 bits may overflow.
    """
    for module in model.modules():
        quantizer = getattr(module, "weight_fake_quant", None)
        if not is_fake_quantize(quantizer):
            continue
        before = (quantizer.scale.numel() > 1, *_range(quantizer))
        channels, low, high = before
        if reduce_range:
            low, high = max(low, SEVEN_BITS[0]), min(high, SEVEN_BITS[1])
        wanted = (channels or per_channel, low, high)
        if wanted != before:
            weight: Any = module.weight
            module.weight_fake_quant = _quantizer(weight, quantizer.dtype, *wanted)


def widen_quantizers(model: nn.Module) -> None:
    """Give every fake quantizer of fewer bits a range of 8, in place; outputs stay the same.

    ONNX quantizes to int8 and uint8 only. Rounding a value to one of 16 levels is the same as first
    limiting it to the range of those levels and then rounding it to one of 256 with the same step.
    Weights are limited here, activations by a Clip in the graph.

    Args:
        model: In evaluation mode, with its observers off. Fold what is to be folded before.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not is_fake_quantize(child) or _range(child) in _WIDE:
                continue
            low, high = _limits(child)
            _set_range(child)
            weight = parent.weight if name == "weight_fake_quant" else None
            if isinstance(weight, Tensor) and not isinstance(parent, ConvBn2d):
                with torch.no_grad():
                    weight.copy_(weight.clamp(low, high))
            else:
                setattr(parent, name, _Limited(child, low, high))


def _warn_of_coarse_weights(network: nn.Module, options: ExportOptions) -> None:
    coarse = coarse_depthwise(network)
    if coarse and not options.per_channel:
        logger.warning(
            "%d depthwise convolutions have one range for the weights of all channels, which "
            "differ much; give --per_channel, or train with a range per channel",
            len(coarse),
        )


def _copied(model: Yolact, config: ModelConfig | None) -> InferenceModel:
    """As inference runs it, on the CPU; ranges do not adapt to what is run here."""
    copy = deepcopy(model)
    copy.set_input(config or model.config)
    network = InferenceModel(copy).cpu().float().eval()
    for quantizer in fake_quantizers(network):
        quantizer.disable_observer()
    return network


def _folded(fused: ConvBn2d) -> Conv2d:
    kind = ConvReLU2d if isinstance(fused, ConvBnReLU2d) else Conv2d
    folded = kind(fused, fused.weight_fake_quant)
    norm = fused.bn
    assert norm.running_mean is not None and norm.running_var is not None
    # BN(y + conv bias) = y * scale + shift, for each output channel.
    scale: Tensor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if fused.bias is None else norm.running_mean - fused.bias
    # In the order of operations of the training graph: the last bit decides roundings.
    folded.weight = nn.Parameter((fused.weight * scale.reshape(-1, 1, 1, 1)).detach())
    folded.bias = nn.Parameter((norm.bias - mean * scale).detach())
    output = getattr(fused, "activation_post_process", None)
    if isinstance(output, FakeQuantize):
        round_output(folded, output)
    return folded


@torch.enable_grad()
def _quantizer(
    weight: Tensor, dtype: torch.dtype, channels: bool, low: int, high: int
) -> FakeQuantize:
    made = FakeQuantize(
        RangeObserver(ch_axis=0 if channels else None),
        quant_min=low,
        quant_max=high,
        symmetric=True,
        dtype=dtype,
    ).to(weight.device)
    made(weight.detach())  # the first tensor counts as a whole, where gradients are recorded
    made.disable_observer()
    return made.eval()


class _Limited(nn.Module):
    """A quantizer behind a limit."""

    def __init__(self, quantizer: nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.limits = low, high
        self.single = (float(low), float(high)) if low.numel() == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        limited = x.clamp(*self.limits) if self.single is None else x.clamp(*self.single)
        quantized: Tensor = self.quantizer(limited)
        return quantized


def _range(quantizer: FakeQuantize) -> tuple[int, int]:
    return quantizer.quant_min, quantizer.quant_max


def _limits(quantizer: FakeQuantize) -> tuple[Tensor, Tensor]:
    """Smallest and largest value it can represent, shaped like what it broadcasts with."""
    first, last = _range(quantizer)
    scale, zero = quantizer.scale, quantizer.zero_point
    low, high = scale * (first - zero), scale * (last - zero)
    shape = (-1, 1, 1, 1) if scale.numel() > 1 else ()  # several are one per output channel
    return low.reshape(shape), high.reshape(shape)


def _set_range(quantizer: FakeQuantize) -> None:
    low = quantizer.quant_min
    quantizer.quant_min, quantizer.quant_max = (-128, 127) if low < 0 else (0, 255)
