"""Raw outputs to detections: decode, threshold, suppress; the same for every engine."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.config import DetectConfig
from yolact.ops.boxes import decode, fast_nms, greedy_nms
from yolact.types import Detections, RawOutputs


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
