"""Values and freezing of parameters by the native engine: those of sparseml, at every step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipe_engines import ENGINES_HERE, needs_sparseml
from training import tiny_config
from yolact.model.yolact import Yolact
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry
from yolact.sparsify.native.matching import parameters_of
from yolact.sparsify.recipe_engines import recipe_engine

State = dict[str, tuple[bool, Tensor]]
"""Whether each parameter is trained, and its values."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))


def state(model: nn.Module) -> State:
    return {
        name: (parameter.requires_grad, parameter.detach().clone())
        for name, parameter in model.named_parameters()
    }


def course(
    engine: EngineName,
    entries: Sequence[Entry],
    steps: int,
    per_epoch: int,
    begin: tuple[int, State] | None = None,
) -> list[State]:
    """Parameters after every step, from the first one or from where another run stopped."""
    maker, model = recipe_engine(engine), network()
    first, saved = begin or (0, {})
    for name, (_, values) in saved.items():
        model.get_parameter(name).data.copy_(values)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = maker.manager({"": [maker.build(entry) for entry in entries]})
    manager.start(model, optimizer, first, per_epoch, None)
    seen = []
    for step in range(first, steps):
        manager.before_forward(model, optimizer, step / per_epoch)
        optimizer.zero_grad()
        if any(parameter.requires_grad for parameter in model.parameters()):
            model(torch.ones(2, 2)).square().sum().backward()
        manager.before_step(model, optimizer, step / per_epoch)
        optimizer.step()
        manager.after_step(model, optimizer, step / per_epoch)
        seen.append(state(model))
    manager.finish(model, steps / per_epoch)
    return seen


def assert_same(mine: list[State], theirs: list[State]) -> None:
    for step, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        assert {n: t for n, (t, _) in one.items()} == {n: t for n, (t, _) in other.items()}, step
        for name, (_, values) in one.items():
            assert torch.equal(values, other[name][1]), f"step {step}: {name}"


LENGTH = 4
EPOCH = st.integers(0, 13 * LENGTH).map(lambda n: n / 13)
VECTOR = st.sampled_from([[0.0, 0.0, 0.0], [1, 2, 3], [0.1, -0.2, 1e-3]])


@st.composite
def freezing(draw: st.DrawFn) -> Entry:
    start = draw(st.one_of(st.just(-1), EPOCH))
    params = [["re:0[.].*"], ["1.0.weight"], ["re:.*bias", "1.1.weight"], "__ALL__", [["0.bias"]]]
    return Entry(
        "TrainableParamsModifier",
        {
            "params": draw(st.sampled_from(params)),
            "trainable": draw(st.sampled_from([False, False, True, "false", "True"])),
            "start_epoch": start,
            "end_epoch": draw(st.one_of(st.just(-1), EPOCH.map(lambda e: max(e, start)))),
        },
    )


@st.composite
def values(draw: st.DrawFn) -> Entry:
    params = {"params": draw(st.sampled_from([["re:.*bias"], ["1.1.weight"]]))}
    start = draw(st.one_of(st.just(-1), EPOCH))
    if draw(st.booleans()):
        return Entry("SetParamModifier", {**params, "val": draw(VECTOR), "start_epoch": start})
    return Entry(
        "GradualParamModifier",
        {
            **{**params, "init_val": draw(VECTOR), "final_val": draw(VECTOR)},
            **{"start_epoch": start, "end_epoch": max(start, 0) + draw(EPOCH) + 0.05},
            "update_frequency": draw(st.sampled_from([-1, 0.1, 0.3, 1])),
            "inter_func": draw(st.sampled_from(["linear", "cubic", "inverse_cubic"])),
        },
    )


def order(entry: Entry) -> tuple[Any, ...]:
    return entry.name, entry.fields.get("start_epoch"), entry.fields.get("end_epoch")


MODIFIERS = st.lists(st.one_of(freezing(), values()), min_size=1, max_size=3, unique_by=order)
IN_TURNS = st.lists(freezing(), min_size=1, max_size=3, unique_by=order)
"""Of one kind, none begins and ends with another: only their hashes would say which comes first."""


