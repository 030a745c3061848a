"""This project's own pictures and annotations, which everything is computed on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from conftest import SEED
from yolact.data.sample_set import SHAPE_CLASSES, generate_shapes

Bytes = NDArray[np.uint8]


@dataclass
class Scene:
    """One picture with its annotations, crowds last."""

    name: str
    jpeg: bytes
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def picture(self) -> Bytes:
        """[height, width, 3] BGR."""
        data = np.frombuffer(self.jpeg, np.uint8)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.picture.shape[:2]
        return height, width

    @property
    def crowds(self) -> int:
        """Number of crowds among the annotations."""
        return sum(entry["iscrowd"] for entry in self.annotations)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """[n, 4] relative corners."""
        rows = np.array([entry["bbox"] for entry in self.annotations]).reshape(-1, 4)
        height, width = self.size
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
        return np.asarray(corners / [width, height, width, height])

    @property
    def labels(self) -> NDArray[np.float64]:
        """[n] class index among the 80 of COCO, spread over them; -1 for a crowd."""
        return np.array([spread(entry) for entry in self.annotations], np.float64)

    @property
    def masks(self) -> Bytes:
        """[n, height, width] of 0 and 1."""
        height, width = self.size
        return np.stack([mask_of(entry, height, width) for entry in self.annotations])


def spread(entry: dict[str, Any]) -> int:
    """Class index of an annotation: the six shapes take indices all over the 80 classes."""
    return -1 if entry["iscrowd"] else 13 * SHAPE_CLASSES.ids.index(entry["category_id"]) + 7


def mask_of(entry: dict[str, Any], height: int, width: int) -> Bytes:
    """[height, width] of 0 and 1."""
    shape = entry["segmentation"]
    if isinstance(shape, list):
        shape = rle.merge(rle.frPyObjects(shape, height, width))
    elif isinstance(shape["counts"], list):
        shape = rle.frPyObjects(shape, height, width)
    return np.asarray(rle.decode(shape), np.uint8)


@cache
def sample_folder(size: int, count: int) -> Path:
    """The generated sample set with images of about ``size`` pixels."""
    folder = Path(mkdtemp(prefix="golden-")) / "shapes"
    generate_shapes(folder, train=count, val=1, image_size=size, seed=SEED)
    return folder


@cache
def scenes(size: int, count: int = 120) -> list[Scene]:
    """The images of :func:`sample_folder`."""
    folder = sample_folder(size, count)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    found = {
        image["id"]: Scene(
            image["file_name"], (folder / "images" / image["file_name"]).read_bytes()
        )
        for image in content["images"]
    }
    for entry in sorted(content["annotations"], key=lambda entry: entry["iscrowd"]):
        found[entry["image_id"]].annotations.append(entry)
    return list(found.values())


def choose(size: int, objects: int, crowds: int = 0, skip: int = 0, count: int = 120) -> Scene:
    """The first image, or a later one, with so many objects and crowds."""
    fitting = [
        scene
        for scene in scenes(size, count)
        if (len(scene.annotations) - scene.crowds, scene.crowds) == (objects, crowds)
    ]
    return fitting[skip]


def resized(scene: Scene, side: int) -> tuple[Bytes, Bytes]:
    """Picture [side, side, 3] BGR and masks [n, side, side], for inputs that begin there."""
    picture = cv2.resize(scene.picture, (side, side), interpolation=cv2.INTER_AREA)
    masks = [cv2.resize(m, (side, side), interpolation=cv2.INTER_NEAREST) for m in scene.masks]
    return np.asarray(picture, np.uint8), np.asarray(np.stack(masks), np.uint8)


def speck_scene(
    rng: np.random.Generator, count: int, smallest: float, largest: float, cells: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Small boxes all over an image.

    Args:
        rng: Where to draw from.
        count: How many.
        smallest: Shortest side, relative to the image's.
        largest: Longest side.
        cells: When not 0, boxes lie about the centres of cells of a square grid of so many a row.

    Returns:
        Relative corners [count, 4] and class indices [count].
    """
    sides = rng.uniform(smallest, largest, (count, 2))
    corner = rng.uniform(0, 1 - sides)
    if cells:
        centre = (np.floor((corner + sides / 2) * cells) + 0.5) / cells
        corner = centre - sides / 2 + rng.uniform(-0.001, 0.001, (count, 2))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    return boxes, rng.integers(0, 80, count).astype(np.float64)


def ellipses(boxes: NDArray[np.float32], side: int) -> Bytes:
    """[n, side, side] masks of 0 and 1: the ellipse in each box, at least one pixel."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    x1, y1, x2, y2 = (values[:, None, None] for values in boxes.astype(np.float64).T)
    across = (x - (x1 + x2) / 2) / np.maximum(x2 - x1, 1 / side)
    along = (y - (y1 + y2) / 2) / np.maximum(y2 - y1, 1 / side)
    return np.asarray(across**2 + along**2 <= 0.25, np.uint8)
