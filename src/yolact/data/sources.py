"""Where pictures come from: image files, a data set, or videos.

Also which of them a quantized model finds its ranges on.
"""

from __future__ import annotations

import glob
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from yolact.data.coco import CocoInstances, evaluation_order
from yolact.data.image_checks import Look, common_bits, look_at
from yolact.data.images import IMAGE_ENDINGS, RgbImage, read_rgb
from yolact.data.transforms import preprocess
from yolact.data.video import VIDEO_ENDINGS, Video, holds_image, holds_video, named_video
from yolact.errors import DataError
from yolact.sizes import ImageSize

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_SHOWN = 3
"""Files that a message names."""
_TEXT_ENDINGS = (".txt", ".json", ".csv", ".tsv", ".xml", ".md", ".yaml", ".yml", ".html", ".log")
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Files that Windows leaves in folders of images; those of macOS begin with a dot."""


@dataclass(frozen=True)
class Images:
    """A list of image files."""

    paths: list[Path]


@dataclass(frozen=True)
class Videos:
    """Videos, cameras or streams; several are those of a folder or pattern."""

    videos: list[Video]


def find_source(text: str) -> Images | Videos:
    """What a ``--source`` means.

    Args:
        text: A camera's number, the address of a stream, or the path of an image, a video or a
            folder of either, or a pattern with ``*``. Whether a file is an image or a video is
            decided by its content.

    Raises:
        DataError: There is nothing of that kind.
    """
    path, video = Path(text), named_video(text)
    if video is not None:
        if not isinstance(video.path, Path):
            return Videos([video])
        path = video.path
    if "*" in text:
        return _several(sorted(Path(found) for found in glob.glob(text, recursive=True)), text)
    if path.is_dir():
        return _several(sorted(path.iterdir()), text)
    if not path.is_file():
        raise DataError(
            f"no image, video or folder at {text}",
            hint="give a file, a folder, a quoted pattern like 'images/*.jpg', an address such as "
            "rtsp://..., or a camera number",
        )
    return _one(path)


def _one(path: Path) -> Images | Videos:
    """A file as what it holds; where that is nothing, as what its name says."""
    if holds_image(path):
        _say_if_animated(path)
        return Images([path])
    ending = path.suffix.lower()
    if ending in VIDEO_ENDINGS or holds_video(path):
        return Videos([Video(path)])
    if ending not in IMAGE_ENDINGS and not _known_to_pillow(path):
        empty = not path.stat().st_size
        raise DataError(
            f"{path} is {'empty' if empty else 'neither an image nor a video that can be read'}",
            hint="copy it again" if empty else "check that this is the file you mean",
        )
    return Images([path])


def _say_if_animated(path: Path) -> None:
    """Of an animation that OpenCV does not read as a video, only the first picture is used."""
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return  # what reads it says why it cannot
    if count > 1:
        log.warning(
            "%s holds %d pictures, the first is used; as a GIF or video all would be", path, count
        )


def _known_to_pillow(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _several(paths: list[Path], text: str) -> Images | Videos:
    """The images of a folder or pattern; only where there are none, its videos.

    An animated GIF is a video as when it is named itself, unless there are other images.
    """
    videos = [path for path in paths if path.suffix.lower() in VIDEO_ENDINGS and path.is_file()]
    videos = [path for path in videos if not holds_image(path)]
    try:
        images = _some_images(paths, text)
    except DataError:
        if not videos:
            raise
        return Videos([Video(path) for path in videos])
    if all(path.suffix.lower() == ".gif" and not holds_image(path) for path in images.paths):
        return Videos([Video(path) for path in sorted({*videos, *images.paths})])
    if videos:
        found = len(videos) + len(images.paths)
        log.warning(
            "%s: %d of %d files are videos, left out (first: %s)",
            *(text, len(videos), found, ", ".join(path.name for path in videos[:3])),
        )
    return images


class Picture(NamedTuple):
    """One image that could be read."""

    number: int
    """Its place in the list, from 0."""
    name: str
    """The path of its file, or its id in a data set."""
    image: RgbImage


class Pictures:
    """The images of a list of files; what cannot be read is named and passed over.

    All 16-bit files are made 8-bit by one rule. The only file of a list is not passed over:
    iterating raises its DataError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read nothing yet."""
        self.paths = paths
        self.failed = 0

    def __iter__(self) -> Iterator[Picture]:
        """The images that can be read, one at a time."""
        bits = common_bits(self.paths)
        if bits is not None and bits < 16:
            log.warning("16-bit images are scaled to 8 bits by the %d that their values have", bits)
        for number, path in enumerate(self.paths):
            try:
                image = read_rgb(path, bits=bits)
            except DataError as error:
                if len(self.paths) == 1:
                    raise
                log.warning("skipped: %s; %s", error, error.hint)
                self.failed += 1
            else:
                yield Picture(number, str(path), image)

    def finish(self) -> None:
        """Say whether all could be read, after everything else was done.

        Raises:
            DataError: Some could not.
        """
        if self.failed:
            raise DataError(
                f"{self.failed} of {len(self.paths)} images could not be read",
                hint="their names are listed above",
            )


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """Which images of a data set are used, and in which order."""

    most: int | None = None
    """At most so many; None for all."""
    by_id: bool = False
    """The first ones by id, not those of :func:`yolact.data.coco.evaluation_order`."""
    shuffle: bool = False
    """In random order."""
    seed: int | None = None
    """Makes the random order repeatable."""

    def of(self, image_ids: Sequence[int]) -> list[int]:
        """The ones to use of ``image_ids``, which are in the order of their ids."""
        ids = list(image_ids)
        if self.shuffle:
            random.Random(self.seed).shuffle(ids)
        elif not self.by_id:
            ids = evaluation_order(ids)
        return ids[: self.most]


def data_set_pictures(dataset: CocoInstances, order: ImageOrder) -> Iterator[Picture]:
    """The images of a data set, each decoded when it is asked for; named by their ids.

    Raises:
        DataError: An image cannot be read.
    """
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    for number, image_id in enumerate(order.of(dataset.image_ids)):
        yield Picture(number, str(image_id), dataset.image(index_of[image_id]))


@dataclass(frozen=True)
class CalibrationImages:
    """Image files that are known to be readable; iterating reads them one at a time."""

    paths: Sequence[Path]
    size: ImageSize
    """Of the network's input."""
    bits: int | None = None
    """What the values of 16-bit files fit in."""

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        """Network inputs [1, 3, H, W] float32 in 0..1, made as every inference makes them."""
        for path in self.paths:
            yield preprocess(read_rgb(path, bits=self.bits), self.size)[None]


