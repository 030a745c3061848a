"""Three optimizer steps of the whole network against the trace of the original implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import GoldenSet, golden_weight
from onnx_models import freeze_batch_norm
from yolact.config import LossConfig, ModelConfig
from yolact.loss.criterion import Losses, YolactLoss
from yolact.model.weights import load_weights
from yolact.model.yolact import Yolact
from yolact.types import Target

pytestmark = pytest.mark.slow


TERMS = {"B": "box", "C": "classification", "M": "mask", "S": "semantic", "T": "total"}
STEP_0_TOLERANCE = 1e-4
LATER_TOLERANCE = {"bn_train": 2e-3, "bn_frozen": 1e-4}
# Batch statistics of two small images amplify float32 noise from step to step, most of all in the
# gradient of the first layers.
LATER_GRADIENT_TOLERANCE = {"bn_train": 1e-1, "bn_frozen": 5e-3}
STEP_0_GRADIENT_TOLERANCE = 5e-3


@dataclass
class Trace:
    """What one run left behind, to be compared with the reference's record of the same run."""

    mode: str
    reference: dict[str, Any]
    losses: list[dict[str, float]]
    """Of steps 0 to 2, then of step 0's batch again after them."""
    gradient_norms: list[dict[str, float]]
    weights: dict[int, dict[str, Tensor]]
    """State dict after 1 and after 3 steps."""


def batch(golden: GoldenSet, step: int) -> tuple[Tensor, list[Target]]:
    arrays = np.load(golden.folder / "train_trace_inputs.npz")
    images = torch.from_numpy(arrays[f"step{step}.images_uint8_nchw_rgb"]).float() / 255
    targets = []
    for index in range(len(images)):
        rows = torch.from_numpy(arrays[f"step{step}.target.{index}"])
        n, height, width = arrays[f"step{step}.masks_shape.{index}"]
        bits = np.unpackbits(arrays[f"step{step}.masks_packed.{index}"], axis=1)
        masks = torch.from_numpy(bits[:, : height * width].reshape(n, height, width))
        crowd = torch.zeros(len(rows), dtype=torch.bool)
        targets.append(Target(rows[:, :4], rows[:, 4].long(), masks, crowd))
    return images, targets


def by_letter(losses: Losses) -> dict[str, float]:
    return {letter: getattr(losses, name).item() for letter, name in TERMS.items()}


@pytest.fixture(scope="module")
def initial() -> dict[str, Tensor]:
    state = {
        name: torch.from_numpy(np.asarray(golden_weight(name, tuple(value.shape))))
        for name, value in Yolact(ModelConfig()).state_dict().items()
    }
    for name in ("proto_net.10.weight", "proto_net.10.bias"):
        state[name] = state[name] * 0.1
    return state


@pytest.fixture(scope="module", params=["bn_train", "bn_frozen"])
def trace(request: pytest.FixtureRequest, golden: GoldenSet, initial: dict[str, Tensor]) -> Trace:
    mode: str = request.param
    reference = golden.json("train_trace.json")["modes"][mode]
    model = Yolact(ModelConfig(image_size=160, prior_base_size=160)).train()
    load_weights(model, initial)
    if mode == "bn_frozen":
        freeze_batch_norm(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9, weight_decay=5e-4)
    criterion = YolactLoss(LossConfig())
    trace = Trace(mode, reference, [], [], {})
    for step, record in enumerate(reference["steps"]):
        optimizer.param_groups[0]["lr"] = record["lr"]
        images, targets = batch(golden, step)
        losses = criterion(model(images), targets)
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        trace.losses.append(by_letter(losses))
        norms = {k: p.grad.norm().item() for k, p in model.named_parameters() if p.grad is not None}
        trace.gradient_norms.append(norms)
        trace.weights[step + 1] = {k: v.clone() for k, v in model.state_dict().items()}
    images, targets = batch(golden, 0)
    with torch.no_grad():
        trace.losses.append(by_letter(criterion(model(images), targets)))
    return trace


def test_losses_follow_the_reference(trace: Trace) -> None:
    records = [*trace.reference["steps"], trace.reference["loss_after_3_steps_on_step0_batch"]]
    for step, (actual, record) in enumerate(zip(trace.losses, records, strict=True)):
        rel = LATER_TOLERANCE[trace.mode] if step else STEP_0_TOLERANCE
        assert actual == pytest.approx(record["losses"], rel=rel), step


def test_gradients_follow_the_reference(trace: Trace) -> None:
    for step, (actual, record) in enumerate(
        zip(trace.gradient_norms, trace.reference["steps"], strict=True)
    ):
        expected = record["grad_l2"]
        rel = LATER_GRADIENT_TOLERANCE[trace.mode] if step else STEP_0_GRADIENT_TOLERANCE
        assert {k: actual[k] for k in expected} == pytest.approx(expected, rel=rel), step
        assert not set(record["params_without_grad"] or []) & set(actual)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_follow_the_reference(trace: Trace, steps: int) -> None:
    key = "weights_after_1_step" if steps == 1 else "weights_after_3_steps"
    for name, expected in trace.reference[key].items():
        value = trace.weights[steps][name].flatten()[expected["flat_index"]].double().numpy()
        tolerance = 10 * expected["noise_max_abs"] + 0.02 * expected["rms_of_change"] + 2.5e-7
        np.testing.assert_allclose(value, expected["value"], rtol=0, atol=tolerance, err_msg=name)


def test_batch_norm_statistics_follow_the_reference(trace: Trace) -> None:
    for name, expected in trace.reference["bn_after_3_steps"].items():
        value = trace.weights[3][name]
        if name.endswith("num_batches_tracked"):
            assert value.item() == expected
        else:
            first = value.flatten()[:8].numpy()
            np.testing.assert_allclose(first, expected["first8"], rtol=2e-3, atol=2e-4)
            assert value.norm().item() == pytest.approx(expected["l2"], rel=1e-3)
