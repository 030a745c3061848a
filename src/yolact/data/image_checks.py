"""What image files are, before any of them is needed: whole, how large, of how many bits.

JPEG, PNG, WebP, TIFF and BMP files are judged by their first and last bytes and by their headers,
all others by decoding them. Damage in the middle of a file shows only when it is decoded: for PNG
then with certainty, by check sums; a JPEG has none, and may lose part of its picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from yolact.data.images import (
    PNG,
    TIFF,
    UNREADABLE,
    depth,
    kind_of,
    opened,
    orientation_of,
    read_rgb,
    readable,
    seems_whole,
)
from yolact.errors import DataError, StorageError
from yolact.files import atomic_path, cache_folder

log = logging.getLogger(__name__)

_S = TypeVar("_S")
_T = TypeVar("_T")
_READERS = 16
"""Files looked at at the same time: most of the wait is for the disk."""
_AT_ONCE = 64
_WORTH = 1000
"""Files whose looks are worth remembering: fewer take no time."""
_VERSION = 2
_STAMP, _REMEMBERED = 3, 8
"""Numbers of a file: those of its stamp, and with those of its look."""
_BEGIN, _END = 256, 64
_WIDTH, _HEIGHT, _BITS, _OFFSETS, _LENGTHS = 256, 257, 258, (273, 324), (279, 325)
"""Tags of a TIFF file; offsets and lengths are those of strips, or of tiles."""


class Look(NamedTuple):
    """What an image file is."""

    height: int
    """Of the image as it is shown."""
    width: int
    stored_height: int
    """Of its pixels as they are stored, without its EXIF orientation."""
    stored_width: int
    bits: int
    """10 to 16 that the values of a 16-bit file fit in; 8 for others."""

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) as it is shown and as it is stored: an annotation file has either."""
        return (self.height, self.width), (self.stored_height, self.stored_width)


def look_at(names: Sequence[str], folder: Path) -> list[Look | DataError]:
    """Look at every image file, many at a time, in their order; errors are those of reading them.

    What was seen is remembered in the user's cache folder, until a file has another length or time
    of change, so that a second look at a hundred thousand takes seconds. What copying tools set
    back is the time of the content; that of the file's entry changes then, and counts too.

    Args:
        names: The files, as paths below the folder or absolute ones.
        folder: Where they lie.
    """
    known = _recall(folder)

    def look(name: str) -> tuple[list[int], Look | DataError]:
        path = os.path.join(folder, name)  # noqa: PTH118 - a Path takes three times as long
        stamp = _stamp(path)
        old = known.get(name, [])
        if old[:_STAMP] == stamp:
            return stamp, Look(*old[_STAMP:])
        try:
            return stamp, _look(Path(path))
        except DataError as error:
            return stamp, error

    found = _all(look, names, "checking images")
    fresh = {
        name: [*stamp, *seen]
        for name, (stamp, seen) in zip(names, found, strict=True)
        if isinstance(seen, Look) and known.get(name, [])[:_STAMP] != stamp
    }
    if len(fresh) >= _WORTH:
        _remember(folder, {**known, **fresh})
    return [seen for _, seen in found]


def common_bits(paths: Sequence[Path]) -> int | None:
    """Bits that the values of all 16-bit files among ``paths`` fit in; None if there are none.

    Files that cannot be read do not count.
    """
    most = max(_all(_bits, paths, "reading headers"), default=0)
    return most if most > 8 else None


def _all(function: Callable[[_S], _T], items: Sequence[_S], what: str) -> list[_T]:
    batches = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
    readers = ThreadPoolExecutor(_READERS)
    found: list[_T] = []
    try:
        with tqdm(desc=what, total=len(items), disable=None, delay=2) as bar:
            for batch in readers.map(lambda some: [function(item) for item in some], batches):
                found += batch
                bar.update(len(batch))
    finally:
        readers.shutdown(cancel_futures=True)  # on Ctrl-C, do not look at the rest
    return found


def _look(path: Path) -> Look:
    with readable(path), path.open("rb") as file:
        begin = file.read(_BEGIN)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - _END, 0))
        kind = kind_of(begin)
        whole = seems_whole(kind, begin, file.read(_END), length)
        header = None if whole is False else _header(file, kind, begin, length)
    if header is None:  # nothing but decoding can tell
        height, width, _ = read_rgb(path).shape
        return Look(height, width, height, width, depth(path))
    seen, reaches, deep = header
    return seen if (whole or reaches) and not deep else seen._replace(bits=depth(path))


def _bits(path: Path) -> int:
    try:
        with readable(path), path.open("rb") as file:
            begin = file.read(_BEGIN)
            header = _header(file, kind_of(begin), begin, 0)
        return depth(path) if header is not None and header[2] else 0
    except DataError:
        return 0


def _header(
    file: IO[bytes], kind: str | None, begin: bytes, length: int
) -> tuple[Look, bool, bool] | None:
    """What Pillow reads without decoding, whether all pixels are there, and if they are deep."""
    file.seek(0)
    try:
        with opened(file) as image:
            turned = orientation_of(image) >= 5
            tags = getattr(image, "tag_v2", {}) if kind == TIFF else {}
            width, height = tags.get(_WIDTH, image.width), tags.get(_HEIGHT, image.height)
            shown = (width, height) if turned else (height, width)
            return (
                Look(*shown, height, width, 8),
                _reaches(image, tags, length),
                _is_deep(image, kind, tags, begin),
            )
    except UNREADABLE:
        return None


def _is_deep(image: Image.Image, kind: str | None, tags: Any, begin: bytes) -> bool:
    """Whether pixels have more than 8 bits a channel."""
    if kind == PNG:
        return begin[24:25] == b"\x10"
    if image.format == "PPM":
        return True  # its header may say; it is decoded in any case
    return image.mode == "F" or image.mode.startswith("I") or max(tags.get(_BITS, (8,))) > 8


def _reaches(image: Image.Image, tags: Any, length: int) -> bool:
    """Whether a file of ``length`` bytes holds what its header says; False where unknown."""
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        if offsets in tags and lengths in tags:
            ends = map(sum, zip(_list(tags[offsets]), _list(tags[lengths]), strict=False))
            return max(ends, default=length + 1) <= length
    tiles: Any = getattr(image, "tile", ())
    if image.format == "BMP" and len(tiles) == 1 and tiles[0][0] == "raw":
        _, _, offset, (_, stride, _) = tiles[0]
        return bool(offset + stride * image.height <= length)
    return False


def _list(value: Any) -> Sequence[int]:
    return value if isinstance(value, tuple) else (value,)


def _stamp(path: str) -> list[int]:
    """What changes when a file does."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return [0] * _STAMP
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]


def _memory(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_folder() / "images" / f"{name}.json"


def _recall(folder: Path) -> dict[str, list[int]]:
    """What is remembered of a folder: name -> stamp and look."""
    try:
        content = json.loads(_memory(folder).read_bytes())
        if content["version"] == _VERSION:
            files = dict(content["files"])
            return {name: numbers for name, numbers in files.items() if _is_memory(numbers)}
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        log.debug("nothing is remembered of %s", folder)
    return {}


def _is_memory(numbers: Any) -> bool:
    whole = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    return whole and len(numbers) == _REMEMBERED


def _remember(folder: Path, files: dict[str, list[int]]) -> None:
    content = {"version": _VERSION, "folder": str(folder.resolve()), "files": files}
    try:
        path = _memory(folder)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content), "utf-8")
    except (OSError, StorageError, RuntimeError) as error:  # no home, or it is read-only
        log.debug("cannot remember the images of %s: %s", folder, error)
