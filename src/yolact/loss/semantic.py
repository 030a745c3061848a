"""Semantic segmentation term, a training-time aid on P3 features (YOLACT sec. 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def semantic_target(masks: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Union of the objects' masks for each class.

    Args:
        masks: [n, h, w] bool.
        labels: [n] int64, 0-based class index.
        num_classes: C.

    Returns:
        [C, h, w] float32 in {0, 1}.
    """
    count = masks.new_zeros((num_classes, *masks.shape[1:]), dtype=labels.dtype)
    return (count.index_add(0, labels, masks.to(labels.dtype)) > 0).float()


def semantic_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid cross entropy summed over classes, averaged over pixels and images.

    Classes may overlap, hence a sigmoid for each and no softmax.

    Args:
        logits: [B, C, h, w].
        target: [B, C, h, w] in {0, 1}.

    Returns:
        Scalar.
    """
    batch, _, height, width = logits.shape
    total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return total / (batch * height * width)
