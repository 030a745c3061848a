"""Pictures of what the model sees: instances on an image, prototypes, mask assembly; their files.

Images are [height, width, 3] uint8 RGB; nothing here changes its arguments.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolact.data.images import RgbImage
from yolact.errors import StorageError
from yolact.files import atomic_path, is_unicode, require_writable_file
from yolact.predict.text import labels_of, letters, one_line
from yolact.types import Detections, Instances

Color = tuple[int, int, int]
Rect = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels."""

_GOLDEN = 0.61803398875
_BLACK: Color = (0, 0, 0)
_LARGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels of a side that files of these endings hold at most."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is drawn of each instance."""

    masks: bool = True
    boxes: bool = True
    text: bool = True
    """Class names."""
    scores: bool = True
    """Scores beside the names."""
    alpha: float = 0.45
    """Opacity of the masks, 0..1."""


@dataclass(frozen=True)
class _Scale:
    """Line widths and letter heights that suit an image's size."""

    line: int
    letter: int

    @classmethod
    def of(cls, image: RgbImage) -> _Scale:
        side = min(image.shape[:2])
        return cls(line=max(1, round(side / 400)), letter=max(9, round(side / 42)))


def class_color(label: int) -> Color:
    """A colour of its own for each class index, bright enough to stand on photographs.

    Hues step by the golden ratio, so that neighbouring classes differ most.
    """
    hue = (0.02 + label * _GOLDEN) % 1
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.8))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_instances(
    image: RgbImage, instances: Instances, names: Sequence[str], style: Style | None = None
) -> RgbImage:
    """Draw instances on a copy of ``image``, the best on top.

    Args:
        image: Of the instances' size.
        instances: In descending score.
        names: Class name per class index, in any script.
        style: What to draw; everything by default.
    """
    style = style or Style()
    canvas = image.copy()
    scale = _Scale.of(image)
    labels = instances.labels.tolist()
    boxes: list[Rect] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in instances.boxes.tolist()]
    worst_first = range(len(labels) - 1, -1, -1)
    if style.masks:
        masks = instances.masks.cpu().numpy().view(np.uint8)
        for index in worst_first:
            _draw_mask(canvas, masks[index], class_color(labels[index]), style.alpha, scale.line)
    if style.boxes:
        for index in worst_first:
            x1, y1, x2, y2 = boxes[index]
            color = class_color(labels[index])
            cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, scale.line, cv2.LINE_AA)
    if style.text:
        names = labels_of(names)
        texts = [
            f"{names[label]} {score:.2f}" if style.scores else names[label]
            for label, score in zip(labels, instances.scores.tolist(), strict=True)
        ]
        _draw_labels(canvas, texts, boxes, [class_color(label) for label in labels], scale.letter)
    return canvas


def draw_caption(image: RgbImage, text: str) -> RgbImage:
    """A copy of ``image`` with a line of text in its top left corner."""
    canvas = image.copy()
    tag = _Tag.of(text, _Scale.of(image).letter)
    tag.draw(canvas, 0, 0, _BLACK)
    return canvas


def prototype_sheet(proto: Tensor, *, columns: int = 8) -> RgbImage:
    """All prototypes side by side, dark to bright within each, in reading order.

    Args:
        proto: [h, w, k].
        columns: Prototypes per row.
    """
    tiles = [_grey(tile) for tile in proto.float().cpu().permute(2, 0, 1)]
    return _sheet(tiles, columns)


def lincomb_sheet(proto: Tensor, detections: Detections) -> RgbImage:
    """How the mask of the best detection is put together (YOLACT, fig. 2).

    The prototypes times their coefficients, most influential first: green adds to the mask, red
    takes away. The last tile is the mask itself, before it is cut at its box.

    Args:
        proto: [h, w, k].
        detections: Of the same image, best first.
    """
    terms = (proto.float() * detections.coefficients[0]).cpu().permute(2, 0, 1)  # [k, h, w]
    strength = terms.abs().amax((1, 2))
    largest = strength.max().clamp(min=1e-6)
    order = strength.argsort(descending=True).tolist()
    tiles = [_signed(terms[k] / largest) for k in order]
    return _sheet([*tiles, _grey(torch.sigmoid(terms.sum(0)), stretch=False)], columns=8)


def require_picture_file(path: Path) -> None:
    """Check that :func:`write_image` can write to ``path``; makes its folder.

    Raises:
        StorageError: It cannot.
    """
    if not is_unicode(path.suffix) or not cv2.haveImageWriter(f"x{path.suffix}"):
        raise _no_picture(path)
    require_writable_file(path)


