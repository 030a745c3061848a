"""The network against the golden numbers: same weights, same image, same outputs."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Golden, GoldenSet, golden_weight
from onnx_models import freeze_batch_norm
from yolact.config import ModelConfig
from yolact.model.yolact import InferenceModel, Yolact
from yolact.types import NetworkOutputs, RawOutputs

TOLERANCE = {"atol": 3e-4, "rtol": 1e-3}
OUTPUTS = ("loc", "conf", "mask", "proto")


@pytest.fixture(scope="module")
def forward(golden: GoldenSet) -> Golden:
    return golden.npz("forward.npz")


@pytest.fixture(scope="module")
def model() -> Yolact:
    """The published network with the golden weights, in evaluation mode."""
    return with_golden_weights(Yolact(ModelConfig()))


@pytest.fixture(scope="module")
def small(model: Yolact) -> Yolact:
    """The same weights with the priors of a 138 px model."""
    network = Yolact(ModelConfig(prior_base_size=138))
    network.load_state_dict(model.state_dict())
    return network.eval()


def with_golden_weights(model: Yolact) -> Yolact:
    model.load_state_dict(
        {
            name: torch.from_numpy(golden_weight(name, tuple(value.shape)))
            for name, value in model.state_dict().items()
        }
    )
    return model.eval()


@pytest.fixture(scope="module")
def image550(forward: Golden) -> Tensor:
    """[1, 3, 550, 550] the golden image as the evaluation path prepares it."""
    bgr = np.asarray(cv2.imdecode(forward["image.png"], cv2.IMREAD_COLOR))
    resized = cv2.resize(bgr.astype(np.float32), (550, 550))
    return torch.from_numpy(np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)) / 255)[None]


@pytest.fixture(scope="module")
def image138(forward: Golden) -> Tensor:
    return torch.from_numpy(forward["pre_small.base"])


def check(forward: Golden, case: str, outputs: NetworkOutputs | RawOutputs) -> None:
    for name in OUTPUTS:
        forward.check(f"{case}.{name}", getattr(outputs, name), **TOLERANCE)
    forward.check(f"{case}.priors", outputs.priors, atol=1e-6, rtol=1e-5)


def check_stages(forward: Golden, case: str, model: Yolact, image: Tensor) -> None:
    """Compare C3..C5 of the backbone's five stages, and the pyramid's levels."""
    stages = model.backbone(image)
    levels = model.fpn(stages)
    assert (len(stages), len(levels)) == (3, 5)
    for kind, first, values in (("backbone", 2, stages), ("fpn", 0, levels)):
        for index, value in enumerate(values, first):
            forward.check(f"{case}.{kind}{index}", value, **TOLERANCE)


@pytest.mark.slow
def test_golden_weights_are_filled_as_their_recipe_says(golden: GoldenSet, model: Yolact) -> None:
    state = model.state_dict()
    for name, head, total, largest in golden.json("state_dict.json")["fill_check"]["entries"]:
        values = state[name].double().flatten()
        np.testing.assert_allclose(values[:3], head, rtol=1e-7)
        np.testing.assert_allclose(values.sum(), total, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(values.abs().max(), largest, rtol=1e-7)


@pytest.mark.slow
def test_550_px_outputs_equal_the_reference(
    model: Yolact, forward: Golden, image550: Tensor
) -> None:
    with torch.inference_mode():
        outputs = InferenceModel(model)(image550)
    assert outputs.priors.shape == (19248, 4)
    assert outputs.proto.shape == (1, 138, 138, 32)
    check(forward, "eval550", outputs)


@pytest.mark.slow
def test_550_px_stages_and_levels_equal_the_reference(
    model: Yolact, forward: Golden, image550: Tensor
) -> None:
    with torch.inference_mode():
        check_stages(forward, "eval550", model, image550)


@pytest.mark.slow
def test_550_px_training_outputs_with_frozen_batch_norm_equal_the_reference(
    model: Yolact, forward: Golden, image550: Tensor
) -> None:
    network = copy.deepcopy(model).train()
    freeze_batch_norm(network)
    with torch.inference_mode():
        outputs = network(image550)
    check(forward, "trainfrozen550", outputs)
    forward.check("trainfrozen550.segm", outputs.segm, **TOLERANCE)


def test_138_px_outputs_equal_the_reference_everywhere(
    small: Yolact, forward: Golden, image138: Tensor
) -> None:
    with torch.inference_mode():
        outputs = InferenceModel(small)(image138)
        check_stages(forward, "eval_small", small, image138)
    for name in OUTPUTS:
        np.testing.assert_allclose(
            getattr(outputs, name), forward[f"eval_small.{name}"], atol=3e-4, rtol=1e-3
        )
    np.testing.assert_array_equal(outputs.priors, forward["eval_small.priors"])


def test_138_px_training_outputs_with_frozen_batch_norm_equal_the_reference(
    small: Yolact, forward: Golden, image138: Tensor
) -> None:
    network = copy.deepcopy(small).train()
    freeze_batch_norm(network)
    outputs = network(image138)
    check(forward, "trainfrozen_small", detached(outputs))
    forward.check("trainfrozen_small.segm", outputs.segm.detach(), **TOLERANCE)


def test_training_on_batch_statistics_equals_the_reference_and_moves_the_running_ones_alike(
    small: Yolact, forward: Golden, image138: Tensor
) -> None:
    network = copy.deepcopy(small).train()
    outputs = network(torch.cat([image138, 0.5 * image138.flip(3)]))
    check(forward, "trainbn_small", detached(outputs))
    forward.check("trainbn_small.segm", outputs.segm.detach(), **TOLERANCE)
    state = network.state_dict()
    prefix = "trainbn_small.after."
    buffers = [key for key in forward.arrays.files if key.startswith(prefix)]
    assert buffers
    for key in buffers:
        np.testing.assert_allclose(
            state[key.removeprefix(prefix)], forward[key], atol=1e-5, rtol=1e-4, err_msg=key
        )


def test_non_square_outputs_equal_the_reference(small: Yolact, forward: Golden) -> None:
    image = torch.from_numpy(forward["rect.input"])
    with torch.inference_mode():
        check(forward, "eval_rect", InferenceModel(small)(image))
        check_stages(forward, "eval_rect", small, image)


def detached(outputs: NetworkOutputs) -> NetworkOutputs:
    return NetworkOutputs(*(value.detach() for value in outputs if value is not None))
