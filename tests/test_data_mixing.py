"""Mosaics and pasted objects: what they keep of objects, and on what they depend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from conftest import from_shared
from yolact.cli.train import train, train_settings
from yolact.config import AugmentConfig, YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.loader import make_loader
from yolact.data.mixing import (
    KEPT,
    MixingTransform,
    Picture,
    Scene,
    bounds,
    mosaic,
    paste,
)
from yolact.data.transforms import Dice, TrainTransform
from yolact.errors import ConfigError, DataError
from yolact.types import Batch, Sample

BOTH = AugmentConfig(mosaic=0.5, copy_paste=0.5)


def scene(
    size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    crowd: Sequence[bool] = (),
    label: int = 0,
) -> Scene:
    """Filled rectangles on a grey image; labels count up from ``label``."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)

    def draw(which: Sequence[int], to: tuple[int, int]) -> NDArray[np.uint8]:
        masks = np.zeros((len(which), *to), np.uint8)
        for mask, index in zip(masks, which, strict=True):
            x1, y1, x2, y2 = corners[index] * ([to[1] / size[1], to[0] / size[0]] * 2)
            mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
        return masks

    return Scene(
        np.full((*size, 3), 100 + label, np.uint8),
        corners,
        np.arange(label, label + len(corners)),
        np.array([*crowd, *[False] * len(corners)][: len(corners)], np.bool_),
        draw,
    )


def any_scene(numbers: np.random.Generator, largest: int = 90) -> Scene:
    """Of any size, with up to four objects; some are tiny, some crowds."""
    size = tuple(int(side) for side in numbers.integers(1, largest, 2))
    count = int(numbers.integers(0, 5))
    corners = np.sort(numbers.uniform(0, 1, (count, 2, 2)), axis=1) * size[::-1]
    crowd = np.sort(numbers.uniform(0, 1, count) < 0.3)
    return scene((size[0], size[1]), corners.reshape(-1, 4).tolist(), crowd.tolist(), 10)


def dice(seed: int) -> Dice:
    return Dice(torch.Generator().manual_seed(seed))


def check(picture: Picture, size: tuple[int, int]) -> None:
    n = len(picture.labels)
    assert picture.pixels.shape == (*size, 3) and picture.pixels.dtype == np.uint8
    assert picture.masks.shape == (n, *size) and picture.boxes.shape == (n, 4)
    assert set(np.unique(picture.masks)) <= {0, 1} and picture.masks.any((1, 2)).all()
    assert picture.boxes.dtype == np.float32 and picture.labels.dtype == np.int64
    assert (picture.boxes >= 0).all()
    assert (picture.boxes <= np.array([size[1], size[0]] * 2)).all()
    assert picture.crowd.tolist() == sorted(picture.crowd.tolist()), "crowds come last"
    assert np.abs(picture.boxes - bounds(picture.masks)).max(initial=0) <= 1, "boxes are tight"


sides = st.tuples(st.integers(8, 70), st.integers(8, 70))


@settings(max_examples=60, deadline=None)
@given(size=sides, seed=st.integers(0, 2**31))
def test_a_mosaic_holds_what_is_left_of_the_objects_of_four_images(
    size: tuple[int, int], seed: int
) -> None:
    scenes = [any_scene(np.random.default_rng((seed, i))) for i in range(4)]
    picture = mosaic(scenes, size, dice(seed))
    check(picture, size)
    assert len(picture.labels) <= sum(len(one.boxes) for one in scenes)
    assert not (picture.masks.sum(0) > 4).any()
    again = mosaic(scenes, size, dice(seed))
    assert (again.pixels == picture.pixels).all() and (again.masks == picture.masks).all()


@settings(max_examples=60, deadline=None)
@given(size=sides, seed=st.integers(0, 2**31))
def test_pasted_objects_cover_what_is_under_them(size: tuple[int, int], seed: int) -> None:
    numbers = np.random.default_rng(seed)
    below, above = any_scene(numbers).picture(size), any_scene(numbers)
    below = below.with_masks(below.masks, below.masks.sum((1, 2)))  # none without a pixel
    picture = paste(below, above, dice(seed))
    check(picture, size)
    labels = picture.labels.tolist()
    assert len(labels) <= len(below.labels) + (~above.crowd).sum()
    masks = picture.masks[picture.crowd]
    assert len(masks) <= below.crowd.sum(), "a crowd is never pasted"
    assert (masks <= below.masks[below.crowd].max(0, initial=0)).all()


