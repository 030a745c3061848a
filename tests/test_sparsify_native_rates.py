"""Learning rates and weight decay of the native engine: those of sparseml, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer

from recipe_engines import needs_sparseml
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry
from yolact.sparsify.engine import Manager
from yolact.sparsify.recipe_engines import recipe_engine

Rates = list[tuple[float, float]]
"""Learning rate and weight decay of each group."""


def manager_of(engine: EngineName, entries: Sequence[Entry]) -> Manager:
    maker = recipe_engine(engine)
    return maker.manager({"": [maker.build(entry) for entry in entries]})


def two_groups() -> tuple[nn.Module, Optimizer]:
    model = nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias]}]
    return model, torch.optim.SGD(groups, lr=0.9, weight_decay=0.8)


def rates(optimizer: Optimizer) -> Rates:
    return [(float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups]


def course(
    engine: EngineName,
    entries: Sequence[Entry],
    steps: int,
    per_epoch: int,
    begin: tuple[int, Rates] = (0, []),
) -> list[Rates]:
    """Rates of every step, from the first one or from where another run stopped."""
    (model, optimizer), manager, (first, saved) = two_groups(), manager_of(engine, entries), begin
    manager.start(model, optimizer, first, per_epoch, None)
    for group, (lr, decay) in zip(optimizer.param_groups, saved, strict=False):
        group.update(lr=lr, weight_decay=decay)  # the optimizer's state comes from a checkpoint
    seen = []
    for step in range(first, steps):
        manager.before_forward(model, optimizer, step / per_epoch)
        seen.append(rates(optimizer))
        manager.before_step(model, optimizer, step / per_epoch)
        optimizer.step()
        manager.after_step(model, optimizer, step / per_epoch)
    manager.finish(model, steps / per_epoch)
    return seen


def assert_same(mine: list[Rates], theirs: list[Rates]) -> None:
    for step, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-12, rel=1e-12), f"step {step}: {one} {other}"


LENGTH = 4
"""Epochs of a run."""
EPOCH = st.integers(0, 13 * LENGTH).map(lambda n: n / 13)
"""Which need not fall on a step."""
RATE = st.sampled_from([0.001, 0.03, 0.1, 1.0])
GROUPS = st.sampled_from([None, [], [0], [1], [0, 1]])


@st.composite
def functions(draw: st.DrawFn, start: float, end: float) -> Entry:
    fields: dict[str, Any] = {
        "lr_func": draw(st.sampled_from(["linear", "cosine", "cyclic_linear"])),
        "init_lr": draw(st.sampled_from([0.0, 0.02, 0.1])),
        "final_lr": draw(st.sampled_from([0.0, 0.001, 0.3])),
        "cycle_epochs": draw(st.sampled_from([0.1, 0.4, 1, 2.5])),
        "param_groups": draw(GROUPS),
    }
    return Entry("LearningRateFunctionModifier", {**fields, "start_epoch": start, "end_epoch": end})


@st.composite
def schedulers(draw: st.DrawFn, start: float, end: float) -> Entry:
    gamma = {"gamma": draw(st.sampled_from([0.1, 0.5, 0.97, 1.3]))}
    begin = max(start, 0)
    inside = st.floats(0.05, 0.95).map(lambda x: begin + x * (end - begin))
    kind, options = draw(
        st.sampled_from(
            [
                ("StepLR", {**gamma, "step_size": draw(st.sampled_from([0.1, 0.5, 1, 1.5]))}),
                ("MultiStepLR", {**gamma, "milestones": draw(st.lists(inside, max_size=3))}),
                ("ExponentialLR", gamma),
                (
                    "CosineAnnealingWarmRestarts",
                    {
                        "lr_min": draw(st.sampled_from([0, 0.0005])),
                        "cycle_epochs": draw(st.sampled_from([1, 2.0])),
                        **draw(st.sampled_from([{}, {"T_mult": 1}, {"T_mult": 2}])),
                    },
                ),
            ]
        )
    )
    fields = {"lr_class": kind, "lr_kwargs": options, "init_lr": draw(RATE)}
    last = draw(st.booleans()) and end == LENGTH
    window = {"start_epoch": start} if last else {"start_epoch": start, "end_epoch": end}
    return Entry("LearningRateModifier", {**fields, **window})


@st.composite
def schedules(draw: st.DrawFn, per_epoch: int) -> list[Entry]:
    """Modifiers that set the learning rate after each other, and some of weight decay.

    A rate that is set once has a step of its own: what happens when another schedule begins in the
    same step, no recipe can mean.
    """
    cuts = sorted({*draw(st.lists(EPOCH, max_size=3)), draw(EPOCH), LENGTH})
    found = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        once = ["once"] if end - start > 1 / per_epoch else []
        kind = draw(st.sampled_from(["function", "scheduler", *once]))
        begin = -1 if start == 0 and draw(st.booleans()) else start
        if kind == "once":
            fields = {"learning_rate": draw(RATE), "param_groups": draw(GROUPS)}
            found.append(Entry("SetLearningRateModifier", {**fields, "start_epoch": begin}))
        else:
            found.append(draw((functions if kind == "function" else schedulers)(begin, end)))
    for start in draw(st.lists(EPOCH, max_size=2, unique=True)):
        decay = {"weight_decay": draw(st.sampled_from([0, 0.01])), "param_groups": draw(GROUPS)}
        found.append(Entry("SetWeightDecayModifier", {**decay, "start_epoch": start}))
    return found


@needs_sparseml
@given(st.integers(1, 7), st.data())
@settings(max_examples=30, deadline=None)
def test_rates_are_those_of_sparseml_at_every_step(per_epoch: int, data: st.DataObject) -> None:
    entries = data.draw(schedules(per_epoch).filter(bool))
    steps = LENGTH * per_epoch + 2
    assert_same(
        course("native", entries, steps, per_epoch), course("sparseml", entries, steps, per_epoch)
    )


@given(st.integers(1, 7), st.data())
@settings(max_examples=30, deadline=None)
def test_a_run_that_resumes_anywhere_has_the_rates_of_one_that_did_not_stop(
    per_epoch: int, data: st.DataObject
) -> None:
    entries = data.draw(schedules(per_epoch).filter(bool))
    steps = LENGTH * per_epoch + 2
    whole = course("native", entries, steps, per_epoch)
    stop = data.draw(st.integers(1, steps - 1))
    rest = course("native", entries, steps, per_epoch, (stop, whole[stop - 1]))
    assert_same(rest, whole[stop:])
