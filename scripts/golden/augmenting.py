"""augmentation.npz: every transform of images, masks and boxes, with its random draws fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from golden.accuracy import pulled
from golden.pictures import Scene, choose
from golden.reference import Reference
from golden.store import Arrays

Draw = tuple[str, Any]
"""A function of numpy.random, and what it is to return."""

CONTRAST: list[Draw] = [("randint", 1), ("uniform", 1.1095)]
COLOURS: list[Draw] = [
    *(("randint", 1), ("uniform", 0.7882)),
    *(("randint", 1), ("uniform", -10.369)),
]
BRIGHTNESS: list[Draw] = [("randint", 1), ("uniform", 5.965)]
CONTRAST_FIRST: list[Draw] = [*BRIGHTNESS, ("randint", 1), *CONTRAST, *COLOURS]
CONTRAST_LAST: list[Draw] = [*BRIGHTNESS, ("randint", 0), *COLOURS, *CONTRAST]
EXPAND: list[Draw] = [("randint", 0), ("uniform", 1.6302), ("at", 0.395), ("at", 0.226)]
CROP: list[Draw] = [("at", 0.48), ("at", 0.41), ("at", 0.5), ("at", 0.46)]
"""``at`` is a place between the bounds of the draw, as a share of their distance."""
TOO_WIDE: list[Draw] = [("at", 0.95), ("at", 0.01)]
MEANS = (103.94, 116.78, 123.68)
"""What the original's training passes on: the grey it expands pictures with, in BGR."""
FEW = 150
"""Elements stored of images that a transform leaves as they are."""


class Dice:
    """Stands in for numpy.random in the original's transforms: returns what is laid out."""

    def __init__(self, draws: list[Draw]) -> None:
        """Lay out the draws in call order."""
        self.draws = list(draws)
        self.calls: list[list[Any]] = []

    def randint(self, count: int) -> int:
        """A coin."""
        return int(self._next("randint", [float(count)]))

    def uniform(self, low: float, high: float | None = None) -> float:
        """A number in an interval; NumPy's upper end is 1 where none is given."""
        bounds = [low] if high is None else [low, high]
        return float(self._next("uniform", [float(bound) for bound in bounds]))

    def choice(self, _: Any) -> Any:
        """The mode of a crop."""
        return self._next("choice", [])

    def _next(self, function: str, bounds: list[float]) -> Any:
        kind, value = self.draws.pop(0)
        if kind == "at":
            low, high = [*bounds, 1.0][:2]
            kind, value = "uniform", low + value * (high - low)
        assert kind == function, f"{function} was called where {kind} was laid out"
        self.calls.append([function, bounds, value])
        return value


@dataclass(frozen=True)
class Case:
    """A transform, what it is given, and its draws."""

    make: Callable[[Any], Any]
    """From the original's module of transforms."""
    draws: tuple[Draw, ...] = ()
    relative: bool = False
    """Boxes as shares of the image's sides rather than pixels."""
    integers: bool = False
    """The image in 8 bits, as the whole pipelines take it."""
    unchanged: bool = False
    """The image is, so that a few elements tell."""


def mode(minimum: float | None) -> Draw:
    """The draw of a crop's mode."""
    return ("choice", (minimum, None))


NO_CROP: Draw = ("choice", None)
OFF: tuple[Draw, ...] = (("randint", 0), ("randint", 1), *[("randint", 0)] * 3, ("randint", 1))
"""Photometric coins that change nothing, then no expansion."""

CASES: dict[str, Case] = {
    "to_absolute": Case(lambda t: t.ToAbsoluteCoords(), relative=True, unchanged=True),
    "to_percent": Case(lambda t: t.ToPercentCoords(), unchanged=True),
    "resize_train": Case(lambda t: t.Resize()),
    "resize_eval": Case(lambda t: t.Resize(resize_gt=False), relative=True),
    "mirror": Case(lambda t: t.RandomMirror(), (("randint", 1),)),
    "mirror_off": Case(lambda t: t.RandomMirror(), (("randint", 0),), unchanged=True),
    "flip": Case(lambda t: t.RandomFlip(), (("randint", 1),)),
    "expand": Case(lambda t: t.Expand(MEANS), tuple(EXPAND)),
    "expand_off": Case(lambda t: t.Expand(MEANS), (("randint", 1),), unchanged=True),
    "crop": Case(lambda t: t.RandomSampleCrop(), (mode(0.3), *CROP)),
    "crop_none": Case(lambda t: t.RandomSampleCrop(), (NO_CROP,), unchanged=True),
    "crop_retry": Case(lambda t: t.RandomSampleCrop(), (mode(0.9), *TOO_WIDE, *CROP)),
    "brightness": Case(lambda t: t.RandomBrightness(), tuple(BRIGHTNESS)),
    "contrast": Case(lambda t: t.RandomContrast(), tuple(CONTRAST)),
    "photometric_contrast_first": Case(lambda t: t.PhotometricDistort(), tuple(CONTRAST_FIRST)),
    "photometric_contrast_last": Case(lambda t: t.PhotometricDistort(), tuple(CONTRAST_LAST)),
    "backbone_transform": Case(lambda t: t.BaseTransform().augment.transforms[-1]),
    "base_transform": Case(lambda t: t.BaseTransform(), relative=True),
    "full_train": Case(
        lambda t: t.SSDAugmentation(),
        (*CONTRAST_FIRST, *EXPAND, NO_CROP, ("randint", 1)),
        relative=True,
        integers=True,
    ),
    "full_train_crop": Case(
        lambda t: t.SSDAugmentation(),
        (*OFF, mode(None), *CROP, ("randint", 0)),
        relative=True,
        integers=True,
    ),
    "full_train_noaug": Case(lambda t: t.SSDAugmentation(), relative=True, integers=True),
}
AUGMENTATIONS = ("photometric_distort", "expand", "random_sample_crop", "random_mirror")


