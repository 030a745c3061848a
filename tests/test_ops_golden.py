"""Boxes and masks against the golden numbers of the original implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import Golden, GoldenSet
from yolact.ops.boxes import (
    center_to_corner,
    corner_to_center,
    decode,
    encode,
    intersection,
    intersection_over_first,
    iou,
    pixel_span,
)
from yolact.ops.masks import crop_mask
from yolact.predict.detect import pixel_boxes

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def reference(golden: GoldenSet) -> Golden:
    return golden.npz("box_ops.npz")


def tensor(reference: Golden, key: str) -> Tensor:
    return torch.from_numpy(reference[key])


@pytest.mark.parametrize(
    ("function", "key"),
    [(iou, "iou"), (intersection_over_first, "iou_crowd_b"), (intersection, "intersection")],
)
def test_overlaps_equal_the_reference(reference: Golden, function: Any, key: str) -> None:
    actual = function(tensor(reference, "boxes_a"), tensor(reference, "boxes_b"))
    assert_close(actual, tensor(reference, key), **CLOSE)


def test_box_forms_equal_the_reference(reference: Golden) -> None:
    center = corner_to_center(tensor(reference, "boxes_a"))
    assert_close(center, tensor(reference, "center_size_a"), **CLOSE)
    corner = center_to_corner(center)
    assert_close(corner, tensor(reference, "point_form_of_center_size_a"), **CLOSE)


def test_encode_and_decode_equal_the_reference(reference: Golden) -> None:
    priors = tensor(reference, "priors")
    decoded = decode(tensor(reference, "loc"), priors)
    assert_close(decoded, tensor(reference, "decoded"), **CLOSE)
    encoded = encode(tensor(reference, "gt"), priors)
    assert_close(encoded, tensor(reference, "encoded"), **CLOSE)


@pytest.mark.parametrize(("size", "padding"), [(640, 0), (138, 1)])
def test_pixel_spans_equal_the_reference(reference: Golden, size: int, padding: int) -> None:
    low, high = pixel_span(tensor(reference, "san.x1"), tensor(reference, "san.x2"), size, padding)
    case = f"san.size{size}_pad{padding}_cast0"
    assert_close(low.float(), tensor(reference, f"{case}.x1"), **CLOSE)
    assert_close(high.float(), tensor(reference, f"{case}.x2"), **CLOSE)


def test_pixel_boxes_are_the_truncated_spans_of_the_reference(reference: Golden) -> None:
    one, other = tensor(reference, "san.x1"), tensor(reference, "san.x2")
    # The reference clips each end on one side only, which shows where nothing is in the image.
    seen = (torch.maximum(one, other) > 0) & (torch.minimum(one, other) < 1)
    boxes = pixel_boxes(torch.stack([one, one, other, other], dim=1)[seen], (427, 427))
    case = "san.size427_pad0_cast1"
    for place, name in ((0, "x1"), (1, "x1"), (2, "x2"), (3, "x2")):
        assert_close(boxes[:, place].float(), tensor(reference, f"{case}.{name}")[seen].float())


def test_cropped_masks_equal_the_reference(reference: Golden) -> None:
    cropped = crop_mask(tensor(reference, "crop.masks_hwn"), tensor(reference, "crop.boxes"))
    assert_close(cropped, tensor(reference, "crop.out"), atol=0, rtol=0)
