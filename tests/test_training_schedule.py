"""Learning rates of the published schedule, and the arithmetic of epochs and steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import GoldenSet
from yolact.optim_config import OptimConfig
from yolact.training.start import Plan, make_plan

PUBLISHED = OptimConfig()


def test_learning_rates_are_the_published_ones_at_every_batch_size(golden: GoldenSet) -> None:
    for case in golden.json("config.json")["lr_schedule"]:
        optim = PUBLISHED.autoscaled(case["batch_size"])
        assert (optim.lr, optim.max_iter, list(optim.lr_steps)) == (
            case["lr"],
            case["max_iter"],
            case["lr_steps"],
        )
        assert (optim.warmup_init, optim.warmup_until) == (
            case["warmup_init"],
            case["warmup_until"],
        )
        for iteration, lr in case["lr_at"]:
            assert optim.lr_at(iteration) == pytest.approx(lr, rel=1e-12), iteration


def test_autoscaling_to_the_published_batch_size_changes_nothing() -> None:
    assert PUBLISHED.autoscaled(8) == PUBLISHED


def test_warm_up_can_be_turned_off() -> None:
    assert replace(PUBLISHED, warmup_until=0).lr_at(0) == PUBLISHED.lr


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_fitted_schedule_starts_low_and_never_rises_after_its_warm_up(
    steps: int, iteration: int
) -> None:
    optim = PUBLISHED.fitted(steps)
    iteration %= steps
    lr = optim.lr_at(iteration)
    assert 0 < lr <= optim.lr
    if iteration >= optim.warmup_until:
        assert optim.lr_at(iteration + 1) <= lr
    assert optim.lr_at(0) == (optim.warmup_init if optim.warmup_until else optim.lr)


@given(st.integers(2, 10**6), st.integers(1, 256), st.integers(0, 10**6))
def test_a_cosine_falls_from_the_warm_up_to_zero_at_every_length_and_batch_size(
    steps: int, batch_size: int, iteration: int
) -> None:
    optim = replace(PUBLISHED, schedule="cosine").autoscaled(batch_size).fitted(steps)
    first = optim.warmup_until
    assert optim.lr_at(first) == pytest.approx(optim.lr)
    assert optim.lr_at(steps) == 0
    middle = first + (steps - first) / 2
    low, high = optim.lr_at(math.ceil(middle)), optim.lr_at(math.floor(middle))
    assert low <= optim.lr / 2 * (1 + 1e-9) and high >= optim.lr / 2 * (1 - 1e-9)
    step = first + iteration % (steps - first)
    assert 0 <= optim.lr_at(step + 1) < optim.lr_at(step) or step == first == 0
    if first:
        assert optim.lr_at(0) == optim.warmup_init


def test_a_cosine_without_a_given_length_ends_with_the_configurations() -> None:
    optim = replace(PUBLISHED, schedule="cosine").autoscaled(16)
    assert optim.lr_at(optim.max_iter) == 0 < optim.lr_at(optim.max_iter - 1)
    assert replace(PUBLISHED, schedule="cosine", max_iter=100).lr_at(200) > 0, "all warm-up"


@given(st.integers(1, 10**6))
def test_fitting_keeps_the_fractions_of_the_run(steps: int) -> None:
    optim = PUBLISHED.fitted(steps)
    assert optim.max_iter == steps
    assert optim.warmup_until <= steps / 10
    for fit, step in zip(optim.lr_steps, PUBLISHED.lr_steps, strict=True):
        exact = step * steps / PUBLISHED.max_iter
        assert exact - 1e-6 <= fit < exact + 1


def test_fitting_to_the_schedules_own_length_changes_nothing() -> None:
    assert PUBLISHED.fitted(PUBLISHED.max_iter) == PUBLISHED


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 500))
def test_steps_use_every_batch_of_an_epoch_once_and_in_order(
    batches: int, accumulate: int, steps: int
) -> None:
    plan = Plan(batches_per_epoch=batches, accumulate=accumulate, total_steps=steps)
    expected_epoch, next_batch = 0, 0
    for step in range(steps):
        epoch, batch = plan.batch_of(step)
        if next_batch >= batches:
            expected_epoch, next_batch = expected_epoch + 1, 0
        assert (epoch, batch) == (expected_epoch, next_batch)
        next_batch += accumulate
    assert plan.epochs == expected_epoch + 1


@given(st.integers(1, 10**5), st.integers(1, 8), st.integers(1, 100))
def test_whole_epochs_are_whole(batches: int, accumulate: int, epochs: int) -> None:
    plan = make_plan(
        batches_per_epoch=batches, accumulate=accumulate, max_iter=1, epochs=float(epochs)
    )
    assert plan.total_steps == epochs * math.ceil(batches / accumulate)
    assert plan.epochs == epochs
    assert plan.batch_of(plan.total_steps) == (epochs, 0)


def test_a_run_without_epochs_takes_max_iter_steps() -> None:
    plan = make_plan(batches_per_epoch=10, accumulate=1, max_iter=25, epochs=None)
    assert (plan.total_steps, plan.steps_per_epoch, plan.epochs) == (25, 10, 3)


def test_a_fraction_of_an_epoch_takes_at_least_one_step() -> None:
    plan = make_plan(batches_per_epoch=10, accumulate=1, max_iter=25, epochs=0.01)
    assert plan.total_steps == 1
    assert make_plan(batches_per_epoch=10, accumulate=1, max_iter=9, epochs=1.5).total_steps == 15