def write_augmentation(reference: Reference, folder: Path) -> None:
    """Write augmentation.npz."""
    arrays = Arrays()
    scene = choose(400, objects=4, count=40)
    ok, png = cv2.imencode(".png", scene.picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert ok
    assert tuple(reference.data.MEANS) == MEANS
    arrays.put("image.png", png.reshape(-1))
    arrays.put("in.boxes_rel", scene.boxes)
    arrays.put("in.labels", scene.labels)
    arrays.masks("in.masks", scene.masks)
    arrays.put("in.num_crowds", np.array(scene.crowds))
    meta = {name: put_case(reference, arrays, name, case, scene) for name, case in CASES.items()}
    fast = reference.augmentations.FastBaseTransform(cuda=False)
    arrays.sample("fast_base_transform", fast(torch.from_numpy(scene.picture)[None].float()))
    height, width = scene.size
    put_discarded(reference, arrays, "discard_rel", height, width, resize_gt=False)
    put_discarded(reference, arrays, "discard_abs", height, width, resize_gt=True)
    for number, pull in enumerate(pulled(reference)):
        arrays.update(f"pull.{number}", pull["arrays"])
        meta[f"pull.{number}"] = {"image": ["ap_gt.json", pull["image_id"]]}
    content = {"cases": meta, "image": scene.name, "height": height, "width": width}
    arrays.save(folder / "augmentation.npz", reference, content)


def put_case(
    reference: Reference, arrays: Arrays, name: str, case: Case, scene: Scene
) -> dict[str, Any]:
    """Run one transform and store all that it returns."""
    augmentations, dice = reference.augmentations, Dice(list(case.draws))
    off = {f"augment_{part}": False for part in AUGMENTATIONS} if name.endswith("noaug") else {}
    height, width = scene.size
    picture = scene.picture if case.integers else scene.picture.astype(np.float32)
    boxes = scene.boxes * (1 if case.relative else np.array([width, height, width, height]))
    labels = {"num_crowds": scene.crowds, "labels": scene.labels}
    with patch.object(augmentations, "random", dice), reference.settings(**off):
        image, masks, boxes, labels = case.make(augmentations)(picture, scene.masks, boxes, labels)
    assert not dice.draws, f"{name}: {dice.draws} are left"
    arrays.sample(f"{name}.image", image, FEW if case.unchanged else 2000)
    arrays.masks(f"{name}.masks", masks)
    arrays.put(f"{name}.masks_area", np.asarray(masks).sum((1, 2)).astype(np.int64))
    arrays.put(f"{name}.boxes", boxes)
    arrays.put(f"{name}.labels", labels["labels"])
    arrays.put(f"{name}.num_crowds", np.array(labels["num_crowds"]))
    given = "uint8 image, " if case.integers else ""
    given += "relative boxes" if case.relative else "absolute boxes"
    return {"input": given, "random_calls": dice.calls}


def put_discarded(
    reference: Reference, arrays: Arrays, name: str, height: int, width: int, *, resize_gt: bool
) -> None:
    """Which of seven hand-made boxes survive a resize, in the unit they have at that moment."""
    limit = 4 / 550
    corners: NDArray[np.float64] = np.array(
        [
            [0.1, 0.1, 0.5, 0.5],
            [0.2, 0.2, 0.2 + 0.99 * limit, 0.6],
            [0.2, 0.2, 0.6, 0.2 + 0.99 * limit],
            [0.3, 0.3, 0.3 + 1.01 * limit, 0.3 + 1.01 * limit],
            [0.4, 0.4, 0.4, 0.7],
            [0.5, 0.5, 0.5 + 0.002 / width, 0.7],
            [0.6, 0.6, 0.6 + 0.5 / width, 0.9],
        ]
    )
    boxes = corners * ([width, height, width, height] if resize_gt else 1)
    kinds = np.array([3.0, 4, 5, 6, 7, 8, -1])
    arrays.put(f"{name}.in.boxes", boxes)
    arrays.put(f"{name}.in.labels", kinds)
    labels: dict[str, Any] = {"labels": kinds, "num_crowds": 1}
    blank = np.zeros((height, width, 3), np.float32)
    masks = np.zeros((len(boxes), height, width), np.uint8)
    resize = reference.augmentations.Resize(resize_gt=resize_gt)
    _, _, boxes, labels = resize(blank, masks, boxes.copy(), labels)
    arrays.put(f"{name}.out.boxes", boxes)
    arrays.put(f"{name}.out.labels", labels["labels"])
    arrays.put(f"{name}.out.num_crowds", np.array(labels["num_crowds"]))
