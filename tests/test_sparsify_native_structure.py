"""Channels and layers that the native engine removes: those that sparseml's manager removes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipe_engines import ENGINES_HERE, needs_sparseml
from training import tiny_config
from yolact.model.yolact import Yolact
from yolact.presets import LITE0
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.recipe_engines import recipe_engine
from yolact.sparsify.structure import apply_structure, removable_blocks

PER_EPOCH = 3
State = dict[str, Tensor]


@cache
def network() -> Yolact:
    torch.manual_seed(0)
    return Yolact(tiny_config().model)


def course(
    engine: EngineName, entries: Sequence[Entry], steps: int, stop: int | None = None
) -> tuple[list[State], list[str]]:
    """Weights after every step, and names of what the optimizer has; a run that stops resumes."""
    maker, model = recipe_engine(engine), copy.deepcopy(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    manager = maker.manager({"": [maker.build(entry) for entry in entries]})
    manager.start(model, optimizer, 0, PER_EPOCH, None)
    seen = []
    for step in range(steps):
        epoch = step / PER_EPOCH
        if step == stop:
            manager = maker.manager({"": [maker.build(entry) for entry in entries]})
            manager.start(model, optimizer, step, PER_EPOCH, None)
        manager.before_forward(model, optimizer, epoch)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().square()  # moves some channels past others
        manager.before_step(model, optimizer, epoch)
        optimizer.step()
        manager.after_step(model, optimizer, epoch)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    manager.finish(model, steps / PER_EPOCH)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return seen, [names.get(p, "gone") for group in optimizer.param_groups for p in group["params"]]


def assert_same(mine: State, theirs: State) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def thinning(params: Any, start: float = 0.3, end: float = 1.5, **more: Any) -> Entry:
    fields = {"params": params, "start_epoch": start, "end_epoch": end, "final_width": 0.5}
    return Entry("ChannelThinningModifier", {**fields, "multiple_of": 1, **more})


BACKBONE, PYRAMID = "re:backbone.*[.]0[.]weight$", "re:fpn[.].*[.]weight$"

RECIPES = {
    "in every step": [thinning([BACKBONE])],
    "now and then": [thinning(BACKBONE, update_frequency=0.5, init_width=0.9)],
    "all at once": [thinning(["proto_net.2.weight"], 1.0, -1, final_width=0.25)],
    "from the beginning": [thinning(PYRAMID, -1, 1.1, multiple_of=2)],
    # One reads what another writes: which acts first decides which channels stay.
    "together": [thinning([PYRAMID]), thinning([BACKBONE]), thinning(["re:proto_net[.][0248].*"])],
    "a layer": [Entry("LayerPruningModifier", {"layers": ["backbone.layers.2.1"]})],
    "layers, later": [
        Entry(
            "LayerPruningModifier",
            {"layers": [["backbone.layers.2.1"], "backbone.layers.3.1"], "start_epoch": 1.1},
        )
    ],
    "both": [
        thinning([BACKBONE]),
        Entry("LayerPruningModifier", {"layers": ["backbone.layers.2.1"], "start_epoch": 0.7}),
    ],
}


@needs_sparseml
@pytest.mark.parametrize("entries", RECIPES.values(), ids=RECIPES)
def test_structures_are_those_of_sparseml_after_every_step(entries: list[Entry]) -> None:
    (mine, left), (theirs, also_left) = course("native", entries, 6), course("sparseml", entries, 6)
    for one, other in zip(mine, theirs, strict=True):
        assert_same(one, other)
    assert left == also_left
    assert "gone" not in left


@needs_sparseml
@pytest.mark.parametrize("entries", RECIPES.values(), ids=RECIPES)
def test_checkpoints_of_any_epoch_load_into_the_structure_of_either_engine(
    entries: list[Entry],
) -> None:
    for epoch in (0.0, 1.0, float("inf")):
        found = []
        for engine in ENGINES_HERE:
            maker, model = recipe_engine(engine), copy.deepcopy(network())
            manager = maker.manager({"": [maker.build(entry) for entry in entries]})
            manager.restructure(model, epoch)
            found.append(model.state_dict())
        assert_same(*found)


@given(st.sampled_from(list(RECIPES)), st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_a_run_that_resumes_anywhere_removes_what_one_that_did_not_stop_removes(
    name: str, stop: int
) -> None:
    (whole, left), (again, also_left) = (
        course("native", RECIPES[name], 6),
        course("native", RECIPES[name], 6, stop),
    )
    for one, other in zip(whole, again, strict=True):
        assert_same(one, other)
    assert left == also_left


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_layers_stay_in_a_run_that_ends_before_they_go(engine: EngineName) -> None:
    maker, model = recipe_engine(engine), copy.deepcopy(network())
    entry = Entry("LayerPruningModifier", {"layers": ["backbone.layers.2.1"], "start_epoch": 1})
    manager = maker.manager({"": [maker.build(entry)]})
    manager.start(model, torch.optim.SGD(model.parameters(), lr=0.1), 0, PER_EPOCH, None)
    manager.finish(model, 0.5)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_layers_inside_of_removed_ones_are_gone_already() -> None:
    names = ["backbone.layers.2.1", "backbone.layers.2.1.conv1"]
    entry = Entry("LayerPruningModifier", {"layers": names})
    (state,), _ = course("native", [entry], 1)
    assert not [name for name in state if name.startswith(names[0])]


@pytest.mark.parametrize("layer", ["backbone.layers.2.9", "", "__ALL__", "re:backbone.*"])
def test_layers_that_are_not_there_are_refused(layer: str) -> None:
    with pytest.raises(ValueError, match="the network has no such layer"):
        course("native", [Entry("LayerPruningModifier", {"layers": [layer]})], 1)


def test_inverted_residuals_that_add_their_input_can_go_and_channels_before_and_after() -> None:
    backbone = replace(
        LITE0, stem_channels=4, stage_channels=(4,) * 7, stage_blocks=(1, 2, 1, 1, 1, 1, 1)
    )
    model = Yolact(replace(tiny_config().model, backbone=backbone))
    blocks = removable_blocks(model)
    assert blocks == [f"backbone.blocks.{block}" for block in (0, 2, 5, 7)]
    thin = "- !ChannelThinningModifier {params: ['re:backbone.*'], final_width: 0.5, start_epoch: "
    for first, then in ((0, 1), (1, 0)):
        recipe = (
            f"modifiers:\n{thin}{first}, multiple_of: 1}}\n"
            f"- !LayerPruningModifier {{layers: [{blocks[1]}], start_epoch: {then}}}\n"
        )
        smaller = copy.deepcopy(model).eval()
        apply_structure(smaller, load_recipe(recipe))
        assert {c.out_channels for c in smaller.backbone.modules() if isinstance(c, nn.Conv2d)} == {
            *(2, 12)
        }
        smaller(torch.zeros(1, 3, 64, 64))
