"""YOLACT's augmentation and preprocessing as torchvision v2 transforms.

They are SSD's (https://arxiv.org/abs/1512.02325, section 2.2, "Data augmentation") with the details
that the published weights were trained with; those that look like mistakes are kept and said so.
Numbers are computed by OpenCV on float32 HWC memory, which is how the published model saw images;
torchvision supplies the classes, the bookkeeping of boxes and masks, and whatever it does alike.

A transform takes and returns ``(image, objects)``: a ``tv_tensors.Image`` [3, H, W] and a dict with
``boxes`` (``tv_tensors.BoundingBoxes`` [n, 4], xyxy in pixels), ``masks`` (``tv_tensors.Mask``
[n, H, W] uint8), ``labels`` [n] int64 and ``crowd`` [n] bool. Any other v2 transform fits between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from yolact.config import AugmentConfig
from yolact.sizes import ImageSize, sides_of

Objects = dict[str, Tensor]
"""``boxes``, ``masks``, ``labels`` and ``crowd`` of one image."""
Transform = Callable[[Tensor, Objects], tuple[Tensor, Objects]]
FloatImage = NDArray[np.float32]
"""[H, W, 3] RGB, nominally 0..255."""

MEAN_COLOR = (123.68, 116.78, 103.94)
"""RGB mean of ImageNet, the colour of the canvas that :class:`RandomExpand` adds."""
SMALLEST_SIDE = 4 / 550
"""Objects need sides longer than this. Upstream meant a share of the image, but compares pixels in
training, so that practically only empty boxes go."""


class Dice:
    """Random numbers of the augmentation, from a generator or from torch's default one."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        """Draw from ``generator``, or from the default one, which the dataset seeds per sample."""
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``, which may come in either order."""
        share = torch.rand((), generator=self.generator, dtype=torch.float64)
        return low + (high - low) * share.item()

    def below(self, count: int) -> int:
        """An integer in 0 .. count - 1."""
        return int(torch.randint(count, (), generator=self.generator).item())

    def coin(self) -> bool:
        """True half of the time."""
        return self.below(2) == 1


@dataclass(frozen=True)
class Distortion:
    """Drawn parameters of a photometric distortion; None leaves that property alone."""

    brightness: float | None = None
    """Added to every channel, -32..32."""
    contrast: float | None = None
    """Factor on every channel, 0.5..1.5."""
    saturation: float | None = None
    """Factor on the S of HSV, 0.5..1.5."""
    hue: float | None = None
    """Degrees added to the H of HSV, -18..18."""
    contrast_first: bool = True
    """Contrast before saturation and hue, or after them."""


def distort(image: FloatImage, change: Distortion) -> FloatImage:
    """Apply a photometric distortion. Values are not clipped, as in the published training."""
    image = image.copy()
    if change.brightness is not None:
        image += np.float32(change.brightness)
    if change.contrast is not None and change.contrast_first:
        image *= np.float32(change.contrast)
    if change.saturation is not None or change.hue is not None:
        image = _shift_colors(image, change.saturation, change.hue)
    if change.contrast is not None and not change.contrast_first:
        image *= np.float32(change.contrast)
    return image


def _shift_colors(image: FloatImage, saturation: float | None, hue: float | None) -> FloatImage:
    hsv: FloatImage = np.asarray(
        cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.float32
    )  # H in degrees, S 0..1, V as the image
    if saturation is not None:
        hsv[..., 1] *= np.float32(saturation)
    if hue is not None:
        degrees = hsv[..., 0]
        degrees += np.float32(hue)
        np.subtract(degrees, 360, out=degrees, where=degrees > 360)
        np.add(degrees, 360, out=degrees, where=degrees < 0)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)


@dataclass(frozen=True)
class Canvas:
    """A larger canvas and the place of the image on it, in pixels."""

    height: int
    width: int
    top: int
    left: int


def expand(inpt: Tensor, canvas: Canvas) -> Tensor:
    """Place an image, its masks or its boxes on a larger canvas of :data:`MEAN_COLOR`."""
    height, width = functional.get_size(inpt)
    left, top = canvas.left, canvas.top
    right, bottom = canvas.width - left - width, canvas.height - top - height
    if not isinstance(inpt, tv_tensors.Image):
        padded: Tensor = functional.pad(inpt, [left, top, right, bottom])
        return padded
    border = (top, bottom, left, right, cv2.BORDER_CONSTANT)
    painted = cv2.copyMakeBorder(_hwc(inpt), *border, value=MEAN_COLOR)
    return _image_like(inpt, np.asarray(painted, np.float32))


@dataclass(frozen=True)
class Rectangle:
    """A part of an image, in whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def contains(self, boxes: Tensor) -> Tensor:
        """[n] bool: which xyxy boxes have their centre strictly inside."""
        x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(1)
        return (x > self.left) & (x < self.right) & (y > self.top) & (y < self.bottom)


