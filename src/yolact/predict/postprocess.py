"""Detections to instances: pixel boxes and full-size masks from prototypes and coefficients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.ops.masks import crop_mask, mask_logits
from yolact.types import Detections, Instances

CHUNK_PIXELS = 2**24
"""Mask pixels that are enlarged at once: 64 MiB of float32, whatever the image's size."""


@torch.no_grad()
def to_instances(
    detections: Detections,
    proto: Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float = 0,
    crop: bool = True,
) -> Instances:
    """Assemble the masks of one image (YOLACT, sec. 3.2) and bring everything to its size.

    Args:
        detections: Of :func:`yolact.predict.detect.detect`; not modified.
        proto: [h, w, k] prototypes of the image; not modified.
        size: (height, width) of the result, in pixels.
        score_threshold: Above 0, only detections with a higher score are kept.
        crop: Cut each mask at its box, one prototype pixel outside it.

    Returns:
        Instances on the detections' device, in their order. ``masks`` takes n * height * width
        bytes; :func:`mask_chunks` gives the same masks without holding all of them.
    """
    kept = above(detections, score_threshold)
    height, width = size
    masks = torch.empty(len(kept.scores), height, width, dtype=torch.bool, device=proto.device)
    start = 0
    for chunk in mask_chunks(kept, proto, size, crop=crop):
        masks[start : start + len(chunk)] = chunk
        start += len(chunk)
    return Instances(pixel_boxes(kept.boxes, size), kept.scores, kept.labels, masks)


def above(detections: Detections, score_threshold: float) -> Detections:
    """The detections whose score is strictly above ``score_threshold``; all of them for 0."""
    if score_threshold <= 0:
        return detections
    keep = detections.scores > score_threshold
    return Detections(*(values[keep] for values in detections))


def first(detections: Detections, count: int) -> Detections:
    """The ``count`` best detections."""
    return Detections(*(values[:count] for values in detections))


@torch.no_grad()
def mask_chunks(
    detections: Detections,
    proto: Tensor,
    size: tuple[int, int],
    *,
    crop: bool = True,
    pixels: int = CHUNK_PIXELS,
) -> Iterator[Tensor]:
    """Masks at image size, a few detections at a time, so that memory stays bounded.

    Args:
        detections: Objects of one image.
        proto: [h, w, k] prototypes of the image.
        size: (height, width) in pixels.
        crop: Cut each mask at its box.
        pixels: Of all masks at a time; at least one mask is made.

    Yields:
        [m, height, width] bool for the next m detections.
    """
    small = low_masks(detections, proto, crop=crop)
    step = max(1, pixels // max(1, size[0] * size[1]))
    for masks in torch.split(small, step):
        if len(masks):
            yield F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0] > 0.5


def low_masks(detections: Detections, proto: Tensor, *, crop: bool = True) -> Tensor:
    """Mask probabilities at prototype resolution: [n, h, w] in 0..1."""
    masks = torch.sigmoid(mask_logits(proto.float(), detections.coefficients))  # [h, w, n]
    if crop:
        # Before enlarging, as the published numbers were made: the edge of the cut is smoothed.
        masks = crop_mask(masks, detections.boxes)
    return masks.permute(2, 0, 1).contiguous()


def pixel_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative to pixel boxes: corners put in order, clipped to the image, truncated.

    Args:
        boxes: [n, 4] xyxy, relative, unclipped.
        size: (height, width) in pixels.

    Returns:
        [n, 4] int64 xyxy; truncation, not rounding, is what the published numbers were made with.
    """
    height, width = size
    scaled = boxes * boxes.new_tensor([width, height, width, height])
    low = torch.minimum(scaled[:, :2], scaled[:, 2:])
    high = torch.maximum(scaled[:, :2], scaled[:, 2:])
    corners = torch.stack([low, high], dim=1).clamp(min=0)  # [n, corner, (x, y)]
    limit = boxes.new_tensor([width, height])
    return torch.minimum(corners, limit).reshape(-1, 4).long()
