"""Reading and checking COCO annotation files, before any long work relies on them.

Format: https://cocodataset.org/#format-data, section "Object Detection". An entry that cannot be
used does not cost the others: it is left out or repaired, and counted. What makes the whole file
doubtful refuses it: contradicting ids, run lengths that do not fit their image, or most objects
without use.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.data.annotation_files import load_lists, read_images
from yolact.data.entries import (
    LEFT_OUT,
    Findings,
    Matter,
    Record,
    fail,
    give_numbers,
    is_blank,
    is_near,
    key_of,
    name_of,
    read_segmentation,
    rle_fault,
    shown,
    to_rle,
)

_LARGEST_AREA = 1e10
"""Of an object that COCO's evaluation counts, in pixels."""
_IDS_HINT = "give each an id of its own"
_REMOVE = "correct or remove it"
_RLE_HINT = (
    "size is [height, width] of the image, counts add up to its pixels: encode the mask again"
)

_NO_OBJECT = Matter("objects", "is {}, no JSON object", "are no JSON objects", LEFT_OUT, _REMOVE)
_NO_IMAGE = Matter(
    "objects",
    "has {}, which is not listed",
    "are of images that are not listed",
    LEFT_OUT,
    "add the image to the list of images, or remove the annotation",
)
_NO_CATEGORY = Matter(
    "objects",
    "has {}, which is not listed",
    "are of categories that are not listed",
    LEFT_OUT,
    "add the category to the list of categories, or correct category_id",
)
_CROWD = Matter("objects", "has {}", "have an unknown iscrowd", LEFT_OUT, "iscrowd is 0 or 1")
_NO_MASK = Matter(
    "objects",
    "has no mask: {}",
    "have no mask",
    LEFT_OUT,
    "export polygons or masks (instance segmentation), not boxes alone (object detection)",
    all="none with a mask: instance segmentation needs masks",
)
_UNREAD = Matter(
    "objects",
    "has a mask that cannot be read: {}",
    "have a mask that cannot be read",
    LEFT_OUT,
    "give [[x, y, x, y, ...], ...], three points or more a polygon, or RLE: {size, counts}",
)
_STRAY = Matter(
    "objects",
    "has {}",
    "have a stray polygon",
    "used without it",
    "remove it, or give it at least three points: x, y, x, y, ...",
)
_BOX = Matter(
    "objects",
    "has an impossible {}",
    "have an impossible bbox",
    "taken from the mask",
    "bbox is [x, y, width, height] in pixels: finite, no negative size",
)
_AREA = Matter(
    "objects",
    "has an impossible {}",
    "have an impossible area",
    "taken from the mask",
    "area is in pixels",
)
_NO_ID = Matter("objects", "has no id", "have no id", "numbered", _IDS_HINT)
_ID_TWICE = Matter(
    "objects", "has the id of another one", "have the id of another one", "numbered", _IDS_HINT
)
_REPEATED = Matter("objects", "is listed twice", "are listed twice", "taken once", _REMOVE)
_CATEGORY_TWICE = Matter(
    "categories", "is listed twice", "are listed twice", "taken once", "remove one of the entries"
)
_CATEGORY_TWIN = Matter(
    "categories",
    "has the name of another: {}",
    "have the name of another one",
    "taken as one class",
    "give each category a name of its own, or list it once",
)


def read_annotations(
    path: Path,
    *,
    annotated: bool = True,
    strict: bool = False,
    find: Callable[[list[Record]], list[Record]] | None = None,
) -> dict[str, list[Record]]:
    """Read a COCO instances file so that every entry that comes back can be used.

    Ids are integers then, those of a file whose ids are text being places in its lists, from 1;
    the ``original_id`` of such an image or category is what the file has. Annotations may name
    both instead, and get the fields that files of other tools leave out: ``id``, ``iscrowd`` (0),
    and ``bbox`` and ``area`` (from the segmentation). Entries that cannot be used are left out or
    repaired; the log has a line for each kind of fault.

    Args:
        path: The JSON file.
        annotated: False accepts a file without ground truth, like COCO's ``image_info_test2017``.
        strict: Refuse a file with such an entry.
        find: Gets the list of images and returns those whose files can be used, with their sizes:
            the file may leave sizes out then. The objects of all others are left out.

    Returns:
        The lists ``images``, ``annotations`` and ``categories``, in the file's order.

    Raises:
        DataError: The file is missing, is not COCO's, contradicts itself, or most of its objects
            cannot be used; the message names the first entry.
    """
    findings = Findings(path, strict=strict)
    with _no_collections():
        lists = load_lists(path, annotated=annotated)
        images = read_images(lists["images"], findings, sized=find is None)
        names = {i["file_name"]: key for key, i in images.items() if i is not None}
        if find is not None:
            found = {i["id"]: i for i in find([i for i in images.values() if i is not None])}
            images = {key: i and found.get(i["id"]) for key, i in images.items()}
        categories = _read_categories(lists["categories"], findings)
        by_name = {name: images[key] for name, key in names.items() if key_of(name) == name}
        objects = _Objects(by_name | images, categories, findings)
        entries = enumerate(lists["annotations"], start=1)
        annotations = _with_ids(((p, objects.read(entry, p)) for p, entry in entries), findings)
    findings.refuse("objects", len(lists["annotations"]))
    things = {"images": "images", "annotations": "objects", "categories": "categories"}
    findings.report({things[section]: len(entries) for section, entries in lists.items()})
    return {
        "images": [image for image in images.values() if image is not None],
        "annotations": annotations,
        "categories": list({record["id"]: record for record in categories.values()}.values()),
    }


