"""Annotation files as the three lists of COCO, whatever wrote them.

What other tools write and what clearly means the same is read: lists as objects, ids as text, LVIS.
JSON of another kind, and what is no JSON, is named with what to give instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from yolact.data.entries import (
    LEFT_OUT,
    Findings,
    Matter,
    Record,
    fail,
    give_numbers,
    is_blank,
    key_of,
    name_of,
    shown,
)

FORMAT_HINT = "give a COCO instances file: images, annotations and categories in one JSON object"
SECTIONS = ("images", "annotations", "categories")
_MOST_PIXELS = 2**30
"""Of an image that OpenCV decodes."""
_KEYS_SHOWN = 8
_HEAD = 4096
"""Bytes in which a file that is no JSON shows what it is."""

_EXPORT = "export it as COCO instances (COCO JSON with segmentation)"
_INSTANCES = "give the instances file of the same images, for instance instances_train2017.json"


_NO_ENTRY = Matter(
    "images", "is no image: {}", "have no id", LEFT_OUT, "give each an id of its own"
)
_NO_NAME = Matter(
    "images",
    "has no file_name: {}",
    "have no file_name",
    LEFT_OUT,
    "give the file's name inside the folder of images",
)
_NO_SIZE = Matter(
    "images",
    "has no valid {}",
    "have no valid size",
    LEFT_OUT,
    "give height and width in pixels, at least 1",
)
_TWICE = Matter(
    "images", "is listed twice", "are listed twice", "taken once", "remove one of the two entries"
)
_FILE_TWICE = Matter(
    "images",
    "has the file of another",
    "have the file of another one",
    "kept, each with its own objects only",
)
_TEXT_ID = Matter("images", "has an id in words", "have an id in words", "numbered in their order")


class _Kind(NamedTuple):
    """A kind of JSON that is known by the keys of one of its objects."""

    where: Literal["annotations", "file", "list", "values"]
    """Whose keys: those of the first annotation, of the whole file, of the first entry of a list,
    or of the first value of an object."""
    keys: frozenset[str]
    what: str
    instead: str


def _kind(
    where: Literal["annotations", "file", "list", "values"], keys: str, what: str, instead: str
) -> _Kind:
    return _Kind(where, frozenset(keys.split(", ")), what, instead)


_KINDS = (
    _kind("annotations", "segments_info", "COCO panoptic annotations", _INSTANCES),
    _kind("annotations", "caption", "COCO captions", _INSTANCES),
    _kind(
        "annotations",
        "segmentations",
        "video instances of YouTube-VIS",
        "give annotations of single images, with one segmentation an object",
    ),
    _kind(
        "file",
        "images, bbox, segm",
        "the detections that a validation keeps",
        "give the annotation file that they were made with",
    ),
    _kind(
        "file",
        "shapes, imagePath",
        "labelme's file of one image",
        "join the files of all images into one COCO file, for instance with labelme2coco",
    ),
    _kind(
        "file",
        "_via_img_metadata",
        "a project of the VGG Image Annotator (VIA)",
        "open it in VIA and choose Annotation, Export Annotations (COCO format)",
    ),
    _kind(
        "values",
        "filename, regions",
        "annotations of the VGG Image Annotator (VIA)",
        "open the project in VIA and choose Annotation, Export Annotations (COCO format)",
    ),
    _kind("file", "type, features", "GeoJSON", "cut the map into images and " + _EXPORT),
    _kind("file", "item, annotations", "Darwin (V7) JSON of one image", _EXPORT),
    _kind("file", "objects, size", "Supervisely's file of one image", _EXPORT),
    _kind("file", "videos, annotations", "video annotations", "give annotations of single images"),
    _kind(
        "list",
        "image_id, category_id, score",
        "a list of detections (COCO results)",
        "give the annotation file that they were made with",
    ),
    _kind(
        "list",
        "image_id, category_id",
        "a list of annotations only",
        "put it into one JSON object with the lists of images and categories",
    ),
    _kind("list", "id, file_name", "a list of images only", FORMAT_HINT),
    _kind("list", "data, annotations", "Label Studio's JSON", "choose Export, COCO, instead"),
    _kind("list", "data, completions", "Label Studio's JSON", "choose Export, COCO, instead"),
    _kind("list", "data_row", "Labelbox's JSON", _EXPORT),
    _kind("list", "Labeled Data, Label", "Labelbox's JSON", _EXPORT),
    _kind("list", "file_name, annotations", "detectron2's records of images", _EXPORT),
    _kind("list", "image, annotations", "CreateML's JSON, which has boxes only", _EXPORT),
    _kind("list", "name, labels", "BDD100K's JSON", "convert it to COCO with its own tools"),
)
"""The first that fits counts; those of files only where the lists of COCO are not all there."""


class _Text(NamedTuple):
    """A kind of file that is no JSON, known by how it begins."""

    begin: bytes
    """A regular expression."""
    what: str
    instead: str


_TEXTS = (
    _Text(rb"[\s\0]*$", "empty", "copy or export it again"),
    _Text(rb"PK\x03\x04", "a zip archive", "unpack it and give the JSON file in it"),
    _Text(rb"\x1f\x8b", "compressed with gzip", "unpack it: gunzip"),
    _Text(rb"(\x89PNG|\xff\xd8\xff)", "an image", FORMAT_HINT),
    _Text(
        rb"version https://git-lfs",
        "a pointer of Git LFS, not the file itself",
        "fetch the file: git lfs pull",
    ),
    _Text(rb"(?i)\s*<(!doctype )?html", "a web page", "download the file again"),
    _Text(
        rb"(?s)(\s*<\?xml.*?\?>)?\s*<annotations",
        "XML of CVAT",
        "export the task from CVAT as COCO 1.0",
    ),
    _Text(
        rb"(?s)(\s*<\?xml.*?\?>)?\s*<annotation>",
        "XML of Pascal VOC, which has boxes only",
        _EXPORT,
    ),
    _Text(rb"\s*<", "XML", _EXPORT),
    _Text(
        rb"(?ms)(?=.*^names:)(?=.*^(train|val|nc):)",
        "YAML of YOLO",
        "convert its polygons to COCO JSON and give that file",
    ),
    _Text(
        rb"\d+( [\d.eE+-]+){4,}\s",
        "a label file of YOLO",
        "convert the polygons of all images to one COCO JSON file",
    ),
    _Text(rb"\s*[\[{]+'", "what Python prints of an object", "write it with json.dump"),
    _Text(
        rb"\s*\{[^\n]*\}\s*\n\s*\{",
        "JSON Lines: one JSON object a line",
        FORMAT_HINT,
    ),
)


def load_lists(path: Path, *, annotated: bool = True) -> dict[str, list[Any]]:
    """Read a file that lists images, annotations and categories.

    A list may be an object, whose keys are then the ids of entries that have none. LVIS files get
    the file names that their URLs end in.

    Args:
        path: The JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        annotated: False accepts a file without annotations.

    Returns:
        The lists ``images``, ``annotations`` and ``categories``; an entry may be anything.

    Raises:
        DataError: The file is missing, is not JSON, or is of another kind; the message names it.
    """
    data = _parse(path)
    _refuse_other_kinds(path, data)
    if not isinstance(data, dict):
        fail(f"{path} is not a COCO file: it holds no JSON object, {shown(data)}", FORMAT_HINT)
    if not annotated and data.get("annotations") is None:
        data["annotations"] = []
    lists = {key: _entries(path, data, key) for key in SECTIONS}
    for image in lists["images"]:
        if isinstance(image, dict) and not image.get("file_name"):
            _name_by_url(image)
    return lists


def read_images(
    entries: Sequence[Any], findings: Findings, *, sized: bool = True
) -> dict[int | str | None, Record | None]:
    """The images of a file by what their ids are looked up by; None for those that are left out.

    Args:
        entries: Of the list of images.
        findings: Gets what is the matter with them.
        sized: False accepts images without a height or width.

    Raises:
        DataError: Two different images have one id, or most of them cannot be used.
    """
    found: dict[int | str | None, Record | None] = {}
    for place, entry in enumerate(entries, start=1):
        name = name_of(entry, "images", place)
        key = key_of(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            findings.add(_NO_ENTRY, name, shown(entry))
        elif key in found:
            _require_same(findings, name, found[key], entry)
        else:
            found[key] = _checked(entry, name, findings, sized=sized)
    findings.refuse("images", len(entries))
    images = {key: image for key, image in found.items() if key is not None and image is not None}
    if not images:
        fail(f"{findings.path} lists no images", "add images, or give another annotation file")
    if not all(isinstance(key, int) for key in images):
        for image in images.values():
            findings.add(_TEXT_ID, shown(image["id"]))
    give_numbers(images)
    _note_files_listed_twice(images.values(), findings)
    return found


def _checked(image: Record, name: str, findings: Findings, *, sized: bool) -> Record | None:
    """``image`` with whole numbers for its size; None if it cannot be used."""
    if type(image.get("file_name")) is int:
        image["file_name"] = str(image["file_name"])
    if not _is_name(image.get("file_name")):
        there = shown(image["file_name"]) if "file_name" in image else f"its keys are {list(image)}"
        findings.add(_NO_NAME, name, there)
        return None
    pixels = 1
    for side in ("height", "width"):
        length = key_of(image.get(side))
        if not sized and (is_blank(image.get(side)) or length in (0, -1)):
            image[side], length = None, 1  # what tools write that have not opened the image
        elif isinstance(length, int):
            image[side] = length
        if not isinstance(length, int) or length < 1:
            findings.add(_NO_SIZE, name, f"{side}: {shown(image.get(side))}")
            return None
        pixels *= length
    if pixels > _MOST_PIXELS:
        findings.add(_NO_SIZE, name, f"size: {image.get('width')} x {image.get('height')}")
        return None
    return image


def _is_name(name: Any) -> bool:
    """Whether a file can be called so."""
    try:
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _require_same(findings: Findings, name: str, first: Record | None, second: Record) -> None:
    if first is None:
        return
    keys = ("file_name", "height", "width")
    if any(first.get(key) != second.get(key) for key in keys):
        files = f"{shown(first.get('file_name'))} and {shown(second.get('file_name'))}"
        fail(
            f"{findings.path}: two entries of images have the id {shown(second['id'])}: {files}",
            "give each an id of its own, and their annotations too",
        )
    findings.add(_TWICE, name)


def _note_files_listed_twice(images: Iterable[Record], findings: Findings) -> None:
    first: dict[str, Any] = {}
    for image in images:
        known = first.setdefault(image["file_name"], image["id"])
        if known != image["id"]:
            findings.add(_FILE_TWICE, shown(image["file_name"]), f"ids {known}, {image['id']}")


def _parse(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        fail(f"no annotation file at {path}", "run sparseml.yolact.download, or correct the path")
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", "check the file's permissions")
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        _refuse_other_texts(path, content)
        fail(f"{path} is not JSON: {error}", "save the file as UTF-8 text")
    except json.JSONDecodeError as error:
        _refuse_other_texts(path, content)
        hint = FORMAT_HINT
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            hint = "the file ends too early: copy or export it again"
        fail(f"{path} is not JSON: {error}", hint)
    except (ValueError, RecursionError) as error:
        fail(f"{path} is not JSON: {error}", FORMAT_HINT)


def _refuse_other_texts(path: Path, content: bytes) -> None:
    for kind in _TEXTS:
        if re.match(kind.begin, content[:_HEAD]):
            fail(f"{path} is not JSON: it is {kind.what}", kind.instead)


def _refuse_other_kinds(path: Path, data: Any) -> None:
    whole = isinstance(data, dict) and all(key in data for key in SECTIONS)
    keys = {
        "annotations": _keys(_first(data.get("annotations")) if isinstance(data, dict) else None),
        "file": frozenset() if whole else _keys(data),
        "list": _keys(_first(data) if isinstance(data, list) else None),
        "values": _keys(_first(data) if isinstance(data, dict) and not whole else None),
    }
    for kind in _KINDS:
        if kind.keys <= keys[kind.where] and "segmentation" not in keys["annotations"]:
            fail(f"{path} is not a COCO instances file, but {kind.what}", kind.instead)


def _first(entries: Any) -> Any:
    """The first entry of a list or the first value of an object, if there is one."""
    values = entries.values() if isinstance(entries, dict) else entries
    return next(iter(values), None) if isinstance(entries, dict | list) else None


def _keys(value: Any) -> frozenset[str]:
    return frozenset(value) if isinstance(value, dict) else frozenset()


def _entries(path: Path, data: Mapping[str, Any], section: str) -> list[Any]:
    """One of the lists; an object is one when all its values are entries."""
    found = data.get(section)
    if isinstance(found, list):
        return found
    if isinstance(found, dict) and isinstance(found.get("id"), dict | list):
        fail(
            f"{path} is not a COCO file: {section} is a table by columns, {shown(found)}",
            "write a list of objects: of a data frame, to_dict('records')",
        )
    if isinstance(found, dict) and all(isinstance(value, dict) for value in found.values()):
        return [{"id": key, **value} for key, value in found.items()]
    if section == "categories" and isinstance(found, dict):
        if all(isinstance(value, str) for value in found.values()):
            return [{"id": key, "name": value} for key, value in found.items()]
    there = f"{section} is {shown(found)}"
    if section not in data:
        keys = ", ".join(map(repr, list(data)[:_KEYS_SHOWN])) + ", ..." * (len(data) > _KEYS_SHOWN)
        there = f"its keys are {keys}" if data else "it is empty"
    fail(f"{path} is not a COCO file: it has no list of {section}, {there}", FORMAT_HINT)


def _name_by_url(image: Record) -> None:
    url = image.get("coco_url")
    if isinstance(url, str) and not url.endswith("/"):
        image["file_name"] = url.rpartition("/")[2]
