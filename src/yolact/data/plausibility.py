"""What an annotation file says that can be read, but can hardly be meant.

Polygons in relative coordinates, objects outside of their image, boxes that contradict the mask:
networks learn such files without a word, and learn nothing. Each kind is counted and logged in one
line. More than half of the objects being of kinds that ruin a model is an error.

Judged are rectangles around masks, of all objects at once; a mask is drawn only where it may be
without a pixel. Crowds are not judged. Boxes may be off by a margin: see :data:`_MARGIN`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.data.entries import to_rle
from yolact.errors import DataError

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_CHUNK = 50_000
"""Objects whose coordinates are unpacked at a time, which bounds the memory."""
_OUTSIDE = (4.0, 0.02)
"""Pixels, and share of an image's side, that a polygon may reach over its edge unmentioned."""
_MARGIN = (4.0, 0.12)
"""Pixels, and share of a mask's side, that a box may be off: tools round, people leave a margin."""
_EXACT = (2.0, 0.03)
"""The same of a box that was made from the mask by a tool."""
_LOOSEST = 0.2
"""Share of a box that its mask's rectangle has at least, if people drew it around hidden parts."""
_RARE = 1 / 1000
"""A smaller share of objects that are tiny or reach over the edge is not worth a line."""
_FEW = 8
"""With fewer objects, it is no surprise that all lie in one corner."""
_CORNER = 0.6
"""Where all objects end, as a share of the image, when that is a surprise."""


@dataclass(frozen=True)
class _Objects:
    """All objects that are judged, [n] or [n, 4]; rectangles are (x1, y1, x2, y2) in pixels."""

    records: list[Record]
    images: list[Record]
    masks: Floats
    """Around each mask as written: polygons may reach out of their image."""
    boxes: Floats
    """As written: meant as x, y, width, height."""
    areas: Floats
    """In pixels; an empty mask has none, wherever it lies."""
    sizes: Floats
    """[n, 2] width and height of each object's image."""


@dataclass(frozen=True)
class _Finding:
    """One line of the report."""

    objects: Flags
    what: str
    """What is the matter, after "12 of 40 objects"."""
    then: str
    """What becomes of them."""
    ruins: Flags
    """Those that a network learns nothing right from."""
    hint: str = ""
    show_box: bool = False


def check_plausible(
    path: Path,
    images: Sequence[Record],
    annotations: Sequence[Record],
    input_size: int | tuple[int, int] | None = None,
) -> None:
    """Log what can hardly be meant, in at most six lines of the form "3 of 40 objects ...".

    Args:
        path: The annotation file, for the messages.
        images: Its images: checked records with ``id``, ``file_name``, ``width`` and ``height``.
        annotations: Its annotations: checked records with ``bbox``, ``iscrowd`` and
            ``segmentation``.
        input_size: Side, or (height, width), of the network's input in pixels; None leaves out
            the search for objects that vanish in it.

    Raises:
        DataError: More than half of the objects are such that they ruin a model.
    """
    found = _unpack(images, annotations)
    if not found.records:
        return
    total = len(found.records)
    findings = [one for one in _findings(found, input_size) if one.objects.any()]
    ruined = sum(int(one.ruins.sum()) for one in findings)
    worst = max(findings, key=lambda one: int(one.ruins.sum()), default=None)
    for one in findings:
        if one is not worst or ruined <= total / 2:
            log.warning("%s: %s", path, _line(found, one, one.then))
    if worst is not None and ruined > total / 2:
        more = f"; {ruined} in all cannot be used" if ruined > worst.objects.sum() else ""
        raise DataError(f"{path}: {_line(found, worst, more)}", hint=worst.hint)


def _line(found: _Objects, finding: _Finding, then: str) -> str:
    """For instance: 12 of 40 objects lie wholly outside of their image (first: ...)."""
    index = int(finding.objects.argmax())
    image, record = found.images[index], found.records[index]
    number = record.get("original_id", record["id"])
    x1, y1, x2, y2 = (_number(value) for value in found.masks[index])
    box = f"bbox [{', '.join(map(_number, found.boxes[index]))}], " if finding.show_box else ""
    return (
        f"{finding.objects.sum()} of {len(found.records)} objects {finding.what}{then} "
        f"(first: annotation {number} in {image['file_name']}: {box}"
        f"mask from {x1}, {y1} to {x2}, {y2}, image {image['width']} x {image['height']})"
    )


