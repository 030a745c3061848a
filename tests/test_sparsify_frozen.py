"""Recipes that freeze parameters and do something else to them: they train, or are refused."""

from __future__ import annotations

import pytest
import torch

from modifier_cases.practice import practice, recipe, sparsity
from recipe_engines import by_sparseml, engines_of
from training import tiny_config
from yolact.errors import RecipeError
from yolact.model.yolact import Yolact
from yolact.sparsify.check.examine import PlannedRun, examine, require_sound
from yolact.sparsify.recipe import load_recipe
from yolact.training.start import Run

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

NAMES = ("proto_net.2.weight", "backbone.layers.2.1.conv2.0.weight")
PARAMS = f"params: [{', '.join(NAMES)}]"
WINDOW = "start_epoch: 0, end_epoch: 1.5, update_frequency: 0.3"
GRADUAL = f"init_sparsity: 0.25, final_sparsity: 0.75, {WINDOW}, {PARAMS}"

FROM_THE_START = "start_epoch: 0"
LATER = "start_epoch: 1"
FOR_A_WHILE = "start_epoch: 0.4, end_epoch: 1.1"
AT_FIRST = "start_epoch: 0, end_epoch: 1"

OTHERS = {
    "GM": f"!GMPruningModifier {{{GRADUAL}}}",
    "GM __ALL_PRUNABLE__": "!GMPruningModifier {params: __ALL_PRUNABLE__, init_sparsity: 0.25, "
    f"final_sparsity: 0.75, {WINDOW}}}",
    "GM blocks": f"!GMPruningModifier {{{GRADUAL}, mask_type: [1, 4]}}",
    "GM without hooks": f"!GMPruningModifier {{{GRADUAL}, leave_enabled: false}}".replace(
        "1.5", "2"
    ),
    "global": f"!GlobalMagnitudePruningModifier {{{GRADUAL}}}",
    "constant": "!ConstantPruningModifier {params: __ALL_PRUNABLE__}",
    "ACDC": "!ACDCPruningModifier {compression_sparsity: 0.75, start_epoch: 0, end_epoch: 2, "
    f"update_frequency: 1, {PARAMS}}}",
    "OBS": f"!OBSPruningModifier {{{GRADUAL}, num_grads: 2, fisher_block_size: 4}}",
    "MFAC": f"!MFACPruningModifier {{{GRADUAL}, num_grads: 2, fisher_block_size: 16}}",
    "TopKAST": "!TopKASTPruningModifier {forward_sparsity: 0.75, backward_sparsity: 0.5, "
    f"{WINDOW}, {PARAMS}}}",
    "structured": f"!StructuredPruningModifier {{{GRADUAL}}}",
    "thinning": "!ChannelThinningModifier {params: [re:proto_net.*], final_width: 0.5, "
    "start_epoch: 0, end_epoch: 1.5, update_frequency: 0.5}",
    "a layer less": "!LayerPruningModifier {layers: [backbone.layers.2.1], start_epoch: 1}",
    "quantization": "!QuantizationModifier {start_epoch: 0.7, freeze_bn_stats_epoch: 1.4}",
    "weight decay": "!SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.01}",
    "a value": "!SetParamModifier {params: [proto_net.10.bias], val: [1, 2, 3, 4], start_epoch: 1}",
    "values": "!GradualParamModifier {params: [proto_net.10.bias], init_val: [0.0, 0.0, 0.0, 0.0], "
    "final_val: [1.0, 2.0, 3.0, 4.0], start_epoch: 0, end_epoch: 1.5, update_frequency: 0.3}",
}
"""Whatever a recipe can do to parameters that are frozen at the same time."""


def freeze(when: str) -> str:
    return (
        f'!TrainableParamsModifier {{params: ["re:backbone.*", "re:proto_net.*"], '
        f"trainable: false, {when}}}"
    )


COMBINATIONS = [
    (engine, name, when)
    for engine, name in engines_of(OTHERS)
    for when in (FROM_THE_START, FOR_A_WHILE)
    if when == FROM_THE_START or name in ("constant", "OBS", "TopKAST", "thinning", "quantization")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe_engine", "name", "when"), COMBINATIONS, indirect=["recipe_engine"]
)
def test_a_run_trains_whatever_a_recipe_does_to_frozen_layers(name: str, when: str) -> None:
    modifiers = [freeze(when), OTHERS[name]]
    done = practice(recipe(*(modifiers if when == FROM_THE_START else reversed(modifiers))))
    assert not done.missed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), [("GM", AT_FIRST), ("GM", LATER), ("ACDC", FOR_A_WHILE)])
