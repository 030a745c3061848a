"""Raw outputs to detections."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from conftest import Golden, GoldenSet, golden_weight
from yolact.config import DetectConfig, ModelConfig
from yolact.ops.boxes import fast_nms, greedy_nms, iou
from yolact.predict.detect import detect
from yolact.types import Detections, RawOutputs

MODES = ("fast", "cross_class", "traditional")


@pytest.fixture(scope="module")
def stored(golden: GoldenSet) -> Golden:
    return golden.npz("detect.npz")


def outputs_of(stored: Golden, case: str) -> RawOutputs:
    loc, conf, mask, priors = (
        torch.from_numpy(stored[f"{case}.in.{name}"]) for name in ("loc", "conf", "mask", "priors")
    )
    return RawOutputs(loc, conf, mask, priors, torch.zeros(len(loc), 1, 1, 32))


def config_of(stored: Golden, case: str, mode: str) -> DetectConfig:
    params = stored.meta["cases"][case]["params"]
    return DetectConfig(
        score_threshold=params["conf_thresh"],
        nms_iou=params["nms_thresh"],
        top_k=params["top_k"],
        max_detections=params["max_num_detections"],
        fast_nms=mode != "traditional",
        cross_class_nms=mode == "cross_class",
    )


def random_outputs(
    images: int = 2, priors: int = 60, classes: int = 5, seed: int = 0
) -> RawOutputs:
    random = torch.Generator().manual_seed(seed)
    conf = (3 * torch.randn(images, priors, classes + 1, generator=random)).softmax(-1)
    centers = torch.rand(priors, 2, generator=random)
    return RawOutputs(
        torch.randn(images, priors, 4, generator=random),
        conf,
        torch.randn(images, priors, 8, generator=random),
        torch.cat([centers, 0.05 + 0.3 * torch.rand(priors, 2, generator=random)], 1),
        torch.rand(images, 9, 9, 8, generator=random),
    )


CASES = [
    *("chain", "exact_iou", "exact_score", "many", "none_and_some", "params"),
    *("single", "ties_overlap", "typical"),
]


@pytest.mark.parametrize(
    ("case", "mode"),
    # which of two equal boxes greedy suppression keeps is open, and not stored
    [(c, m) for c in CASES for m in MODES if (c, m) != ("ties_overlap", "traditional")],
)
def test_detections_equal_golden(stored: Golden, case: str, mode: str) -> None:
    outputs = outputs_of(stored, case)
    found = detect(outputs, config_of(stored, case, mode))
    for image, detections in enumerate(found):
        key = f"{case}.{mode}.{image}"
        count = int(stored[f"{key}.n"])
        assert len(detections.scores) == max(count, 0)
        if count < 0:
            continue
        np.testing.assert_array_equal(detections.labels, stored[f"{key}.class"])
        np.testing.assert_array_equal(detections.prior_index, stored[f"{key}.prior_index"])
        np.testing.assert_allclose(detections.scores, stored[f"{key}.score"], atol=1e-6)
        np.testing.assert_allclose(detections.boxes, stored[f"{key}.box"], atol=2e-6)
        torch.testing.assert_close(
            detections.coefficients, outputs.mask[image, detections.prior_index]
        )


@pytest.mark.parametrize("mode", MODES)
def test_equal_scores_come_in_any_order_but_none_is_lost(stored: Golden, mode: str) -> None:
    case, key = "ties_disjoint", f"ties_disjoint.{mode}.0"
    (found,) = detect(outputs_of(stored, case), config_of(stored, case, mode))
    expected = stored[f"{key}.prior_index"]
    assert set(found.prior_index[:4].tolist()) == set(expected[:4].tolist())
    np.testing.assert_array_equal(found.prior_index[4:], expected[4:])
    np.testing.assert_array_equal(found.labels[4:], stored[f"{key}.class"][4:])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "cross_class"])
def test_network_and_detection_together_equal_golden(
    golden: GoldenSet, stored: Golden, mode: str
) -> None:
    from yolact.model.yolact import InferenceModel, Yolact

    model = Yolact(ModelConfig(image_size=138, prior_base_size=138))
    model.load_state_dict(
        {
            name: torch.from_numpy(golden_weight(name, tuple(value.shape)))
            for name, value in model.state_dict().items()
        }
    )
    image = torch.from_numpy(golden.npz("forward.npz")["pre_small.base"])
    with torch.no_grad():
        outputs = InferenceModel(model.eval())(image)
    (found,) = detect(outputs, DetectConfig(cross_class_nms=mode == "cross_class"))
    key = f"e2e_small.{mode}"
    np.testing.assert_array_equal(found.labels, stored[f"{key}.class"])
    np.testing.assert_allclose(found.scores, stored[f"{key}.score"], atol=1e-4)
    np.testing.assert_allclose(found.boxes, stored[f"{key}.box"], atol=1e-4)
    np.testing.assert_allclose(found.coefficients, stored[f"{key}.mask"], atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_its_images_one_by_one_and_is_left_alone(mode: str) -> None:
    outputs = random_outputs()
    before = RawOutputs(*(values.clone() for values in outputs))
    config = DetectConfig(fast_nms=mode != "traditional", cross_class_nms=mode == "cross_class")
    together = detect(outputs, config)
    for image, detections in enumerate(together):
        part = slice(image, image + 1)
        alone = outputs._replace(
            loc=outputs.loc[part], conf=outputs.conf[part], mask=outputs.mask[part]
        )
        assert_same(detect(alone, config)[0], detections)
    for now, then in zip(outputs, before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_above_the_threshold_is_an_empty_entry(mode: str) -> None:
    outputs = random_outputs(images=1)
    conf = torch.zeros_like(outputs.conf)
    conf[..., 0] = 1
    config = DetectConfig(fast_nms=mode != "traditional", cross_class_nms=mode == "cross_class")
    (found,) = detect(outputs._replace(conf=conf), config)
    assert [tuple(values.shape) for values in found] == [(0, 4), (0,), (0,), (0, 8), (0,)]


@pytest.mark.parametrize("mode", MODES)
def test_overflowing_boxes_and_scores_are_dropped(mode: str) -> None:
    outputs = random_outputs(images=1)
    loc, conf = outputs.loc.clone(), outputs.conf.clone()
    loc[0, 0, 2], loc[0, 1, 0], conf[0, 2, 1] = 1e4, float("nan"), float("nan")
    config = DetectConfig(fast_nms=mode != "traditional", cross_class_nms=mode == "cross_class")
    (found,) = detect(outputs._replace(loc=loc, conf=conf), config)
    assert len(found.scores)
    assert found.boxes.isfinite().all() and found.scores.isfinite().all()
    assert not {0, 1, 2} & set(found.prior_index.tolist())


def test_no_mode_returns_more_than_it_may() -> None:
    outputs = random_outputs(images=1, priors=400)
    for fast in (True, False):
        (found,) = detect(outputs, DetectConfig(fast_nms=fast, max_detections=7))
        assert len(found.scores) == 7
    (found,) = detect(outputs, DetectConfig(cross_class_nms=True, top_k=9))
    assert 0 < len(found.scores) <= 9


def test_a_full_image_of_candidates_takes_a_fraction_of_a_second() -> None:
    outputs = random_outputs(images=1, priors=19_248, classes=80)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        detect(outputs, DetectConfig())
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # about 0.03 on two idle cores


side = st.floats(0, 1, width=32)
boxes_strategy = st.lists(st.tuples(side, side, side, side), min_size=1, max_size=12).map(
    lambda rows: torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in rows])
)


@settings(deadline=None, max_examples=60)
@given(boxes_strategy, st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_fast_nms_drops_exactly_what_a_better_box_covers(boxes: Tensor, threshold: float) -> None:
    keep = fast_nms(boxes, threshold)
    overlap = iou(boxes, boxes)
    expected = [not (overlap[:i, i] > threshold).any() for i in range(len(boxes))]
    assert keep.tolist() == expected
    assert keep[0]


@settings(deadline=None, max_examples=60)
@given(boxes_strategy, st.sampled_from([0.3, 0.5, 0.9]))
def test_greedy_nms_equals_its_definition(boxes: Tensor, threshold: float) -> None:
    scores = torch.arange(len(boxes), 0, -1).float()
    pixels = boxes.numpy().astype(np.float32) * 550
    kept: list[int] = []
    for index, box in enumerate(pixels):
        if all(_inclusive_iou(box, pixels[other]) < np.float32(threshold) for other in kept):
            kept.append(index)
    assert greedy_nms(boxes, scores, threshold).tolist() == kept


def _inclusive_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    one = np.float32(1)
    width = max(np.float32(0), min(a[2], b[2]) + one - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) + one - max(a[1], b[1]))
    shared = width * height
    areas = [(box[2] + one - box[0]) * (box[3] + one - box[1]) for box in (a, b)]
    return np.float32(shared / (areas[0] + areas[1] - shared))


def test_fast_nms_suppresses_through_suppressed_boxes() -> None:
    chain = torch.tensor([[0.0, 0, 10, 1], [2, 0, 12, 1], [4, 0, 14, 1], [6, 0, 16, 1]])
    assert fast_nms(chain, 0.5).tolist() == [True, False, False, False]
    assert greedy_nms(chain / 550, torch.tensor([4.0, 3, 2, 1]), 0.6).tolist() == [0, 2]


def assert_same(a: Detections, b: Detections) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
