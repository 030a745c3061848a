"""Fewer than 8 bits, said in 8: ONNX quantizes to int8 and uint8 only.

Rounding a value to one of 16 levels is the same as first limiting it to the range of those levels
and then rounding it to one of 256 with the same step. Weights are limited in the copy that is
traced, activations by a Clip in the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import FakeQuantize

_WIDE = ((-128, 127), (0, 255), (0, 127))
"""Ranges of integers that ONNX knows."""


def widen_quantizers(model: nn.Module) -> None:
    """Give every fake quantizer of fewer bits a range of 8, in place; outputs stay the same.

    Args:
        model: In evaluation mode, with its observers off. Fold what is to be folded before.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FakeQuantize) or _range(child) in _WIDE:
                continue
            low, high = _limits(child)
            _set_range(child)
            weight = parent.weight if name == "weight_fake_quant" else None
            if isinstance(weight, Tensor) and not isinstance(parent, ConvBn2d):
                with torch.no_grad():
                    weight.copy_(weight.clamp(low, high))
            else:
                setattr(parent, name, _Limited(child, low, high))


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
    return int(quantizer.quant_min), int(quantizer.quant_max)


def _limits(quantizer: FakeQuantize) -> tuple[Tensor, Tensor]:
    """Smallest and largest value it can represent, shaped like what it broadcasts with."""
    first, last = _range(quantizer)
    scale, zero = quantizer.scale, quantizer.zero_point
    low, high = scale * (first - zero), scale * (last - zero)
    shape = (-1, 1, 1, 1) if scale.numel() > 1 else ()  # several are one per output channel
    return low.reshape(shape), high.reshape(shape)


def _set_range(quantizer: FakeQuantize) -> None:
    wide = (-128, 127) if _range(quantizer)[0] < 0 else (0, 255)
    for holder in (quantizer, quantizer.activation_post_process):
        holder.quant_min, holder.quant_max = wide
