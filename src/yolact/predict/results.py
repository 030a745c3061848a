"""Detections as COCO result entries, the JSON files made of them, and their average precision.

Format: https://cocodataset.org/#format-results. Files are written in one step. Every number of
average precision is pycocotools'.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import DataError
from yolact.files import write_text
from yolact.predict.detect import mask_chunks, pixel_boxes
from yolact.predict.pipeline import Found
from yolact.types import Detections

Entry = dict[str, Any]
"""One detection: image_id, category_id, score and bbox or segmentation."""


@dataclass
class CocoResults:
    """Detections of a set of images as COCO result entries, best first within each image."""

    bbox: list[Entry] = field(default_factory=list)
    segm: list[Entry] = field(default_factory=list)
    """In the order of ``bbox``; empty when masks were not asked for."""
    image_ids: list[int] = field(default_factory=list)
    """Every image that was looked at, also those in which nothing was found."""

    def add(
        self,
        image_id: int,
        detections: Detections,
        proto: Tensor | None,
        size: tuple[int, int],
        category_ids: Sequence[int] | Mapping[int, int],
        *,
        crop: bool = True,
    ) -> None:
        """Append the detections of one image; masks are run-length encoded chunk by chunk.

        Detections whose pixel box has no area are left out of both lists, as upstream leaves
        them out.

        Args:
            image_id: As in the annotation file.
            detections: Of that image.
            proto: [h, w, k] its prototypes; None leaves ``segm`` alone.
            size: (height, width) of the image file.
            category_ids: Category id per class index.
            crop: Cut each mask at its box.
        """
        self.image_ids.append(image_id)
        boxes = pixel_boxes(detections.boxes, size)
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        kept, boxes = Detections(*(values[solid] for values in detections)), boxes[solid]
        heads = [
            {"image_id": image_id, "category_id": category_ids[label], "score": score}
            for label, score in zip(kept.labels.tolist(), kept.scores.tolist(), strict=True)
        ]
        self.bbox.extend(
            {**head, "bbox": coco_box(box)} for head, box in zip(heads, boxes.tolist(), strict=True)
        )
        if proto is not None:
            chunks = mask_chunks(kept, proto, size, crop=crop)
            encoded = (code for chunk in chunks for code in encode_masks(chunk))
            self.segm.extend(
                {**head, "segmentation": code} for head, code in zip(heads, encoded, strict=True)
            )

    def save(self, path: Path) -> None:
        """Write everything to one JSON file, from which :meth:`load` continues."""
        write_json(path, {"images": self.image_ids, "bbox": self.bbox, "segm": self.segm})

    @classmethod
    def load(cls, path: Path) -> CocoResults:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is missing or is not one of ours.
        """
        if not path.is_file():
            raise DataError(f"no saved detections at {path}", hint="run once without --resume")
        try:
            content = json.loads(path.read_bytes())
            return cls(content["bbox"], content["segm"], content["images"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} does not hold saved detections", hint="run once without --resume"
            ) from error


def with_ids(
    entries: Sequence[Entry], images: Mapping[int, str], categories: Mapping[int, str]
) -> list[Entry]:
    """Result entries with the ids that the annotation file has, where these are text.

    Args:
        entries: With the integers that stand for them.
        images: The file's id of an image, by such an integer.
        categories: The same of categories.
    """
    known = {"image_id": images, "category_id": categories}
    return [
        {**entry, **{key: ids.get(entry[key], entry[key]) for key, ids in known.items()}}
        for entry in entries
    ]


def coco_box(box: Sequence[float]) -> list[float]:
    """[x, y, width, height] rounded to a tenth of a pixel, from xyxy.

    >>> coco_box([10, 20, 40, 60])
    [10.0, 20.0, 30.0, 40.0]
    """
    x1, y1, x2, y2 = box
    return [round(float(value), 1) for value in (x1, y1, x2 - x1, y2 - y1)]


def encode_masks(masks: Tensor) -> list[Entry]:
    """COCO run-length codes, JSON-ready, of [n, height, width] bool masks."""
    stacked = np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().view(np.uint8))
    return [{**code, "counts": code["counts"].decode("ascii")} for code in rle.encode(stacked)]


_OF_THICKNESS = 0.15
"""The tolerance of outlines is at most that share of what they surround."""


