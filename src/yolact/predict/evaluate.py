"""Evaluation: an engine's detections on a data set, and their average precision.

Average precision as pycocotools computes it, for boxes or masks.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from yolact.config import DetectConfig
from yolact.data.coco import CocoInstances
from yolact.data.images import RgbImage
from yolact.data.labels import Classes
from yolact.engines.base import Engine
from yolact.errors import CheckpointError, ConfigError
from yolact.predict.pipeline import find
from yolact.predict.postprocess import above, first
from yolact.predict.results import CocoResults
from yolact.types import Detections

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes and masks; everything is pycocotools' number."""

    box_ap: AveragePrecision
    mask_ap: AveragePrecision | None
    """None when only boxes were asked for."""
    images: int
    """Images looked at."""

    @property
    def box(self) -> dict[str | int, float]:
        """Box AP in percent: ``all``, 50, 55 ... 95."""
        return self.box_ap.table

    @property
    def mask(self) -> dict[str | int, float]:
        """Mask AP in percent: ``all``, 50, 55 ... 95; empty when only boxes were asked for."""
        return self.mask_ap.table if self.mask_ap else {}

    def table(self) -> str:
        """The table of the reference: a row for boxes and one for masks, in percent."""
        rows = [("box", self.box)] + ([("mask", self.mask)] if self.mask_ap else [])
        names = [f".{key} " if isinstance(key, int) else f"{key} " for key in self.box]
        line = "-------+" * (len(names) + 1)
        cells = [_row(kind, *(_cell(value) for value in row.values())) for kind, row in rows]
        return "\n".join([_row("", *names), line, *cells, line])

    def per_class_table(self) -> str:
        """AP and AP at .50 of every class with ground truth, in percent."""
        width = max([5, *(len(name) for name in self.box_ap.per_class)])
        lines = [f" {'class':{width}} | box AP    .50 | mask AP   .50"]
        for name, box in self.box_ap.per_class.items():
            mask = self.mask_ap.per_class[name] if self.mask_ap else (UNDEFINED, UNDEFINED)
            b, b50, m, m50 = (_cell(value) for value in (*box, *mask))
            lines.append(f" {name:{width}} | {b:>6} {b50:>6} | {m:>7} {m50:>5}")
        return "\n".join(lines)


def evaluate(
    engine: Engine,
    dataset: CocoInstances,
    *,
    detect: DetectConfig,
    batch_size: int = 1,
    image_ids: Sequence[int] | None = None,
    progress: bool = True,
    score_threshold: float = 0.0,
    crop: bool = True,
) -> Evaluation:
    """Measure a model on a data set. See :func:`collect` for the arguments and errors."""
    results = collect(
        engine,
        dataset,
        detect=detect,
        batch_size=batch_size,
        image_ids=image_ids,
        progress=progress,
        score_threshold=score_threshold,
        crop=crop,
    )
    return score(dataset, results)


def score(dataset: CocoInstances, results: CocoResults, *, masks: bool = True) -> Evaluation:
    """Average precision of collected results, over exactly the images they come from.

    Args:
        dataset: Ground truth.
        results: Of :func:`collect`.
        masks: False measures boxes only.
    """
    ids = results.image_ids
    box = average_precision(dataset.coco, results.bbox, "bbox", ids)
    mask = average_precision(dataset.coco, results.segm, "segm", ids) if masks else None
    return Evaluation(box, mask, len(ids))


def collect(
    engine: Engine,
    dataset: CocoInstances,
    *,
    detect: DetectConfig,
    batch_size: int = 1,
    image_ids: Sequence[int] | None = None,
    progress: bool = True,
    score_threshold: float = 0.0,
    top_k: int | None = None,
    crop: bool = True,
    masks: bool = True,
) -> CocoResults:
    """Run a model over a data set and keep its detections as COCO result entries.

    Masks are encoded at the image's size right after each image, so memory stays flat.

    Args:
        engine: Its classes are matched with the data set's by name.
        dataset: Images are read from it as they are; its transform is not used.
        detect: Thresholds and suppression.
        batch_size: Images per call; an engine of a fixed batch size keeps its own.
        image_ids: Which images, in this order; None means all.
        progress: Show a bar on a terminal.
        score_threshold: Above 0, only detections with a higher score count.
        top_k: At most so many detections per image, the best ones.
        crop: Cut masks at their boxes.
        masks: False leaves masks out.

    Raises:
        CheckpointError: The data set has classes that the model does not know.
        ConfigError: An image id is not in the data set.
        DataError: An image cannot be read.
    """
    ids = list(dataset.image_ids if image_ids is None else image_ids)
    category_ids = match_classes(engine.classes, dataset.classes)
    known = torch.tensor([category is not None for category in category_ids])
    results = CocoResults()
    bar = tqdm(total=len(ids), unit="img", disable=None if progress else True)
    with bar:
        for names, images in _batches(dataset, ids, engine.batch_size or batch_size):
            for image_id, found in zip(names, find(engine, images, detect), strict=True):
                kept = _of_known_classes(above(found.detections, score_threshold), known)
                kept = kept if top_k is None else first(kept, top_k)
                results.add(
                    image_id,
                    kept,
                    found.proto if masks else None,
                    found.size,
                    [category or 0 for category in category_ids],
                    crop=crop,
                )
            bar.update(len(names))
    return results


def match_classes(model: Classes, dataset: Classes) -> list[int | None]:
    """The data set's category id of every class of the model, by name; None where it has none.

    A model file without names fits a data set of as many classes, in the order of their ids.

    Raises:
        CheckpointError: The data set has classes that the model does not know.
    """
    if model == Classes.numbered(len(model)) and len(model) == len(dataset):
        return list(dataset.ids)
    if model.names == dataset.names:  # also when two classes share a name
        return list(dataset.ids)
    id_of = dict(zip(dataset.names, dataset.ids, strict=True))
    missing = [name for name in dataset.names if name not in model.names]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CheckpointError(
            f"the model knows {len(model)} classes, but not {len(missing)} of the data set's "
            f"{len(dataset)}: {listed}",
            hint="this is a checkpoint of other classes; "
            "use the annotation file it was trained with, or train on this one",
        )
    if len(dataset) < len(model):
        log.warning("%d classes of the model are not in the data set", len(model) - len(dataset))
    return [id_of.get(name) for name in model.names]


def _of_known_classes(detections: Detections, known: torch.Tensor) -> Detections:
    if known.all():
        return detections
    keep = known.to(detections.labels.device)[detections.labels]
    return Detections(*(values[keep] for values in detections))


def _batches(
    dataset: CocoInstances, image_ids: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[RgbImage]]]:
    """(ids, images) per batch; the next batch is decoded while the caller works on this one."""
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    unknown = [image_id for image_id in image_ids if image_id not in index_of]
    if unknown:
        raise ConfigError(f"no image {unknown[0]} in the data set", hint="check the image ids")
    groups = [
        list(image_ids[start : start + batch_size])
        for start in range(0, len(image_ids), batch_size)
    ]

    def read(group: list[int]) -> list[RgbImage]:
        return [dataset.image(index_of[image_id]) for image_id in group]

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(read, group) for group in groups[:1]]
        for group, following in zip(groups, [*groups[1:], None], strict=True):
            images = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(read, following))
            yield group, images


def _row(*cells: str) -> str:
    return "".join(f" {cell:>5} |" for cell in cells)


def _cell(percent: float) -> str:
    if percent == UNDEFINED:
        return "-"
    return f"{percent:.2f}" if round(percent, 2) < 100 else f"{percent:.1f}"


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
