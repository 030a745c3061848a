"""Detections to pixel boxes and full-size masks, the second half of ``predict/detect.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from conftest import Golden, GoldenSet
from yolact.data.labels import COCO_CLASSES
from yolact.predict.detect import above, first, mask_chunks, pixel_boxes, to_instances
from yolact.predict.results import CocoResults, coco_box, encode_masks
from yolact.types import Detections

CASES = ("landscape", "portrait", "nocrop", "threshold", "threshold_all", "smallproto")


@pytest.fixture(scope="module")
def stored(golden: GoldenSet) -> Golden:
    return golden.npz("postprocess.npz")


def case_inputs(stored: Golden, case: str) -> tuple[Detections, torch.Tensor, tuple[int, int]]:
    box, score, label, coefficients = (
        torch.from_numpy(stored[f"{case}.in.{name}"]) for name in ("box", "score", "class", "coeff")
    )
    info = stored.meta["cases"][case]
    proto = torch.from_numpy(stored[f"{case}.in.proto_q256"]).float() / 256
    detections = Detections(box, score, label, coefficients, torch.arange(len(score)))
    return detections, proto, (info["h"], info["w"])


def some_detections(count: int, k: int = 4) -> tuple[Detections, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=random) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(count, 2, generator=random)], 1)
    scores = torch.rand(count, generator=random).sort(descending=True).values
    coefficients = torch.randn(count, k, generator=random) * 3
    labels = torch.arange(count) % 3
    proto = torch.rand(11, 13, k, generator=random)
    return Detections(boxes, scores, labels, coefficients, torch.arange(count)), proto


@pytest.mark.parametrize("case", CASES)
def test_instances_equal_golden(stored: Golden, case: str) -> None:
    detections, proto, size = case_inputs(stored, case)
    params = stored.meta["cases"][case]["params"]
    found = to_instances(
        detections,
        proto,
        size,
        score_threshold=params["score_threshold"],
        crop=params["crop_masks"],
    )
    count = int(stored[f"{case}.out.n"])
    assert len(found.scores) == max(count, 0)
    assert found.masks.shape == (max(count, 0), *size) and found.masks.dtype == torch.bool
    if count <= 0:
        return
    np.testing.assert_array_equal(found.labels, stored[f"{case}.out.class"])
    np.testing.assert_array_equal(found.scores, stored[f"{case}.out.score"])
    np.testing.assert_array_equal(found.boxes, stored[f"{case}.out.box"])
    near = stored[f"{case}.out.pixels_within_1e-4_of_threshold"]
    for mask, text, allowed in zip(found.masks, stored[f"{case}.out.rle"], near, strict=True):
        expected = rle.decode({"size": list(size), "counts": str(text)}).astype(bool)
        assert (mask.numpy() != expected).sum() <= allowed + 2


@pytest.mark.parametrize("case", CASES)
def test_coco_entries_equal_golden(stored: Golden, case: str) -> None:
    detections, proto, size = case_inputs(stored, case)
    info = stored.meta["cases"][case]
    results = CocoResults()
    kept = above(detections, info["params"]["score_threshold"])
    crop = info["params"]["crop_masks"]
    results.add(12345, kept, proto, size, COCO_CLASSES.ids, crop=crop)
    assert results.image_ids == [12345]
    assert results.bbox == info.get("coco_bbox_results", [])
    assert results.segm == info.get("coco_segm_results", [])


def test_inputs_are_left_alone() -> None:
    detections, proto = some_detections(5)
    before = [values.clone() for values in (*detections, proto)]
    to_instances(detections, proto, (40, 50), score_threshold=0.5)
    for now, then in zip((*detections, proto), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_no_detections_are_no_instances() -> None:
    detections, proto = some_detections(0)
    found = to_instances(detections, proto, (40, 50))
    assert [tuple(v.shape) for v in found] == [(0, 4), (0,), (0,), (0, 40, 50)]


def test_masks_in_chunks_are_the_same_masks() -> None:
    detections, proto = some_detections(3)
    size = (2048, 4096)  # two such masks are enlarged at once
    whole = to_instances(detections, proto, size).masks
    chunks = list(mask_chunks(detections, proto, size))
    assert [len(chunk) for chunk in chunks] == [2, 1]
    assert torch.equal(torch.cat(chunks), whole)


def test_large_images_are_enlarged_one_mask_at_a_time() -> None:
    detections, proto = some_detections(3)
    first_chunk = next(mask_chunks(detections, proto, (4200, 4000)))
    assert first_chunk.shape == (1, 4200, 4000)


def test_a_cropped_mask_stays_within_a_prototype_pixel_of_its_box() -> None:
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    one = torch.ones(1)
    detections = Detections(box, one, one.long(), torch.full((1, 1), 30.0), one.long())
    cut = to_instances(detections, torch.ones(20, 20, 1), (200, 200)).masks[0]
    rows, columns = cut.nonzero().unbind(1)
    edges = [int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max())]
    assert edges == [40, 109, 40, 109]
    assert to_instances(detections, torch.ones(20, 20, 1), (200, 200), crop=False).masks.all()


def test_an_image_of_one_pixel_works() -> None:
    detections, proto = some_detections(3)
    assert to_instances(detections, proto, (1, 1)).masks.shape == (3, 1, 1)


def test_a_score_equal_to_the_threshold_is_dropped() -> None:
    detections, _ = some_detections(4)
    detections = detections._replace(scores=torch.tensor([0.9, 0.5, 0.5, 0.1]))
    assert above(detections, 0.5).scores.tolist() == pytest.approx([0.9])
    assert len(above(detections, 0.0).scores) == 4
    assert first(detections, 2).scores.tolist() == pytest.approx([0.9, 0.5])


wide = st.floats(-3, 3, width=32)


@settings(deadline=None)
@given(st.tuples(wide, wide, wide, wide), st.integers(1, 700), st.integers(1, 700))
def test_pixel_boxes_are_ordered_and_inside(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    ((x1, y1, x2, y2),) = pixel_boxes(torch.tensor([box]), (height, width)).tolist()
    assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**31))
def test_run_length_codes_decode_to_the_masks(h: int, w: int, n: int, seed: int) -> None:
    masks = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) > 0.5
    codes = encode_masks(masks)
    assert len(codes) == n
    for mask, code in zip(masks, codes, strict=True):
        assert code["size"] == [h, w] and isinstance(code["counts"], str)
        np.testing.assert_array_equal(rle.decode(code).astype(bool), mask.numpy())


def test_coco_boxes_are_rounded_to_a_tenth() -> None:
    assert coco_box([1.26, 2, 4.26, 2.5]) == [1.3, 2.0, 3.0, 0.5]


def test_detections_without_area_are_in_neither_list() -> None:
    detections, proto = some_detections(2)
    flat = torch.tensor([[0.2, 0.2, 0.2, 0.8], [0.2, 0.2, 0.6, 0.8]])
    results = CocoResults()
    results.add(1, detections._replace(boxes=flat), proto, (50, 50), (5, 6, 7))
    assert len(results.bbox) == len(results.segm) == 1
    assert results.bbox[0]["category_id"] == 6
