"""COCO files of every kind are read, and every contradiction in them is named at once."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from conftest import GoldenSet, from_shared
from yolact.config import AugmentConfig
from yolact.data.coco import CocoInstances, evaluation_order
from yolact.data.transforms import EvalTransform, TrainTransform
from yolact.errors import DataError
from yolact.types import Sample

Json = dict[str, Any]
SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]


def content() -> Json:
    """Three images of 30 x 20: a polygon and a crowd, an RLE object, nothing."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:10, 4:8] = 1
    compressed = rle.encode(mask)
    sizes = {"height": 20, "width": 30}
    common = {"iscrowd": 0, "area": 100.0, "bbox": [2, 3, 10, 10]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **sizes} for i in (7, 3, 5)],
        "categories": [{"id": 40, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 3,
                "category_id": 2,
                "iscrowd": 1,
                "area": 60,
                "bbox": [0, 0, 3, 20],
                "segmentation": {"size": [20, 30], "counts": [0, 60, 540]},
            },
            {"id": 2, "image_id": 3, "category_id": 40, "segmentation": SQUARE, **common},
            {
                "id": 3,
                "image_id": 5,
                "category_id": 2,
                "segmentation": {"size": [20, 30], "counts": compressed["counts"].decode()},
            },
        ],
    }


