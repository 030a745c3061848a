"""What an annotation file can hardly mean is counted, explained, and refused where it ruins."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from conftest import from_shared
from yolact.data.annotations import read_annotations
from yolact.data.coco import CocoInstances
from yolact.data.plausibility import check_plausible
from yolact.data.transforms import EvalTransform
from yolact.errors import DataError

Json = dict[str, Any]
Change = Callable[[Json, Json], None]
FILE = Path("instances.json")
SIZES = ((640, 480), (500, 375), (333, 500), (1000, 700))


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    """Eight points around an ellipse."""
    angles = np.arange(8) * np.pi / 4
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    return [float(value) for value in (points * [width, height] + [x, y]).round(2).ravel()]


def honest(objects: int = 40) -> Json:
    """Objects of many sizes all over images of four sizes, with boxes around their polygons."""
    random = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height}
        for i, (width, height) in enumerate(SIZES)
    ]
    annotations = []
    for number in range(objects):
        image = images[number % len(images)]
        full = np.array([image["width"], image["height"]], np.float64)
        sides = full * random.uniform(0.05, 0.4, 2)
        box = [*(random.uniform(0, 1, 2) * (full - sides)), *sides]
        annotations.append(
            {
                "id": 100 + number,
                "image_id": image["id"],
                "iscrowd": 0,
                "bbox": box,
                "segmentation": [polygon(*box)],
            }
        )
    return {"images": images, "annotations": annotations}


def changed(change: Change, every: int = 1, data: Json | None = None) -> Json:
    """The honest set with every n-th object changed."""
    data = copy.deepcopy(data or honest())
    for annotation in data["annotations"][::every]:
        change(annotation, data["images"][annotation["image_id"]])
    return data


def box(shape: Callable[..., list[float]]) -> Change:
    """Write another bbox, made of x, y, width, height and those of the image."""

    def change(annotation: Json, image: Json) -> None:
        annotation["bbox"] = shape(*annotation["bbox"], image["width"], image["height"])

    return change


def points(move: Callable[..., tuple[float, float]], *, boxes: bool = True) -> Change:
    """Move every point of an object, and its box with them."""

    def change(annotation: Json, image: Json) -> None:
        size = image["width"], image["height"]
        moved = [
            np.array([move(x, y, *size) for x, y in np.reshape(one, (-1, 2))])
            for one in annotation["segmentation"]
        ]
        annotation["segmentation"] = [one.ravel().tolist() for one in moved]
        if boxes:
            low, high = np.concatenate(moved).min(0), np.concatenate(moved).max(0)
            annotation["bbox"] = [*low, *(high - low)]

    return change


def lines(caplog: pytest.LogCaptureFixture, data: Json, size: int | None = 550) -> list[str]:
    """What is said of a set that is not refused."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "yolact"):
        check_plausible(FILE, data["images"], data["annotations"], size)
    return [record.getMessage() for record in caplog.records]


def refusal(data: Json) -> DataError:
    with pytest.raises(DataError) as caught:
        check_plausible(FILE, data["images"], data["annotations"], 550)
    return caught.value


def crowd(annotation: Json, image: Json) -> None:
    counts = [0, 5, image["width"] * image["height"] - 5]
    annotation.update(iscrowd=1, bbox=[7, 7, 3, 3])
    annotation["segmentation"] = {"size": [image["height"], image["width"]], "counts": counts}


def as_rle(annotation: Json, image: Json) -> None:
    size = image["height"], image["width"]
    encoded = rle.merge(rle.frPyObjects(annotation["segmentation"], *size))
    annotation["segmentation"] = {"size": list(size), "counts": encoded["counts"].decode()}