def _findings(found: _Objects, input_size: int | tuple[int, int] | None) -> Iterator[_Finding]:
    """Every object is in the first finding that holds for it."""
    relative = _relative(found)
    yield _Finding(
        relative,
        "have polygons in relative coordinates (0 to 1) where pixels are meant",
        ": no mask",
        relative,
        "multiply x by the width and y by the height of the image",
    )
    rest = ~relative
    wholly, partly = (rest & flags for flags in _beyond(found))
    why, hint, systematic = _why_outside(found, wholly | partly)
    yield _Finding(wholly, f"lie wholly outside of their image{why}", ": no mask", wholly, hint)
    rest &= ~wholly
    empty = _without_pixel(found, rest)
    yield _Finding(
        empty,
        "have a mask without a pixel",
        ": no mask",
        empty,
        "remove them, or draw them at a larger scale",
    )
    rest &= ~empty
    misfits, wide, reading = _misfits(found, rest)
    yield _Finding(
        misfits,
        f"have a box that does not fit their mask{reading}",
        "; it is used as it is",
        misfits & ~wide,
        "bbox is x, y, width, height in pixels, a polygon x, y, x, y, ...; without a bbox it is "
        "made from the mask",
        show_box=True,
    )
    rest &= ~misfits
    cut = _worth_a_line(rest & partly)
    visible = _areas(_inside(found.masks, found.sizes))
    yield _Finding(
        cut,
        f"reach outside of their image{why}",
        ", where the mask is cut",
        cut & (systematic | (visible < _areas(found.masks) / 2)),
        hint,
    )
    yield from _small(found, rest & ~partly, input_size)


def _worth_a_line(objects: Flags) -> Flags:
    return objects if objects.sum() >= _RARE * len(objects) else np.zeros_like(objects)


def _relative(found: _Objects) -> Flags:
    """Masks inside the first pixel; a file of whole numbers may really have such an object."""
    candidates = (found.masks >= -0.05).all(1) & (found.masks <= 1.05).all(1)
    candidates &= (found.sizes.min(1) > 4) & (found.areas > 0)
    fractions = found.masks[candidates] % 1 != 0
    return candidates if fractions.any() else np.zeros_like(candidates)


def _beyond(found: _Objects) -> tuple[Flags, Flags]:
    """Objects that share nothing with their image, and those that reach over its edge."""
    low, high = found.masks[:, :2], found.masks[:, 2:]
    wholly = ((high <= 0).any(1) | (low >= found.sizes).any(1)) & (found.areas > 0)
    tolerance = np.maximum(_OUTSIDE[0], _OUTSIDE[1] * found.sizes)
    over = ((low < -tolerance) | (high > found.sizes + tolerance)).any(1)
    return wholly, over & ~wholly


def _why_outside(found: _Objects, reach: Flags) -> tuple[str, str, bool]:
    """A guess in words, a hint, and whether all objects of the file are likely to be wrong."""
    if not reach.any():
        return "", "", False
    masks, sizes = found.masks[reach], found.sizes[reach]
    tolerance = np.maximum(_OUTSIDE[0], _OUTSIDE[1] * sizes)
    turned = ((masks[:, 2:] <= sizes[:, ::-1] + tolerance) & (masks[:, :2] >= -tolerance)).all(1)
    if turned.mean() >= 0.95:
        hint = "give each image its own width and height, and each point as x, y"
        return " (width and height, or x and y, are probably swapped)", hint, True
    hint = "label the images as they are now, or scale the coordinates to their size"
    across, down = (masks[:, 2:] / sizes).max(0)
    larger = min(across, down) > 1.1 and max(across, down) < 1.5 * min(across, down)
    if larger and (masks[:, :2] >= -tolerance).all(1).mean() >= 0.95:
        times = max(across, down)
        return f" (probably labelled when it was {times:.2g} times as large or more)", hint, True
    return " (which was probably cropped or resized after labelling)", hint, False


def _without_pixel(found: _Objects, rest: Flags) -> Flags:
    """Masks that cover no pixel; drawn are slivers and what mostly lies outside."""
    clipped = _inside(found.masks, found.sizes)
    sides = clipped[:, 2:] - clipped[:, :2]
    thin = (sides.min(1) < 2) | (found.areas < sides.max(1)) | (_areas(clipped) < 4)
    candidates = rest & (thin | (_areas(clipped) < _areas(found.masks) / 2))
    empty = np.zeros_like(rest)
    for index in np.flatnonzero(candidates):
        image, segmentation = found.images[index], found.records[index]["segmentation"]
        encoded = to_rle(segmentation, image["height"], image["width"])
        empty[index] = not rle.area(encoded).sum()
    return empty