def test_the_parts_of_a_mosaic_lie_side_by_side() -> None:
    """Each image is full of one object, of which the mosaic has what it has of the image."""
    seen = set()
    for seed in range(20):
        scenes = [scene((30 + i, 50), [[0, 0, 50, 30 + i]], label=i) for i in range(4)]
        picture = mosaic(scenes, (40, 60), dice(seed))
        parts = [(picture.pixels == 100 + i).all(2) for i in range(4)]
        assert sum(part.sum() for part in parts) == 40 * 60
        for part, box in zip(parts, bounds(np.array(parts, np.uint8)), strict=True):
            assert part.sum() == (box[2] - box[0]) * (box[3] - box[1]), "a rectangle each"
        assert len(picture.labels) >= 2
        for mask, label in zip(picture.masks, picture.labels, strict=True):
            assert (mask == parts[label]).all()
        first = picture.pixels[0, 0, 0] - 100
        rows, columns = parts[first][:, 0].sum(), parts[first][0].sum()
        assert 10 <= rows <= 30 and 15 <= columns <= 45
        seen.add((rows, columns, first))
    assert len(seen) > 15 and len({first for *_, first in seen}) == 4


def test_an_object_that_is_mostly_cut_off_is_left_out_but_a_crowd_stays() -> None:
    """An image shifted to the left by 30: a sixth, a third and all are left of its objects."""
    boxes: list[list[float]] = [
        [5, 0, 35, 10],
        [15, 10, 38, 20],
        [32, 20, 40, 30],
        [5, 0, 35, 10],
        [0, 0, 9, 9],
    ]
    crowd = [False, False, False, True, True]
    shifted = scene((40, 40), boxes).picture()
    shifted = Picture(
        shifted.pixels, shifted.boxes, shifted.masks, np.arange(5), np.array(crowd)
    ).on_canvas((40, 40), 0, -30)
    assert 5 / 30 < KEPT < 8 / 23
    assert shifted.labels.tolist() == [1, 2, 3] and shifted.crowd.tolist() == [False, False, True]
    assert shifted.boxes.tolist() == [[0, 10, 8, 20], [2, 20, 10, 30], [0, 0, 5, 10]]
    assert shifted.masks.sum((1, 2)).tolist() == [80, 80, 50]


def test_boxes_follow_what_is_left_of_masks_and_are_kept_where_all_is() -> None:
    below = scene((40, 40), [[2, 2, 20, 10], [2, 20, 20.25, 30], [30, 30, 38, 38]]).picture()
    above = scene((40, 40), [[10, 0, 30, 40]], label=7).picture()
    covered = below.covered_by(above)
    assert covered.labels.tolist() == [0, 1, 2, 7]
    assert covered.boxes.tolist() == [
        *([2, 2, 10, 10], [2, 20, 10, 30], [30, 30, 38, 38], [10, 0, 30, 40])
    ]
    assert (covered.masks.sum(0) <= 1).all()
    assert (covered.pixels[0, 10:30] == 107).all() and (covered.pixels[0, :10] == 100).all()
    most = scene((40, 40), [[0, 0, 18, 40]], label=7).picture()
    assert below.covered_by(most).labels.tolist() == [2, 7], "mostly covered"
    assert below.boxes[1, 2] == 20.25 and below.masks[1].sum() == 180, "left as it was"


def test_nothing_is_pasted_from_an_image_without_single_objects() -> None:
    below = scene((20, 30), [[0, 0, 9, 9]]).picture()
    for other in (scene((8, 8), []), scene((8, 8), [[0, 0, 8, 8]], [True])):
        assert paste(below, other, dice(0)) is below


