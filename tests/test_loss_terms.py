"""The four terms, with numbers that can be derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from yolact.loss.criterion import (
    box_loss,
    classification_loss,
    hard_negatives,
    mask_loss,
    semantic_loss,
    semantic_target,
)
from yolact.ops.boxes import center_to_corner

LN2 = math.log(2)
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize(("error", "cost"), [(0.0, 0.0), (0.5, 0.5), (1.0, 2.0), (3.0, 10.0)])
def test_a_box_costs_the_square_of_small_errors_and_the_size_of_large_ones(
    error: float, cost: float
) -> None:
    priors = torch.tensor([[0.5, 0.5, 0.25, 0.25]])  # encodes its own box as zeros
    loss = box_loss(torch.full((1, 4), error), center_to_corner(priors), priors)
    assert_close(loss, torch.tensor(cost))


def test_equal_logits_cost_the_log_of_the_number_of_classes_for_four_priors_per_positive() -> None:
    classes = torch.tensor([[3, 0, 0, 0, 0, 0, -1]])
    loss = classification_loss(torch.zeros(1, 7, 5), classes, negatives_per_positive=3)
    assert_close(loss, torch.tensor(4 * math.log(5)))


def test_negatives_are_the_priors_that_look_least_like_background() -> None:
    logits = torch.zeros(1, 6, 2)
    logits[0, :, 0] = torch.tensor([9.0, 1.0, 5.0, -3.0, 7.0, 2.0])
    classes = torch.tensor([[1, 0, 0, -1, 0, 0]])  # prior 3 is hardest, but neutral
    chosen = hard_negatives(logits, classes, per_positive=2)
    assert chosen[0].nonzero()[:, 0].tolist() == [1, 5]


def test_each_image_mines_its_own_negatives() -> None:
    classes = torch.zeros(3, 20, dtype=torch.long)
    classes[0, :2] = 1
    classes[1, :1] = 1
    chosen = hard_negatives(torch.randn(3, 20, 4), classes, per_positive=3)
    assert chosen.sum(dim=1).tolist() == [6, 3, 0]


def test_too_few_background_priors_are_all_used_and_no_others() -> None:
    classes = torch.tensor([[1, 2, 0, -1, -1]])
    chosen = hard_negatives(torch.randn(1, 5, 4), classes, per_positive=3)
    assert chosen.tolist() == [[False, False, True, False, False]]


def test_a_row_far_below_the_batch_maximum_is_still_ranked() -> None:
    logits = torch.zeros(1, 4, 2)
    logits[0, 0] = 1000.0
    logits[0, 3, 1] = 1.0  # hardest of the rows that a batch-wide maximum would flush to -inf
    chosen = hard_negatives(logits, torch.tensor([[1, 0, 0, 0]]), per_positive=1)
    assert chosen[0].nonzero()[:, 0].tolist() == [3]


def test_zero_mask_logits_cost_ln_2_per_window_pixel_over_the_area_of_the_box() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    loss = mask_loss(
        torch.zeros(4, 4, 8),
        torch.ones(2, 8),
        boxes,
        torch.zeros(2, 4, 4, dtype=torch.bool),
        objects=torch.arange(2),
        limit=100,
    )
    left = LN2 * 12 / 8  # 2 x 4 pixels and one column of padding; the image ends on the other side
    assert_close(loss, torch.tensor(left + LN2))


@pytest.mark.parametrize(("logit", "cost"), [(20.0, 100.0), (3.0, math.log1p(math.exp(3)))])
def test_a_wrong_pixel_costs_the_published_amount_and_always_has_a_gradient(
    logit: float, cost: float
) -> None:
    prototypes = torch.full((1, 1, 1), logit, requires_grad=True)
    absent = torch.zeros(1, 1, 1, dtype=torch.bool)
    loss = mask_loss(prototypes, torch.ones(1, 1), WHOLE, absent, torch.tensor([0]), limit=100)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss, torch.tensor(cost), rtol=1e-5, atol=1e-5)
    assert prototypes.grad is not None
    assert prototypes.grad.item() == pytest.approx(1 / (1 + math.exp(-logit)))


def test_the_gradients_of_the_mask_term_are_the_derivatives_of_its_value() -> None:
    generator = torch.Generator().manual_seed(2)
    prototypes = torch.rand(5, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    coefficients = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.3, 0.1, 0.5, 0.6]], dtype=torch.float64)
    masks = torch.rand(2, 5, 4, generator=generator) > 0.5  # also outside the second box
    rows = torch.tensor([0, 1, 1, 0])

    def cost(prototypes: Tensor, coefficients: Tensor) -> Tensor:
        return mask_loss(prototypes, coefficients, boxes, masks, rows, limit=100)

    assert torch.autograd.gradcheck(cost, (prototypes, coefficients))


def test_a_sample_of_the_positives_stands_for_all() -> None:
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.rand(6, 6, 4, generator=generator)
    same = torch.rand(1, 4, generator=generator).expand(250, 4)
    masks = torch.rand(1, 6, 6, generator=generator) > 0.5
    rows = torch.zeros(250, dtype=torch.long)
    everything = mask_loss(prototypes, same, WHOLE, masks, rows, limit=1000)
    sample = mask_loss(prototypes, same, WHOLE, masks, rows, limit=100)
    assert_close(sample, everything)


def test_the_sample_follows_torchs_global_generator() -> None:
    generator = torch.Generator().manual_seed(4)
    prototypes = torch.rand(6, 6, 4, generator=generator)
    coefficients = torch.randn(30, 4, generator=generator)
    masks = torch.rand(1, 6, 6, generator=generator) > 0.5
    rows = torch.zeros(30, dtype=torch.long)

    def loss() -> float:
        return mask_loss(prototypes, coefficients, WHOLE, masks, rows, limit=5).item()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torch.get_rng_state()
        first, second = loss(), loss()
        torch.set_rng_state(state)
        assert (loss(), loss()) == (first, second)
        assert first != second


def test_zero_semantic_logits_cost_ln_2_per_class() -> None:
    target = (torch.rand(2, 7, 3, 3) > 0.5).float()
    assert_close(semantic_loss(torch.zeros(2, 7, 3, 3), target), torch.tensor(7 * LN2))


def test_masks_of_one_class_are_united_and_classes_may_overlap() -> None:
    masks = torch.zeros(3, 1, 4, dtype=torch.bool)
    masks[0, 0, :2] = masks[1, 0, 1:3] = masks[2, 0, 2:] = True
    target = semantic_target(masks, torch.tensor([1, 1, 0]), num_classes=3)
    assert target[:, 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