HONEST = {
    "as it is": box(lambda x, y, w, h, *_: [x, y, w, h]),
    "rounded": box(lambda x, y, w, h, *_: [round(x), round(y), round(w), round(h)]),
    "whole pixels": box(lambda x, y, w, h, *_: [x // 1, y // 1, w // 1 + 2, h // 1 + 2]),
    "three pixels around": box(lambda x, y, w, h, *_: [x - 3, y - 3, w + 6, h + 6]),
    "ten percent larger": box(lambda x, y, w, h, *_: [x - w / 20, y - h / 20, w * 1.1, h * 1.1]),
    "drawn by hand": box(lambda x, y, w, h, *_: [x - w / 8, y - h / 8, w * 1.25, h * 1.25]),
    "around hidden parts": box(lambda x, y, w, h, *_: [x, y, w, h * 1.6]),
    "crowds": crowd,
    "masks as RLE": as_rle,
    "a point over the edge": points(lambda x, y, w, h: (x + 3 * (x > w - 20), y)),
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", HONEST)
def test_honest_sets_are_not_commented(
    caplog: pytest.LogCaptureFixture, name: str, every: int
) -> None:
    assert lines(caplog, changed(HONEST[name], every)) == []


def test_masks_as_rle_may_be_many(caplog: pytest.LogCaptureFixture) -> None:
    data = honest(300)
    for annotation in data["annotations"]:
        as_rle(annotation, data["images"][annotation["image_id"]])
    assert lines(caplog, data) == []


@pytest.mark.parametrize(
    "name",
    ["coco-tiny/annotations/instances_val2017.json", "fruits/coco/all.json"],
)
def test_real_sets_are_not_commented(caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = from_shared(f"data/{name}")
    assert lines(caplog, read_annotations(path)) == []


BOXES = {
    "x1, y1, x2, y2": box(lambda x, y, w, h, *_: [x, y, x + w, y + h]),
    "y, x, height, width": box(lambda x, y, w, h, *_: [y, x, h, w]),
    "y1, x1, y2, x2": box(lambda x, y, w, h, *_: [y, x, y + h, x + w]),
    "the centre": box(lambda x, y, w, h, *_: [x + w / 2, y + h / 2, w, h]),
    "relative (0 to 1) where": box(lambda x, y, w, h, W, H: [x / W, y / H, w / W, h / H]),
    "relative corners": box(lambda x, y, w, h, W, H: [x / W, y / H, (x + w) / W, (y + h) / H]),
    "YOLO": box(lambda x, y, w, h, W, H: [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H]),
    "in percent": box(
        lambda x, y, w, h, W, H: [x * 100 / W, y * 100 / H, w * 100 / W, h * 100 / H]
    ),
    "an image 2 times the size": box(lambda *b: [2 * value for value in b[:4]]),
    "an image 1/3 of the size": box(lambda *b: [value / 3 for value in b[:4]]),
}


@pytest.mark.parametrize("reading", BOXES)
def test_boxes_that_contradict_masks_are_explained(
    caplog: pytest.LogCaptureFixture, reading: str
) -> None:
    (line,) = lines(caplog, changed(BOXES[reading], every=4))
    assert line.startswith("instances.json: 10 of 40 objects have a box that does not fit")
    assert f"probably {reading}" in line or reading in line
    assert "(first: annotation 100 in 0.jpg: bbox [" in line

    error = refusal(changed(BOXES[reading]))
    assert reading in str(error) and " of 40 objects have a box" in str(error)
    assert "bbox is x, y, width, height" in str(error.hint)


@pytest.mark.parametrize(
    "shape",
    [
        box(lambda *_: [0, 0, 1, 1]),
        box(lambda x, y, w, h, *_: [x, y, w / 3, h / 2]),
        box(lambda *_: [10, 20, 30, 40]),
        box(lambda x, y, w, h, W, H: [0, 0, W, H]),
    ],
)
def test_boxes_that_mean_nothing_are_counted(
    caplog: pytest.LogCaptureFixture, shape: Change
) -> None:
    (line,) = lines(caplog, changed(shape, every=4))
    assert "10 of 40 objects have a box that does not fit their mask" in line
    assert "do not" not in line and "40 of 40 objects have a box" in str(refusal(changed(shape)))


@pytest.mark.parametrize(
    "shape",
    [
        box(lambda x, y, w, h, *_: [x - w / 4, y - h / 4, w * 1.5, h * 1.5]),
        box(lambda x, y, w, h, *_: [x, y, w * 1.5, h * 2.5]),
        box(lambda x, y, w, h, *_: [x - w, y, w * 3, h]),
    ],
    ids=["loose by hand", "around hidden parts", "on both sides"],
)
def test_boxes_far_around_their_masks_are_counted_and_never_refused(
    caplog: pytest.LogCaptureFixture, shape: Change
) -> None:
    (line,) = lines(caplog, changed(shape))
    assert "of 40 objects have a box that does not fit their mask" in line


def test_boxes_without_area_are_refused_when_they_are_most(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flat = box(lambda *_: [0, 0, 0, 0])
    assert lines(caplog, changed(flat, every=4)) == [], "a data set counts these itself"
    assert "40 of 40 objects have a box that does not fit" in str(refusal(changed(flat)))


def test_masks_as_rle_are_compared_with_boxes_too(caplog: pytest.LogCaptureFixture) -> None:
    corners = BOXES["x1, y1, x2, y2"]
    data = changed(corners, every=4, data=changed(as_rle))
    (line,) = lines(caplog, data)
    assert "10 of 40 objects have a box" in line and "x1, y1, x2, y2" in line


RELATIVE = points(lambda x, y, w, h: (x / w, y / h))


@pytest.mark.parametrize("boxes", [True, False])
def test_relative_polygons_are_found(caplog: pytest.LogCaptureFixture, boxes: bool) -> None:
    change = points(lambda x, y, w, h: (x / w, y / h), boxes=boxes)
    (line,) = lines(caplog, changed(change, every=3))
    assert "14 of 40 objects have polygons in relative coordinates" in line
    assert "40 of 40 objects have polygons in relative" in str(refusal(changed(change)))


OUTSIDE = {
    "wholly": (points(lambda x, y, w, h: (x + w, y)), "wholly outside", "cropped or resized"),
    "to the left": (points(lambda x, y, *_: (x - 2000, y)), "wholly", "cropped or resized"),
    "larger": (points(lambda x, y, *_: (2 * x, 2 * y)), "outside", "labelled when it was"),
    "turned": (points(lambda x, y, *_: (y, x)), "outside", "probably swapped"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_objects_outside_of_their_images_are_counted(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, where, why = OUTSIDE[name]
    said = lines(caplog, changed(change, every=4))
    assert 1 <= len(said) <= 2
    assert all(where in line and why in line for line in said)


def test_most_objects_outside_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert "40 of 40 objects lie wholly outside" in str(refusal(changed(OUTSIDE["wholly"][0])))
    error = refusal(changed(OUTSIDE["larger"][0]))
    assert "2 times as large" in str(error) and "scale the coordinates" in str(error.hint)


def test_swapped_sizes_are_recognised(caplog: pytest.LogCaptureFixture) -> None:
    data = honest()
    for image in data["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    said = lines(caplog, data)
    assert said and all("width and height, or x and y, are probably swapped" in s for s in said)


def test_tiles_that_cut_objects_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    move = points(lambda x, y, w, h: ((x - w / 2) * 1.2 + w / 2, (y - h / 2) * 1.2 + h / 2))
    said = lines(caplog, changed(move))
    assert "reach outside" in said[-1] and "where the mask is cut" in said[-1]


def test_smaller_labels_are_recognised(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines(caplog, changed(points(lambda x, y, *_: (x / 2, y / 2))))
    assert "40 of 40 objects lie in the upper left" in line and "on smaller images" in line
    (line,) = lines(caplog, changed(points(lambda x, y, w, h: (100 * x / w, 100 * y / h))))
    assert "probably labelled in percent" in line


def test_objects_in_the_middle_of_their_images_are_no_surprise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    move = points(lambda x, y, w, h: (w * 0.4 + x / 8, h * 0.4 + y / 8))
    assert lines(caplog, changed(move)) == []


EMPTY = {
    "a line": lambda x, y: [x, y, x + 5, y, x, y],
    "a point": lambda x, y: [x, y] * 3,
    "within a pixel": lambda x, y: [x, y, x + 0.2, y, x + 0.2, y + 0.2],
    "a crack": lambda x, y: [x, y, x + 60, y + 60, x + 60, y + 60.01],
}


@pytest.mark.parametrize("name", EMPTY)
def test_masks_without_a_pixel_are_counted(caplog: pytest.LogCaptureFixture, name: str) -> None:
    def change(annotation: Json, image: Json) -> None:
        annotation["segmentation"] = [EMPTY[name](100.3, 100.4)]

    (line,) = lines(caplog, changed(change, every=10))
    assert "4 of 40 objects have a mask without a pixel" in line
    assert "40 of 40 objects have a mask without" in str(refusal(changed(change)))


def test_an_empty_rle_has_no_pixel(caplog: pytest.LogCaptureFixture) -> None:
    def change(annotation: Json, image: Json) -> None:
        size = [image["height"], image["width"]]
        annotation["segmentation"] = {"size": size, "counts": [size[0] * size[1]]}

    (line,) = lines(caplog, changed(change, every=10))
    assert "4 of 40 objects have a mask without a pixel" in line


def test_objects_that_vanish_in_the_input_are_counted_and_never_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def change(annotation: Json, image: Json) -> None:
        annotation["segmentation"], annotation["bbox"] = [polygon(9, 9, 2, 2)], [9, 9, 2, 2]

    (line,) = lines(caplog, changed(change, every=4), 138)
    assert "10 of 40 objects are smaller than a pixel in the network's input of 138 x 138" in line
    assert lines(caplog, changed(change, every=4), 550) == []
    assert lines(caplog, changed(change, every=4), None) == []
    assert any(
        "40 of 40 objects are smaller" in line for line in lines(caplog, changed(change), 64)
    )


def test_every_fault_at_once_is_six_lines_and_each_object_counts_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def cracks(annotation: Json, image: Json) -> None:
        annotation["segmentation"] = [EMPTY["a crack"](10, 10)]

    def dot(annotation: Json, image: Json) -> None:
        annotation["segmentation"], annotation["bbox"] = [polygon(9, 9, 1, 1)], [9, 9, 1, 1]

    def over(annotation: Json, image: Json) -> None:
        annotation["segmentation"], annotation["bbox"] = [polygon(-20, 9, 60, 60)], [-20, 9, 60, 60]

    faults = (cracks, dot, over, RELATIVE, OUTSIDE["wholly"][0], BOXES["YOLO"])
    data = honest(80)
    for number, fault in enumerate(faults):
        annotation = data["annotations"][number]
        fault(annotation, data["images"][annotation["image_id"]])
    said = lines(caplog, data, 138)
    assert len(said) == 6
    assert all(line.startswith("instances.json: 1 of 80 objects ") for line in said)

    mixed = changed(BOXES["YOLO"], every=3)
    for annotation in mixed["annotations"][1::3]:
        OUTSIDE["wholly"][0](annotation, mixed["images"][annotation["image_id"]])
    assert "27 in all cannot be used" in str(refusal(mixed))


@pytest.mark.parametrize("data", [{"images": [], "annotations": []}, changed(crowd)])
def test_nothing_to_judge_is_nothing_to_say(caplog: pytest.LogCaptureFixture, data: Json) -> None:
    assert lines(caplog, data) == []


def on_disk(folder: Path, data: Json) -> tuple[Path, Path]:
    """Write a set with its images."""
    content = {**data, "categories": [{"id": 1, "name": "thing"}]}
    for annotation in data["annotations"]:
        annotation["category_id"] = 1
    for image in data["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(folder / image["file_name"])
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return folder, path


def test_a_data_set_is_judged_when_it_is_opened(
    tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    images, path = on_disk(tmp_path, changed(BOXES["YOLO"]))
    with pytest.raises(DataError, match="as YOLO writes it"):
        CocoInstances(images, path, EvalTransform(64))
    CocoInstances(images, path, EvalTransform(64), annotated=False)
    on_disk(tmp_path, changed(BOXES["YOLO"], every=4))
    CocoInstances(images, path, EvalTransform(64))
    assert "10 of 40 objects have a box that does not fit" in package_log.text
