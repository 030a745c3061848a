"""Raw outputs to detections, and these to pixel boxes and full-size masks, for every engine."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.config import DetectConfig
from yolact.ops.boxes import decode, fast_nms, greedy_nms
from yolact.ops.masks import crop_mask, mask_logits
from yolact.types import Detections, Instances, RawOutputs

_CHUNK_PIXELS = 2**24
"""Mask pixels that are enlarged at once: 64 MiB of float32, whatever the image's size."""


@torch.no_grad()
def detect(outputs: RawOutputs, config: DetectConfig) -> list[Detections]:
    """Find the objects of each image of a batch.

    A prior is a candidate when its best foreground probability is above
    ``config.score_threshold``. As in the published evaluation a candidate then competes in every
    class, also where it scores below the threshold; only ``config.max_detections`` cuts the list.

    ``config`` chooses the suppression: ``fast_nms`` per class (the default); with
    ``cross_class_nms`` each prior only stands for its best class and classes suppress each other,
    with at most ``top_k`` results; without ``fast_nms`` the classic greedy kind, where scores
    below the threshold are dropped and ``top_k`` is not applied.

    Args:
        outputs: Of any engine; not modified.
        config: Thresholds and limits.

    Returns:
        One entry per image, on the outputs' device, empty where nothing was found.
    """
    return [
        _detect_image(loc, conf[:, 1:], mask, outputs.priors, config)
        for loc, conf, mask in zip(outputs.loc, outputs.conf, outputs.mask, strict=True)
    ]


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
        detections: Of :func:`detect`; not modified.
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
    detections: Detections, proto: Tensor, size: tuple[int, int], *, crop: bool = True
) -> Iterator[Tensor]:
    """Masks at image size, a few detections at a time, so that memory stays bounded.

    Args:
        detections: Objects of one image.
        proto: [h, w, k] prototypes of the image.
        size: (height, width) in pixels.
        crop: Cut each mask at its box.

    Yields:
        [m, height, width] bool for the next m detections.
    """
    small = low_masks(detections, proto, crop=crop)
    step = max(1, _CHUNK_PIXELS // max(1, size[0] * size[1]))
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


def _detect_image(
    loc: Tensor, scores: Tensor, coefficients: Tensor, priors: Tensor, config: DetectConfig
) -> Detections:
    candidates = (scores.amax(1) > config.score_threshold).nonzero().squeeze(1)
    boxes = decode(loc[candidates].float(), priors[candidates].float())
    finite = boxes.isfinite().all(1)  # a broken model may overflow; it should not crash us
    candidates, boxes = candidates[finite], boxes[finite]
    per_class = scores[candidates].float().T.contiguous()  # [C, n]
    labels, rows = _suppress(boxes, per_class, config)
    return Detections(
        boxes=boxes[rows],
        scores=per_class[labels, rows],
        labels=labels,
        coefficients=coefficients[candidates[rows]].float(),
        prior_index=candidates[rows],
    )


def _suppress(boxes: Tensor, scores: Tensor, config: DetectConfig) -> tuple[Tensor, Tensor]:
    """(labels [m], rows of ``boxes`` [m]) of what survives, in descending score.

    Args:
        boxes: [n, 4] relative xyxy.
        scores: [C, n].
        config: Chooses the method.
    """
    if config.cross_class_nms:
        return _across_classes(boxes, scores, config)
    labels, rows = (_fast if config.fast_nms else _greedy)(boxes, scores, config)
    # Sorted whole: which of several equal scores are cut off is not left to topk. Integer networks
    # have many, and an exported graph that detects inside has to cut off the same ones.
    order = scores[labels, rows].sort(descending=True, stable=True).indices[: config.max_detections]
    return labels[order], rows[order]


def _across_classes(boxes: Tensor, scores: Tensor, config: DetectConfig) -> tuple[Tensor, Tensor]:
    best, labels = scores.max(0)
    if config.fast_nms:
        rows = _best(best, config.top_k)
        rows = rows[fast_nms(boxes[rows], config.nms_iou)]
    else:
        rows = greedy_nms(boxes, best, config.nms_iou)[: config.top_k]
    return labels[rows], rows


def _fast(boxes: Tensor, scores: Tensor, config: DetectConfig) -> tuple[Tensor, Tensor]:
    rows = _best(scores, config.top_k)  # [C, k]
    labels, ranks = fast_nms(boxes[rows], config.nms_iou).nonzero(as_tuple=True)
    return labels, rows[labels, ranks]


def _greedy(boxes: Tensor, scores: Tensor, config: DetectConfig) -> tuple[Tensor, Tensor]:
    labels, rows = [], []
    for label, of_class in enumerate(scores):
        above = (of_class > config.score_threshold).nonzero().squeeze(1)
        kept = above[greedy_nms(boxes[above], of_class[above], config.nms_iou)]
        labels.append(torch.full_like(kept, label))
        rows.append(kept)
    return torch.cat(labels), torch.cat(rows)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of the last axis, in descending order, ties by index."""
    top = scores.topk(min(count, scores.shape[-1]), dim=-1).indices.sort(dim=-1).values
    order = scores.gather(-1, top).sort(dim=-1, descending=True, stable=True).indices
    return top.gather(-1, order)
