"""Annotation files of many tools are read, and one bad entry does not cost the others."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.data.annotations import read_annotations
from yolact.data.entries import decode_runs, to_rle, uncompressed_rle
from yolact.errors import DataError

Json = dict[str, Any]
Edit = Callable[[Json], Any]
SQUARE = [2.0, 3, 12, 3, 12, 13, 2, 13]
PAIRS: list[list[float]] = [[2, 3], [12, 3], [12, 13], [2, 13]]
POINTS = [{"x": pair[0], "y": pair[1]} for pair in PAIRS]
VIA = {"name": "polygon", "all_points_x": [2, 12, 12, 2], "all_points_y": [3, 3, 13, 13]}


def content() -> Json:
    """Four images of 30 x 20 with two squares each, of three categories."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2, 3, 4)]
    annotations = [
        {
            "id": number,
            "image_id": 1 + number % 4,
            "category_id": 1 + number % 3,
            "iscrowd": 0,
            "area": 100.0,
            "bbox": [2, 3, 10, 10],
            "segmentation": [list(SQUARE)],
        }
        for number in range(1, 9)
    ]
    names = ("cat", "dog", "owl")
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def read(folder: Path, data: Any, **options: Any) -> dict[str, list[Json]]:
    path = folder / "mine.json"
    path.write_text(json.dumps(data))
    return read_annotations(path, **options)


def at(section: str, index: int, **values: Any) -> Edit:
    return lambda data: data[section][index].update(values)


def without(section: str, *keys: str) -> Edit:
    return lambda data: [entry.pop(key) for entry in data[section] for key in keys]