def crop(image: Tensor, objects: Objects, rectangle: Rectangle) -> tuple[Tensor, Objects]:
    """Cut the rectangle out; objects whose centre lies in it stay, clipped to it."""
    top, left = rectangle.top, rectangle.left
    window = top, left, rectangle.bottom - top, rectangle.right - left
    # Masks are cut before the selection copies them.
    cut = {key: functional.crop(objects[key], *window) for key in ("boxes", "masks")}
    kept = select({**objects, **cut}, rectangle.contains(objects["boxes"]))
    return functional.crop(image, *window), kept


def select(objects: Objects, keep: Tensor) -> Objects:
    """The objects that the [n] bool tensor ``keep`` marks; without a copy when it marks all."""
    if keep.all():
        return objects
    return {key: tv_tensors.wrap(value[keep], like=value) for key, value in objects.items()}


def longer_than(boxes: Tensor) -> Tensor:
    """[n] bool: which xyxy boxes are wider and higher than :data:`SMALLEST_SIDE`."""
    return ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST_SIDE).all(1)


def stretch(inpt: Tensor, size: ImageSize) -> Tensor:
    """Resize an image, its masks or its boxes to ``size``, giving up the aspect ratio.

    Bilinear with half-pixel centres and no antialiasing; masks stay 0 or 1.
    """
    if isinstance(inpt, tv_tensors.Image):
        return _image_like(inpt, _resize(_hwc(inpt), size))
    if isinstance(inpt, tv_tensors.Mask):
        resized = np.empty((len(inpt), *sides_of(size)), np.uint8)
        for source, result in zip(inpt.numpy(), resized, strict=True):
            cv2.resize(source, result.shape[::-1], dst=result)
        return tv_tensors.wrap(torch.from_numpy(resized), like=inpt)  # type: ignore[no-any-return]
    boxes: Tensor = functional.resize(inpt, list(sides_of(size)))
    return boxes


def preprocess(image: NDArray[np.uint8], size: ImageSize) -> Tensor:
    """Network input of one RGB image of any size: the transform of every inference.

    Args:
        image: [H, W, 3] uint8.
        size: Side of the network's input, or its (height, width).

    Returns:
        [3, height, width] float32 RGB, 0..1. DarkNet's input has no mean and deviation.
    """
    resized = _resize(image.astype(np.float32), size)
    return (torch.from_numpy(resized).permute(2, 0, 1) / 255).contiguous()


class _Random(v2.Transform):  # type: ignore[misc]
    def __init__(self, dice: Dice | None = None) -> None:
        """Draw from ``dice``, by default torch's default generator."""
        super().__init__()
        self.dice = dice or Dice()


