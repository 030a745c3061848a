"""Reading image files of every common kind into one form: uint8 RGB.

OpenCV decodes what it can, so that pixels are those of the original implementation; Pillow decodes
the rest, and judges files that may be damaged, because OpenCV would fill what is missing with grey.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from yolact.errors import DataError

RgbImage = NDArray[np.uint8]
"""[height, width, 3], RGB, 0..255."""

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico"),
    *(".tga", ".psd"),
)
"""Endings of the files that count as images in a folder."""
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, RuntimeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
"""What Pillow raises for a damaged file, and for one of too many pixels."""
JPEG, PNG, GIF, WEBP = "a JPEG", "a PNG", "a GIF", "a WebP"
TIFF, HEIC, AVIF, ICON = "a TIFF", "a HEIC photo", "an AVIF image", "an icon"
"""Kinds of files, as messages call them."""
_ORIENTATION = 0x0112
_SAMPLES_PER_PIXEL = 277
_TAIL = 64
_DEPTHS = (10, 12, 14, 16)
"""Bits that cameras put into 16-bit files."""
_OF_PILLOW = (AVIF, GIF, HEIC, ICON)
"""Kinds whose support in OpenCV depends on its version and on how it was built."""
_BEGINNINGS = (
    (0, b"\xff\xd8", JPEG),
    (0, b"\x89PNG", PNG),
    (0, b"GIF8", GIF),
    (8, b"WEBP", WEBP),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (0, b"II+\0", TIFF),
    (0, b"MM\0+", TIFF),
    (0, b"\0\0\1\0", ICON),
    (4, b"ftypavi", AVIF),
    *((4, b"ftyp" + brand, HEIC) for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (0, b"8BPS", "a Photoshop file"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (4, b"JXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"FUJIFILM", "a raw photo"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (128, b"DICM", "a DICOM file"),
    (4, b"ftyp", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\0\5\x16\7", "a file of macOS beside the image"),
    (0, b"version https://git-lfs", "a pointer of Git LFS"),
)
"""(place, bytes there, kind)."""
_HINTS = {
    HEIC: "pip install pillow-heif, or convert it to JPEG",
    AVIF: "pip install 'pillow>=11.3', or convert it to PNG",
    "a pointer of Git LFS": "run git lfs pull",
}


def read_rgb(path: Path, size: tuple[int, int] | None = None, bits: int | None = None) -> RgbImage:
    """Decode an image file; grey, CMYK, 16-bit, palette and alpha images become 8-bit RGB.

    Of several frames or pages the first one is read. Floats are in 0..1 or in 0..255. The EXIF
    orientation is applied. Some annotation tools ignore it, so when ``size`` is given and only the
    stored, un-rotated pixels have it, those are returned: the annotation decides.

    Args:
        path: JPEG, PNG, or any other file that OpenCV or Pillow reads.
        size: (height, width) that the annotation file states.
        bits: What the values of a 16-bit file fit in: 10, 12, 14 or 16. The images of one camera
            have to be read with one number. None takes the least that those of the file fit in.

    Raises:
        DataError: The file is missing, truncated or no image, or it has another size.
    """
    data = _content(path)
    image = _rgb(path, data, bits, stored=False)
    if size is None or image.shape[:2] == size:
        return image
    stored = _rgb(path, data, bits, stored=True)
    if stored.shape[:2] == size:
        return stored
    raise wrong_size(path, (image.shape[0], image.shape[1]), size)


def wrong_size(path: Path, size: tuple[int, int], listed: tuple[int, int]) -> DataError:
    """The error of an image that is not as large as listed; both are (height, width)."""
    swapped = size == listed[::-1]
    return DataError(
        f"image {path} is {size[1]} x {size[0]}, but its annotations say {listed[1]} x {listed[0]}"
        + " (swapped)" * swapped,
        hint="exchange width and height in the annotation file"
        if swapped
        else "correct width and height in the annotation file, or use the images it was made for",
    )


def depth(path: Path) -> int:
    """The least of 10, 12, 14 and 16 bits that the values of a 16-bit file fit in; 8 for others.

    Raises:
        DataError: The file cannot be decoded.
    """
    data = _content(path)
    pixels = _decode(path, data, stored=False)
    _to_bytes(path, pixels, None)
    return _depth(pixels) if pixels.dtype == np.uint16 else 8


def kind_of(data: bytes) -> str | None:
    """What a file is by its first 256 bytes or more, in words such as ``an HTML page``."""
    if not data:
        return "an empty file"
    for place, magic, kind in _BEGINNINGS:
        if data[place:].startswith(magic):
            brands = data[8 : int.from_bytes(data[:4], "big")] if kind == HEIC else b""
            return AVIF if b"avif" in brands else kind
    text = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing" if b"<svg" in text else "an XML document"
    return None


def undecodable(path: Path, data: bytes) -> DataError:
    """The error of a file that nothing here decodes; it says what the file is, if that is known."""
    kind = kind_of(data)
    bands = _bands(data) if kind == TIFF else 0
    if bands > 4:
        return DataError(
            f"cannot decode image {path}, a TIFF of {bands} bands",
            hint="save the three that show red, green and blue",
        )
    return DataError(
        f"cannot decode image {path}" + (f", {kind}" if kind else ""),
        hint=_HINTS.get(kind or "", "replace the file; it is damaged or not an image"),
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the operating system says while an image is read into a DataError.

    Pipes and devices are refused before the block: opening one may never return.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DataError(f"{path} is a pipe or a device, not an image", hint="check the path")
        yield
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}", hint="check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not an image", hint="check the path") from error
    except OSError as error:
        raise DataError(
            f"cannot read image {path}: {error.strerror}", hint="check the file's permissions"
        ) from error


@contextmanager
def opened(source: Any) -> Iterator[Image.Image]:
    """Pillow's view of a file or of its bytes; nothing is decoded yet. Its warnings are dropped."""
    _add_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, and of many pixels
        with Image.open(source) as image:
            yield image