def own_data(folder: Path, count: int, broken: Sequence[int] = ()) -> tuple[Path, Path]:
    """Images of several sizes with a polygon, a crowd and a mask as runs; every third has none."""
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for number in range(count):
        height, width = 30 + 9 * number, 60 - 7 * number
        image = {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        data["images"].append(image)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        if number in broken:  # only decoding finds that
            damaged = bytearray(path.read_bytes())
            damaged[damaged.index(b"IDAT") + 8] ^= 255
            path.write_bytes(damaged)
        if number % 3 == 2:
            continue
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[20:28, 2:9] = 1
        runs = {"size": [height, width], "counts": rle.encode(mask)["counts"].decode()}
        crowd = {"size": [height, width], "counts": [0, 2 * height, height * (width - 2)]}
        polygon = [[10, 5, 30, 5, 30, 18, 10, 18]]
        for crowded, segmentation in ((1, crowd), (0, polygon), (0, runs)):
            entry = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": 1}
            data["annotations"].append({**entry, "iscrowd": crowded, "segmentation": segmentation})
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return folder, path


def equal(a: Sample, b: Sample) -> bool:
    pairs = zip((a.image, *a.target), (b.image, *b.target), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [64, (40, 72)])
def test_a_sample_of_several_images_depends_on_seed_epoch_and_index_only(
    tmp_path: Path, count: int, size: Any
) -> None:
    data = own_data(tmp_path, count)
    transform = MixingTransform(size, BOTH)
    first, second = (CocoInstances(*data, transform, seed=3) for _ in range(2))
    keys = [(epoch, index) for epoch in range(6) for index in range(count)]
    samples = [first[key] for key in keys]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for key, sample in reversed(list(zip(keys, samples, strict=True))):
        assert equal(second[key], sample)
        masks = sample.target.masks
        assert masks.shape[1:] == sample.image.shape[1:] == (torch.Size((64, 64)), size)[size != 64]
        assert (sample.target.boxes >= -1e-6).all() and (sample.target.boxes <= 1 + 1e-6).all()
        assert sample.image.min() > -1 and sample.image.is_contiguous()
    assert torch.equal(state, torch.get_rng_state())
    assert not equal(CocoInstances(*data, transform, seed=4)[0], samples[0])


def test_without_mixing_every_number_is_as_it_was(tmp_path: Path) -> None:
    data = own_data(tmp_path, 3)
    mixing = CocoInstances(*data, MixingTransform(64, AugmentConfig()), seed=5)
    plain = CocoInstances(*data, TrainTransform(64, AugmentConfig()), seed=5)
    for epoch in range(3):
        assert all(equal(mixing[epoch, i], plain[epoch, i]) for i in range(3))


def test_images_that_cannot_be_decoded_are_passed_over_or_named(tmp_path: Path) -> None:
    data = own_data(tmp_path, 4, broken=[1])
    transform = MixingTransform(64, AugmentConfig(mosaic=1, copy_paste=1))
    skipping = CocoInstances(*data, transform, on_bad_image="skip")
    assert len(skipping) == 4
    again = CocoInstances(*data, transform, on_bad_image="skip")
    assert all(equal(skipping[epoch, 0], again[epoch, 0]) for epoch in range(8))
    assert equal(skipping[0, 1], skipping[0, 2])
    stopping = CocoInstances(*data, transform)
    with pytest.raises(DataError, match="1.png"):
        for epoch in range(8):
            stopping[epoch, 0]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and all(torch.equal(s.masks, t.masks) for s, t in zip(x.targets, y.targets, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_workers_and_resuming_change_no_mixed_batch(tmp_path: Path) -> None:
    data = CocoInstances(*own_data(tmp_path, 5), MixingTransform(48, BOTH))
    alone, helped = make_loader(data, 2, 0, seed=1), make_loader(data, 2, 2, seed=1)
    whole = list(alone)
    assert same(list(helped), whole) and len(whole) == 2
    alone.batch_sampler.set_position(0, 1)
    assert same(list(alone), whole[1:])
    helped.close()


def test_masks_are_drawn_small_as_large_ones_would_be_after_resizing(tmp_path: Path) -> None:
    """Polygons are drawn at the size that is needed, runs are resized: at most a rim differs."""
    data = CocoInstances(*own_data(tmp_path, 2), TrainTransform(64, AugmentConfig()))
    large = data.scene(0).picture()
    for size in ((15, 30), (60, 120), (20, 200)):
        small = data.scene(0).picture(size, [1, 0])
        factor = size[0] * size[1] / (30 * 60)
        areas = small.masks.sum((1, 2)) / factor
        np.testing.assert_allclose(areas, large.masks[[1, 0]].sum((1, 2)), rtol=0.35)
        edges = bounds(small.masks) - small.boxes
        assert np.abs(edges).max() <= max(2, size[0] / 30, size[1] / 60)


def options(*words: str) -> YolactConfig:
    context = train.make_context("train", ["--dataset", "shapes", *words])
    return train_settings(context.params).config


def test_probabilities_are_options_that_no_augment_turns_off() -> None:
    assert (options().augment.mosaic, options().augment.copy_paste) == (0, 0)
    wanted = options("--mosaic", "0.5", "--copy_paste", "1").augment
    assert (wanted.mosaic, wanted.copy_paste, wanted.crop) == (0.5, 1, True)
    assert options("--mosaic", "0.5", "--no_augment").augment.mosaic == 0
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="must be in 0..1, got"):
            AugmentConfig(mosaic=value)


def test_real_photos_keep_their_labels_and_masks() -> None:
    """Of the mosaics of somebody's photos, in whose objects nothing overlaps much."""
    folder = from_shared("data/fruits")
    transform = MixingTransform(96, AugmentConfig(mosaic=1, copy_paste=1))
    data = CocoInstances(folder / "images", folder / "coco" / "train.json", transform)
    for index in range(4):
        target = data[index].target
        assert len(target.boxes) > 3 and set(target.labels.tolist()) <= {0, 1, 2}
        assert target.masks.any(2).any(1).all()
