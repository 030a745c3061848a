"""One range per output channel for weights that were trained with one for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver


@torch.no_grad()
def quantize_per_channel(model: nn.Module) -> None:
    """Give each output channel's weights the finest range that holds them, in place.

    The largest weight of all limits how finely a tensor with one range is rounded; most channels
    have none as large. As many bits as before; zeros stay zero.

    Args:
        model: In evaluation mode, its observers off, its batch norms folded. Weights whose ranges
            are per channel already are left alone.
    """
    for module in model.modules():
        quantizer = getattr(module, "weight_fake_quant", None)
        if not isinstance(quantizer, FakeQuantize) or quantizer.scale.numel() > 1:
            continue
        weight: Any = module.weight
        module.weight_fake_quant = _per_channel(quantizer, weight)


def _per_channel(quantizer: FakeQuantize, weight: Tensor) -> FakeQuantize:
    kind: Any = FakeQuantize  # torch leaves it untyped
    finer: FakeQuantize = kind(
        observer=PerChannelMinMaxObserver,
        quant_min=quantizer.quant_min,
        quant_max=quantizer.quant_max,
        dtype=quantizer.dtype,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    finer(weight)
    finer.disable_observer()
    return finer.to(weight.device).eval()
