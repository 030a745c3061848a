"""Average precision as pycocotools computes it, for boxes or masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

THRESHOLDS = tuple(range(50, 100, 5))
"""IoU thresholds of the table, in percent."""
STATS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
"""COCO's twelve numbers, https://cocodataset.org/#detection-eval."""
UNDEFINED = -1.0
"""COCO's value where there is no ground truth to measure against."""


@dataclass(frozen=True)
class AveragePrecision:
    """How well detections fit the ground truth, by box or by mask."""

    table: dict[str | int, float]
    """Percent at each of :data:`THRESHOLDS`, and ``all``, their mean; classes without ground
    truth do not count. :data:`UNDEFINED` when no image has any object."""
    stats: dict[str, float]
    """:data:`STATS`, 0..1, or :data:`UNDEFINED`."""
    per_class: dict[str, tuple[float, float]]
    """(AP, AP at .50) in percent of each class that has ground truth, in the file's order."""
    summary: str
    """COCO's twelve lines of text."""


def average_precision(
    ground_truth: COCO,
    entries: Sequence[dict[str, Any]],
    kind: Literal["bbox", "segm"],
    image_ids: Sequence[int],
) -> AveragePrecision:
    """Measure detections with pycocotools.

    Args:
        ground_truth: Annotations; crowds absorb detections instead of counting them as wrong.
        entries: COCO result entries, 100 per image and class at most count; not modified.
        kind: Compare boxes or masks.
        image_ids: Images to look at, with or without annotations and detections.
    """
    with redirect_stdout(io.StringIO()):  # pycocotools prints, and stdout carries results only
        ground_truth = _measurable(ground_truth)
        evaluator = COCOeval(ground_truth, _results(ground_truth, entries), kind)
        evaluator.params.imgIds = list(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
    with redirect_stdout(io.StringIO()) as text:
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
    return AveragePrecision(
        table=_table(precision),
        stats=dict(zip(STATS, (float(value) for value in evaluator.stats), strict=True)),
        per_class={
            ground_truth.cats[category]["name"]: (_percent(values), _percent(values[0]))
            for category, values in zip(
                evaluator.params.catIds, np.moveaxis(precision, 2, 0), strict=True
            )
            if (values > UNDEFINED).any()
        },
        summary=text.getvalue().rstrip("\n"),
    )


def _measurable(ground_truth: COCO) -> COCO:
    """``ground_truth`` without annotations that have no mask at all, which pycocotools rejects."""
    annotations = ground_truth.dataset["annotations"]
    usable = [annotation for annotation in annotations if annotation.get("segmentation")]
    if len(usable) == len(annotations):
        return ground_truth
    return _indexed(ground_truth, usable)


def _results(ground_truth: COCO, entries: Sequence[dict[str, Any]]) -> COCO:
    if entries:
        return ground_truth.loadRes([dict(entry) for entry in entries])  # it adds fields
    return _indexed(ground_truth, [])


def _indexed(like: COCO, annotations: list[Any]) -> COCO:
    """An index of other annotations of the same images and categories."""
    index = COCO()
    index.dataset = {**like.dataset, "annotations": annotations}
    index.createIndex()
    return index


def _table(precision: np.ndarray[Any, Any]) -> dict[str | int, float]:
    rows = [_percent(row) for row in precision]
    return {"all": float(np.mean(rows)), **dict(zip(THRESHOLDS, rows, strict=True))}


def _percent(precision: np.ndarray[Any, Any]) -> float:
    defined = precision[precision > UNDEFINED]
    return float(100 * defined.mean()) if defined.size else UNDEFINED
