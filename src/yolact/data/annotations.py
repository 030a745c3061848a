"""Reading and checking COCO annotation files, before any long work relies on them.

Format: https://cocodataset.org/#format-data, section "Object Detection". Compressed run lengths are
read as well, to check them: where they cover less than the image, what pycocotools decodes is unset
memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.data.labels import Classes
from yolact.errors import DataError

Record = dict[str, Any]
"""One object of a JSON file."""
_FORMAT_HINT = "give a COCO instances file: images, annotations and categories in one JSON object"
_FIRST = 48
"""The character that stands for 0; each holds five bits of a number and one that says: more."""


def read_annotations(
    path: Path,
    *,
    annotated: bool = True,
    find: Callable[[list[Record]], list[Record]] | None = None,
) -> dict[str, list[Record]]:
    """Read a COCO instances file and check that every entry can be used.

    Annotations get the fields that files of other tools leave out: ``iscrowd`` (0), and ``bbox``
    and ``area`` (from the segmentation).

    Args:
        path: The JSON file.
        annotated: False accepts a file without ground truth, like COCO's ``image_info_test2017``.
        find: Gets the list of images and returns those whose files can be used, with their sizes:
            the file may leave sizes out. The objects of all others are left out.

    Returns:
        The lists ``images``, ``annotations`` and ``categories``, in the file's order.

    Raises:
        DataError: The file is missing, is not COCO's, or has an entry that contradicts another;
            the message names the entry.
    """
    data = _load(path)
    if not annotated:
        data.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        entries = data.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            _fail(f"{path} is not a COCO file: it has no list of {key}", _FORMAT_HINT)
    images = _by_id(path, data, "images")
    categories = _by_id(path, data, "categories")
    _by_id(path, data, "annotations")
    if not images:
        _fail(f"{path} lists no images", "add images, or give another annotation file")
    if not categories:
        _fail(f"{path} lists no categories", "add at least one category with an id and a name")
    for category in data["categories"]:
        if not isinstance(category.get("name"), str):
            _fail(f"category {category['id']} in {path} has no name", "give it a name")
    for image in data["images"]:
        _check_image(path, image)
    if find is not None:
        data["images"], listed = find(data["images"]), images
        images = {image["id"]: image for image in data["images"]}
        data["annotations"] = [
            annotation
            for annotation in data["annotations"]
            if not _is_id(annotation.get("image_id"), listed) or annotation["image_id"] in images
        ]
    for annotation in data["annotations"]:
        _check_annotation(path, annotation, images, categories)
        _complete(annotation, images[annotation["image_id"]])
    return {key: data[key] for key in ("images", "annotations", "categories")}


def classes_of(categories: Sequence[Record]) -> Classes:
    """The classes that an annotation file's categories name, in the order of their ids."""
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    return Classes(tuple(c["name"] for c in ordered), tuple(c["id"] for c in ordered))


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


def has_area(annotation: Record) -> bool:
    """Whether the object covers anything; COCO itself has two that do not."""
    _, _, width, height = annotation["bbox"]
    return bool(width > 0 and height > 0 and annotation["segmentation"])


def boxes_xyxy(annotations: Sequence[Record]) -> NDArray[np.float32]:
    """[n, 4] corner boxes in pixels, from COCO's (x, y, width, height)."""
    xywh = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    xywh[:, 2:] += xywh[:, :2]
    return xywh.astype(np.float32)


def _fail(message: str, hint: str) -> NoReturn:
    raise DataError(message, hint=hint)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        _fail(f"no annotation file at {path}", "run sparseml.yolact.download, or correct the path")
    except OSError as error:
        _fail(f"cannot read {path}: {error.strerror}", "check the file's permissions")
    except (ValueError, RecursionError) as error:  # of JSON or of the text encoding
        _fail(f"{path} is not JSON: {error}", _FORMAT_HINT)
    if not isinstance(data, dict):
        _fail(f"{path} is not a COCO file: it holds no JSON object", _FORMAT_HINT)
    return data


def _by_id(path: Path, data: Mapping[str, list[Record]], section: str) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for entry in data[section]:
        number = entry.get("id")
        if not isinstance(number, int):
            _fail(f"{path}: an entry of {section} has no integer id", "give each an id of its own")
        if number in found:
            _fail(
                f"{path}: two entries of {section} have the id {number}",
                "give each an id of its own",
            )
        found[number] = entry
    return found


