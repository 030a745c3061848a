"""Laws of the box and mask arithmetic, for any input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor
from torch.testing import assert_close

from yolact.ops.boxes import (
    center_to_corner,
    corner_to_center,
    decode,
    encode,
    intersection_over_first,
    iou,
    pixel_span,
)
from yolact.ops.masks import box_window, crop_mask, mask_logits, reduce_masks


@st.composite
def centered_boxes(draw: DrawFn) -> Tensor:
    """[1..8, 4] centre form, sides 1/64 to 1."""
    center = st.floats(0, 1, width=32)
    side = st.floats(1 / 64, 1, width=32)
    rows = draw(st.lists(st.tuples(center, center, side, side), min_size=1, max_size=8))
    return torch.tensor(rows)


def corner_boxes() -> SearchStrategy[Tensor]:
    return centered_boxes().map(center_to_corner)


@given(centered_boxes())
def test_corner_and_centre_form_are_inverse(boxes: Tensor) -> None:
    assert_close(corner_to_center(center_to_corner(boxes)), boxes, atol=1e-6, rtol=0)


@given(corner_boxes(), centered_boxes())
def test_decoding_an_encoded_box_returns_it(boxes: Tensor, priors: Tensor) -> None:
    count = min(len(boxes), len(priors))
    boxes, priors = boxes[:count], priors[:count]
    assert_close(decode(encode(boxes, priors), priors), boxes, atol=2e-6, rtol=0)


@given(centered_boxes())
def test_a_prior_encodes_to_zero_and_zero_decodes_to_the_prior(priors: Tensor) -> None:
    corners = center_to_corner(priors)
    assert_close(encode(corners, priors), torch.zeros_like(priors), atol=1e-4, rtol=0)
    assert_close(decode(torch.zeros_like(priors), priors), corners, atol=1e-6, rtol=0)


def test_decoding_a_batch_equals_decoding_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    loc, priors = torch.randn(3, 5, 4, generator=generator), torch.rand(5, 4, generator=generator)
    each = torch.stack([decode(image, priors) for image in loc])
    assert torch.equal(decode(loc, priors), each)


@given(corner_boxes(), corner_boxes())
def test_iou_is_symmetric_and_within_0_and_1(a: Tensor, b: Tensor) -> None:
    overlaps = iou(a, b)
    assert torch.equal(overlaps, iou(b, a).t())
    assert 0 <= overlaps.min() and overlaps.max() <= 1 + 1e-5


@given(corner_boxes())
def test_every_box_overlaps_itself_fully(boxes: Tensor) -> None:
    ones = torch.ones(len(boxes))
    assert_close(iou(boxes, boxes).diagonal(), ones, atol=1e-5, rtol=0)
    assert_close(intersection_over_first(boxes, boxes).diagonal(), ones, atol=1e-5, rtol=0)


def test_overlaps_that_can_be_counted_by_hand() -> None:
    left_half = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    others = torch.tensor([[0.25, 0.0, 0.75, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert_close(iou(left_half, others), torch.tensor([[1 / 3, 0.0, 0.5]]))
    assert_close(intersection_over_first(left_half, others), torch.tensor([[0.5, 0.0, 1.0]]))


def test_boxes_without_area_overlap_nothing() -> None:
    point, whole = torch.full((1, 4), 0.5), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for a, b in [(point, point), (point, whole), (whole, point)]:
        assert iou(a, b).item() == 0
        assert intersection_over_first(a, b).item() == 0


def test_no_boxes_give_empty_results_of_the_right_shape() -> None:
    none, some = torch.zeros(0, 4), torch.rand(3, 4)
    assert iou(none, some).shape == (0, 3)
    assert iou(some, none).shape == (3, 0)
    assert encode(none, none).shape == decode(none, none).shape == (0, 4)
    assert box_window(none, 5, 6).shape == (5, 6, 0)
    assert reduce_masks(torch.zeros(0, 9, 9, dtype=torch.uint8), (3, 3)).shape == (0, 3, 3)


@given(corner_boxes(), st.integers(1, 700), st.integers(0, 2))
def test_pixel_spans_are_ordered_and_inside_the_image(
    boxes: Tensor, size: int, padding: int
) -> None:
    inside = boxes.clamp(0, 1)
    low, high = pixel_span(inside[:, 2], inside[:, 0], size, padding)
    assert (low >= 0).all() and (low <= high).all() and (high <= size).all()


def test_the_arguments_stay_as_they_are() -> None:
    boxes, priors = torch.rand(4, 4), torch.rand(4, 4)
    before = boxes.clone(), priors.clone()
    encode(boxes, priors)
    decode(boxes, priors)
    iou(boxes, priors)
    pixel_span(boxes[:, 0], boxes[:, 2], 10, 1)
    box_window(boxes, 7, 7)
    assert torch.equal(boxes, before[0]) and torch.equal(priors, before[1])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_cropping_to_the_whole_image_changes_nothing(height: int, width: int, count: int) -> None:
    masks = torch.rand(height, width, count)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4)
    assert torch.equal(crop_mask(masks, whole), masks)


@given(corner_boxes())
def test_cropping_twice_is_cropping_once(boxes: Tensor) -> None:
    masks = torch.rand(8, 6, len(boxes))
    once = crop_mask(masks, boxes)
    assert torch.equal(crop_mask(once, boxes), once)


@pytest.mark.parametrize(("padding", "columns"), [(0, [2, 3]), (1, [1, 2, 3, 4])])
def test_a_window_covers_its_pixels_and_the_padding(padding: int, columns: list[int]) -> None:
    box = torch.tensor([[0.25, 0.0, 0.5, 1.0]])  # columns 2 and 3 of 8
    window = box_window(box, 1, 8, padding)
    assert window[0, :, 0].nonzero()[:, 0].tolist() == columns


def test_swapped_corners_open_the_same_window() -> None:
    box = torch.tensor([[0.2, 0.3, 0.6, 0.9]])
    assert torch.equal(box_window(box, 20, 20), box_window(box[:, [2, 3, 0, 1]], 20, 20))


def test_masks_are_sums_of_prototypes() -> None:
    prototypes = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one row of two pixels, k = 2
    coefficients = torch.tensor([[1.0, 0.0], [0.5, -1.0]])
    expected = torch.tensor([[[1.0, -1.5], [3.0, -2.5]]])
    assert torch.equal(mask_logits(prototypes, coefficients), expected)


def test_a_reduced_mask_keeps_what_covers_more_than_half() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, :2, :2] = 1  # one full cell of the coarse grid
    mask[0, 2:, 2] = 1  # half of another
    expected = torch.tensor([[[True, False], [False, False]]])
    assert torch.equal(reduce_masks(mask, (2, 2)), expected)
