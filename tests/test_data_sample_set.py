"""The sample set is deterministic, complete, in COCO's format and exactly annotated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from yolact.data.coco import CocoInstances
from yolact.data.entries import to_rle
from yolact.data.sample_scenes import draw_scene
from yolact.data.sample_set import SHAPE_CLASSES, annotation_of, generate_shapes
from yolact.data.transforms import EvalTransform
from yolact.errors import ConfigError, StorageError

TRAIN, VAL = 60, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "new" / "shapes"
    assert generate_shapes(folder, train=TRAIN, val=VAL, image_size=96)
    return folder


def read(folder: Path, split: str = "train") -> dict[str, Any]:
    path = folder / "annotations" / f"instances_{split}.json"
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_the_same_settings_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "again", train=TRAIN, val=VAL, image_size=96)
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_gives_other_pictures(folder: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "other", train=2, val=1, image_size=96, seed=1)
    other = contents(tmp_path / "other")["images/train_000000.jpg"]
    assert other != contents(folder)["images/train_000000.jpg"]


def test_a_smaller_set_is_the_beginning_of_a_larger_one(folder: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "small", train=3, val=2, image_size=96)
    whole = contents(folder)
    small = contents(tmp_path / "small")
    images = {name for name in small if name.startswith("images")}
    assert len(images) == 5 and all(small[name] == whole[name] for name in images)


def test_a_second_run_does_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not generate_shapes(folder, train=TRAIN, val=VAL, image_size=96)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_it_loads_as_any_coco_dataset(folder: Path, split: str) -> None:
    annotations = folder / "annotations" / f"instances_{split}.json"
    dataset = CocoInstances(folder / "images", annotations, EvalTransform(64))
    assert dataset.classes == SHAPE_CLASSES
    for index in range(len(dataset)):
        target = dataset[index].target
        assert len(target.boxes) == len(dataset.coco.imgToAnns[dataset.image_ids[index]])


def test_it_has_polygons_both_kinds_of_rle_a_crowd_and_negatives(folder: Path) -> None:
    data = read(folder)
    kinds = {
        "polygon": [a for a in data["annotations"] if isinstance(a["segmentation"], list)],
        "compressed": [
            a
            for a in data["annotations"]
            if isinstance(a["segmentation"], dict) and isinstance(a["segmentation"]["counts"], str)
        ],
        "crowd": [a for a in data["annotations"] if a["iscrowd"]],
    }
    assert all(kinds.values())
    assert all(isinstance(a["segmentation"]["counts"], list) for a in kinds["crowd"])
    assert {a["category_id"] for a in data["annotations"]} == set(SHAPE_CLASSES.ids)
    annotated = {a["image_id"] for a in data["annotations"]}
    assert 0 < sum(image["id"] not in annotated for image in data["images"]) < TRAIN / 4


def test_ids_of_the_two_parts_differ(folder: Path) -> None:
    train, val = read(folder), read(folder, "val")
    for section in ("images", "annotations"):
        ids = [entry["id"] for part in (train, val) for entry in part[section]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("number", range(8))
def test_annotated_masks_are_the_pixels_one_sees(number: int) -> None:
    _, things = draw_scene(np.random.default_rng(number), 120, 140)
    claimed = np.zeros((120, 140), int)
    for thing in things:
        assert thing.visible.sum() >= 0.5 * thing.mask.sum()
        assert not (thing.visible & ~thing.mask).any()
        claimed += thing.visible
    assert claimed.max(initial=0) <= 1, "no pixel belongs to two things"


def test_polygons_agree_with_the_drawn_mask() -> None:
    checked = 0
    for number in range(20):
        _, things = draw_scene(np.random.default_rng(number), 160, 160)
        for thing in things:
            entry = annotation_of(thing)
            mask = rle.decode(to_rle(entry["segmentation"], 160, 160)).astype(bool)
            union = (mask | thing.visible).sum()
            overlap = (mask & thing.visible).sum() / union
            assert overlap > 0.9 if isinstance(entry["segmentation"], list) else overlap == 1
            checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    "values",
    [{"train": 0, "val": 1}, {"train": 1, "val": -1}, {"train": 1, "val": 1, "image_size": 8}],
)
def test_impossible_sizes_are_refused(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one image per part, of 32 pixels or more"):
        generate_shapes(tmp_path / "shapes", **values)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(StorageError, match="already holds something else") as error:
        generate_shapes(tmp_path, train=1, val=1)
    assert "--data_dir" in str(error.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_incomplete_set_is_not_taken_for_a_complete_one(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    generate_shapes(folder, train=2, val=1, image_size=64)
    (folder / "images" / "val_000000.jpg").unlink()
    with pytest.raises(StorageError):
        generate_shapes(folder, train=2, val=1, image_size=64)
    shutil.rmtree(folder / "images")
    with pytest.raises(StorageError):
        generate_shapes(folder, train=2, val=1, image_size=64)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cv2.imencode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "shapes", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert generate_shapes(tmp_path, train=1, val=1, image_size=64)
    assert (tmp_path / "annotations" / "instances_val.json").is_file()