def calibration_images(source: str, count: int, size: ImageSize) -> CalibrationImages:
    """Choose images from a folder or a pattern, and look whether they can be read.

    They are spread evenly over the file names in alphabetical order, so the choice depends on the
    names alone, not on the order in which a disk lists them.

    Args:
        source: A folder of images, or a pattern with ``*``.
        count: How many to choose; with fewer there, all are taken.
        size: Of the network's input.

    Raises:
        DataError: There are no images, or a chosen one cannot be read; the message names the
            first that cannot.
    """
    found = find_source(source)
    if not isinstance(found, Images):
        raise DataError(
            f"{source} holds videos, not images",
            hint="give a folder of images or a quoted pattern like 'images/*.jpg'",
        )
    chosen = spread(sorted(found.paths), count)
    looks = look_at([str(path) for path in chosen], Path())
    problems = [look for look in looks if isinstance(look, DataError)]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(chosen)} calibration images cannot be read: "
            + "; ".join(str(problem) for problem in problems[:_SHOWN])
            + (f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""),
            hint="replace or remove these files",
        )
    bits = max((look.bits for look in looks if isinstance(look, Look)), default=8)
    return CalibrationImages(chosen, size, bits if bits > 8 else None)


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most ``count`` of ``items``, in their order and evenly spaced.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def noise_images(count: int, seed: int) -> list[RgbImage]:
    """Random pixels, 640 wide and 480 high, to measure speed where there are no images."""
    noise = np.random.default_rng(seed)
    return [noise.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(count)]


def _some_images(paths: list[Path], text: str) -> Images:
    """Those of ``paths`` that are images by their endings; what others there are is said."""
    files = [path for path in paths if not _is_beside(path)]
    images = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]
    chosen = set(images)
    others = [path for path in files if path not in chosen]
    kinds = Counter(
        path.suffix.lower() or "without ending" if path.is_file() else "pipes or broken links"
        for path in others
    )
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    if not images:
        raise DataError(
            f"no images in {text}" + (f": it holds {counted}" if counted else ""),
            hint=f"files that count end in {', '.join(IMAGE_ENDINGS)}",
        )
    if others:
        log.warning(
            "%s: %d of %d files are no images by their endings (%s), passed over (first: %s)",
            *(text, len(others), len(files), counted, ", ".join(path.name for path in others[:3])),
        )
    return Images(images)


def _is_beside(path: Path) -> bool:
    """Whether a file is expected beside images: text, a folder, or what systems leave there.

    Videos are not for this function to judge.
    """
    ending = path.suffix.lower()
    name = path.name.lower()
    expected = ending in _TEXT_ENDINGS or name in _OF_SYSTEMS or name.startswith(".")
    return expected or ending in VIDEO_ENDINGS or path.is_dir()
