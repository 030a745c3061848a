"""Reading image files of every common kind into one form: uint8 RGB."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from yolact.errors import DataError

RgbImage = NDArray[np.uint8]
"""[height, width, 3], RGB, 0..255."""

_END_MARKERS = (b"\xff\xd9", b"IEND")
_TAIL = 64


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
    data = _read_bytes(path)
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}", hint="check the folder of images") from error
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
