"""The order of images depends on seed and epoch only; workers and resuming change nothing."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from yolact.config import AugmentConfig
from yolact.data.coco import CocoInstances
from yolact.data.loader import EpochBatches, collate, make_loader
from yolact.data.sample_set import generate_shapes
from yolact.data.transforms import TrainTransform
from yolact.errors import DataError
from yolact.types import Batch, Sample, Target


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoInstances:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(folder, train=11, val=1, image_size=64)
    annotations = folder / "annotations" / "instances_train.json"
    return CocoInstances(folder / "images", annotations, TrainTransform(64, AugmentConfig()))


sizes = st.integers(1, 40)


@given(images=sizes, batch_size=sizes, seed=st.integers(0, 100), epoch=st.integers(0, 100))
def test_an_epoch_takes_each_image_at_most_once(
    images: int, batch_size: int, seed: int, epoch: int
) -> None:
    sampler = EpochBatches(images, batch_size, seed)
    sampler.set_position(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == max(1, images // batch_size)
    keys = [key for batch in batches for key in batch]
    assert all(of == epoch and 0 <= index < images for of, index in keys)
    assert len(set(keys)) == len(keys) == min(len(sampler) * batch_size, images)
    assert list(sampler) == batches, "iterating again starts again"


@given(images=sizes, batch_size=sizes, epoch=st.integers(0, 9), start=st.integers(0, 50))
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(
    images: int, batch_size: int, epoch: int, start: int
) -> None:
    whole, resumed = EpochBatches(images, batch_size), EpochBatches(images, batch_size)
    whole.set_position(epoch)
    resumed.set_position(epoch, start)
    assert list(resumed) == list(whole)[start:]
    assert len(resumed) == len(whole)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochBatches(50, 50, seed)
        sampler.set_position(epoch)
        return [index for _, index in next(iter(sampler))]

    assert sorted(order(0, 0)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_no_images_make_no_batches() -> None:
    assert len(EpochBatches(0, 4)) == 0 and list(EpochBatches(0, 4)) == []


def run(loader: Any, epoch: int, batch: int = 0) -> list[Batch]:
    loader.batch_sampler.set_position(epoch, batch)
    return list(loader)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and x.image_ids == y.image_ids
        and all(
            torch.equal(p, q)
            for s, t in zip(x.targets, y.targets, strict=True)
            for p, q in zip(s, t, strict=True)
        )
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(shapes: CocoInstances) -> None:
    alone = make_loader(shapes, 4, 0, seed=1)
    helped = make_loader(shapes, 4, 2, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for epoch in (0, 1):  # the same workers serve both epochs
        batches = run(alone, epoch)
        assert len(batches) == len(alone) == 2
        assert batches[0].images.shape == (4, 3, 64, 64)
        assert same(batches, run(helped, epoch))
    assert same(run(alone, 1, batch=1), run(helped, 1)[1:])
    assert not same(run(alone, 0), run(alone, 1))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is untouched"


class Broken(Dataset[Sample]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> Sample:
        raise DataError("image 3 is damaged", hint="replace it")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_arrives_with_its_hint(workers: int) -> None:
    try:
        list(make_loader(Broken(), 2, workers, seed=0))
    except DataError as error:  # pytest.raises would keep the workers alive by the traceback
        assert str(error) == "image 3 is damaged" and error.hint == "replace it"
    else:
        pytest.fail("no error arrived")


class Faulty(Broken):
    def __getitem__(self, key: Any) -> Sample:
        raise ZeroDivisionError


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        list(make_loader(Faulty(), 2, 0, seed=0))


def test_collate_stacks_images_and_lists_targets() -> None:
    def sample(number: int) -> Sample:
        n = number
        target = Target(
            torch.zeros(n, 4),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, 8, 8, dtype=torch.uint8),
            torch.zeros(n, dtype=torch.bool),
        )
        return Sample(torch.full((3, 8, 8), float(number)), target, number, (5, 6))

    batch = collate([sample(0), sample(2)])
    assert batch.images.shape == (2, 3, 8, 8) and batch.image_ids == [0, 2]
    assert [len(target.boxes) for target in batch.targets] == [0, 2]


def test_a_folder_of_images_loads_in_parallel(shapes: CocoInstances) -> None:
    batches = list(islice(make_loader(shapes, 4, 2, seed=0), 2))
    assert [len(batch.image_ids) for batch in batches] == [4, 4]
