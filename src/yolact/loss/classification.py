"""Class term: softmax cross entropy on positives and the hardest negatives (YOLACT sec. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.loss.matching import BACKGROUND


def classification_loss(logits: Tensor, classes: Tensor, negatives_per_positive: int) -> Tensor:
    """Cross entropy summed over positives and mined negatives of the batch.

    Args:
        logits: [B, N, 1 + C]; index 0 is the background.
        classes: [B, N] int64 roles, as :class:`yolact.loss.matching.Matches` has them.
        negatives_per_positive: Ratio of background to positive priors within each image.

    Returns:
        Scalar; 0 with a gradient when no image has a positive.
    """
    positive = classes > BACKGROUND
    used = positive | hard_negatives(logits, classes, negatives_per_positive)
    return F.cross_entropy(logits[used], classes[used], reduction="sum")


@torch.no_grad()
def hard_negatives(logits: Tensor, classes: Tensor, per_positive: int) -> Tensor:
    """The background priors that look least like background, a fixed ratio to the positives.

    Args:
        logits: [B, N, 1 + C].
        classes: [B, N] int64 roles.
        per_positive: How many to take for each positive prior of the same image.

    Returns:
        [B, N] bool.
    """
    background = classes == BACKGROUND
    # -log softmax of the background, each row with its own maximum: nothing can underflow.
    hardness = logits.logsumexp(dim=2) - logits[:, :, BACKGROUND]
    order = hardness.masked_fill(~background, -torch.inf).argsort(dim=1, descending=True)
    wanted = per_positive * (classes > BACKGROUND).sum(dim=1, keepdim=True)
    first = torch.arange(classes.shape[1], device=classes.device) < wanted
    return torch.zeros_like(background).scatter(1, order, first) & background
