"""The loss of a batch: difficult batches stay finite, targets stay untouched, order is free."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from yolact.config import LossConfig, ModelConfig
from yolact.loss.criterion import Losses, Objective, Supervised, YolactLoss
from yolact.model.priors import make_priors
from yolact.types import NetworkOutputs, Target

CLASSES, PROTOTYPES, SIDE = 6, 8, 64
HEADS = ("loc", "conf", "mask", "proto", "segm")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
LOSS = YolactLoss(LossConfig())


def priors() -> Tensor:
    config = ModelConfig(image_size=SIDE, prior_base_size=SIDE, prior_scales=(8, 14, 24, 40, 60))
    return make_priors([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], config)


def outputs(batch: int, seed: int = 0, scale: float = 1.0, device: str = "cpu") -> NetworkOutputs:
    generator = torch.Generator().manual_seed(seed)
    anchors = priors()

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    learned = [
        normal(batch, len(anchors), 4),
        normal(batch, len(anchors), 1 + CLASSES),
        normal(batch, len(anchors), PROTOTYPES).tanh(),
        normal(batch, 16, 16, PROTOTYPES).relu(),
        normal(batch, CLASSES, 8, 8),
    ]
    loc, conf, mask, proto, segm = (x.to(device).requires_grad_() for x in learned)
    return NetworkOutputs(loc, conf, mask, anchors.to(device), proto, segm)


def target(boxes: Sequence[Sequence[float]], crowd: Sequence[int] = ()) -> Target:
    """Objects that fill their boxes; class i % 6."""
    corners = torch.tensor(boxes).reshape(-1, 4)
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, box in zip(masks, (corners * SIDE).round().long().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    is_crowd = torch.zeros(len(boxes), dtype=torch.bool)
    is_crowd[list(crowd)] = True
    return Target(corners, torch.arange(len(boxes)) % CLASSES, masks, is_crowd)


def grid(count: int) -> Target:
    """``count`` squared touching objects."""
    step = 1 / count
    return target(
        [
            [x * step, y * step, (x + 1) * step, (y + 1) * step]
            for y in range(count)
            for x in range(count)
        ]
    )


TWO = target([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9]])
WITH_CROWD = target([[0.1, 0.1, 0.5, 0.6], [0.3, 0.0, 1.0, 1.0]], crowd=[1])
EMPTY = target([])
CROWD_ONLY = target([[0.1, 0.1, 0.9, 0.9]], crowd=[0])
NO_AREA = target([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.8]])
MANY = grid(11)
DIFFICULT = {
    "no object": [EMPTY, EMPTY],
    "one image without object": [TWO, EMPTY],
    "only crowds": [CROWD_ONLY, CROWD_ONLY],
    "crowds and nothing": [CROWD_ONLY, EMPTY],
    "boxes without area": [NO_AREA, NO_AREA],
    "boxes with and without area": [NO_AREA, TWO],
    "121 objects": [MANY, MANY],
    "more objects than prototype pixels": [grid(17), TWO],
    "very thin": [target([[0.3, 0.1, 0.3002, 0.9]]), TWO],
}


def images(predicted: NetworkOutputs, rows: list[int]) -> NetworkOutputs:
    """Those images of a batch, in that order."""
    chosen = {head: getattr(predicted, head)[rows] for head in HEADS}
    return predicted._replace(**chosen)


def backward(losses: Losses) -> None:
    losses.total.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DIFFICULT)
def test_difficult_batches_are_finite_and_every_head_gets_a_gradient(
    name: str, device: str
) -> None:
    predicted = outputs(2, device=device)
    losses = LOSS(predicted, DIFFICULT[name])
    backward(losses)
    for term, value in losses._asdict().items():
        assert value.isfinite() and value >= 0, term
    for head in HEADS:
        gradient = getattr(predicted, head).grad
        assert gradient is not None and gradient.isfinite().all(), head


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_huge_outputs_cost_a_finite_amount_with_a_finite_gradient(scale: float) -> None:
    predicted = outputs(2, scale=scale)
    losses = LOSS(predicted, [TWO, WITH_CROWD])
    backward(losses)
    assert losses.total.isfinite()
    assert all(getattr(predicted, head).grad.isfinite().all() for head in HEADS)


def test_without_objects_only_the_semantic_term_costs_anything() -> None:
    losses = LOSS(outputs(2), [EMPTY, CROWD_ONLY])
    assert losses.box == losses.classification == losses.mask == 0
    assert losses.semantic == losses.total > 0


def test_the_order_of_the_images_does_not_matter() -> None:
    predicted, targets, order = outputs(3), [TWO, EMPTY, WITH_CROWD], [2, 0, 1]
    shuffled = LOSS(images(predicted, order), [targets[i] for i in order])
    assert_close(shuffled, LOSS(predicted, targets))


def test_the_order_of_the_objects_does_not_matter() -> None:
    predicted = outputs(1)
    turned = Target(*(field.flip(0) for field in TWO))
    assert_close(LOSS(predicted, [turned]), LOSS(predicted, [TWO]))


def test_what_a_crowd_looks_like_and_its_class_do_not_matter() -> None:
    predicted = outputs(1)
    labels, masks = WITH_CROWD.labels.clone(), WITH_CROWD.masks.clone()
    labels[1], masks[1] = -1, 0
    other = WITH_CROWD._replace(labels=labels, masks=masks)
    assert_close(LOSS(predicted, [other]), LOSS(predicted, [WITH_CROWD]))


def test_targets_stay_as_they_are_and_a_second_call_costs_the_same() -> None:
    targets = [WITH_CROWD, NO_AREA, TWO]
    before = [Target(*(field.clone() for field in item)) for item in targets]
    predicted = outputs(3)
    first = LOSS(predicted, targets)
    assert_close(LOSS(predicted, targets), first, atol=0, rtol=0)
    for item, copy in zip(targets, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(item, copy, strict=True))


def test_a_copied_image_changes_no_term() -> None:
    predicted = outputs(1)
    assert_close(LOSS(images(predicted, [0, 0]), [TWO, TWO]), LOSS(predicted, [TWO]))


def test_weights_scale_their_terms() -> None:
    config = LossConfig(box_weight=3.0, class_weight=2.0, mask_weight=12.25, semantic_weight=0.5)
    predicted = outputs(2)
    plain, weighted = LOSS(predicted, [TWO, EMPTY]), YolactLoss(config)(predicted, [TWO, EMPTY])
    ratios = [(b / a).item() for a, b in zip(plain, weighted, strict=True)]
    assert ratios == pytest.approx([2, 2, 2, 0.5])


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_outputs_under_autocast_are_compared_in_float32(device: str) -> None:
    wide = outputs(2, device=device)
    halves = [None if x is None else x.detach().bfloat16() for x in wide]
    rounded = NetworkOutputs._make(halves)._replace(priors=wide.priors)
    exact = NetworkOutputs._make(None if x is None else x.float() for x in rounded)
    with torch.autocast(device, dtype=torch.bfloat16):
        losses = LOSS(rounded, [TWO, WITH_CROWD])
    assert all(term.dtype == torch.float32 for term in losses)
    assert_close(losses, LOSS(exact, [TWO, WITH_CROWD]))


def test_learning_from_ground_truth_alone_is_the_loss_of_what_the_network_computes() -> None:
    predicted, targets = outputs(2), [TWO, EMPTY]
    objective: Objective = Supervised(LOSS)
    network = Answering(predicted)
    objective.set_epoch(3.5)
    assert objective(network, torch.zeros(2, 3, SIDE, SIDE), targets) == LOSS(predicted, targets)
    counted = objective.criterion.count_positives(predicted.priors, targets)
    assert counted[0] > 0 and counted[1] == 0
    assert objective.teacher_name is None and objective.own_parameters == []
    assert objective.state() is None
    objective.load_state(None)


class Answering(nn.Module):
    """A network that has one answer for everything."""

    def __init__(self, answer: NetworkOutputs) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> NetworkOutputs:
        return self.answer


def test_outputs_of_evaluation_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the outputs of training mode"):
        LOSS(outputs(1)._replace(segm=None), [TWO])


def test_another_number_of_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="2 images, but 1 targets"):
        LOSS(outputs(2), [TWO])
