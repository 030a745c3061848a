"""Mask term: the lincomb masks against the ground truth (YOLACT sec. 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.ops.boxes import area
from yolact.ops.masks import box_window, mask_logits


def mask_loss(
    prototypes: Tensor,
    coefficients: Tensor,
    boxes: Tensor,
    masks: Tensor,
    objects: Tensor,
    limit: int,
) -> Tensor:
    """Cross entropy inside each object's box over the box's area, summed over positives.

    Dividing by the area keeps large objects from drowning out small ones. Of more than ``limit``
    positives a random choice (torch's global generator) stands for all.

    Args:
        prototypes: [h, w, k] of one image.
        coefficients: [P, k], one row per positive prior.
        boxes: [n, 4] objects, relative corner form, with positive sides.
        masks: [n, h, w] bool, reduced to the prototype grid.
        objects: [P] int64, the object of each positive.
        limit: Most positives to look at.

    Returns:
        Scalar; 0 with a gradient when P = 0.
    """
    height, width, _ = prototypes.shape
    count = len(objects)
    if count > limit:
        chosen = torch.randperm(count)[:limit].to(objects.device)
        coefficients, objects = coefficients[chosen], objects[chosen]
    boxes = boxes[objects]
    logits = mask_logits(prototypes, coefficients)
    target = masks.permute(1, 2, 0)[:, :, objects].to(logits.dtype)
    cost: Tensor = _CroppedCrossEntropy.apply(logits, target, box_window(boxes, height, width))
    per_positive = cost.sum(dim=(0, 1)) / (area(boxes) * height * width)
    return per_positive.sum() * (count / max(len(objects), 1))


class _CroppedCrossEntropy(torch.autograd.Function):
    """Binary cross entropy of probabilities that are zero outside a window.

    The value is the published one: where float32 rounds a probability to exactly 0 or 1, a wrong
    pixel costs 100. Autograd would return no gradient there and leave a saturated pixel wrong for
    good; this backward is the exact ``probability - target``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, window: Tensor) -> Tensor:
        probability = logits.sigmoid() * window
        ctx.save_for_backward(probability, target, window)
        # torch refuses NaN here, on a GPU by ending the process; the training loop skips the step.
        cost = F.binary_cross_entropy(probability.nan_to_num(), target, reduction="none")
        return cost + 0 * probability

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probability, target, window = ctx.saved_tensors
        return gradients[0] * (probability - target) * window, None, None
