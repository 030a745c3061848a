"""Entries of annotation files: their ids and segmentations, and what is the matter with them.

Ids and masks are read in every form that is clear: ``"7"`` and ``7.0`` as 7; polygons as in COCO
(``[[x, y, x, y, ...], ...]``), without the outer list, with points as pairs or as
``{"x": .., "y": ..}``. Compressed run lengths are read as well, to check them: where they cover
less than the image, what pycocotools decodes is unset memory.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.errors import DataError

log = logging.getLogger(__name__)

Record = dict[str, Any]
"""One object of a JSON file."""
FARTHEST = 2.0**20
"""No coordinate of an image is larger, in pixels; pycocotools would fill the memory with its
outline, or overflow."""
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
_LARGEST_ID = 2**63 - 1
"""Of the integers that pycocotools counts with."""
_NAMED = 3
"""Entries that a line names."""
_FIRST = 48
"""The character that stands for 0; each holds five bits of a number and one that says: more."""
_DEEPEST = 4
"""Levels of lists around the points of a polygon."""


class Matter(NamedTuple):
    """Something that can be the matter with an entry, and what is done about it."""

    things: str
    """What such entries are called, in the plural."""
    one: str
    """What a single one has, in words that follow its name; ``{}`` stands for its value."""
    many: str
    """The same of several."""
    done: str
    """What was done about them."""
    hint: str = ""
    """How a user puts it right. What has no hint is never refused."""
    all: str = ""
    """What to say of a file where it is the matter with every entry."""


LEFT_OUT = "left out"
"""What is done about an entry that cannot be used."""


class Findings:
    """What is the matter with the entries of one file: counted, and named in one line a kind."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        """Begin with nothing; ``strict`` refuses the file at the first entry instead."""
        self.path, self.strict = path, strict
        self.counts: Counter[Matter] = Counter()
        self._examples: dict[Matter, list[str]] = {}

    def add(self, matter: Matter, name: str, value: str = "") -> None:
        """Count an entry.

        Args:
            matter: What is the matter with it.
            name: What the entry is called, without the file.
            value: What it has, in words.

        Raises:
            DataError: The file is to be refused.
        """
        if self.strict and matter.hint:
            fail(f"{name} in {self.path} {matter.one.format(value)}", matter.hint)
        self.counts[matter] += 1
        examples = self._examples.setdefault(matter, [])
        if len(examples) < _NAMED:
            examples.append(f"{name}: {value}" if value else name)

    def refuse(self, things: str, total: int) -> None:
        """Refuse a file most of whose entries cannot be used.

        Args:
            things: Which ones, as a :class:`Matter` calls them.
            total: How many there are.

        Raises:
            DataError: More than half are left out.
        """
        out = {m: n for m, n in self.counts.items() if m.things == things and m.done == LEFT_OUT}
        if sum(out.values()) <= total / 2:
            return
        first = next(iter(out))
        if first.all and out[first] == total:
            fail(f"{self.path}: {total} {things}, {first.all}", first.hint)
        reasons = ", ".join(f"{count} {matter.many}" for matter, count in out.items())
        fail(
            f"{self.path}: {sum(out.values())} of {total} {things} cannot be used: {reasons} "
            f"(first: {self._examples[first][0]})",
            first.hint,
        )

    def report(self, totals: Mapping[str, int]) -> None:
        """Say what was found, given how many of all things there are."""
        for matter, count in self.counts.items():
            log.warning(
                "%s: %d of %d %s %s, %s (first: %s)",
                *(self.path, count, totals[matter.things], matter.things, matter.many),
                *(matter.done, ", ".join(self._examples[matter])),
            )


def key_of(value: Any) -> int | str | None:
    """What an id is looked up by: ``1``, ``1.0`` and ``"1"`` are one id; None is no id.

    >>> key_of(" 7"), key_of(7.0), key_of("a7"), key_of(7.5), key_of(True)
    (7, 7, 'a7', None, None)
    """
    if type(value) is int:
        return value if abs(value) <= _LARGEST_ID else str(value)
    if type(value) is float and value.is_integer():
        return key_of(int(value))
    if type(value) is not str:
        return None
    text = value.strip()
    if re.fullmatch(r"-?[0-9]{1,18}(\.0)?", text):
        return int(text.removesuffix(".0"))
    return text or None


def is_blank(value: Any, deepest: int = 4) -> bool:
    """Whether a table left this empty: null, NaN, no text, or lists and objects of these only.

    >>> is_blank(float("nan")), is_blank([[]]), is_blank(0)
    (True, True, False)
    """
    if isinstance(value, list | dict) and deepest:
        parts = value.values() if isinstance(value, dict) else value
        return all(is_blank(part, deepest - 1) for part in parts)
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def give_numbers(entries: Mapping[int | str, Record]) -> None:
    """Give entries integer ids: their own where all have one, else their places, from 1.

    An id that was text is kept as ``original_id``.

    Args:
        entries: By :func:`key_of` of their ids.
    """
    own = all(isinstance(key, int) for key in entries)
    for place, (key, entry) in enumerate(entries.items(), start=1):
        if isinstance(entry["id"], str):
            entry["original_id"] = entry["id"]
        entry["id"] = key if own else place


def shown(value: Any, most: int = 60) -> str:
    """``value`` as a message shows it: as Python writes it, and not too long.

    >>> shown("1"), shown([1, 2] * 100, 12)
    ("'1'", '[1, 2, 1,...')
    """
    few: Any = value[:most] if isinstance(value, str | list) else value
    if isinstance(value, dict):
        few = {key: value[key] for key in list(value)[:8]}
    try:
        text = repr(few)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep nesting
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def name_of(entry: Any, section: str, place: int) -> str:
    """What messages call an entry: by its id, or by its place in the list, from 1.

    >>> name_of({"id": 7}, "images", 3), name_of(None, "images", 3)
    ('image 7', 'entry 3 of images')
    """
    if not isinstance(entry, dict) or entry.get("id") is None:
        return f"entry {place} of {section}"
    return f"{_SINGULAR[section]} {shown(entry['id'])}"


def fail(message: str, hint: str) -> NoReturn:
    """Raise a DataError."""
    raise DataError(message, hint=hint)


class Segmentation(NamedTuple):
    """What a segmentation comes to."""

    mask: Any
    """Polygons as COCO writes them, or RLE; an empty list where there is no mask."""
    stray: str = ""
    """The first polygon that is none and was left out, in words."""


def read_segmentation(value: Any) -> Segmentation:
    """The usable part of a segmentation; run lengths are handed on as they are.

    >>> read_segmentation([2, 3, 12, 3, 12, 13])
    Segmentation(mask=[[2, 3, 12, 3, 12, 13]], stray='')
    >>> read_segmentation([[2, 3], [12, 3], [12, 13]]).mask
    [[2, 3, 12, 3, 12, 13]]
    >>> read_segmentation([[2, 3, 12, 3, 12, 13], [5, 5, 7, 7]])
    Segmentation(mask=[[2, 3, 12, 3, 12, 13]], stray='a polygon with 2 points: [5, 5, 7, 7]')
    """
    if isinstance(value, list) and value and all(map(is_polygon, value)):
        return Segmentation(value)
    if isinstance(value, str) and value[:1] in ("[", "{"):
        value = _parsed(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        (value,) = value
    if isinstance(value, dict) and "counts" in value:
        return Segmentation([] if is_blank(value["counts"]) else _tidy(value))
    rings = [_numbers(ring) for ring in _rings(value, _DEEPEST)]
    stray = next((ring for ring in rings if not is_polygon(ring)), None)
    return Segmentation(
        [ring for ring in rings if is_polygon(ring)], "" if stray is None else _words(stray)
    )


def rle_fault(mask: Record, height: int, width: int) -> str | None:
    """What is the matter with run lengths, in words that follow "the annotation has".

    Args:
        mask: RLE of either kind, as in the file.
        height: Of its image, in pixels.
        width: Likewise.
    """
    size = [height, width]
    if mask.get("size") != size:
        return f"an RLE mask of size {shown(mask.get('size'))}, its image is {size}"
    if not _fills(mask.get("counts"), height * width):
        return "RLE counts that do not fill its image"
    return None


def to_rle(segmentation: Any, height: int, width: int) -> Any:
    """Compressed RLE of one annotation's segmentation: polygons, or RLE of either kind."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def uncompressed_rle(mask: NDArray[np.bool_]) -> Record:
    """RLE of [height, width] as plain counts: runs of 0 and 1 in turn, 0 first, by columns."""
    pixels = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def decode_runs(counts: str) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn; from the fourth on they are stored as differences.

    Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, ``rleFrString``.

    Raises:
        ValueError: ``counts`` is not of this format.

    >>> decode_runs("021")
    [0, 2, 1]
    >>> decode_runs("0442")
    [0, 4, 4, 6]
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - _FIRST
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} does not occur in run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift  # the sign bit
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the last number is cut short")
    return runs


