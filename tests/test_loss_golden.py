"""Target assignment, the four terms and their gradients against the original implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import SEED, Golden, GoldenSet, unit
from yolact.config import LossConfig
from yolact.loss.criterion import Losses, YolactLoss, hard_negatives
from yolact.loss.matching import Matches, Objects, learnable, match
from yolact.ops.boxes import encode
from yolact.types import NetworkOutputs, Target

TERMS = {"box": "B", "classification": "C", "mask": "M", "semantic": "S"}
LEARNED = ("loc", "conf", "mask", "proto", "segm")
FULL_SIZE, SMALL_SIZE = ((138, 138), (69, 69)), ((40, 40), (20, 20))
"""Of prototypes and of the semantic output."""
UNIFORM_SCALE = {"loc": 1.5, "conf": 3.0, "mask": 1.0, "proto": 2.0, "segm": 4.0}


@pytest.fixture(scope="module")
def reference(golden: GoldenSet) -> Golden:
    return golden.npz("loss.npz")


def target_of(reference: Golden, case: str, image: int) -> Target:
    rows = torch.from_numpy(reference[f"{case}.in.target.{image}"])
    crowds = int(reference[f"{case}.in.num_crowds.{image}"])
    crowd = torch.arange(len(rows)) >= len(rows) - crowds
    packed = f"{case}.in.masks_packed.{image}"
    if packed in reference:
        n, height, width = reference[f"{case}.in.masks_shape.{image}"]
        bits = np.unpackbits(reference[packed], axis=1)[:, : height * width]
        masks = torch.from_numpy(bits.reshape(n, height, width))
    else:
        masks = torch.zeros((len(rows), 1, 1), dtype=torch.uint8)
    return Target(rows[:, :4].clone(), rows[:, 4].long(), masks, crowd)


def priors_of(reference: Golden, case: str) -> Tensor:
    if f"{case}.in.priors" in reference:
        return torch.from_numpy(reference[f"{case}.in.priors"])
    priors = Golden(reference.path.with_name("priors.npz"))
    return torch.from_numpy(priors["priors_in550_max550"])


def outputs_of(reference: Golden, case: str) -> NetworkOutputs:
    priors = priors_of(reference, case)
    stored = {name: f"{case}.in.{name}_q1024" for name in LEARNED}
    if stored["loc"] in reference:
        scale = np.float32(1024)
        values = {name: reference[key].astype(np.float32) / scale for name, key in stored.items()}
    else:
        grid, segm = SMALL_SIZE if f"{case}.in.priors" in reference else FULL_SIZE
        shapes: dict[str, tuple[int, ...]] = {
            "loc": (2, len(priors), 4),
            "conf": (2, len(priors), 81),
            "mask": (2, len(priors), 32),
            "proto": (2, *grid, 32),
            "segm": (2, 80, *segm),
        }
        values = {
            name: unit(f"loss.{case}.{name}", shape, SEED).astype(np.float32)
            * np.float32(UNIFORM_SCALE[name])
            for name, shape in shapes.items()
        }
        values["proto"] = np.maximum(values["proto"], 0)
    tensors = {k: torch.from_numpy(v).requires_grad_() for k, v in values.items()}
    return NetworkOutputs(priors=priors, **tensors)


def run(reference: Golden, case: str) -> tuple[NetworkOutputs, Losses]:
    outputs = outputs_of(reference, case)
    targets = [target_of(reference, case, image) for image in range(2)]
    losses = YolactLoss(LossConfig())(outputs, targets)
    losses.total.backward()  # type: ignore[no-untyped-call]
    return outputs, losses


def matched(reference: Golden, case: str, image: int) -> tuple[Matches, Objects, Tensor]:
    priors = priors_of(reference, case)
    objects = learnable(target_of(reference, case, image), priors.device)
    return match(objects, priors, LossConfig()), objects, priors


IMAGES = [(case, image) for case in ("L1", "L2", "L3", "L4", "L5") for image in range(2)]
IMAGES += [("M0", 0), ("M1", 0), ("M2", 0)]


@pytest.mark.parametrize(("case", "image"), IMAGES)
def test_every_prior_gets_the_role_it_has_in_the_reference(
    reference: Golden, case: str, image: int
) -> None:
    found, objects, priors = matched(reference, case, image)
    prefix = f"{case}.match.{image}"
    classes = torch.from_numpy(reference[f"{prefix}.conf_t"]).long()
    rows = torch.from_numpy(reference[f"{prefix}.idx_t"]).long()
    decided = torch.ones(len(priors), dtype=torch.bool)
    decided[torch.from_numpy(reference[f"{case}.tie_priors.{image}"]).long()] = False
    assert torch.equal(found.classes[decided], classes[decided])
    positive = decided & (classes > 0)
    assert torch.equal(found.objects[positive], rows[positive])
    index = torch.from_numpy(reference[f"{prefix}.pos_index"]).long()
    encoded = torch.from_numpy(reference[f"{prefix}.pos_loc_t"])
    same = decided[index]
    actual = encode(objects.boxes[found.objects[index]], priors[index])
    assert_close(actual[same], encoded[same], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["L1", "L2", "L3", "L4"])
def test_the_class_term_uses_the_same_priors_as_the_reference(reference: Golden, case: str) -> None:
    logits = outputs_of(reference, case).conf.detach()
    classes = torch.stack([matched(reference, case, image)[0].classes for image in range(2)])
    used = (classes > 0) | hard_negatives(logits, classes, 3)
    for image in range(2):
        expected = reference[f"{case}.conf_rows_used.{image}"]
        np.testing.assert_array_equal(used[image].nonzero()[:, 0].numpy(), np.sort(expected))


@pytest.mark.parametrize("case", ["L1", "L2", "L3", "L4"])
def test_terms_and_gradients_equal_the_reference(reference: Golden, case: str) -> None:
    outputs, losses = run(reference, case)
    for name, letter in TERMS.items():
        expected = float(reference[f"{case}.loss.{letter}"])
        assert getattr(losses, name).item() == pytest.approx(expected, rel=1e-5), name
    for name in LEARNED:
        gradient = getattr(outputs, name).grad
        largest = reference[f"{case}.grad.{name}.stats"][2]
        reference.check(f"{case}.grad.{name}", gradient, atol=1e-5 * largest + 1e-7, rtol=1e-3)


def test_crowded_images_with_tied_priors_cost_what_they_cost_in_the_reference(
    reference: Golden,
) -> None:
    outputs, losses = run(reference, "L5")
    for name, letter in TERMS.items():
        expected = float(reference[f"L5.loss.{letter}"])
        assert getattr(losses, name).item() == pytest.approx(expected, rel=0.03), name
    largest = reference["L5.grad.segm.stats"][2]
    assert outputs.segm is not None
    reference.check("L5.grad.segm", outputs.segm.grad, atol=1e-5 * largest + 1e-7, rtol=1e-3)


def test_a_saturated_wrong_mask_costs_what_it_costs_in_the_reference_and_can_recover(
    reference: Golden,
) -> None:
    outputs, losses = run(reference, "SAT")
    assert losses.mask.item() == pytest.approx(float(reference["SAT.loss.M"]), rel=1e-5)
    assert outputs.mask.grad is not None and outputs.mask.grad.abs().sum() > 0