class PhotometricDistort(_Random):
    """Random brightness, contrast, saturation and hue of a float image in 0..255, unclipped."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Flip a coin for each property and one for the place of the contrast."""
        brightness = self._maybe(-32, 32)
        contrast_first = self.dice.coin()
        contrast = self._maybe(0.5, 1.5) if contrast_first else None
        saturation = self._maybe(0.5, 1.5)
        hue = self._maybe(-18, 18)
        if not contrast_first:
            contrast = self._maybe(0.5, 1.5)
        return {"change": Distortion(brightness, contrast, saturation, hue, contrast_first)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Distort the image."""
        return _image_like(inpt, distort(_hwc(inpt), params["change"]))

    def _maybe(self, low: float, high: float) -> float | None:
        return self.dice.uniform(low, high) if self.dice.coin() else None


class RandomExpand(_Random):
    """Place the image on a canvas 1 to 4 times its size, half of the time."""

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask, tv_tensors.BoundingBoxes)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the canvas, or None to leave the image alone."""
        if self.dice.coin():  # upstream's coin is this way round
            return {"canvas": None}
        height, width = functional.get_size(flat_inputs[0])
        ratio = self.dice.uniform(1, 4)
        left = int(self.dice.uniform(0, width * ratio - width))
        top = int(self.dice.uniform(0, height * ratio - height))
        return {"canvas": Canvas(int(height * ratio), int(width * ratio), top, left)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Expand one input."""
        canvas = params["canvas"]
        return inpt if canvas is None else expand(inpt, canvas)


class RandomCrop(_Random):
    """Cut out a random rectangle that holds an object's centre, five times out of six.

    SSD also asks for a minimum IoU with an object. The published models were trained by code in
    which that condition never rejected anything, and its author found that repairing it halves the
    mAP (https://github.com/amdegroot/ssd.pytorch/issues/68), so it does not exist here.
    """

    MODES = 6
    """No crop, four minimum IoUs, any crop: of these only the first makes a difference."""
    TRIES = 50

    def forward(self, image: Tensor, objects: Objects) -> tuple[Tensor, Objects]:
        """Crop, or return both as they are."""
        rectangle = self.draw(functional.get_size(image), objects["boxes"], objects["crowd"])
        return (image, objects) if rectangle is None else crop(image, objects, rectangle)

    def draw(self, size: tuple[int, int], boxes: Tensor, crowd: Tensor) -> Rectangle | None:
        """A rectangle with the centre of at least one object, crowds apart, or None for no crop.

        In an image without objects any rectangle will do.
        """
        while self.dice.below(self.MODES):
            for _ in range(self.TRIES):
                rectangle = self._candidate(*size)
                if rectangle is None:
                    continue
                if crowd.all() or (rectangle.contains(boxes) & ~crowd).any():
                    return rectangle
        return None

    def _candidate(self, height: int, width: int) -> Rectangle | None:
        w = self.dice.uniform(0.3 * width, width)
        h = self.dice.uniform(0.3 * height, height)
        if not 0.5 <= h / w <= 2:
            return None
        # Upstream calls numpy's uniform with one bound, which draws between it and 1.
        left = self.dice.uniform(width - w, 1)
        top = self.dice.uniform(height - h, 1)
        drawn = Rectangle(int(left), int(top), int(left + w), int(top + h))
        return drawn if drawn.right > drawn.left and drawn.bottom > drawn.top else None


class Stretch(v2.Transform):  # type: ignore[misc]
    """Resize without keeping the aspect ratio; objects without area are dropped."""

    def __init__(self, size: ImageSize) -> None:
        """Resize to ``size``."""
        super().__init__()
        self.size = size

    def forward(self, image: Tensor, objects: Objects) -> tuple[Tensor, Objects]:
        """Resize all, then drop what is too thin to be an object."""
        boxes = stretch(objects["boxes"], self.size)
        keep = longer_than(boxes)
        kept = select({**objects, "boxes": boxes}, keep)
        return stretch(image, self.size), {**kept, "masks": stretch(kept["masks"], self.size)}


class ToUnitRange(v2.Transform):  # type: ignore[misc]
    """Divide a float image in 0..255 by 255 and lay it out as [3, H, W] in memory."""

    _transformed_types = (tv_tensors.Image,)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Divide the image."""
        return tv_tensors.wrap((inpt / 255).contiguous(), like=inpt)


class TrainTransform(v2.Compose):  # type: ignore[misc]
    """The training pipeline: what ``augment`` turns on, then a stretch to ``image_size``."""

    def __init__(
        self, image_size: ImageSize, augment: AugmentConfig, dice: Dice | None = None
    ) -> None:
        """Compose the pipeline; ``dice`` serves all but the mirror, which is torchvision's."""
        dice = dice or Dice()
        self.image_size = image_size
        chosen: list[tuple[bool, v2.Transform]] = [
            (augment.photometric, PhotometricDistort(dice)),
            (augment.expand, RandomExpand(dice)),
            (augment.crop, RandomCrop(dice)),
            (True, Stretch(image_size)),
            # Upstream mirrors before it resizes; the result is the same and this is less work.
            (augment.mirror, v2.RandomHorizontalFlip()),
        ]
        super().__init__(
            [
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}),
                *(transform for wanted, transform in chosen if wanted),
                ToUnitRange(),
            ]
        )


class EvalTransform(TrainTransform):
    """The same input without any random change."""

    def __init__(self, image_size: ImageSize) -> None:
        """Compose the pipeline for an input of ``image_size``."""
        nothing = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False)
        super().__init__(image_size, nothing)


def _hwc(image: Tensor) -> FloatImage:
    array: FloatImage = image.permute(1, 2, 0).numpy()
    return array


def _image_like(image: Tensor, array: FloatImage) -> Tensor:
    """Wrap [H, W, 3] memory as an image tensor [3, H, W] without copying it."""
    return tv_tensors.wrap(  # type: ignore[no-any-return]
        torch.from_numpy(array).permute(2, 0, 1), like=image
    )


def _resize(image: FloatImage, size: ImageSize) -> FloatImage:
    height, width = sides_of(size)
    return np.asarray(cv2.resize(image, (width, height)), np.float32)
