"""Detections as COCO result entries, and the JSON files made of them.

Format: https://cocodataset.org/#format-results. Files are written in one step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import DataError
from yolact.files import write_text
from yolact.predict.postprocess import mask_chunks, pixel_boxes
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
        category_ids: Sequence[int],
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


def annotation_file(
    images: Iterable[Mapping[str, Any]], results: CocoResults, classes: Classes
) -> dict[str, Any]:
    """A COCO data set of detections: images, categories and annotations with box, mask, score.

    Args:
        images: COCO image records: id, file_name, width, height.
        results: Detections of those images.
        classes: Meaning of their category ids.
    """
    annotations = []
    for number, (box, mask) in enumerate(zip(results.bbox, results.segm, strict=True), start=1):
        area = int(rle.area(mask["segmentation"]))
        found = {"id": number, **box, "segmentation": mask["segmentation"]}
        annotations.append({**found, "area": area, "iscrowd": 0})
    categories = [
        {"id": category, "name": name}
        for category, name in zip(classes.ids, classes.names, strict=True)
    ]
    return {"images": list(images), "categories": categories, "annotations": annotations}
