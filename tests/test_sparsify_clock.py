"""Loop and recipe agree on what an epoch is, at every step and for awkward numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolact.data.loader import EpochBatches
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import load_recipe
from yolact.training.start import Plan, make_plan

pytestmark = pytest.mark.usefixtures("recipe_engine")

TENTHS = st.integers(1, 25).map(lambda tenths: tenths / 10)


def plan_of(images: int, batch: int, accumulate: int, epochs: float) -> Plan:
    """As the train command makes it."""
    return make_plan(
        batches_per_epoch=len(EpochBatches(images, batch)),
        accumulate=accumulate,
        max_iter=100,
        epochs=epochs,
    )


def begin(
    recipe: str, step: int, per_epoch: int
) -> tuple[RecipeDriver, nn.Sequential, torch.optim.SGD]:
    """A driver at a step of a run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 10, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    driver = RecipeDriver(load_recipe(recipe))
    driver.start(model, optimizer, step / per_epoch, per_epoch)
    return driver, model, optimizer


def zeros_of(model: nn.Module) -> int:
    """Zeros among its 20 weights."""
    return int(model.get_parameter("0.weight").eq(0).sum())


def due(epoch: float, per_epoch: int) -> int:
    """The first step that begins at ``epoch`` or later, by exact arithmetic in tenths."""
    return -(-round(epoch * 10) * per_epoch // 10)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 12),
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    more=st.sampled_from([0.0, 0.1, 0.5, 1.3]),
    window=st.tuples(TENTHS, TENTHS).filter(lambda w: w[0] != w[1]).map(sorted),
)
def test_what_a_recipe_times_in_epochs_happens_at_the_loops_step(
    images: int, batch: int, accumulate: int, more: float, window: list[float]
) -> None:
    start, end = window
    length = round(end + more, 1)
    recipe = (
        f"- !EpochRangeModifier {{start_epoch: 0, end_epoch: {length}}}\n"
        f"- !SetWeightDecayModifier {{start_epoch: {start}, weight_decay: 0.25}}\n"
        f"- !LearningRateFunctionModifier {{start_epoch: {start}, end_epoch: {end}, "
        "lr_func: linear, init_lr: 0.1, final_lr: 0.0}\n"
        f"- !GMPruningModifier {{start_epoch: {start}, end_epoch: {end}, update_frequency: -1, "
        "init_sparsity: 0.2, final_sparsity: 0.8, inter_func: linear, params: ['0.weight']}\n"
    )
    assert RecipeDriver(load_recipe(recipe)).max_epochs == length
    plan = plan_of(images, batch, accumulate, length)
    per_epoch = plan.steps_per_epoch
    assert abs(plan.total_steps - length * per_epoch) <= max(0.5, 1 - length * per_epoch)
    driver, model, optimizer = begin(recipe, 0, per_epoch)
    for step in range(plan.total_steps):
        clock = step / per_epoch
        driver.before_forward(model, optimizer, clock)
        driver.before_step(model, optimizer, clock)
        driver.after_step(model, optimizer, clock)
        group, done = optimizer.param_groups[0], min((clock - start) / (end - start), 1.0)
        begun = step >= due(start, per_epoch)
        assert (group["weight_decay"] == 0.25) == begun
        assert group["lr"] == pytest.approx(0.1 * (1 - done) if begun else 0.5)
        zeros = zeros_of(model)
        assert abs(zeros - 20 * (0.2 + 0.6 * done)) <= 0.51 if begun else zeros == 0
        if step >= due(end, per_epoch):
            assert (group["lr"], zeros) == (0.0, 16)
        if step % 3:
            continue
        again, _, other = begin(recipe, step + 1, per_epoch)  # a run resumed after this step
        assert other.param_groups[0]["lr"] == pytest.approx(group["lr"])
        for one, two in zip(driver.manager.modifiers, again.manager.modifiers, strict=True):
            assert (one.started, one.ended) == (two.started, two.ended)
    driver.finish(model)
    if plan.total_steps >= due(end, per_epoch):  # also if the window lies within the last step
        assert zeros_of(model) == 16


def test_seven_images_two_a_batch_two_batches_a_step() -> None:
    plan = plan_of(7, 2, 2, 2.5)
    assert (plan.batches_per_epoch, plan.steps_per_epoch, plan.total_steps) == (3, 2, 5)
    assert [plan.batch_of(step) for step in range(5)] == [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0)]
    assert math.isclose((plan.total_steps) / plan.steps_per_epoch, 2.5)