def write(folder: Path, data: Any) -> tuple[Path, Path]:
    """Images and annotation file for ``data``."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in (3, 5, 7):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(images / f"{number}.png")
    path = folder / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return images, path


def opened(folder: Path, data: Any, **options: Any) -> CocoInstances:
    return CocoInstances(*write(folder, data), EvalTransform(64), **options)


def test_images_come_in_id_order_with_classes_in_category_order(tmp_path: Path) -> None:
    dataset = opened(tmp_path, content())
    assert dataset.image_ids == [3, 5, 7] and len(dataset) == 3
    assert dataset.classes.names == ("dog", "cat") and dataset.classes.ids == (2, 40)


def test_polygons_rle_and_crowds_become_one_target(tmp_path: Path) -> None:
    dataset = opened(tmp_path, content())
    first, second, third = (dataset[i] for i in range(3))
    assert first.image.shape == (3, 64, 64) and first.size == (20, 30) and first.image_id == 3
    assert first.image[0].numpy() == pytest.approx(3 / 255)
    assert first.target.crowd.tolist() == [False, True], "crowds come last"
    assert first.target.labels.tolist() == [1, 0], "and keep their class"
    torch.testing.assert_close(
        first.target.boxes,
        torch.tensor([[2 / 30, 3 / 20, 12 / 30, 13 / 20], [0, 0, 3 / 30, 20 / 20]]),
    )
    areas = first.target.masks.float().mean((1, 2)) * 600
    assert areas.tolist() == pytest.approx([100, 60], rel=0.1)
    torch.testing.assert_close(
        second.target.boxes, torch.tensor([[4 / 30, 5 / 20, 8 / 30, 10 / 20]])
    )
    assert third.target.boxes.shape == (0, 4) and third.target.masks.shape == (0, 64, 64)
    assert third.target.labels.dtype == torch.int64 and third.target.crowd.dtype == torch.bool
    assert type(first.image) is type(first.target.boxes) is type(first.target.masks) is torch.Tensor


def test_the_pycocotools_annotations_are_those_of_the_file(tmp_path: Path) -> None:
    data = content()
    dataset = opened(tmp_path, data)
    before = copy.deepcopy(dataset.coco.anns)
    assert {key: before[2][key] for key in data["annotations"][1]} == data["annotations"][1]
    for index in range(3):
        dataset[index]
    assert dataset.coco.anns == before
    assert before[1]["category_id"] == 2 and before[1]["iscrowd"] == 1


def test_missing_boxes_and_areas_are_derived_from_the_mask(tmp_path: Path) -> None:
    annotation = opened(tmp_path, content()).coco.anns[3]
    assert annotation["bbox"] == [4, 5, 4, 5]
    assert annotation["area"] == 20 and annotation["iscrowd"] == 0


def test_objects_without_area_are_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content()
    data["annotations"][1]["bbox"] = [2, 3, 0, 10]
    sound = {"id": 4, "image_id": 5, "category_id": 40, "segmentation": SQUARE}
    data["annotations"].append(sound)
    with caplog.at_level(logging.WARNING, "yolact"):
        dataset = opened(tmp_path, data)
    assert "1 of 4 objects have no area and are left out (first: annotation 2)" in caplog.text
    assert len(dataset[0].target.labels) == 1 and len(dataset[1].target.labels) == 2
    assert len(dataset.coco.anns) == 4, "the evaluation still sees the file as it is"


def test_nothing_is_printed_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opened(tmp_path, content()).coco.imgs
    assert capsys.readouterr().out == ""


def test_a_file_without_ground_truth_is_read_when_asked_for(tmp_path: Path) -> None:
    data = content()
    del data["annotations"]
    dataset = opened(tmp_path, data, annotated=False)
    assert [len(dataset[i].target.labels) for i in range(3)] == [0, 0, 0]
    assert dataset.coco.anns == {}


def test_images_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    data = content()
    images, path = write(tmp_path, data)
    (images / "deep").mkdir()
    (images / "5.png").rename(images / "deep" / "5.png")
    data["images"][2]["file_name"] = "deep/5.png"
    path.write_text(json.dumps(data))
    assert CocoInstances(images, path, EvalTransform(64)).image(1)[0, 0, 0] == 5


@pytest.mark.parametrize("absent", [{"height": None}, {"height": None, "width": None}])
def test_sizes_that_are_left_out_are_those_of_the_files(
    tmp_path: Path, absent: dict[str, None]
) -> None:
    data = content()
    for number in range(3):
        at("images", number, **absent)(data)
    assert [opened(tmp_path, data)[index].size for index in range(3)] == [(20, 30)] * 3


def test_the_objects_of_missing_photos_are_left_out(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    (images / "3.png").unlink()
    dataset = CocoInstances(images, path, EvalTransform(64))
    assert dataset.image_ids == [5, 7] and list(dataset.coco.anns) == [3]
    with pytest.raises(DataError, match="1 of 3 images are not in"):
        CocoInstances(images, path, EvalTransform(64), strict=True)


def spoil_inside(path: Path) -> None:
    """Damage that only decoding finds: a PNG whose pixels do not agree with their check sum."""
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 8
    data[place] ^= 255
    path.write_bytes(data)


def test_an_image_whose_damage_shows_late_is_replaced_or_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, path = write(tmp_path, content())
    spoil_inside(images / "3.png")
    dataset = CocoInstances(images, path, EvalTransform(64))
    with pytest.raises(DataError, match="3.png is truncated or damaged") as error:
        dataset[0]
    assert "--on_bad_image skip" in str(error.value.hint)
    dataset = CocoInstances(images, path, EvalTransform(64), on_bad_image="skip")
    assert [dataset[index].image_id for index in range(3)] == [5, 5, 7]
    assert "3.png is truncated or damaged" in caplog.text
    for number in (5, 7):
        spoil_inside(images / f"{number}.png")
    with pytest.raises(DataError, match="no image of the data set can be read"):
        dataset[1]


def test_all_16_bit_images_are_scaled_alike(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    for number, value in ((3, 4000), (5, 400), (7, 40)):
        Image.fromarray(np.full((20, 30), value, np.uint16)).save(images / f"{number}.png")
    dataset = CocoInstances(images, path, EvalTransform(64))
    assert [int(dataset.image(index).max()) for index in range(3)] == [250, 25, 2]


def without(key: str) -> Callable[[Json], None]:
    def change(data: Json) -> None:
        del data[key]

    return change


def at(section: str, index: int, **values: Any) -> Callable[[Json], None]:
    def change(data: Json) -> None:
        for key, value in values.items():
            if value is None:
                del data[section][index][key]
            else:
                data[section][index][key] = value

    return change


NAN = float("nan")
RLE_OF_OTHER_SIZE = {"size": [30, 20], "counts": [0, 600]}
RLE_TOO_SHORT = {"size": [20, 30], "counts": [0, 60]}
CONTRADICTIONS: list[tuple[Callable[[Json], Any], str]] = [
    (without("images"), "is not a COCO file: it has no list of images"),
    (without("annotations"), "is not a COCO file: it has no list of annotations"),
    (without("categories"), "is not a COCO file: it has no list of categories"),
    (lambda d: d.update(images={}), "lists no images"),
    (lambda d: d.update(images=[], annotations=[]), "lists no images"),
    (lambda d: d.update(categories=[], annotations=[]), "lists no categories"),
    (at("images", 0, id=3), "two entries of images have the id 3"),
    (at("images", 0, id=7.5), r"image 7.5 in .* is no image: \{'id': 7.5"),
    (at("images", 0, file_name=None), "image 7 in .* has no file_name"),
    (at("images", 0, height="tall"), "image 7 in .* has no valid height: 'tall'"),
    (at("images", 0, width=-7), "image 7 in .* has no valid width: -7"),
    (at("categories", 0, id=2), "category 2 in .* has the id of another one: 'cat' and 'dog'"),
    (at("categories", 0, name=None), "category 40 in .* has no name"),
    (at("annotations", 0, id=2), "annotation 2 in .* has the id of another one"),
    (at("annotations", 0, id=None), "entry 1 of annotations in .* has no id"),
    (at("annotations", 1, image_id=99), "annotation 2 in .* has image_id 99, which is not listed"),
    (at("annotations", 1, category_id=1), "annotation 2 in .* has category_id 1, which is not"),
    (at("annotations", 1, iscrowd=2), "annotation 2 in .* has iscrowd 2"),
    (at("annotations", 1, bbox=[0, 0, -1, 5]), r"annotation 2 in .* impossible bbox: \[0, 0, -1"),
    (at("annotations", 1, bbox=[0, 0, NAN, 5]), "annotation 2 in .* has an impossible bbox"),
    (at("annotations", 1, bbox=[0, 0, 5]), "annotation 2 in .* has an impossible bbox"),
    (at("annotations", 1, segmentation=None), "annotation 2 in .* has no mask: no segmentation"),
    (
        at("annotations", 1, segmentation="x"),
        "annotation 2 in .* cannot be read: segm.* 'x'",
    ),
    (at("annotations", 1, segmentation=[[1, 2, 3, 4]]), "annotation 2 in .* polygon with 2 points"),
    (at("annotations", 1, segmentation=[[1, 2, 3]]), "annotation 2 in .* a malformed polygon"),
    (at("annotations", 1, segmentation=[[1, 2, 3, 4, 5, NAN]]), "annotation 2 in .* malformed"),
    (at("annotations", 0, segmentation=RLE_OF_OTHER_SIZE), r"RLE mask of size \[30, 20\], its"),
    (at("annotations", 0, segmentation=RLE_TOO_SHORT), "RLE counts that do not fill its image"),
]


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_a_contradiction_is_named_before_any_work(
    tmp_path: Path, change: Callable[[Json], Any], message: str
) -> None:
    data = content()
    change(data)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path, data, strict=True)
    assert error.value.hint and "instances.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("", "is not JSON"), ("[]", "is not a COCO file: it holds no JSON obj")],
)
def test_a_file_that_is_not_coco_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, text)


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    images, path = write(tmp_path, "")
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="is not JSON"):
        CocoInstances(images, path, EvalTransform(64))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    transform = EvalTransform(64)
    with pytest.raises(DataError, match=r"no annotation file at .*other.json") as error:
        CocoInstances(images, tmp_path / "other.json", transform)
    assert "sparseml.yolact.download" in str(error.value.hint)
    with pytest.raises(DataError, match=r"cannot read .*images: Is a directory"):
        CocoInstances(images, images, transform)
    with pytest.raises(DataError, match=r"no folder of images at .*elsewhere"):
        CocoInstances(tmp_path / "elsewhere", path, transform)
    (images / "3.png").unlink()
    (images / "7.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 images are not in .* .first: '7.png', '3"):
        CocoInstances(images, path, transform)


@pytest.mark.parametrize("counts", ["PP", "zzzzzz", "é", "0P"])
def test_a_damaged_compressed_mask_is_named(tmp_path: Path, counts: str) -> None:
    data = content()
    data["annotations"][2]["segmentation"]["counts"] = counts
    data["annotations"][2].update(bbox=[1, 1, 5, 5], area=25)
    with pytest.raises(DataError, match="annotation 3 .* has RLE counts that do not fill its"):
        opened(tmp_path, data)


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and all(
        torch.equal(x, y) for x, y in zip(a.target, b.target, strict=True)
    )


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    transform = TrainTransform(64, AugmentConfig())
    dataset = CocoInstances(images, path, transform, seed=4)
    first = dataset[0, 0]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, dataset[0]), "by index alone, in epoch 0"
    assert torch.equal(state, torch.get_rng_state()), "and the global generator is untouched"
    assert any(not same(dataset[epoch, 0], first) for epoch in range(1, 5))
    other = CocoInstances(images, path, transform, seed=5)
    assert any(not same(other[epoch, 0], dataset[epoch, 0]) for epoch in range(5))


def test_a_pickled_dataset_gives_the_same_samples(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    dataset = CocoInstances(images, path, TrainTransform(64, AugmentConfig()))
    assert dataset.coco.anns
    thawed = pickle.loads(pickle.dumps(dataset))
    assert all(same(thawed[2, i], dataset[2, i]) for i in range(3))
    assert thawed.coco.anns == dataset.coco.anns


def test_limited_evaluation_takes_images_in_the_published_order(golden: GoldenSet) -> None:
    ap = golden.json("ap.json")
    assert evaluation_order(ap["image_ids"]) == ap["evaluation_order_by_hash"]


@given(st.lists(st.integers(0, 2**40), unique=True))
def test_the_evaluation_order_loses_no_image(image_ids: list[int]) -> None:
    assert sorted(evaluation_order(image_ids)) == sorted(image_ids)


@pytest.fixture
def annotated(golden: GoldenSet, tmp_path: Path) -> tuple[Path, Path]:
    """Images and annotation file of a golden set; its own annotations tell the images' sizes."""
    if golden.name == "coco":
        folder = from_shared("data/coco-tiny")
        return folder / "images", folder / "annotations" / "instances_train2017.json"
    for image in golden.json("ap_gt.json")["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    return tmp_path, golden.folder / "ap_gt.json"


@pytest.mark.parametrize("case", ["pull.0", "pull.1", "pull.2"])
def test_ground_truth_equals_golden(
    golden: GoldenSet, annotated: tuple[Path, Path], case: str
) -> None:
    """Golden leaves out what is smaller than 4/550 of the image; the evaluation here does not."""
    data = golden.npz("augmentation.npz")
    dataset = CocoInstances(*annotated, EvalTransform(550))
    sample = dataset[dataset.image_ids.index(data.meta["cases"][case]["image"][1])]
    boxes = sample.target.boxes
    large = ((boxes[:, 2:] - boxes[:, :2]) > 4 / 550).all(1)
    expected = data[f"{case}.target"]
    assert sample.size == tuple(data[f"{case}.hw"])
    np.testing.assert_allclose(boxes[large], expected[:, :4], atol=1e-6)
    labels = torch.where(sample.target.crowd, -1, sample.target.labels)[large]
    np.testing.assert_array_equal(labels, expected[:, 4])
    scene = dataset.scene(dataset.image_ids.index(sample.image_id))
    masks = scene.picture().masks[large.numpy()]
    np.testing.assert_array_equal(masks.sum((1, 2)), data[f"{case}.mask_area"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco_reads_without_a_complaint(
    coco_tiny: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = coco_tiny / "annotations" / f"instances_{split}2017.json"
    dataset = CocoInstances(coco_tiny / "images", annotations, EvalTransform(550))
    assert len(dataset) == 80 and len(dataset.classes) == 80
    assert dataset[0].image.shape == (3, 550, 550)
    assert not caplog.records