def write_image(path: Path, image: RgbImage) -> Path:
    """Write RGB pixels as the file type of ``path``'s ending, in one step.

    Returns:
        The file: ``path``, with .png behind it where its type holds no image of that size.

    Raises:
        StorageError: The file cannot be written.
    """
    if max(image.shape[:2]) > _LARGEST.get(path.suffix.lower(), math.inf):
        path = path.with_name(f"{path.name}.png")
    try:
        encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise _no_picture(path) from error
    if not encoded:
        raise _no_picture(path)
    with atomic_path(path) as temporary:  # imwrite would keep a full disk to itself
        temporary.write_bytes(data.tobytes())
    return path


def _no_picture(path: Path) -> StorageError:
    return StorageError(
        f"cannot write an image as {path.name}", hint="use a name that ends in .png or .jpg"
    )


def _draw_mask(
    canvas: RgbImage, mask: NDArray[np.uint8], color: Color, alpha: float, line: int
) -> None:
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return
    part = canvas[y : y + height, x : x + width]
    inside = mask[y : y + height, x : x + width].astype(bool)
    mixed = part[inside] * (1 - alpha) + np.array(color) * alpha
    part[inside] = mixed.round().astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA)


@dataclass(frozen=True)
class _Tag:
    """A line of text on a filled box."""

    ink: NDArray[np.uint8]
    """[rows, columns], 255 where the letters are."""
    width: int
    height: int
    margin: int

    @classmethod
    def of(cls, text: str, letter: int) -> _Tag:
        ink, margin = letters(one_line(text), letter), max(2, letter // 4)
        rows, columns = ink.shape
        return cls(ink, columns + 2 * margin, rows + margin + 1, margin)

    def draw(self, canvas: RgbImage, x: int, y: int, color: Color) -> None:
        """Draw with the box's top left corner at (x, y)."""
        cv2.rectangle(canvas, (x, y), (x + self.width - 1, y + self.height - 1), color, cv2.FILLED)
        red, green, blue = color
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        top, left = y + self.margin, x + self.margin
        part = canvas[top : top + self.ink.shape[0], left : left + self.ink.shape[1]]
        ink = self.ink[: part.shape[0], : part.shape[1], None].astype(np.uint16)
        mixed = part * (255 - ink) + ink * np.uint16(0 if bright else 255)
        part[:] = (mixed + 127) // 255


def _draw_labels(
    canvas: RgbImage,
    texts: Sequence[str],
    boxes: Sequence[Rect],
    colors: Sequence[Color],
    size: int,
) -> None:
    """One label per box; the best detections come first and get the best places."""
    taken: list[Rect] = []
    placed: list[tuple[_Tag, Rect, Color]] = []
    for text, box, color in zip(texts, boxes, colors, strict=True):
        tag = _Tag.of(text, size)
        rect = _place(tag, box, canvas.shape[:2], taken)
        taken.append(rect)
        placed.append((tag, rect, color))
    for tag, (x, y, _, _), color in reversed(placed):
        tag.draw(canvas, x, y, color)


def _place(tag: _Tag, box: Rect, size: tuple[int, ...], taken: Sequence[Rect]) -> Rect:
    """Above the box, else just inside it, below it or at its lower edge: the first free place."""
    x1, y1, _, y2 = box
    x = max(0, min(x1, size[1] - tag.width))
    inside_image = [
        (x, y, x + tag.width, y + tag.height)
        for y in (y1 - tag.height, y1, y2, y2 - tag.height)
        if 0 <= y <= size[0] - tag.height
    ]
    free = [rect for rect in inside_image if not any(_overlap(rect, other) for other in taken)]
    y = max(0, min(y1, size[0] - tag.height))
    return next(iter([*free, *inside_image]), (x, y, x + tag.width, y + tag.height))


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _grey(values: Tensor, *, stretch: bool = True) -> RgbImage:
    """[h, w] to grey: 0..1 as it is, or with the values' own range stretched to it."""
    if stretch:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp(min=1e-6)
    grey = (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return np.repeat(grey[:, :, None], 3, axis=2)


def _signed(values: Tensor) -> RgbImage:
    """[h, w] in -1..1: positive green, negative red."""
    channels = torch.stack([-values, values, torch.zeros_like(values)], dim=-1).clamp(0, 1)
    return np.asarray((channels * 255).round().to(torch.uint8).numpy())


def _sheet(tiles: Sequence[RgbImage], columns: int, *, gap: int = 2) -> RgbImage:
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, 64, np.uint8)
    for index, tile in enumerate(tiles):
        y = gap + index // columns * (height + gap)
        x = gap + index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet
