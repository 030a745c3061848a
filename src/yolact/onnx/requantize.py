"""Other ranges for weights than they were trained with: one per channel, or of seven bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

SEVEN_BITS = (-64, 63)
"""Two products of such a weight with a uint8 fit into 16 bits: 2 * 255 * 64 < 2**15."""


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
        if not isinstance(quantizer, FakeQuantize):
            continue
        before = (quantizer.scale.numel() > 1, int(quantizer.quant_min), int(quantizer.quant_max))
        channels, low, high = before
        if reduce_range:
            low, high = max(low, SEVEN_BITS[0]), min(high, SEVEN_BITS[1])
        wanted = (channels or per_channel, low, high)
        if wanted != before:
            weight: Any = module.weight
            module.weight_fake_quant = _quantizer(weight, quantizer.dtype, *wanted)


def _quantizer(
    weight: Tensor, dtype: torch.dtype, channels: bool, low: int, high: int
) -> FakeQuantize:
    kind: Any = FakeQuantize  # torch leaves it untyped
    own: dict[str, Any] = {
        "observer": MinMaxObserver,
        "qscheme": torch.per_tensor_symmetric,
    }
    if channels:
        own = {
            "observer": PerChannelMinMaxObserver,
            "qscheme": torch.per_channel_symmetric,
            "ch_axis": 0,
        }
    made: FakeQuantize = kind(quant_min=low, quant_max=high, dtype=dtype, **own)
    made(weight)
    made.disable_observer()
    return made.to(weight.device).eval()