def _check_image(path: Path, image: Record) -> None:
    name = f"image {image['id']} in {path}"
    names = (image.get("file_name"), image.get("coco_url"))
    if not any(isinstance(given, str) and given for given in names):
        _fail(f"{name} has no file_name", "give the file's name inside the folder of images")
    for side in ("height", "width"):
        length = image.get(side)
        if length is not None and not (isinstance(length, int) and length >= 1):
            _fail(f"{name} has no valid {side}", "give height and width in pixels, at least 1")


def _check_annotation(
    path: Path, annotation: Record, images: Mapping[int, Record], categories: Mapping[int, Record]
) -> None:
    name = f"annotation {annotation['id']} in {path}"
    if not _is_id(annotation.get("image_id"), images):
        _fail(
            f"{name} belongs to image {annotation.get('image_id')}, which is not listed",
            "add the image to the list of images, or remove the annotation",
        )
    if not _is_id(annotation.get("category_id"), categories):
        _fail(
            f"{name} is of category {annotation.get('category_id')}, which is not listed",
            "add the category to the list of categories, or correct category_id",
        )
    if annotation.get("iscrowd", 0) not in (0, 1):
        _fail(f"{name} has iscrowd {annotation['iscrowd']!r}", "iscrowd is 0 or 1")
    if "bbox" in annotation and not _is_box(annotation["bbox"]):
        _fail(
            f"{name} has an impossible bbox: {annotation['bbox']}",
            "bbox is [x, y, width, height] in pixels: finite, no negative size",
        )
    if "area" in annotation and not _finite([annotation["area"]]):
        _fail(f"{name} has an impossible area: {annotation['area']!r}", "area is in pixels")
    if "segmentation" not in annotation:
        _fail(f"{name} has no segmentation", "instance segmentation needs polygons or RLE masks")
    _check_segmentation(name, annotation["segmentation"], images[annotation["image_id"]])


def _is_id(number: Any, known: Mapping[int, Record]) -> bool:
    return isinstance(number, int) and number in known


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and _finite(box) and min(box[2:]) >= 0


def _finite(numbers: Sequence[Any]) -> bool:
    try:
        return math.isfinite(sum(numbers))
    except TypeError:
        return False


def _check_segmentation(name: str, segmentation: Any, image: Record) -> None:
    if isinstance(segmentation, dict):
        _check_rle(name, segmentation, image)
    elif isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(name, polygon)
    else:
        _fail(f"{name} has a segmentation that is neither polygons nor RLE", _FORMAT_HINT)


def _check_polygon(name: str, polygon: Any) -> None:
    if not isinstance(polygon, list) or len(polygon) % 2 or not _finite(polygon):
        _fail(f"{name} has a malformed polygon", "a polygon is a list of numbers: x, y, x, y, ...")
    if len(polygon) < 6:
        _fail(
            f"{name} has a polygon with {len(polygon) // 2} points",
            "remove it, or give it at least three points",
        )


def _check_rle(name: str, segmentation: Record, image: Record) -> None:
    size = [image["height"], image["width"]]
    if segmentation.get("size") != size:
        _fail(
            f"{name} has an RLE mask of size {segmentation.get('size')}, its image is {size}",
            "size is [height, width] of the image",
        )
    if not _fills(segmentation.get("counts"), size[0] * size[1]):
        _fail(f"{name} has RLE counts that do not fill its image", "encode the mask again")


def _fills(counts: Any, pixels: int) -> bool:
    """Whether run lengths, compressed or not, cover an image exactly."""
    if isinstance(counts, str):
        try:
            counts = decode_runs(counts)
        except ValueError:
            return False
    whole = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)
    return whole and sum(counts) == pixels


def _complete(annotation: Record, image: Record) -> None:
    annotation.setdefault("iscrowd", 0)
    if "bbox" in annotation and "area" in annotation:
        return
    if not annotation["segmentation"]:
        annotation.setdefault("bbox", [0.0, 0.0, 0.0, 0.0])
        annotation.setdefault("area", 0.0)
        return
    encoded = to_rle(annotation["segmentation"], image["height"], image["width"])
    annotation.setdefault("bbox", rle.toBbox(encoded).tolist())
    annotation.setdefault("area", float(rle.area(encoded)))
