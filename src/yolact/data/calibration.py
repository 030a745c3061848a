"""The images that a quantized model finds its ranges on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from yolact.data.images import damaged, read_rgb
from yolact.data.sources import Images, find_source
from yolact.data.transforms import preprocess
from yolact.errors import DataError


@dataclass(frozen=True)
class CalibrationImages:
    """Image files that are known to be readable; iterating reads them one at a time."""

    paths: Sequence[Path]
    side: int
    """Of the network's input, in pixels."""

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        """Network inputs [1, 3, side, side] float32 in 0..1, made as every inference makes them."""
        for path in self.paths:
            yield preprocess(read_rgb(path), self.side)[None]


def calibration_images(source: str, count: int, side: int) -> CalibrationImages:
    """Choose images from a folder or a pattern, and look whether they can be read.

    They are spread evenly over the file names in alphabetical order, so the choice depends on the
    names alone, not on the order in which a disk lists them.

    Args:
        source: A folder of images, or a pattern with ``*``.
        count: How many to choose; with fewer there, all are taken.
        side: Of the network's input, in pixels.

    Raises:
        DataError: There are no images, or a chosen one cannot be read; the message names all that
            cannot.
    """
    found = find_source(source)
    if not isinstance(found, Images):
        raise DataError(
            f"{source} is a video, not images",
            hint="give a folder of images or a quoted pattern like 'images/*.jpg'",
        )
    chosen = spread(sorted(found.paths), count)
    problems = damaged(chosen)
    if problems:
        raise DataError(
            f"{len(problems)} of {len(chosen)} calibration images cannot be read: "
            + "; ".join(str(problem) for problem in problems),
            hint="replace or remove these files",
        )
    return CalibrationImages(chosen, side)


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of ``paths``, in their order and evenly spaced.

    >>> [path.name for path in spread([Path(name) for name in "abcdef"], 3)]
    ['a', 'c', 'e']
    """
    count = min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]