def orientation_of(image: Image.Image) -> int:
    """EXIF's number of how stored pixels have to be turned: 1, for not at all, to 8."""
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except UNREADABLE:  # the image may be whole nevertheless
        return 1
    return number if number in range(1, 9) else 1


def seems_whole(kind: str | None, begin: bytes, end: bytes, length: int) -> bool | None:
    """Whether a JPEG, PNG or WebP seems to be whole; None for other kinds.

    Args:
        kind: What it is; see :func:`kind_of`.
        begin: Its first 64 bytes.
        end: Its last 64 bytes.
        length: How many bytes it has.
    """
    if kind == WEBP:
        return int.from_bytes(begin[4:8], "little") + 8 <= length
    if kind == PNG:
        return b"IEND" in end
    return b"\xff\xd9" in end if kind == JPEG else None


@cache
def _add_heif() -> None:
    """Let Pillow read HEIC, where the package for it is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def _content(path: Path) -> bytes:
    with readable(path):
        data = path.read_bytes()
    _require_whole(path, data)
    return data


def _require_whole(path: Path, data: bytes) -> None:
    """Refuse a truncated file, whose missing rows OpenCV would fill with grey.

    Files that end as their kind should pass at once; Pillow judges all others.
    """
    kind = kind_of(data)
    whole = seems_whole(kind, data[:_TAIL], data[-_TAIL:], len(data))
    if whole and (kind != PNG or _sums_agree(data)):
        return
    try:
        with opened(io.BytesIO(data)) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return  # OpenCV knows formats that Pillow does not, and takes larger images
    except UNREADABLE as error:
        raise DataError(
            f"image {path} is truncated or damaged", hint="copy or download the file again"
        ) from error


def _sums_agree(png: bytes) -> bool:
    """Whether the check sums of all chunks that hold pixels are right."""
    view, place = memoryview(png), 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        name = bytes(view[place + 4 : place + 8])
        if name == b"IDAT" and zlib.crc32(view[place + 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        ):
            return False
        if name == b"IEND":
            return True
        place = end + 4
    return False


def _rgb(path: Path, data: bytes, bits: int | None, *, stored: bool) -> RgbImage:
    pixels = _to_bytes(path, _decode(path, data, stored=stored), bits)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.require(pixels, np.uint8, ["C_CONTIGUOUS", "WRITEABLE"])


def _decode(path: Path, data: bytes, *, stored: bool) -> NDArray[Any]:
    """[height, width, 3] RGB, or [height, width]; numbers are as the file has them.

    Args:
        path: For messages.
        data: The file's bytes.
        stored: Leave the EXIF orientation out.
    """
    kind = kind_of(data)
    if kind in _OF_PILLOW:
        return _by_pillow(path, data, stored=stored)
    flags = cv2.IMREAD_COLOR
    if stored or kind == WEBP:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    if data[24:25] == b"\x10" if kind == PNG else kind not in (JPEG, WEBP):
        flags |= cv2.IMREAD_ANYDEPTH
    silence_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an empty file, or more pixels than OpenCV accepts
        image = None
    if image is None:
        return _by_pillow(path, data, stored=stored)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if kind == WEBP and not stored and b"EXIF" in data:
        return _turned(image, _orientation_in(data))
    if kind == TIFF and stored:  # OpenCV turned it, whatever the flags
        number = _orientation_in(data)
        return _turned(image, {6: 8, 8: 6}.get(number, number))
    return image


def _orientation_in(data: bytes) -> int:
    try:
        with opened(io.BytesIO(data)) as image:
            return orientation_of(image)
    except UNREADABLE:
        return 1


def _turned(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def _by_pillow(path: Path, data: bytes, *, stored: bool) -> NDArray[Any]:
    try:
        with opened(io.BytesIO(data)) as file:
            file.load()
            image = file if stored else ImageOps.exif_transpose(file)
            wide = image.mode == "F" or image.mode.startswith("I")
            pixels = np.asarray(image if wide else image.convert("RGB"))
    except UNREADABLE as error:
        raise undecodable(path, data) from error
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _to_bytes(path: Path, pixels: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        narrow = pixels >> ((bits or _depth(pixels)) - 8)  # as OpenCV makes 8 bits of 16
        return np.asarray(np.minimum(narrow, 255), np.uint8)
    least, most = float(pixels.min()), float(pixels.max())
    if np.issubdtype(pixels.dtype, np.integer) and least >= 0 and most < 1 << 16:
        return _to_bytes(path, pixels.astype(np.uint16), bits)
    if np.issubdtype(pixels.dtype, np.floating) and least >= 0 and most <= 255:
        rounded: NDArray[np.uint8] = np.rint(pixels * (255 if most <= 1 else 1)).astype(np.uint8)
        return rounded
    raise DataError(
        f"image {path} holds values from {least:g} to {most:g}",
        hint="save it with 8 or 16 bits, or as floats from 0 to 1",
    )


def _depth(pixels: NDArray[np.uint16]) -> int:
    most = int(pixels.max())
    return next(bits for bits in _DEPTHS if most < 1 << bits)


def _bands(tiff: bytes) -> int:
    """How many numbers a pixel of a TIFF file has; 0 where the file does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ImageFileDirectory_v2(tiff[:8])
            file = io.BytesIO(tiff)
            file.seek(tags.next)
            tags.load(file)
        return int(tags.get(_SAMPLES_PER_PIXEL, 0))
    except UNREADABLE:
        return 0


def silence_opencv() -> None:
    """Stop it and its FFmpeg from writing to stderr what an error of ours will say."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # its place in OpenCV 5, or in 4
