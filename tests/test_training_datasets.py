"""The sets to train on and to validate on are matched by the names of their classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training import tiny_settings
from yolact.data.coco import CocoInstances
from yolact.errors import ConfigError, DataError
from yolact.training.datasets import amounts, open_datasets
from yolact.training.settings import DataSettings

Json = dict[str, Any]
Objects = Sequence[tuple[str, int]]
"""Name and iscrowd of each object."""


def listing(categories: Sequence[str], objects: Objects) -> Json:
    """Two images, all objects on the first one."""
    ids = {name: 10 + place for place, name in enumerate(categories)}
    square = [[1.0, 1, 9, 1, 9, 9, 1, 9]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 16} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": ids[name], "iscrowd": crowd, "area": 64.0}
            | {"bbox": [1, 1, 8, 8], "segmentation": square}
            for i, (name, crowd) in enumerate(objects, start=1)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


@pytest.fixture
def opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    """Opens two listings as the sets of a run."""
    caplog.set_level(logging.INFO, "yolact")
    for number in (1, 2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")

    def both(train: Json, validation: Json, *, every: int = 1, **data: Any) -> Any:
        paths = tmp_path / "train.json", tmp_path / "val.json"
        for path, content in zip(paths, (train, validation), strict=True):
            path.write_text(json.dumps(content))
        settings = tiny_settings(tmp_path, tmp_path, validation_epoch=every)
        sets = DataSettings(
            train_info=paths[0],
            train_images=tmp_path,
            validation_info=paths[1],
            validation_images=tmp_path,
            **data,
        )
        return open_datasets(replace(settings, data=sets), 0)

    return both


@pytest.fixture
def lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [r.getMessage().replace(f"{tmp_path}/", "") for r in caplog.records]


CATS = [("cat", 0), ("dog", 0)]
TRAIN = listing(["cat", "dog"], CATS)


def test_sets_that_list_the_same_say_nothing(
    opened: Callable[..., Any], lines: Callable[[], list[str]]
) -> None:
    train, validation = opened(TRAIN, listing(["dog", "cat"], CATS), strict=True)
    assert train.classes.names == ("cat", "dog") and validation.classes.names == ("dog", "cat")
    assert not lines()


@pytest.mark.parametrize(
    ("categories", "objects", "expected"),
    [
        (
            ["Cat", "dog "],
            [("Cat", 0), ("dog ", 0)],
            [
                "val.json: 2 of 2 categories are written in another way, matched "
                "(first: 'Cat' as 'cat', 'dog ' as 'dog')"
            ],
        ),
        (
            ["dog"],
            [("dog", 0)],
            [
                "val.json: 1 of 2 classes are not among its categories, not looked for "
                "(first: 'cat')"
            ],
        ),
        (
            ["animals", "cat", "dog"],
            CATS,
            [
                "val.json: 1 of 3 categories are of no known class, ignored, since without "
                "objects (first: 'animals')"
            ],
        ),
    ],
    ids=["other writing", "fewer", "more without objects"],
)
def test_sets_that_differ_are_matched_and_the_difference_is_said(
    opened: Callable[..., Any],
    lines: Callable[[], list[str]],
    categories: list[str],
    objects: Objects,
    expected: list[str],
) -> None:
    opened(TRAIN, listing(categories, objects))
    assert lines() == expected


@pytest.mark.parametrize(
    ("categories", "shown"),
    [
        (["cat", "dogg"], "'dogg' (nearest: 'dog'); it lists 'cat', 'dog'"),
        (["cat", "owl"], "'owl'; it lists 'cat', 'dog'"),
        (["Cat", "cAt", "dog"], "'Cat'"),
    ],
)
def test_objects_of_a_class_that_is_not_trained_are_refused(
    opened: Callable[..., Any], categories: list[str], shown: str
) -> None:
    validation = listing(categories, [(name, 0) for name in categories])
    with pytest.raises(ConfigError) as error:
        opened(TRAIN, validation)
    assert shown in str(error.value) and "train.json does not list" in str(error.value)
    opened(TRAIN, validation, every=-1)


def test_classes_without_objects_are_named(
    opened: Callable[..., Any], lines: Callable[[], list[str]]
) -> None:
    names = ["parts", "cat", "dog", "eel", "fox", "owl"]
    opened(listing(names, CATS), listing(names, CATS))
    assert lines() == [
        "train.json: 4 of 6 categories have no object, kept as classes "
        "(first: 'parts', 'eel', 'fox', ...)"
    ]


def test_a_set_of_crowds_only_is_refused(opened: Callable[..., Any]) -> None:
    crowds = listing(["cat"], [("cat", 1), ("cat", 1)])
    with pytest.raises(DataError, match=r"has 2 objects, all of them crowds \(iscrowd 1\)") as e:
        opened(crowds, TRAIN)
    assert "iscrowd is 1 only where" in str(e.value.hint)


@pytest.mark.parametrize("part", [0, 1])
def test_strict_refuses_a_bad_entry_of_either_set(opened: Callable[..., Any], part: int) -> None:
    sets = [TRAIN, listing(["cat", "dog"], [*CATS, ("cat", 0)])]
    bad = listing(["cat", "dog"], [*CATS, ("cat", 0)])
    bad["annotations"][2]["segmentation"] = []
    sets[part] = bad
    opened(*sets)
    with pytest.raises(DataError, match="annotation 3 in .* has no mask"):
        opened(*sets, strict=True)


def test_amounts_count_crowds_and_images_without_objects(opened: Callable[..., Any]) -> None:
    crowded = listing(["cat", "dog"], [*CATS, ("cat", 1)])
    train, validation = opened(crowded, TRAIN)
    assert isinstance(train, CocoInstances)
    assert amounts(train, validation, 1) == (
        "2 images to train on (1 without objects), 1 to validate on, 2 classes; "
        "2 objects and 1 crowds"
    )
    full = listing(["cat"], [("cat", 0)])
    full["images"].pop()
    train, _ = opened(full, full)
    assert amounts(train, None, 9) == "1 images to train on, 0 to validate on, 1 classes"
