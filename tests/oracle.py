"""An engine that knows the truth, and small data sets to use it on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.data.transforms import EvalTransform, preprocess
from yolact.ops.boxes import encode
from yolact.types import RawOutputs

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 20, "name": "dog"}, {"id": 21, "name": "owl"}]
SIZE = 96
SLOTS = 12


def rectangle(number: int, image: int, category: int, box: Sequence[int], **more: Any) -> Any:
    """A rectangular object, xywh in pixels, as a polygon."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": list(box)}
    return {**fields, "area": w * h, "iscrowd": 0, "segmentation": [polygon], **more}


def write_dataset(
    folder: Path, annotations: list[Any], images: Sequence[Any] = ()
) -> CocoInstances:
    """Random pictures in the tutorial's layout; image 3 has no annotations by default."""
    images = images or [(3, 90, 120), (9, 120, 80), (11, 64, 64)]
    noise = np.random.default_rng(0)
    records = []
    (folder / "images").mkdir(parents=True)
    for number, height, width in images:
        name = f"{number:04d}.png"
        cv2.imwrite(
            str(folder / "images" / name), noise.integers(0, 256, (height, width, 3), np.uint8)
        )
        records.append({"id": number, "file_name": name, "height": height, "width": width})
    content = {"images": records, "annotations": annotations, "categories": CATEGORIES}
    info = folder / "annotations" / "instances_val2017.json"
    info.parent.mkdir()
    info.write_text(json.dumps(content))
    return open_dataset(folder)


def open_dataset(folder: Path) -> CocoInstances:
    """The data set that :func:`write_dataset` wrote."""
    info = folder / "annotations" / "instances_val2017.json"
    return CocoInstances(folder / "images", info, EvalTransform(SIZE))


ANNOTATIONS = [
    rectangle(1, 9, 7, (10, 20, 40, 60)),
    rectangle(2, 9, 20, (30, 70, 44, 44)),
    rectangle(3, 11, 21, (4, 8, 40, 24)),
]


class Oracle:
    """Returns the annotated objects of the data set's images, with scores 0.9, 0.89 and so on.

    Args:
        dataset: The truth; images are recognised by their pixels.
        classes: The model's classes; the data set's by default.
        extra: Confident (class index, relative xyxy) detections added to every image.
        batch_size: As an exported model of a fixed batch size.
    """

    name = "oracle"
    image_size = (SIZE, SIZE)

    def __init__(
        self,
        dataset: CocoInstances,
        classes: Classes | None = None,
        extra: Sequence[tuple[int, Sequence[float]]] = (),
        batch_size: int | None = None,
    ) -> None:
        """Remember what every image looks like."""
        self.dataset, self.classes = dataset, classes or dataset.classes
        self.extra, self.batch_size = extra, batch_size
        self.calls: list[int] = []
        self._index_of = {
            preprocess(dataset.image(index), SIZE).numpy().tobytes(): index
            for index in range(len(dataset))
        }

    def __call__(self, images: Tensor) -> RawOutputs:
        """Look the images up."""
        self.calls.append(len(images))
        priors = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(SLOTS, 1)
        parts = [self._image(image.numpy().tobytes(), priors) for image in images]
        loc, conf, mask, proto = (torch.stack(part) for part in zip(*parts, strict=True))
        return RawOutputs(loc, conf, mask, priors, proto)

    def _image(self, pixels: bytes, priors: Tensor) -> tuple[Tensor, ...]:
        target = self.dataset[self._index_of[pixels]].target
        names = self.dataset.classes.names
        labels = [self.classes.names.index(names[label]) for label in target.labels.tolist()]
        boxes = [*target.boxes, *(torch.tensor(box) for _, box in self.extra)]
        labels += [label for label, _ in self.extra]
        masks = [*target.masks.float(), *(_filled(box) for _, box in self.extra)]
        proto = torch.zeros(SIZE, SIZE, SLOTS + 1)
        proto[..., SLOTS] = 1
        loc, conf = torch.zeros(SLOTS, 4), torch.zeros(SLOTS, len(self.classes) + 1)
        conf[:, 0] = 1
        coefficients = torch.zeros(SLOTS, SLOTS + 1)
        for slot, (box, label, mask) in enumerate(zip(boxes, labels, masks, strict=True)):
            loc[slot] = encode(box.float(), priors[slot])
            conf[slot] = 0
            conf[slot, label + 1] = 0.9 - 0.01 * slot
            proto[..., slot] = F.interpolate(mask[None, None], (SIZE, SIZE))[0, 0]
            coefficients[slot, slot], coefficients[slot, SLOTS] = 20, -10
        return loc, conf, coefficients, proto


def _filled(box: Sequence[float]) -> Tensor:
    x1, y1, x2, y2 = (round(value * SIZE) for value in box)
    mask = torch.zeros(SIZE, SIZE)
    mask[y1:y2, x1:x2] = 1
    return mask