def both(*edits: Edit) -> Edit:
    return lambda data: [edit(data) for edit in edits]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the log says, without the path of the file."""
    caplog.set_level(logging.INFO, "yolact")
    return lambda: [r.getMessage().partition("mine.json: ")[2] for r in caplog.records]


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        PAIRS,
        [PAIRS],
        [[pair] for pair in PAIRS],
        [[[pair] for pair in PAIRS]],
        POINTS,
        [POINTS],
        VIA,
        [VIA],
        json.dumps([SQUARE]),
        [[str(number) for number in SQUARE]],
        str([SQUARE]),
    ],
    ids=str,
)
def test_polygons_are_read_in_every_form_that_is_clear(
    tmp_path: Path, segmentation: Any, lines: Callable[[], list[str]]
) -> None:
    data = content()
    plain = read(tmp_path, data)["annotations"]
    data["annotations"][2] = {
        **{k: v for k, v in data["annotations"][2].items() if k not in ("bbox", "area")},
        "segmentation": segmentation,
    }
    assert read(tmp_path, data, strict=True)["annotations"] == plain and not lines()


def test_a_mask_in_a_list_is_that_mask(tmp_path: Path) -> None:
    data = content()
    mask = {"size": [20, 30], "counts": [0, 60, 540]}
    data["annotations"][0]["segmentation"] = [mask]
    assert read(tmp_path, data)["annotations"][0]["segmentation"] == mask


@pytest.mark.parametrize("form", [str, float, lambda i: f" {i}.0 "], ids=["text", "1.0", "blanks"])
@pytest.mark.parametrize(
    ("section", "key"),
    [("annotations", "image_id"), ("annotations", "category_id"), ("images", "id")],
)
def test_ids_are_the_numbers_they_say(
    tmp_path: Path, section: str, key: str, form: Callable[[int], Any]
) -> None:
    data = content()
    plain = read(tmp_path, data)
    for entry in data[section]:
        entry[key] = form(entry[key])
    found = read(tmp_path, data)
    assert found["annotations"] == plain["annotations"]
    assert [image["id"] for image in found["images"]] == [1, 2, 3, 4]


def test_ids_in_words_are_numbered_and_kept(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    data = content()
    for image in data["images"]:
        image["id"] = f"img-{5 - image['id']}"
    for category in data["categories"]:
        category["id"] = category["name"].upper()
    for annotation in data["annotations"]:
        annotation.update(id=f"a{annotation['id']}", image_id="img-1", category_id="OWL")
    found = read(tmp_path, data, strict=True)
    assert {a["image_id"] for a in found["annotations"]} == {4}
    assert {a["category_id"] for a in found["annotations"]} == {3}
    assert [(i["id"], i["original_id"], i["file_name"]) for i in found["images"]] == [
        *((1, "img-4", "1.png"), (2, "img-3", "2.png")),
        *((3, "img-2", "3.png"), (4, "img-1", "4.png")),
    ]
    assert found["categories"][0] == {"id": 1, "name": "cat", "original_id": "CAT"}
    assert len({a["id"] for a in found["annotations"]}) == 8
    assert lines() == [
        "4 of 4 images have an id in words, numbered in their order "
        "(first: 'img-4', 'img-3', 'img-2')"
    ]


RUNS = {"size": [20, 30], "counts": [62, 9, 529]}
TEXT = {"size": [20, 30], "counts": "n19a`0"}


@pytest.mark.parametrize(
    ("form", "mask"),
    [
        ({"size": [20.0, 30.0], "counts": [62.0, 9.0, 529.0]}, RUNS),
        ({"size": ["20", "30"], "counts": ["62", "9", "529"]}, RUNS),
        ({"size": [20, 30], "counts": "[62, 9, 529]"}, RUNS),
        (str(RUNS), RUNS),
        (json.dumps(TEXT), TEXT),
        ({**TEXT, "counts": str(b"n19a`0")}, TEXT),
        (str({**TEXT, "counts": b"n19a`0"}), TEXT),
    ],
    ids=str,
)
def test_run_lengths_are_read_in_every_form_that_is_clear(
    tmp_path: Path, form: Any, mask: Json, lines: Callable[[], list[str]]
) -> None:
    data = content()
    data["annotations"][0]["segmentation"] = form
    assert read(tmp_path, data, strict=True)["annotations"][0]["segmentation"] == mask
    assert not lines()


def test_an_image_may_be_given_by_its_name(tmp_path: Path) -> None:
    data = content()
    plain = read(tmp_path, data)
    for annotation in data["annotations"]:
        annotation["image_id"] = f"{annotation['image_id']}.png"
    assert read(tmp_path, data, strict=True) == plain


def test_a_number_is_a_name_of_a_file(tmp_path: Path) -> None:
    data = content()
    at("images", 0, file_name=17)(data)
    assert read(tmp_path, data, strict=True)["images"][0]["file_name"] == "17"


def test_a_category_may_be_given_by_its_name(tmp_path: Path) -> None:
    data = content()
    plain = read(tmp_path, data)
    for annotation in data["annotations"]:
        annotation["category_id"] = ("cat", "dog", "owl")[annotation["category_id"] - 1]
    assert read(tmp_path, data, strict=True) == plain


@pytest.mark.parametrize("ids", [True, False])
def test_lists_may_be_objects(tmp_path: Path, ids: bool) -> None:
    data = content()
    plain = read(tmp_path, data)
    for section, entries in data.items():
        data[section] = {str(entry["id"]): entry for entry in entries}
        for entry in entries if not ids else ():
            del entry["id"]
    found = read(tmp_path, data, strict=True)
    assert found["annotations"] == plain["annotations"]
    assert [image["id"] for image in found["images"]] == [1, 2, 3, 4]
    data["categories"] = {"1": "cat", "2": "dog", "3": "owl"}
    assert [c["name"] for c in read(tmp_path, data)["categories"]] == ["cat", "dog", "owl"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    data = content()
    data["categories"][0]["name"] = "Größe 螺母"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding)
    assert read_annotations(path)["categories"][0]["name"] == "Größe 螺母"
    path.write_text("Größe", "cp1252")
    with pytest.raises(DataError, match="is not JSON: 'utf-8' codec") as error:
        read_annotations(path)
    assert error.value.hint == "save the file as UTF-8 text"


NAN = float("nan")
FAULTS: list[tuple[Edit, str, int]] = [
    (
        at("annotations", 0, segmentation=[SQUARE, [5, 5, 7, 7]]),
        "1 of 8 objects have a stray polygon, used without it "
        "(first: annotation 1: a polygon with 2 points: [5, 5, 7, 7])",
        8,
    ),
    (
        at("annotations", 0, segmentation=[[1, 2, 3], SQUARE, [1, 2, NAN, 4, 5, 6]]),
        "1 of 8 objects have a stray polygon, used without it "
        "(first: annotation 1: a malformed polygon: [1, 2, 3])",
        8,
    ),
    (
        at("annotations", 0, segmentation=[SQUARE, RUNS]),
        "1 of 8 objects have a stray polygon, used without it "
        "(first: annotation 1: no polygon: {'size': [20, 30], 'counts': [62, 9, 529]})",
        8,
    ),
    (
        both(
            at("annotations", 0, segmentation=[]),
            at("annotations", 1, segmentation=[[]]),
            at("annotations", 2, segmentation=None),
            at("annotations", 3, segmentation={"polygons": []}),
        ),
        "4 of 8 objects have no mask, left out (first: annotation 1: segmentation [], "
        "annotation 2: segmentation [[]], annotation 3: segmentation None)",
        4,
    ),
    (
        at("annotations", 0, segmentation=[[1, 2, 1e30, 4, 5, 6]]),
        "1 of 8 objects have a mask that cannot be read, left out "
        "(first: annotation 1: a malformed polygon: [1, 2, 1e+30, 4, 5, 6])",
        7,
    ),
    (
        both(
            at("annotations", 1, segmentation={**RUNS, "counts": []}),
            at("annotations", 2, segmentation="POLYGON ((1 1, 2 2))"),
            at("annotations", 3, segmentation=[RUNS, RUNS]),
        ),
        "3 of 8 objects have a mask that cannot be read, left out (first: annotation 2: "
        "segmentation {'size': [20, 30], 'counts': []}, annotation 3: segmentation "
        "'POLYGON ((1 1, 2 2))', annotation 4: no polygon: "
        "{'size': [20, 30], 'counts': [62, 9, 529]})",
        5,
    ),
    (
        both(at("annotations", 0, image_id=99), at("annotations", 5, image_id="99")),
        "2 of 8 objects are of images that are not listed, left out "
        "(first: annotation 1: image_id 99, annotation 6: image_id '99')",
        6,
    ),
    (
        at("annotations", 7, category_id=None),
        "1 of 8 objects are of categories that are not listed, left out "
        "(first: annotation 8: category_id None)",
        7,
    ),
    (
        at("annotations", 0, iscrowd=2),
        "1 of 8 objects have an unknown iscrowd, left out (first: annotation 1: iscrowd 2)",
        7,
    ),
    (
        at("annotations", 0, bbox=[2, 3, NAN, 10]),
        "1 of 8 objects have an impossible bbox, taken from the mask "
        "(first: annotation 1: bbox: [2, 3, nan, 10])",
        8,
    ),
    (
        at("annotations", 0, area=-4),
        "1 of 8 objects have an impossible area, taken from the mask "
        "(first: annotation 1: area: -4)",
        8,
    ),
    (
        at("annotations", 7, id=None),
        "1 of 8 objects have no id, numbered (first: entry 8 of annotations)",
        8,
    ),
    (
        at("annotations", 1, id=1),
        "1 of 8 objects have the id of another one, numbered (first: annotation 1)",
        8,
    ),
    (
        lambda d: d["annotations"].append(copy.deepcopy(d["annotations"][0])),
        "1 of 9 objects are listed twice, taken once (first: annotation 1)",
        8,
    ),
    (
        lambda d: d["annotations"].append("x"),
        "1 of 9 objects are no JSON objects, left out (first: entry 9 of annotations: 'x')",
        8,
    ),
    (
        lambda d: d["images"].append({**d["images"][0], "license": 3}),
        "1 of 5 images are listed twice, taken once (first: image 1)",
        8,
    ),
    (
        lambda d: d["images"].append({"file_name": "5.png", "height": 20, "width": 30}),
        "1 of 5 images have no id, left out (first: entry 5 of images: "
        "{'file_name': '5.png', 'height': 20, 'width': 30})",
        8,
    ),
    (
        at("categories", 2, name="cat"),
        "1 of 3 categories have the name of another one, taken as one class "
        "(first: category 3: 'cat')",
        8,
    ),
]


@pytest.mark.parametrize(("edit", "line", "left"), FAULTS, ids=[line for _, line, _ in FAULTS])
def test_a_bad_entry_is_counted_and_costs_no_other(
    tmp_path: Path, edit: Edit, line: str, left: int, lines: Callable[[], list[str]]
) -> None:
    data = content()
    plain = read(tmp_path, data)["annotations"][-1]
    edit(data)
    found = read(tmp_path, data)
    assert lines() == [line]
    assert len(found["annotations"]) == left == len({a["id"] for a in found["annotations"]})
    assert all(a["bbox"] == plain["bbox"] for a in found["annotations"])
    assert all(a["area"] == plain["area"] for a in found["annotations"])
    first = line.split("(first: ")[1].split(":")[0].split(",")[0].rstrip(")")
    with pytest.raises(DataError, match=f"^{first} in .*mine.json (has|is) ") as error:
        read(tmp_path, data, strict=True)
    assert error.value.hint


def test_the_objects_of_an_image_that_is_left_out_go_with_it(
    tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    data = content()
    data["images"][0]["file_name"] = ""
    found = read(tmp_path, data)
    assert [image["id"] for image in found["images"]] == [2, 3, 4]
    assert len(found["annotations"]) == 6
    assert lines() == ["1 of 4 images have no file_name, left out (first: image 1: '')"]


@pytest.mark.parametrize("sizes", [(None, None), (float("nan"), ""), (0, 0), (-1, -1.0)])
def test_images_that_are_not_found_go_with_their_objects(
    tmp_path: Path, sizes: tuple[Any, Any]
) -> None:
    data = content()
    for image in data["images"]:
        image.update(zip(("height", "width"), sizes, strict=True))
    without("annotations", "bbox", "area")(data)

    def find(images: list[Json]) -> list[Json]:
        assert [image["id"] for image in images] == [1, 2, 3, 4]
        return [{**image, "height": 20, "width": 30} for image in images[1:]]

    found = read(tmp_path, data, find=find)
    assert [(image["id"], image["height"]) for image in found["images"]] == [
        (2, 20),
        (3, 20),
        (4, 20),
    ]
    assert {a["image_id"] for a in found["annotations"]} == {2, 3, 4}
    with pytest.raises(DataError, match="no valid size"):
        read(tmp_path, data)


def test_no_annotation_has_the_id_that_pycocotools_takes_for_none(tmp_path: Path) -> None:
    data = content()
    for annotation in data["annotations"]:
        annotation["id"] -= 1
    assert sorted(a["id"] for a in read(tmp_path, data, strict=True)["annotations"]) == [
        *range(1, 9)
    ]


@pytest.mark.parametrize("null", [None, float("nan"), "", [float("nan")] * 4])
def test_null_is_as_absent(tmp_path: Path, lines: Callable[[], list[str]], null: Any) -> None:
    data = content()
    plain = read(tmp_path, data)["annotations"]
    data["annotations"] = [{**a, "iscrowd": null, "area": null, "bbox": null} for a in plain]
    assert read(tmp_path, data, strict=True)["annotations"] == plain
    without("annotations", "iscrowd", "area", "bbox")(data)
    assert read(tmp_path, data, strict=True)["annotations"] == plain
    assert not lines()


def test_a_file_listed_under_two_ids_is_a_notice(
    tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    data = content()
    data["images"].append({**data["images"][0], "id": 101})
    assert len(read(tmp_path, data, strict=True)["images"]) == 5
    assert lines() == [
        "1 of 5 images have the file of another one, kept, each with its own objects only "
        "(first: '1.png': ids 1, 101)"
    ]


def of_all(section: str, **values: Any) -> Edit:
    return lambda data: [entry.update(values) for entry in data[section]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (of_all("annotations", segmentation=[]), "8 objects, none with a mask: instance segmen"),
        (without("annotations", "segmentation"), "8 objects, none with a mask: instance segmen"),
        (
            lambda d: [a.update(image_id=99, id=a["id"] + 90) for a in d["annotations"][:5]],
            "5 of 8 objects cannot be used: 5 are of images that are not listed "
            r"\(first: annotation 91: image_id 99\)",
        ),
        (
            both(
                *(at("annotations", i, segmentation=[]) for i in (0, 1, 2)),
                *(at("annotations", i, category_id=9) for i in (3, 4)),
            ),
            "5 of 8 objects cannot be used: 3 have no mask, 2 are of categories that are not li",
        ),
        (of_all("annotations", segmentation="x"), "8 of 8 objects .* 8 have a mask that cannot"),
        (without("images", "file_name"), ".* no file_name .*its keys are .'id', 'height', 'wid"),
        (of_all("images", height=None), "4 of 4 images cannot be used: 4 have no valid size"),
        (of_all("images", id=None), "4 of 4 images cannot be used: 4 have no id"),
    ],
)
def test_a_file_most_of_which_cannot_be_used_is_refused(
    tmp_path: Path, edit: Edit, message: str
) -> None:
    data = content()
    edit(data)
    with pytest.raises(DataError, match=f"mine.json: {message}") as error:
        read(tmp_path, data)
    assert error.value.hint


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (at("images", 1, id=1), r"two entries of images have the id 1: '1.png' and '2.png'"),
        (at("categories", 1, id=1), r"category 1 in .* has the id of another one: 'cat' and 'dog'"),
        (at("categories", 1, name=None), "category 2 in .* has no name: None"),
        (at("categories", 1, name="\ud800"), r"category 2 in .* has no name: '\\ud800'"),
        (at("categories", 1, id=[2]), r"category \[2\] in .* has no id: {'id': \[2\], 'name'"),
        (lambda d: d.update(categories=["cat", "dog"]), "entry 1 of categories in .*: 'cat'"),
        (lambda d: d.update(images=7), "it has no list of images, images is 7"),
        (lambda d: d.update(images=["1.png"]), "1 of 1 images cannot be used"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, edit: Edit, message: str
) -> None:
    data = content()
    edit(data)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, data)
    assert error.value.hint and "mine.json" in str(error.value)


ODD_VALUES: list[Any] = [
    *(None, "", "x", "7", -3, 0, 7.5, 1e300, 10**30, 10**400, True, False, NAN, float("inf")),
    *([], [None], [[]], [[[]]], ["a", 1], {}, {"a": {"b": []}}, {"counts": 3, "size": None}),
    *([1] * 7, [[1] * 7], [[1e9] * 6], {"counts": "0 1", "size": [20, 30]}, "[[1, 2", "\ud800"),
]


def mutations() -> Iterator[Json]:
    """A good file with one thing in it replaced or missing."""
    good = content()
    for section, entries in good.items():
        for value in ODD_VALUES:
            yield {**good, section: value}
            yield {**good, section: [*entries, value]}
            yield {**good, section: [value, *entries[1:]]}
            yield {**good, section: {"7": value}}
            for key in entries[0]:
                yield {**good, section: [{**entries[0], key: value}, *entries[1:]]}
                yield {**good, section: [{**entry, key: value} for entry in entries]}
        yield {key: value for key, value in good.items() if key != section}
        for key in entries[0]:
            yield {
                **good,
                section: [{k: v for k, v in entry.items() if k != key} for entry in entries],
            }


def test_whatever_is_wrong_ends_in_objects_that_can_be_used_or_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "yolact")
    read_through = 0
    for number, data in enumerate(mutations()):
        path = tmp_path / f"{number} mine.json"  # disks are slow to write a file again
        path.write_text(json.dumps(data))
        try:
            found = read_annotations(path)
        except DataError as error:
            assert error.hint and len(str(error)) < 500 and "mine.json" in str(error)
            continue
        read_through += 1
        images = {image["id"]: image for image in found["images"]}
        categories = {category["id"] for category in found["categories"]}
        for annotation in found["annotations"]:
            assert annotation["category_id"] in categories and annotation["id"] != 0
            assert annotation["iscrowd"] in (0, 1) and 0 <= annotation["area"] <= 1e10
            assert np.isfinite(np.array(annotation["bbox"], np.float32)).all()
            image = images[annotation["image_id"]]
            if image["height"] * image["width"] <= 600:
                rle.decode(to_rle(annotation["segmentation"], image["height"], image["width"]))
    assert read_through > 500, "most of these faults are one entry's"


OTHER_KINDS: list[tuple[Any, str]] = [
    ({"images": [], "categories": [], "annotations": [{"segments_info": []}]}, "panoptic"),
    ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}, "captions"),
    ({"version": "5", "shapes": [], "imagePath": "a.jpg"}, "labelme"),
    ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
    ({"a.jpg1": {"filename": "a.jpg", "regions": [], "size": 1}}, "VIA"),
    ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
    ([{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": []}], "list of detections"),
    ([{"id": 1, "image_id": 1, "category_id": 1}], "list of annotations only"),
    ([{"id": 1, "file_name": "a.jpg"}], "list of images only"),
    ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
    ([{"ID": "c", "Labeled Data": "http", "Label": {}}], "Labelbox"),
    ([{"file_name": "a.jpg", "annotations": []}], "detectron2"),
    ([{"image": "a.jpg", "annotations": []}], "CreateML"),
    ({"videos": [], "annotations": []}, "video"),
    ({"images": [1], "bbox": [], "segm": []}, "validation keeps"),
    ({"Images": [], "Annotations": []}, "its keys are 'Images', 'Annotations'"),
    ({"images": {"id": {"0": 1}, "file_name": {"0": "a.jpg"}}}, "images is a table by columns"),
    ({}, "it is empty"),
    ([], r"no JSON object, \[\]"),
    ("text", "no JSON object, 'text'"),
]


@pytest.mark.parametrize(("data", "what"), OTHER_KINDS, ids=[what for _, what in OTHER_KINDS])
def test_json_of_another_kind_is_named(tmp_path: Path, data: Any, what: str) -> None:
    with pytest.raises(DataError, match=f"mine.json is not a COCO .*{what}") as error:
        read(tmp_path, data)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\0" * 9, "it is empty"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x1f\x8b\x08....", "compressed with gzip"),
        (b"\xff\xd8\xff\xe0", "an image"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"<?xml version='1.0'?>\n<annotations>\n", "XML of CVAT"),
        (b"<annotation><folder>", "XML of Pascal VOC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"path: ../data\ntrain: images/train\nnames:\n  0: cat\n", "YAML of YOLO"),
        (b"0 0.1 0.2 0.3 0.4 0.5 0.6\n1 0.1 0.2 0.3 0.4 0.5 0.6\n", "a label file of YOLO"),
        (b'{"id": 1}\n{"id": 2}\n', "JSON Lines"),
        (b"{'images': [{'id': 1}]}", "what Python prints"),
        (b"hello", "Expecting value"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, text: bytes, what: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=f"mine.json is not JSON: .*{what}") as error:
        read_annotations(path)
    assert error.value.hint


@pytest.mark.parametrize("share", [0.3, 0.6, 0.999])
def test_a_file_that_ends_too_early_is_said_to(tmp_path: Path, share: float) -> None:
    text = json.dumps(content())
    path = tmp_path / "mine.json"
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(DataError, match="is not JSON") as error:
        read_annotations(path)
    assert "ends too early" in str(error.value.hint)


def test_lvis_files_are_read(tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        url = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image.update(coco_url=url, neg_category_ids=[1], not_exhaustive_category_ids=[])
    without("annotations", "iscrowd")(data)
    data["categories"][0] = {"id": 1, "synonyms": ["cat", "puss"], "synset": "cat.n.01"}
    found = read(tmp_path, data, strict=True)
    assert [image["file_name"] for image in found["images"]] == [f"{i}.png" for i in (1, 2, 3, 4)]
    assert found["categories"][0]["name"] == "cat"
    assert {a["iscrowd"] for a in found["annotations"]} == {0}


def test_keypoints_are_read_as_instances(tmp_path: Path) -> None:
    data = content()
    of_all("annotations", keypoints=[1, 1, 2] * 17, num_keypoints=17)(data)
    assert len(read(tmp_path, data, strict=True)["annotations"]) == 8


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_runs_are_those_of_the_mask(height: int, width: int, share: float, seed: int) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share)
    runs = decode_runs(rle.encode(mask.view(np.uint8))["counts"].decode("ascii"))
    assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat, mask.reshape(-1, order="F"))


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="' ' does not occur in run lengths"):
        decode_runs("0 1")
    with pytest.raises(ValueError, match="the last number is cut short"):
        decode_runs("0P")


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_cocos_uncompressed_rle(mask: NDArray[np.bool_]) -> None:
    encoded = uncompressed_rle(mask)
    counts = encoded["counts"]
    assert sum(counts) == mask.size and all(count > 0 for count in counts[1:])
    decoded = rle.decode(to_rle(encoded, *mask.shape))
    np.testing.assert_array_equal(decoded, mask)
