"""Reading image files of every common kind into one form: uint8 RGB."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from yolact.errors import DataError

RgbImage = NDArray[np.uint8]
"""[height, width, 3], RGB, 0..255."""

_END_MARKERS = (b"\xff\xd9", b"IEND")
_TAIL = 64
_MARKED = (b"\xff\xd8", b"\x89PNG")
"""What JPEG and PNG files begin with: these formats end with a marker."""
_UNMARKED = (b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8", b"P5", b"P6", b"\0\0\0\x0cjP")
"""What other images begin with. That they are whole shows only when they are decoded."""
_READERS = 16
"""Files looked at at the same time: most of the wait is for the disk."""


def read_rgb(path: Path, size: tuple[int, int] | None = None) -> RgbImage:
    """Decode an image file; grey, CMYK, 16-bit, palette and alpha images become 8-bit RGB.

    The EXIF orientation is applied. Some annotation tools ignore it, so when ``size`` is given and
    only the stored, un-rotated pixels have it, those are returned: the annotation decides.

    Args:
        path: JPEG, PNG, or any other file that OpenCV reads.
        size: (height, width) that the annotation file states.

    Raises:
        DataError: The file is missing, truncated or no image, or it has another size.
    """
    with _readable(path):
        data = path.read_bytes()
    _require_whole(path, data)
    image = _decode(path, data, cv2.IMREAD_COLOR)
    if size is None or image.shape[:2] == size:
        return image
    stored = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored.shape[:2] == size:
        return stored
    height, width = image.shape[:2]
    raise DataError(
        f"image {path} is {width} x {height}, but its annotations say {size[1]} x {size[0]}",
        hint="correct width and height in the annotation file, or use the images it was made for",
    )


def damaged(paths: Sequence[Path]) -> list[DataError]:
    """What :func:`read_rgb` would say of files that are cut short or no images, in their order.

    Only the first and last bytes of each file are read, and files whose bytes look wrong are
    decoded, so that a hundred thousand take seconds.
    """
    readers = ThreadPoolExecutor(_READERS)
    try:
        errors = readers.map(_damage, paths)
        found = tqdm(errors, "checking images", len(paths), disable=None, delay=2)
        return [error for error in found if error is not None]
    finally:
        readers.shutdown(cancel_futures=True)  # on Ctrl-C, do not look at the rest


def _damage(path: Path) -> DataError | None:
    try:
        if not _looks_whole(path):
            read_rgb(path)
    except DataError as error:
        return error
    return None


def _looks_whole(path: Path) -> bool:
    with _readable(path), path.open("rb") as file:
        begin = file.read(_TAIL)
        if begin.startswith(_UNMARKED):
            return True
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
        end = file.read(_TAIL)
    return begin.startswith(_MARKED) and any(marker in end for marker in _END_MARKERS)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}", hint="check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not an image", hint="check the path") from error
    except OSError as error:
        raise DataError(
            f"cannot read image {path}: {error.strerror}", hint="check the file's permissions"
        ) from error


def _decode(path: Path, data: bytes, flags: int) -> RgbImage:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an empty file, or more pixels than OpenCV accepts
        image = None
    if image is None:
        raise DataError(
            f"cannot decode image {path}", hint="replace the file; it is damaged or not an image"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _require_whole(path: Path, data: bytes) -> None:
    """Refuse a truncated file, whose missing rows OpenCV would fill with grey.

    Files that end as JPEG and PNG should pass at once; Pillow judges all others.
    """
    if any(marker in data[-_TAIL:] for marker in _END_MARKERS):
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError:
        return  # OpenCV knows formats that Pillow does not
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {path} is truncated or damaged", hint="copy or download the file again"
        ) from error