def _misfits(found: _Objects, rest: Flags) -> tuple[Flags, Flags, str]:
    """Objects whose box contradicts their mask, and how most of these boxes can be understood.

    A box that is off is no fault in itself: it may be drawn by hand, or around what is hidden. It
    is one where it covers less than half of what it should, or where most of those that are off
    fit when read in another way. Second: those around the mask, not so large as to mean nothing.
    """
    boxes, masks, sizes = found.boxes, found.masks, found.sizes
    flat = (boxes[:, 2:] == 0).any(1)  # a data set leaves these out, and counts them itself
    if flat.mean() <= 0.5:
        rest = rest & ~flat
    off = rest & ~_fit(_corners(boxes), masks, sizes, _MARGIN)
    if not off.any():
        return off, off, ""
    doubtful = np.flatnonzero(rest & ~_fit(_corners(boxes), masks, sizes, _EXACT))
    boxes, masks, sizes = boxes[doubtful], masks[doubtful], sizes[doubtful]
    drawn, visible = _corners(boxes), _inside(masks, sizes)
    clearly, overlaps = off[doubtful], _overlaps(drawn, visible)
    wrong = clearly & (overlaps < 0.5)
    around = ((drawn[:, :2] <= visible[:, :2] + 1) & (drawn[:, 2:] >= visible[:, 2:] - 1)).all(1)
    best, large, most, guess = wrong, around & (overlaps >= _LOOSEST), 0, ""
    for name, rectangles in _readings(boxes, masks, sizes, clearly):
        right = _fit(rectangles, masks, sizes, _EXACT)
        explained = int((right & clearly).sum())
        if explained > most and 2 * explained >= clearly.sum():
            best, large, most, guess = wrong | right, large & ~right, explained, name
    result, wide = np.zeros_like(rest), np.zeros_like(rest)
    result[doubtful], wide[doubtful] = best, large
    return result, wide, guess and f", which is probably {guess}"


def _readings(
    boxes: Floats, masks: Floats, sizes: Floats, clearly: Flags
) -> Iterator[tuple[str, Floats]]:
    """What boxes may have been meant as, in words and as corners in pixels."""
    full = np.tile(sizes, 2)
    turned = boxes[:, [1, 0, 3, 2]]
    yield "x1, y1, x2, y2 where x, y, width, height is meant", boxes
    yield "y, x, height, width where x, y, width, height is meant", _corners(turned)
    yield "y1, x1, y2, x2 where x, y, width, height is meant", turned
    yield "the centre, width and height where x, y, width, height is meant", _around(boxes)
    yield "relative (0 to 1) where pixels are meant", _corners(boxes * full)
    yield "relative corners (0 to 1) where x, y, width, height is meant", boxes * full
    yield "relative (0 to 1), with the centre, as YOLO writes it", _around(boxes * full)
    yield "in percent where pixels are meant", _corners(boxes * full / 100)
    wide = clearly & (boxes[:, 2:] > 0).all(1)
    if wide.any():
        scale = np.median((masks[wide, 2:] - masks[wide, :2]) / boxes[wide, 2:], axis=0)
        times = float(np.sqrt(scale.prod()))
        words = f"{1 / times:.2g} times" if times < 1 else f"1/{times:.2g} of"
        yield f"of an image {words} the size", _corners(boxes * np.tile(scale, 2))


