"""Bytes of weights in a model file, as they are and compressed.

How far gzip gets depends on where the zeros are as much as on how many there are, and no formula
says it well. So a sample of each weight is pruned as its recipe prunes, rounded if the recipe
quantizes, and really compressed.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolact.sparsify._compat import get_mask_creator_default

_SAMPLE = 1 << 14
"""Weights that are compressed of each layer; the rest is taken to be like them."""
_GZIP_LEVEL = 6
"""The level at which exports report their compressed size."""
_ROWS = 8
"""Samples hold whole blocks of this many output channels."""


@dataclass(frozen=True)
class WeightPlan:
    """What becomes of one weight until it is in a file."""

    shape: tuple[int, ...]
    """[O, I, h, w]"""
    sparsity: float
    """Fraction of zeros, 0..1."""
    mask: Any = "unstructured"
    """The recipe's ``mask_type``."""
    int8: bool = False

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in a file that is not compressed: zeros take as many as other numbers."""
        return self.count * (1 if self.int8 else 4)


def compressed_bytes(plan: WeightPlan, weight: Tensor | None) -> float:
    """Estimated bytes of a weight under gzip.

    Args:
        plan: What happens to the weight.
        weight: Its values of today, [O, I, h, w] or wider; None stands for normally distributed
            ones, as trained weights roughly are.
    """
    sample = _sample(plan, weight)
    largest = float(sample.abs().max())
    sample = sample * _mask(plan, sample) + 0.0  # exports have no -0.0
    if plan.int8:
        scale = max(largest, 1e-12) / 127
        sample = (sample / scale).round().to(torch.int8)
    packer = zlib.compressobj(level=_GZIP_LEVEL)
    packed = len(packer.compress(sample.numpy().tobytes())) + len(packer.flush())
    return packed * plan.count / sample.numel()


def _sample(plan: WeightPlan, weight: Tensor | None) -> Tensor:
    """The first output channels of the weight, or numbers in its place."""
    per_channel = max(1, plan.count // plan.shape[0])
    channels = math.ceil(_SAMPLE / per_channel / _ROWS) * _ROWS
    shape = (min(channels, plan.shape[0]), *plan.shape[1:])
    if weight is None:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weight.detach()[tuple(slice(side) for side in shape)].float().cpu().contiguous()


def _mask(plan: WeightPlan, sample: Tensor) -> Tensor:
    try:
        creator = get_mask_creator_default(plan.mask)
        (mask,) = creator.create_sparsity_masks([sample.abs()], [plan.sparsity])
    except (ValueError, RuntimeError, TypeError, AttributeError):  # filters, or other patterns
        creator = get_mask_creator_default("unstructured")
        (mask,) = creator.create_sparsity_masks([sample.abs()], [plan.sparsity])
    assert isinstance(mask, Tensor)
    return mask
