"""Mask arithmetic at prototype resolution. Mask stacks are [h, w, n], as prototypes produce them.

YOLACT sec. 3.3, https://arxiv.org/abs/1904.02689.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.ops.boxes import pixel_span


def box_window(boxes: Tensor, height: int, width: int, padding: int = 1) -> Tensor:
    """Which pixels of a grid lie inside each box.

    Args:
        boxes: [n, 4] relative corner form; swapped corners are put in order.
        height: Rows of the grid.
        width: Columns of the grid.
        padding: Pixels by which every box grows on all sides.

    Returns:
        [height, width, n] bool: column c is inside when ``x1 * width - padding <= c`` and
        ``c < x2 * width + padding``; rows likewise.
    """
    left, right = pixel_span(boxes[:, 0], boxes[:, 2], width, padding)
    top, bottom = pixel_span(boxes[:, 1], boxes[:, 3], height, padding)
    column = torch.arange(width, device=boxes.device, dtype=boxes.dtype)[None, :, None]
    row = torch.arange(height, device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return (left <= column) & (column < right) & ((top <= row) & (row < bottom))


def crop_mask(masks: Tensor, boxes: Tensor) -> Tensor:
    """``masks`` [h, w, n] with zeros outside their relative corner-form ``boxes`` [n, 4]."""
    height, width, _ = masks.shape
    return masks * box_window(boxes, height, width)


def mask_logits(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Linear combination of prototypes, before the sigmoid (eq. 1).

    Args:
        prototypes: [h, w, k].
        coefficients: [n, k].

    Returns:
        [h, w, n].
    """
    return prototypes @ coefficients.t()


def reduce_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Ground-truth masks on a coarser grid: bilinear, then more than one half.

    Small objects may vanish, as they do in the reference.

    Args:
        masks: [n, H, W] in {0, 1}, of any type.
        size: (h, w) of the grid.

    Returns:
        [n, h, w] bool.
    """
    reduced = F.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False)
    return reduced[:, 0] > 0.5