def has_area(annotation: Record) -> bool:
    """Whether the object covers anything; COCO itself has two that do not."""
    _, _, width, height = annotation["bbox"]
    return bool(width > 0 and height > 0 and annotation["segmentation"])


def boxes_xyxy(annotations: Sequence[Record]) -> NDArray[np.float32]:
    """[n, 4] corner boxes in pixels, from COCO's (x, y, width, height)."""
    xywh = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    xywh[:, 2:] += xywh[:, :2]
    return xywh.astype(np.float32)


def _read_categories(entries: Sequence[Any], findings: Findings) -> dict[int | str | None, Record]:
    """The categories of an annotation file by what their ids are looked up by, and by their names.

    Those that share a name are one: their ids find the first of them. Since all objects depend on
    the categories, a faulty one refuses the file.

    Raises:
        DataError: There are none, one has no id or no name, or two have one id.
    """
    found: dict[int | str, Record] = {}
    for place, entry in enumerate(entries, start=1):
        name = f"{name_of(entry, 'categories', place)} in {findings.path}"
        key = key_of(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            fail(f"{name} has no id: {shown(entry)}", "give each category an id and a name")
        entry["name"] = _category_name(entry, name)
        if key not in found:
            found[key] = entry
        elif found[key]["name"] == entry["name"]:
            findings.add(_CATEGORY_TWICE, name_of(entry, "categories", place))
        else:
            both = f"{shown(found[key]['name'])} and {shown(entry['name'])}"
            fail(f"{name} has the id of another one: {both}", "give each an id of its own")
    if not found:
        hint = "add at least one category with an id and a name"
        fail(f"{findings.path} lists no categories", hint)
    give_numbers(found)
    first: dict[str, Record] = {}
    for entry in found.values():
        if first.setdefault(entry["name"], entry) is not entry:
            findings.add(_CATEGORY_TWIN, f"category {entry['id']}", shown(entry["name"]))
    known: dict[int | str | None, Record] = {
        name: entry for name, entry in first.items() if key_of(name) == name
    }
    return known | {key: first[entry["name"]] for key, entry in found.items()}


def _category_name(category: Record, called: str) -> str:
    """The name of a category; LVIS and others may have only synonyms."""
    synonyms = category.get("synonyms")
    other = synonyms[0] if isinstance(synonyms, list) and synonyms else None
    name = category.get("name")
    name = other if name is None else name
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    try:
        if isinstance(name, str) and name.encode():
            return name
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    fail(f"{called} has no name: {shown(name)}", "give it a name")


@dataclass(frozen=True)
class _Objects:
    """Reads the annotations of one file, each on its own."""

    images: Mapping[int | str | None, Record | None]
    categories: Mapping[int | str | None, Record]
    findings: Findings

    def read(self, entry: Any, place: int) -> Record | None:
        """``entry`` with all fields but its id made right; None if it cannot be used."""
        if not isinstance(entry, dict):
            self._add(_NO_OBJECT, entry, place, shown(entry))
            return None
        image = self.images.get(key_of(entry.get("image_id")))
        category = self.categories.get(key_of(entry.get("category_id")))
        crowd = _crowd(entry.get("iscrowd"))
        if image is None:
            if key_of(entry.get("image_id")) not in self.images:
                self._add(_NO_IMAGE, entry, place, f"image_id {shown(entry.get('image_id'))}")
        elif category is None:
            value = f"category_id {shown(entry.get('category_id'))}"
            self._add(_NO_CATEGORY, entry, place, value)
        elif crowd is None:
            self._add(_CROWD, entry, place, f"iscrowd {shown(entry['iscrowd'])}")
        elif self._has_mask(entry, place, image):
            entry.update(image_id=image["id"], category_id=category["id"], iscrowd=crowd)
            self._measure(entry, place, image)
            return entry
        return None

    def _has_mask(self, entry: Record, place: int, image: Record) -> bool:
        """Make ``segmentation`` polygons or RLE; False if there is none."""
        value = entry.get("segmentation")
        mask, stray = read_segmentation(value)
        if not mask:
            there = f"segmentation {shown(value)}" if "segmentation" in entry else "no segmentation"
            self._add(_NO_MASK if is_blank(value) else _UNREAD, entry, place, stray or there)
            return False
        entry["segmentation"] = mask
        if isinstance(mask, dict):
            fault = rle_fault(mask, image["height"], image["width"])
            if fault:  # masks that one encoder spoiled: which others it did cannot be seen
                name = name_of(entry, "annotations", place)
                fail(f"{name} in {self.findings.path} has {fault}", _RLE_HINT)
            mask["size"] = [image["height"], image["width"]]
        if stray:
            self._add(_STRAY, entry, place, stray)
        return True

    def _measure(self, entry: Record, place: int, image: Record) -> None:
        """Take what is missing or impossible of ``bbox`` and ``area`` from the mask."""
        box, area = entry.get("bbox"), entry.get("area")
        box, area = (None if is_blank(value) else value for value in (box, area))
        if box is not None and not _is_box(box):
            self._add(_BOX, entry, place, f"bbox: {shown(box)}")
            box = None
        if area is not None and not _is_area(area):
            self._add(_AREA, entry, place, f"area: {shown(area)}")
            area = None
        if box is None or area is None:
            encoded = to_rle(entry["segmentation"], image["height"], image["width"])
            entry["bbox"] = rle.toBbox(encoded).tolist() if box is None else box
            entry["area"] = float(rle.area(encoded)) if area is None else area

    def _add(self, matter: Matter, entry: Any, place: int, value: str) -> None:
        self.findings.add(matter, name_of(entry, "annotations", place), value)


def _with_ids(annotations: Iterable[tuple[int, Record | None]], findings: Findings) -> list[Record]:
    """Annotations, given with their places in the file, each once and with an id of its own.

    Nothing refers to these ids, so that any will do but 0: pycocotools takes the object with that
    id for one that no detection has found.
    """
    by_id: dict[int | str, Record] = {}
    kept, unnumbered = [], []
    for place, annotation in annotations:
        if annotation is None:
            continue
        key = key_of(annotation.get("id"))
        if key in by_id and _same(by_id[key], annotation):
            findings.add(_REPEATED, name_of(annotation, "annotations", place))
            continue
        kept.append(annotation)
        if key is None or key in by_id:
            matter = _NO_ID if key is None else _ID_TWICE
            findings.add(matter, name_of(annotation, "annotations", place))
            unnumbered.append(annotation)
            continue
        by_id[key] = annotation
        if isinstance(key, int) and key:
            annotation["id"] = key
        else:
            unnumbered.append(annotation)
    free = (number for number in count(1) if number not in by_id)
    for annotation, number in zip(unnumbered, free, strict=False):
        annotation["id"] = number
    return kept


@contextmanager
def _no_collections() -> Iterator[None]:
    """Spare Python the search for cycles among millions of new objects, which have none.

    It takes a third of the time that COCO's training set does.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _same(first: Record, second: Record) -> bool:
    keys = ("image_id", "category_id", "iscrowd", "segmentation")
    return all(first[key] == second[key] for key in keys)


def _crowd(value: Any) -> int | None:
    """0 or 1; None for what is neither."""
    if is_blank(value) or isinstance(value, bool):
        return int(value is True)
    key = {"false": 0, "true": 1}.get(str(value).lower(), key_of(value))
    return key if isinstance(key, int) and key in (0, 1) else None


def _is_box(box: Any) -> bool:
    try:
        return isinstance(box, list) and len(box) == 4 and is_near(box) and min(box[2:]) >= 0
    except (TypeError, OverflowError):
        return False


def _is_area(area: Any) -> bool:
    return isinstance(area, int | float) and 0 <= area <= _LARGEST_AREA
