"""Pictures in, the same with their instances drawn on out: files, or a window.

What ``sparseml.yolact.annotate`` and the modes of ``sparseml.yolact.validation`` that draw share.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yolact.data.images import RgbImage
from yolact.data.sources import Picture
from yolact.engines.base import DetectingEngine, Engine
from yolact.errors import ConfigError
from yolact.files import atomic_path, cut_name
from yolact.predict.draw import (
    Style,
    draw_instances,
    lincomb_sheet,
    prototype_sheet,
    write_image,
)
from yolact.predict.pipeline import Found, Selection, groups
from yolact.predict.text import lines_of

SCRATCH = Path("results")
"""Where pictures of prototypes go when the annotated image itself is only shown."""
_LABEL_BYTES = 32
"""Of a class in the name of a file, beside a source's name."""
_QUIT = (ord("q"), 27)
_TITLE = "yolact"


class Annotated(NamedTuple):
    """One image with what was found in it."""

    picture: RgbImage
    """The image with its instances drawn on."""
    found: Found
    """The drawn detections, and the prototypes their masks are made of."""


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """A model and how its detections are chosen and drawn."""

    engine: Engine | DetectingEngine
    selection: Selection = field(default_factory=lambda: Selection(score_threshold=0.3))
    style: Style = field(default_factory=Style)

    def __call__(self, images: Sequence[RgbImage]) -> list[Annotated]:
        """Annotate images of any size, as many at a time as the engine takes."""
        size = self.engine.batch_size or len(images)
        return [
            self._drawn(image, found)
            for batch in groups(images, size)
            for image, found in zip(batch, self.selection.find(self.engine, batch), strict=True)
        ]

    def _drawn(self, image: RgbImage, found: Found) -> Annotated:
        masks = self.style.masks and self.selection.masks
        instances = found.instances(crop=self.selection.crop, masks=masks)
        names = self.engine.classes.names
        return Annotated(draw_instances(image, instances, names, self.style), found)


def counts(found: Found, names: Sequence[str]) -> str:
    """What was found in words: ``2 person, 1 dog``, most frequent first, or ``nothing``."""
    labels = Counter(found.detections.labels.tolist())
    shown = lines_of(names)
    return ", ".join(f"{n} {shown[label]}" for label, n in labels.most_common()) or "nothing"


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with -001, -002, ... behind it the first that does not exist yet."""
    names = (name if number == 0 else f"{name}-{number:03d}" for number in count())
    return next(folder for folder in map(parent.joinpath, names) if not folder.exists())


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What becomes of annotated pictures."""

    target: Callable[[Picture], Path] | None = None
    """Where each is written; None writes none."""
    show: bool = False
    """Show each in a window until a key is pressed; q ends."""
    batch_size: int = 1
    """Pictures per call of the model; one of a fixed batch size keeps its own."""
    prototypes: bool = False
    """Also write a picture and an .npy file of the prototypes."""
    combination: bool = False
    """Also write a picture of how the best mask is combined from prototypes."""


class PictureResult(NamedTuple):
    """What became of one picture."""

    picture: Picture
    target: Path | None
    """Where it was written, if it was."""
    found: Found


def annotate_pictures(
    annotator: Annotator, pictures: Iterable[Picture], options: PictureOptions
) -> Iterator[PictureResult]:
    """Annotate pictures one after the other, as the results are asked for.

    Raises:
        ConfigError: A picture is to be shown, and this build of OpenCV has no windows.
        DataError: A picture cannot be read.
        StorageError: A picture cannot be written.
    """
    size = annotator.engine.batch_size or options.batch_size
    for batch in groups(pictures, size):
        results = annotator([picture.image for picture in batch])
        for picture, annotated in zip(batch, results, strict=True):
            target = None if options.target is None else options.target(picture)
            if target is not None:
                target = write_image(target, annotated.picture)
            _explain(annotated.found, target or SCRATCH / Path(picture.name).name, options)
            yield PictureResult(picture, target, annotated.found)
            if options.show and not show(annotated.picture):
                close()
                return
    if options.show:
        close()


def _explain(found: Found, picture: Path, options: PictureOptions) -> None:
    """Write what was asked for about the prototypes, beside ``picture``."""
    if options.prototypes:
        write_image(_beside(picture, "prototypes.png"), prototype_sheet(found.proto))
        with atomic_path(_beside(picture, "prototypes.npy")) as temporary:
            np.save(temporary, found.proto.cpu().numpy())
    if options.combination and len(found.detections.scores):
        sheet = lincomb_sheet(found.proto, found.detections)
        write_image(_beside(picture, "lincomb.png"), sheet)


def _beside(picture: Path, what: str) -> Path:
    return picture.with_name(f"{picture.stem}_{what}")


@dataclass(frozen=True, kw_only=True)
class ObjectFiles:
    """Single objects as PNG files, named after picture, place among its objects, and class."""

    folder: Path
    classes: Sequence[str]
    """Their names."""
    masks: bool = False
    """Write a mask of the picture's size for each object, 255 inside and 0 outside."""
    cutouts: bool = False
    """Write what is in each object's box, transparent where its mask is not."""

    def write(self, name: str, image: RgbImage, found: Found) -> None:
        """Write the objects of a picture called ``name``, numbered from 1, the best first.

        Those whose pixel box has no area are left out, as in COCO results.

        Raises:
            StorageError: A file cannot be written.
        """
        if not (self.masks or self.cutouts):
            return
        boxes, _, labels, masks = (values.cpu().numpy() for values in found.instances())
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        for number, index in enumerate(np.flatnonzero(solid), start=1):
            label = re.sub(r"[^\w-]+", "_", self.classes[labels[index]]).strip("_")
            label = cut_name(label or f"class_{labels[index]}", _LABEL_BYTES)
            begin = self.folder / f"{name}_{number:03d}_{label}"
            grey = masks[index].astype(np.uint8) * 255
            if self.masks:
                _write_png(begin.with_name(f"{begin.name}_mask.png"), grey)
            if self.cutouts:
                x1, y1, x2, y2 = boxes[index].tolist()
                cut = np.dstack([image, grey])[y1:y2, x1:x2]
                _write_png(begin.with_name(f"{begin.name}_cutout.png"), cut)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, "PNG")


def has_display() -> bool:
    """Whether this process can open a window.

    Asked before OpenCV is: without a display its window library ends the whole process.
    """
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def require_display(option: str) -> None:
    """Check that a window can be opened, before long work starts.

    Raises:
        ConfigError: There is no display; the hint says what to do instead of ``option``.
    """
    if not has_display():
        raise ConfigError(
            f"{option} needs a display, and this machine shows none",
            hint="write pictures instead: --image IN:OUT, --images IN:OUT, --video IN:OUT, "
            "or sparseml.yolact.annotate",
        )


def show(image: RgbImage, wait_ms: int = 0) -> bool:
    """Show a picture; False when the user asked to stop (q or Esc).

    Args:
        image: RGB.
        wait_ms: How long to wait for a key; 0 waits for one.

    Raises:
        ConfigError: This build of OpenCV has no windows.
    """
    try:
        cv2.imshow(_TITLE, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return (cv2.waitKey(wait_ms) & 0xFF) not in _QUIT
    except cv2.error as error:
        raise ConfigError(
            "this build of OpenCV cannot open windows",
            hint="pip install opencv-python (not opencv-python-headless)",
        ) from error


def close() -> None:
    """Close the window, if one is open."""
    if has_display():
        cv2.destroyAllWindows()
