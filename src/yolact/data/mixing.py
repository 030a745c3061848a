"""Training images made of several: mosaics of four, and objects pasted from one onto another.

Mosaics are those of https://arxiv.org/abs/2004.10934 (section 3.4), here of windows that are cut at
the size of the network's input. Pasting is that of https://arxiv.org/abs/2012.07177, without the
blending that made no difference there. Masks are drawn at the size at which they are needed, and
only those that are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from yolact.config import AugmentConfig
from yolact.data.transforms import Dice, Objects, TrainTransform
from yolact.sizes import ImageSize, sides_of

KEPT = 0.2
"""An object of which less than this share is left is left out; of a crowd any pixel stays."""
CENTRE = 0.25, 0.75
"""Where the four images of a mosaic meet, as shares of its sides."""
PASTED_SCALE = 0.5, 1.5
"""Scale of the image that objects are pasted from, where 1 makes it as large as the other."""
CROPPED = 4
"""How many times a crop may enlarge what it keeps: at least 0.3 of a side."""
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image and its objects."""

    pixels: NDArray[np.uint8]
    """[h, w, 3] RGB."""
    boxes: NDArray[np.float32]
    """[n, 4] xyxy in pixels."""
    masks: NDArray[np.uint8]
    """[n, h, w] in {0, 1}."""
    labels: NDArray[np.int64]
    """[n]."""
    crowd: NDArray[np.bool_]
    """[n]; crowds come last."""

    def tensors(self) -> tuple[Tensor, Objects]:
        """As transforms take it, sharing this memory."""
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(self.boxes), format="XYXY", canvas_size=self.pixels.shape[:2]
        )
        return tv_tensors.Image(torch.from_numpy(self.pixels).permute(2, 0, 1)), {
            "boxes": boxes,
            "masks": tv_tensors.Mask(torch.from_numpy(self.masks)),
            "labels": torch.from_numpy(self.labels),
            "crowd": torch.from_numpy(self.crowd),
        }

    def mirrored(self) -> Picture:
        """Left and right exchanged."""
        boxes = self.boxes.copy()
        boxes[:, [0, 2]] = self.pixels.shape[1] - self.boxes[:, [2, 0]]
        pixels, masks = self.pixels[:, ::-1], self.masks[:, :, ::-1]
        return replace(self, pixels=pixels, boxes=boxes, masks=masks)

    def on_canvas(self, size: Size, top: int, left: int) -> Picture:
        """What of it is inside a canvas of ``size``, black elsewhere.

        Args:
            size: Of the canvas.
            top: Row of the canvas that this picture's first one lies on; may be negative.
            left: The same of columns.
        """
        there, here = zip(
            _overlap(self.pixels.shape[0], size[0], top),
            _overlap(self.pixels.shape[1], size[1], left),
            strict=True,
        )
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[there] = self.pixels[here]
        masks = np.zeros((len(self.masks), *size), np.uint8)
        masks[(slice(None), *there)] = self.masks[(slice(None), *here)]
        offset = np.array([left, top, left, top], np.float32)
        moved = replace(self, pixels=pixels, boxes=self.boxes + offset)
        return moved.with_masks(masks, _areas(self.masks))

    def with_masks(self, masks: NDArray[np.uint8], areas: NDArray[np.int64]) -> Picture:
        """The objects that are left when theirs have become ``masks``, of ``areas`` before.

        Boxes of objects that lost something are the bounds of what is left of their masks.
        """
        left = _areas(masks)
        keep = (left > 0) & (self.crowd | (left >= KEPT * areas))
        height, width = masks.shape[1:]
        inside = (self.boxes >= 0).all(1) & (self.boxes[:, 2:] <= (width, height)).all(1)
        whole = (left == areas) & inside
        masks = masks if keep.all() else masks[keep]
        boxes = np.where(whole[keep, None], self.boxes[keep], bounds(masks))
        labels, crowd = self.labels[keep], self.crowd[keep]
        return Picture(self.pixels, boxes.astype(np.float32), masks, labels, crowd)

    def covered_by(self, other: Picture) -> Picture:
        """With the objects of another picture of this size over it."""
        if not len(other.masks):
            return self
        cover = other.masks.any(0)
        pixels = np.where(cover[..., None], other.pixels, self.pixels)
        cut = self.with_masks(self.masks * ~cover, _areas(self.masks))
        return joined(pixels, [cut, other])


@dataclass(frozen=True)
class Scene:
    """An image of a data set, whose objects are drawn when they are needed."""

    pixels: NDArray[np.uint8]
    """[h, w, 3] RGB."""
    boxes: NDArray[np.float32]
    """[n, 4] xyxy in pixels."""
    labels: NDArray[np.int64]
    """[n]."""
    crowd: NDArray[np.bool_]
    """[n]; crowds come last."""
    draw: Callable[[Sequence[int], Size], NDArray[np.uint8]]
    """Masks of these objects, [n, height, width] in {0, 1}, the image being stretched to a size."""

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def picture(self, size: Size | None = None, objects: Sequence[int] | None = None) -> Picture:
        """It and some of its objects, stretched to a size.

        Args:
            size: None for its own.
            objects: Their indices; None for all.
        """
        which = list(range(len(self.boxes)) if objects is None else objects)
        height, width = size or self.size
        pixels, boxes = self.pixels, self.boxes[which]
        if (height, width) != self.size:
            pixels = np.asarray(cv2.resize(pixels, (width, height)), np.uint8)
            factors = np.array([width, height] * 2) / (self.size[::-1] * 2)
            boxes = (boxes * factors).astype(np.float32)
        masks = self.draw(which, (height, width))
        return Picture(pixels, boxes, masks, self.labels[which], self.crowd[which])


Others = Callable[[int], Scene]
"""The scene at an index of the data set."""


class MixingTransform:
    """The training pipeline: what makes one image of several, then :class:`TrainTransform`.

    What has probability 0 draws no random numbers.
    """

    def __init__(
        self, image_size: ImageSize, augment: AugmentConfig, dice: Dice | None = None
    ) -> None:
        """Make images for a network input of ``image_size``."""
        self.image_size = image_size
        self.augment = augment
        self.dice = dice or Dice()
        self.alone = TrainTransform(image_size, augment, self.dice)
        # A mosaic has changed the scale and cut things off already, at the size of the input.
        sized = replace(augment, expand=False, crop=False)
        self.mosaic = TrainTransform(image_size, sized, self.dice)

    def __call__(self, scene: Scene, count: int, others: Others) -> tuple[Tensor, Objects]:
        """A training image, made of ``scene`` and perhaps of others.

        Args:
            scene: What is in any case in it.
            count: Number of scenes in the data set.
            others: Gives each.
        """

        def other() -> Scene:
            return others(self.dice.below(count))

        tiled = self._happens(self.augment.mosaic)
        pasted = self._happens(self.augment.copy_paste)
        if tiled:
            scenes = [scene, *(other() for _ in range(3))]
            picture = mosaic(scenes, sides_of(self.image_size), self.dice)
        else:
            picture = scene.picture(self._enough(scene.size) if pasted else None)
        if pasted:
            picture = paste(picture, other(), self.dice)
        image, objects = (self.mosaic if tiled else self.alone)(*picture.tensors())
        return image, objects

    def _enough(self, size: Size) -> Size:
        """As large as an image of ``size`` has to be: photos may have more than is ever seen."""
        enlarged = CROPPED if self.augment.crop else 1
        sides = sides_of(self.image_size)
        return min(size[0], sides[0] * enlarged), min(size[1], sides[1] * enlarged)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.dice.uniform(0, 1) < probability


def mosaic(scenes: Sequence[Scene], size: Size, dice: Dice) -> Picture:
    """Windows of four scenes around a random point of an image of ``size``.

    Each is first stretched to at most ``size``, and at least so that it fills its part.
    """
    rows, columns = (round(side * dice.uniform(*CENTRE)) for side in size)
    first = dice.below(4)
    pixels = np.empty((*size, 3), np.uint8)
    parts: list[Picture] = []
    for number, scene in enumerate(scenes, first):
        bottom, right = divmod(number % 4, 2)
        height = size[0] - rows if bottom else rows
        width = size[1] - columns if right else columns
        top, left = rows * bottom, columns * right
        scale = dice.uniform(max(height / size[0], width / size[1]), 1)
        full = max(height, round(size[0] * scale)), max(width, round(size[1] * scale))
        hidden = dice.below(full[0] - height + 1), dice.below(full[1] - width + 1)
        window = scene.picture(full).on_canvas((height, width), -hidden[0], -hidden[1])
        pixels[top : top + height, left : left + width] = window.pixels
        parts.append(window.on_canvas(size, top, left))
    return joined(pixels, parts)


def paste(picture: Picture, scene: Scene, dice: Dice) -> Picture:
    """Objects of a scene, mirrored or not, at a random scale, over a picture; crowds stay away."""
    single = np.flatnonzero(~scene.crowd)
    if not len(single):
        return picture
    chosen = [int(index) for index in single if dice.coin()]
    chosen = chosen or [int(single[dice.below(len(single))])]
    height, width = picture.pixels.shape[:2]
    scale = dice.uniform(*PASTED_SCALE)
    source = scene.picture((max(1, round(height * scale)), max(1, round(width * scale))), chosen)
    if dice.coin():
        source = source.mirrored()
    top = round(dice.uniform(0, height - source.pixels.shape[0]))
    left = round(dice.uniform(0, width - source.pixels.shape[1]))
    return picture.covered_by(source.on_canvas((height, width), top, left))


def joined(pixels: NDArray[np.uint8], parts: Sequence[Picture]) -> Picture:
    """One picture of the objects of several of the same size, crowds last."""
    crowd = np.concatenate([part.crowd for part in parts])
    order = np.argsort(crowd, kind="stable")
    return Picture(
        pixels,
        np.concatenate([part.boxes for part in parts])[order],
        np.concatenate([part.masks for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        crowd[order],
    )


def bounds(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, 4] xyxy around the ones of [n, h, w] masks of which none is empty."""
    sides = []
    for axis in (1, 2):  # over rows, which leaves columns, then over columns
        filled = masks.any(axis)
        first = filled.argmax(1)
        sides.append((first, filled.shape[1] - filled[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = sides
    return np.asarray(np.stack([left, top, right, bottom], 1), np.float32)


def _areas(masks: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([np.count_nonzero(mask) for mask in masks], np.int64)


def _overlap(length: int, canvas: int, start: int) -> tuple[slice, slice]:
    """Where on a canvas a line of ``length`` from ``start`` on lies, and which part of it that is.

    Both are empty if none does.
    """
    first, last = max(start, 0), min(start + length, canvas)
    last = max(first, last)
    return slice(first, last), slice(first - start, last - start)