def test_masks_hold_on_frozen_layers(name: str, when: str) -> None:
    """The course of sparsity is that of the same recipe without the freezing."""
    free = practice(recipe(OTHERS[name]), sparsity(NAMES)).seen
    assert practice(recipe(OTHERS[name], freeze(when)), sparsity(NAMES)).seen == free


@pytest.mark.slow
def test_frozen_weights_that_are_not_pruned_do_not_move_and_pruned_ones_stay_zero() -> None:
    def watch(run: Run) -> list[torch.Tensor]:
        return [run.model.get_parameter(name).detach().clone() for name in NAMES]

    one = OTHERS["GM"].replace(f", {NAMES[1]}", "").replace("1.5", "1")
    done = practice(recipe(freeze(AT_FIRST), one, epochs=2), watch)
    for pruned, free in done.seen[:3]:
        assert torch.equal(free, done.first[NAMES[1]])
        kept = pruned != 0
        assert torch.equal(pruned[kept], done.first[NAMES[0]][kept])
    pruned, free = done.seen[-1]
    assert not torch.equal(free, done.first[NAMES[1]])
    assert torch.equal(pruned == 0, done.seen[3][0] == 0)  # and what is left was trained
    assert not torch.equal(pruned[pruned != 0], done.first[NAMES[0]][pruned != 0])


MOVING = {
    "movement": f"!MovementPruningModifier {{{GRADUAL}}}",
    "RigL": f"!RigLPruningModifier {{final_sparsity: 0.75, {WINDOW}, {PARAMS}, num_grads: 2}}",
}


def problems(*modifiers: str) -> list[str]:
    report = examine(load_recipe(recipe(*modifiers)), Yolact(tiny_config().model), PlannedRun())
    return [str(problem) for problem in report.errors]


@by_sparseml
@pytest.mark.parametrize("other", MOVING.values(), ids=MOVING)
@pytest.mark.parametrize(
    ("when", "epoch"),
    [(FROM_THE_START, 0), (LATER, 1), (FOR_A_WHILE, 0.4), ("start_epoch: 1.5", 1.5), (None, None)],
)
def test_pruning_by_movement_needs_weights_that_move(
    other: str, when: str | None, epoch: float | None
) -> None:
    found = problems(other, freeze(when or "start_epoch: 1.7"))
    if when is None:
        assert found == []
        return
    (problem,) = found
    assert problem.endswith(
        f"prunes by how weights move in training, and {NAMES[1]} and 1 more cannot move "
        f"from epoch {epoch:g} on: TrainableParamsModifier (no. 3) freezes them"
    )


def trainable(params: str, when: str = FROM_THE_START, *, trainable: str = "false") -> str:
    return f"!TrainableParamsModifier {{params: {params}, trainable: {trainable}, {when}}}"


HALF, REST = '["re:backbone.*", "re:fpn.*"]', '["re:(?!backbone|fpn).*"]'


@pytest.mark.parametrize(
    ("modifiers", "refused"),
    [
        ((trainable("__ALL__"),), True),
        ((trainable("__ALL__", LATER),), True),
        ((trainable(HALF), trainable(REST)), True),
        ((trainable(HALF), trainable(REST, LATER)), True),
        ((trainable(HALF, AT_FIRST), trainable(REST, LATER)), False),
        ((trainable(HALF, "start_epoch: 0, end_epoch: 1.2"), trainable(REST, LATER)), True),
        ((trainable("__ALL__"), trainable(HALF, trainable="true")), False),
        ((trainable(HALF),), False),
    ],
)
def test_something_has_to_be_left_to_train(modifiers: tuple[str, ...], refused: bool) -> None:
    found = problems(*modifiers)
    assert len(found) == refused
    assert all(problem.endswith("nothing is left to train") for problem in found)
    if refused:
        with pytest.raises(RecipeError):
            require_sound(
                load_recipe(recipe(*modifiers)), Yolact(tiny_config().model), PlannedRun()
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "modifiers",
    [
        (trainable(HALF, AT_FIRST), trainable(REST, LATER)),
        (trainable("__ALL__"), trainable(HALF, trainable="true")),
    ],
)
def test_what_is_frozen_in_turns_trains(modifiers: tuple[str, ...]) -> None:
    practice(recipe(*modifiers))