def outlines(mask: NDArray[np.bool_], tolerance: float = 0) -> list[NDArray[np.int32]]:
    """The polygons [m, 2] around one object, x and y in pixels; first its parts, then its holes.

    Parts run counter-clockwise on the screen and holes clockwise.

    Args:
        mask: [height, width].
        tolerance: How far in pixels a polygon may pass from the mask's edge, for fewer points;
            less far of a small or thin part, which would lose too much of its area.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    inside = mask[y : y + height, x : x + width].view(np.uint8)
    # OpenCV's outlines pass through the pixels of the mask. In a mask of twice the size the first
    # pixel of each pair lies at a left or upper edge, and the last one at a right or lower edge.
    doubled = inside.repeat(2, axis=0).repeat(2, axis=1)
    found, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = hierarchy[0, :, 3].tolist() if found else []
    parts_first = sorted(range(len(found)), key=lambda index: parents[index] >= 0)
    edges = [(found[index] + 1) // 2 + (x, y) for index in parts_first]
    return [_simpler(edge.astype(np.int32), tolerance)[:, 0] for edge in edges]


def _simpler(edge: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    """An outline [m, 1, 2] with fewer points, of which at least three are left."""
    exact = cv2.approxPolyDP(edge, 0, True)
    thickness = 2 * cv2.contourArea(exact) / cv2.arcLength(exact, True)
    simple = cv2.approxPolyDP(exact, min(tolerance, _OF_THICKNESS * thickness), True)
    return np.asarray(simple if len(simple) > 2 else exact, np.int32)


def write_json(path: Path, content: Any) -> None:
    """Write compact JSON in one step.

    Raises:
        StorageError: The file cannot be written; an older one survives.
    """
    write_text(path, json.dumps(content, separators=(",", ":")))


def write_viewer(
    path: Path, results: CocoResults, classes: Classes, info: Mapping[str, Any]
) -> None:
    """Write the layout that upstream's web viewer of detections reads.

    Args:
        path: The .json file.
        results: With masks.
        classes: Names of the category ids.
        info: Settings shown above the pictures.
    """
    names = dict(zip(classes.ids, classes.names, strict=True))
    images: dict[int, list[Entry]] = {image_id: [] for image_id in sorted(results.image_ids)}
    for box, mask in zip(results.bbox, results.segm, strict=True):
        found = {"score": box["score"], "bbox": box["bbox"]}
        found["category"] = names[box["category_id"]]
        images[box["image_id"]].append({**found, "mask": mask["segmentation"]})
    listed = [{"image_id": image_id, "dets": dets} for image_id, dets in images.items() if dets]
    write_json(path, {"info": {"Config": dict(info)}, "images": listed})


POLYGON_TOLERANCE = 1.0
"""Pixels that polygons in files may pass from the mask's edge, for far fewer points."""


@dataclass
class DetectionFile:
    """The detections of pictures one by one, to be written as a COCO data set."""

    classes: Classes
    """Of the model."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """COCO image records; they are numbered from 1."""
    results: CocoResults = field(default_factory=CocoResults)

    def add(self, name: str, found: Found, ms: float | None = None) -> None:
        """Append a picture called ``name``, or the frame of a video at ``ms`` milliseconds."""
        number, (height, width) = len(self.images) + 1, found.size
        image = {"id": number, "file_name": name, "height": height, "width": width}
        self.images.append(image if ms is None else {**image, "time_ms": round(ms, 3)})
        self.results.add(number, found.detections, found.proto, found.size, self.classes.ids)

    def save(self, path: Path) -> None:
        """Write images, categories, and annotations with box, mask, area, score and polygons.

        Polygons are those of :func:`outlines` within :data:`POLYGON_TOLERANCE`, each as one list of
        x and y in turns, as COCO's are.

        Raises:
            StorageError: The file cannot be written.
        """
        annotations = []
        pairs = zip(self.results.bbox, self.results.segm, strict=True)
        for number, (box, mask) in enumerate(pairs, start=1):
            code = mask["segmentation"]
            edges = outlines(rle.decode(code).view(np.bool_), POLYGON_TOLERANCE)
            found = {"id": number, **box, "segmentation": code, "area": int(rle.area(code))}
            polygons = [edge.ravel().tolist() for edge in edges]
            annotations.append({**found, "iscrowd": 0, "polygons": polygons})
        categories = [
            {"id": category, "name": name}
            for category, name in zip(self.classes.ids, self.classes.names, strict=True)
        ]
        content = {"images": self.images, "categories": categories, "annotations": annotations}
        write_json(path, content)


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