@needs_sparseml
@given(MODIFIERS, st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_parameters_are_those_of_sparseml_at_every_step(
    entries: list[Entry], per_epoch: int
) -> None:
    steps = LENGTH * per_epoch + 2
    assert_same(
        course("native", entries, steps, per_epoch), course("sparseml", entries, steps, per_epoch)
    )


@given(st.one_of(IN_TURNS, values().map(lambda entry: [entry])), st.integers(1, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_that_resumes_anywhere_has_the_parameters_of_one_that_did_not_stop(
    entries: list[Entry], per_epoch: int, data: st.DataObject
) -> None:
    steps = LENGTH * per_epoch + 2
    whole = course("native", entries, steps, per_epoch)
    stop = data.draw(st.integers(1, steps - 1))
    saved = copy.deepcopy(whole[stop - 1])
    assert_same(course("native", entries, steps, per_epoch, (stop, saved)), whole[stop:])


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize(
    "fields",
    [
        {"params": ["1.9.weight"], "trainable": False},
        {"params": ["re:.*[.]weights"], "trainable": False},
    ],
)
def test_names_that_match_nothing_are_refused_if_strict(
    engine: EngineName, fields: dict[str, Any]
) -> None:
    def start(**more: Any) -> None:
        course(engine, [Entry("TrainableParamsModifier", {**fields, **more})], 1, 1)

    start(params_strict=False)
    with pytest.raises((ValueError, RuntimeError)):
        start()


def test_what_optimizers_hold_of_frozen_parameters_does_not_move_them() -> None:
    """Momentum would, if their gradients were zero and not absent."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    maker = recipe_engine("native")
    freeze = {"params": ["re:0[.].*"], "trainable": False, "start_epoch": 1, "end_epoch": 2}
    manager = maker.manager({"": [maker.build(Entry("TrainableParamsModifier", freeze))]})
    manager.start(model, optimizer, 0, 2, None)
    moved = []
    for step in range(6):
        before = model.get_parameter("0.weight").detach().clone()
        manager.before_forward(model, optimizer, step / 2)
        optimizer.zero_grad()
        model(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).square().sum().backward()
        optimizer.step()
        moved.append(not torch.equal(before, model.get_parameter("0.weight")))
    assert moved == [True, True, False, False, True, True]


SCHEMES = {
    "fused": {},
    "some not quantized": {"ignore": ["proto_net", "backbone.layers.1"]},
    "not fused": {"model_fuse_fn_name": "no_fuse"},
}


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize("fields", SCHEMES.values(), ids=SCHEMES)
def test_recipes_have_the_same_names_for_parameters_of_quantized_layers(
    engine: EngineName, fields: dict[str, Any]
) -> None:
    """And so a run that resumes when layers are quantized freezes what it froze before."""
    maker, model = recipe_engine(engine), Yolact(tiny_config().model).train()
    before = sorted(name for name, _ in model.named_parameters())
    quantize = maker.build(Entry("QuantizationModifier", {"start_epoch": 0, **fields}))
    maker.manager({"": [quantize]}).restructure(model, 0)
    assert sorted(name for name, _ in model.named_parameters()) != before
    assert sorted(original for _, original, _ in parameters_of(model)) == before


FREEZING = (
    Entry(
        "TrainableParamsModifier",
        {
            "params": ["re:backbone[.]layers[.]0.*", "backbone.layers.1.0.1.weight"],
            **{"trainable": False, "start_epoch": 0.5, "end_epoch": 2},
        },
    ),
    Entry("QuantizationModifier", {"start_epoch": 1}),
)


def frozen(engine: EngineName, begin: int = 0) -> list[set[str]]:
    """First names of the frozen parameters in every step of a run that quantizes, two an epoch."""
    maker, model = recipe_engine(engine), Yolact(tiny_config().model).train()
    if begin > 2:
        maker.manager({"": [maker.build(FREEZING[1])]}).restructure(model, (begin - 1) / 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = maker.manager({"": [maker.build(entry) for entry in FREEZING]})
    manager.start(model, optimizer, begin, 2, None)
    seen = []
    for step in range(begin, 5):
        manager.before_forward(model, optimizer, step / 2)
        seen.append({name for _, name, p in parameters_of(model) if not p.requires_grad})
    return seen


def test_parameters_stay_frozen_when_their_layers_are_quantized_and_when_a_run_resumes_then() -> (
    None
):
    whole = frozen("native")
    assert [len(names) for names in whole] == [0, 10, 10, 10, 0]
    assert [frozen("native", step) for step in (2, 3, 4)] == [whole[step:] for step in (2, 3, 4)]


@needs_sparseml
def test_sparseml_freezes_the_same_of_a_network_that_is_quantized() -> None:
    assert frozen("sparseml") == frozen("native")
