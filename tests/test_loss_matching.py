"""Which prior learns which object: promises that can be checked by hand, and laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yolact.config import LossConfig
from yolact.loss.matching import (
    BACKGROUND,
    NEUTRAL,
    Matches,
    Objects,
    best_priors,
    learnable,
    match,
)
from yolact.ops.boxes import center_to_corner
from yolact.types import Target

CONFIG = LossConfig()
PRIORS = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5]])


def objects(boxes: list[list[float]], crowds: list[list[float]] | None = None) -> Objects:
    return Objects(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.arange(len(boxes)) + 10,
        masks=torch.zeros(len(boxes), 8, 8, dtype=torch.uint8),
        crowds=torch.tensor(crowds or []).reshape(-1, 4),
    )


def slow_best_priors(overlaps: Tensor) -> dict[int, int]:
    """The rule as the paper's code states it: take the largest of all, strike it out, repeat."""
    left = overlaps.clone()
    claimed: dict[int, int] = {}
    for _ in range(min(overlaps.shape)):
        row, column = divmod(int(left.argmax()), overlaps.shape[1])
        claimed[row] = column
        left[row] = -1
        left[:, column] = -1
    return claimed


def test_a_prior_on_its_object_is_positive_with_the_objects_class() -> None:
    found = match(objects([[0.5, 0.0, 1.0, 0.5]]), PRIORS, CONFIG)
    assert found.classes.tolist() == [BACKGROUND, 11, BACKGROUND]
    assert found.objects[1] == 0


@pytest.mark.parametrize(
    ("width", "role"), [(0.26, 11), (0.24, NEUTRAL), (0.21, NEUTRAL), (0.19, BACKGROUND)]
)
def test_iou_thresholds_decide_about_priors_that_are_nobodys_best(width: float, role: int) -> None:
    # Prior 0 is [0, 0, 0.5, 0.5]; the object covers width / 0.5 of it and is claimed by prior 1.
    priors = torch.stack([PRIORS[0], torch.tensor([width / 2, 0.25, width, 0.5])])
    found = match(objects([[0.0, 0.0, width, 0.5]]), priors, CONFIG)
    assert found.classes.tolist() == [11 if role == 11 else role, 11]


def test_an_object_that_fits_no_prior_still_gets_its_best_one() -> None:
    found = match(objects([[0.01, 0.01, 0.03, 0.03]]), PRIORS, CONFIG)
    assert found.classes.tolist() == [11, BACKGROUND, BACKGROUND]


def test_identical_objects_get_priors_of_their_own() -> None:
    found = match(objects([[0.0, 0.0, 0.5, 0.5]] * 3), PRIORS, CONFIG)
    assert sorted(found.classes.tolist()) == [11, 12, 13]
    assert sorted(found.objects.tolist()) == [0, 1, 2]


def test_more_objects_than_priors_leave_some_out() -> None:
    found = match(objects([[0.0, 0.0, 0.5, 0.5]] * 5), PRIORS, CONFIG)
    assert (found.classes > BACKGROUND).all()


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.integers(1, 9).flatmap(
            lambda m: st.lists(
                st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), min_size=m, max_size=m),
                min_size=n,
                max_size=n,
            )
        )
    )
)
def test_the_queue_finds_what_repeated_search_of_the_whole_matrix_finds(
    rows: list[list[float]],
) -> None:
    overlaps = torch.tensor(rows)
    claimed = best_priors(overlaps)
    assert list(claimed.items()) == list(slow_best_priors(overlaps).items())
    assert torch.equal(overlaps, torch.tensor(rows))


def test_no_object_makes_every_prior_background() -> None:
    assert match(objects([]), PRIORS, CONFIG).classes.tolist() == [BACKGROUND] * 3


def test_priors_inside_a_crowd_are_neutral_also_without_objects() -> None:
    found = match(objects([], crowds=[[0.4, 0.0, 1.0, 0.6]]), PRIORS, CONFIG)
    assert found.classes.tolist() == [BACKGROUND, NEUTRAL, BACKGROUND]


def test_crowds_touch_no_positive_and_make_neutral_only_what_was_background() -> None:
    generator = torch.Generator().manual_seed(1)
    center = torch.rand(500, 2, generator=generator)
    priors = torch.cat([center, 0.05 + 0.3 * torch.rand(500, 2, generator=generator)], dim=1)
    boxes = center_to_corner(priors[::50]).tolist()
    without: Matches = match(objects(boxes), priors, CONFIG)
    crowded = match(objects(boxes, crowds=[[0.0, 0.0, 0.6, 1.0]]), priors, CONFIG)
    positive = without.classes > BACKGROUND
    assert torch.equal(crowded.classes[positive], without.classes[positive])
    assert torch.equal(crowded.objects, without.objects)
    changed = crowded.classes != without.classes
    assert changed.any()
    assert (without.classes[changed] == BACKGROUND).all()
    assert (crowded.classes[changed] == NEUTRAL).all()


def test_crowds_and_boxes_without_area_are_no_objects() -> None:
    target = Target(
        boxes=torch.tensor(
            [[0.1, 0.1, 0.4, 0.4], [0.2, 0.2, 0.2, 0.9], [0.0, 0.0, 1.0, 1.0], [0.7, 0.7, 0.6, 0.9]]
        ),
        labels=torch.tensor([3, 4, 5, 6]),
        masks=torch.ones(4, 8, 8, dtype=torch.uint8),
        crowd=torch.tensor([False, False, True, False]),
    )
    found = learnable(target, torch.device("cpu"))
    assert found.labels.tolist() == [3]
    assert torch.equal(found.boxes, target.boxes[:1])
    assert torch.equal(found.crowds, target.boxes[2:3])
    assert found.masks.shape == (1, 8, 8)