def is_polygon(ring: Any) -> bool:
    """Whether ``ring`` is x, y, x, y, ... of three points or more, all of them near an image."""
    try:
        return isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and is_near(ring)
    except (TypeError, OverflowError):
        return False


def is_near(coordinates: Sequence[Any]) -> bool:
    """Whether coordinates are finite and at most :data:`FARTHEST`, in pixels.

    Raises:
        TypeError: Some are no numbers.
        OverflowError: Some are larger than any float.
    """
    length = math.hypot(*coordinates)  # one pass; a NaN or an infinity in it is in the length
    return length <= FARTHEST or (
        math.isfinite(length) and all(-FARTHEST <= number <= FARTHEST for number in coordinates)
    )


def _fills(counts: Any, pixels: int) -> bool:
    """Whether run lengths, compressed or not, cover an image exactly."""
    if isinstance(counts, str):
        try:
            counts = decode_runs(counts)
        except ValueError:
            return False
    whole = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)
    return whole and sum(counts) == pixels


def _parsed(text: str) -> Any:
    """What a table of text held: JSON, or lists and objects as Python writes them."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _tidy(mask: Record) -> Record:
    """RLE with whole numbers for those of floats or text, and text for the bytes of Python."""
    size, counts = mask.get("size"), mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    elif isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
        counts = counts[2:-1].replace("\\\\", "\\")
    elif isinstance(counts, str) and counts.endswith("]"):  # which no compressed one of a "[" does
        counts = _parsed(counts)
    if isinstance(counts, list) and not all(type(number) is int for number in counts):
        counts = [key_of(number) for number in counts]
    size = [key_of(side) for side in size] if isinstance(size, list) else size
    return {**mask, "size": size, "counts": counts}


def _rings(value: Any, deepest: int) -> list[list[Any]]:
    """The flat lists of coordinates in nested ones, good or not."""
    if isinstance(value, dict) and not is_blank(value):
        xs, ys = value.get("all_points_x"), value.get("all_points_y")  # as VIA writes them
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            return [[value]]
        value = [list(pair) for pair in zip(xs, ys, strict=True)]
    if not isinstance(value, list) or not value or not deepest:
        return []
    points = [_point(part) for part in value]
    if all(point is not None for point in points):
        return [[number for point in points if point for number in point]]
    if any(isinstance(part, list | dict) for part in value):
        return [ring for part in value for ring in _rings(part, deepest - 1)]
    return [value]


def _point(value: Any) -> list[Any] | None:
    """[x, y] of a point in any of its forms; None where it is something else."""
    if isinstance(value, list) and len(value) == 1:  # a contour of OpenCV
        (value,) = value
    if isinstance(value, dict) and "x" in value and "y" in value:
        return [value["x"], value["y"]]
    pair = isinstance(value, list) and len(value) == 2
    return value if pair and not any(isinstance(part, list | dict) for part in value) else None


def _numbers(ring: list[Any]) -> list[Any]:
    """The same with numbers for text."""
    try:
        return [float(part) if isinstance(part, str) else part for part in ring]
    except ValueError:
        return ring


def _words(ring: list[Any]) -> str:
    numbers = all(isinstance(part, int | float) for part in ring)
    if numbers and len(ring) < 6 and len(ring) % 2 == 0:
        return f"a polygon with {len(ring) // 2} points: {shown(ring)}"
    if len(ring) == 1:
        return f"no polygon: {shown(ring[0])}"
    return f"a malformed polygon: {shown(ring)}"