def _corners(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _around(boxes: Floats) -> Floats:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _fit(rectangles: Floats, masks: Floats, sizes: Floats, margin: tuple[float, float]) -> Flags:
    """Whether rectangles are around the masks, as written or as cut at the image's edge."""
    sides = np.tile(masks[:, 2:] - masks[:, :2], 2)
    allowed = np.maximum(margin[0], margin[1] * sides)
    whole = (np.abs(rectangles - masks) <= allowed).all(1)
    fits: Flags = whole | (np.abs(rectangles - _inside(masks, sizes)) <= allowed).all(1)
    return fits


def _inside(rectangles: Floats, sizes: Floats) -> Floats:
    return np.clip(rectangles, 0, np.tile(sizes, 2))


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of each pair."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared: Floats = (high - low).clip(0).prod(1)
    overlaps: Floats = shared / np.maximum(_areas(a) + _areas(b) - shared, 1e-9)
    return overlaps


def _small(
    found: _Objects, rest: Flags, input_size: int | tuple[int, int] | None
) -> Iterator[_Finding]:
    """What vanishes when images are resized, and coordinates that were scaled down."""
    nothing = np.zeros_like(rest)
    if input_size is not None:
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        scale = height * width / found.sizes.prod(1)
        yield _Finding(
            _worth_a_line(rest & (_areas(found.masks) * scale < 1)),
            f"are smaller than a pixel in the network's input of {height} x {width}",
            ": hardly found",
            nothing,
        )
    if rest.sum() < max(_FEW, 0.9 * len(rest)):
        return
    masks, sizes = found.masks[rest], found.sizes[rest]
    ends, starts = (masks[:, 2:] / sizes).max(0), (masks[:, :2] / sizes).min(0)
    percent = 80 < masks.max() <= 100.5 and sizes.min() > 100 / _CORNER
    alike = ends.max() < 1.25 * ends.min() or percent
    if alike and ends.max() <= _CORNER and starts.max() < 0.1 * ends.min() + 0.02:
        why = "in percent" if percent else "on smaller images"
        yield _Finding(
            rest,
            f"lie in the upper left {ends.max():.0%} of their image, probably labelled {why}",
            "; they are used as they are",
            nothing,
        )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _areas(rectangles: Floats) -> Floats:
    area: Floats = (rectangles[:, 2:] - rectangles[:, :2]).prod(1)
    return area


def _unpack(images: Sequence[Record], annotations: Sequence[Record]) -> _Objects:
    by_id = {image["id"]: image for image in images}
    records = [one for one in annotations if not one["iscrowd"] and _has_mask(one["segmentation"])]
    theirs = [by_id[one["image_id"]] for one in records]
    sizes = np.array([(one["width"], one["height"]) for one in theirs], np.float64)
    boxes = np.array([one["bbox"] for one in records], np.float64)
    masks, areas = np.empty((len(records), 4)), np.empty(len(records))
    for start in range(0, len(records), _CHUNK):
        part = slice(start, start + _CHUNK)
        masks[part], areas[part] = _extents(records[part], theirs[part])
    return _Objects(records, theirs, masks, boxes.reshape(-1, 4), areas, sizes.reshape(-1, 2))


def _has_mask(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) or any(segmentation)


def _extents(records: Sequence[Record], images: Sequence[Record]) -> tuple[Floats, Floats]:
    """Rectangles around masks, and their areas."""
    masks, areas = np.empty((len(records), 4)), np.empty(len(records))
    shapes = [one["segmentation"] for one in records]
    drawn = np.array([isinstance(shape, dict) for shape in shapes], bool)
    if drawn.any():
        sizes = [(one["height"], one["width"]) for one in images]
        encoded = [to_rle(shapes[i], *sizes[i]) for i in np.flatnonzero(drawn)]
        # One by one, since pycocotools cannot count 256 at once with numpy 2.
        masks[drawn], areas[drawn] = rle.toBbox(encoded), [rle.area(mask) for mask in encoded]
        masks[drawn, 2:] += masks[drawn, :2]
    if not drawn.all():
        masks[~drawn], areas[~drawn] = _polygon_extents([s for s in shapes if isinstance(s, list)])
    return masks, areas


def _polygon_extents(objects: Sequence[list[list[float]]]) -> tuple[Floats, Floats]:
    polygons = [polygon for one in objects for polygon in one if polygon]
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    flat = np.fromiter(chain.from_iterable(polygons), np.float64, lengths.sum())
    points = flat.reshape(-1, 2)
    first = np.concatenate([[0], np.cumsum(lengths // 2)[:-1]])  # point of each polygon
    following = np.arange(1, len(points) + 1)
    following[np.concatenate([first[1:], [len(points)]]) - 1] = first
    turned = points[following]
    doubled = points[:, 0] * turned[:, 1] - turned[:, 0] * points[:, 1]
    counts = np.fromiter((sum(map(bool, one)) for one in objects), np.int64, len(objects))
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])  # polygon of each object
    areas = np.add.reduceat(np.abs(np.add.reduceat(doubled, first)), begin) / 2
    low = np.minimum.reduceat(points, first[begin])
    high = np.maximum.reduceat(points, first[begin])
    return np.concatenate([low, high], axis=1), areas
