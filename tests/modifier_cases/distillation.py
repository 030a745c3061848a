"""Learning from a teacher: what changes in the loss, when, and from which layers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from modifier_cases import Case
from modifier_cases.practice import Practice, in_turn, practice, recipe, refused
from training import log_lines
from yolact.checkpoint import load_checkpoint
from yolact.distill.objective import Distillation

LAYERS = "student_layer_names: [fpn.pred_layers.0, proto_net.8], epsilon: 1.0"


@cache
def teacher() -> Path:
    """A network trained for two epochs."""
    return practice(recipe()).checkpoint


def taught(text: str, **changes: Any) -> Practice:
    """A run with that teacher."""
    return practice(text, distill_teacher=str(teacher()), **changes)


def logged(done: Practice) -> list[dict[str, float]]:
    """The losses of every step, by their letters."""
    lines = log_lines(done.checkpoint.parents[1], "train")
    return [line["data"]["loss"] for line in lines]


def distils_in(*expected: bool) -> Callable[[str], None]:
    """Checks in which steps something is distilled, that it adds up, and what is saved."""

    def check(text: str) -> None:
        done = taught(text)
        steps = logged(done)
        assert [step["KD"] > 0 for step in steps] == list(expected)
        for step in steps:
            assert step["T"] == pytest.approx(sum(v for k, v in step.items() if k != "T"), abs=1e-3)
        first = practice(recipe())
        names = load_checkpoint(done.checkpoint).model_state.keys()
        assert names == load_checkpoint(first.checkpoint).model_state.keys()

    return check


def halves_the_task(text: str) -> None:
    plain, half = logged(practice(recipe()))[0], logged(taught(text))[0]
    for letter in "BCMS":
        assert half[letter] == pytest.approx(plain[letter] / 2, abs=1e-4)


def leaves_only_the_teacher(text: str) -> None:
    for step in logged(taught(text)):
        assert step["B"] == step["C"] == step["M"] == step["S"] == 0
        assert step["T"] == step["KD"] > 0


def changes_nothing(text: str) -> None:
    """Bit by bit what the same run does without a teacher."""
    plain = load_checkpoint(practice(recipe()).checkpoint).model_state
    with_it = load_checkpoint(taught(text).checkpoint).model_state
    assert all(torch.equal(value, with_it[name]) for name, value in plain.items())


def says(sentence: str) -> Callable[[str], None]:
    """Checks a warning."""

    def check(text: str) -> None:
        seen: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("yolact").addHandler(handler)
        try:
            taught(text)
        finally:
            logging.getLogger("yolact").removeHandler(handler)
        assert sentence in seen

    return check


def maps_channels(text: str) -> None:
    """Maps begin as the identity, are trained, and are saved beside the optimizer's state."""
    done = taught(text)
    loss = done.run.objective
    assert isinstance(loss, Distillation) and len(loss.own_parameters) == 2
    state = load_checkpoint(done.checkpoint).training
    assert state is not None and state.distillation is not None
    for name, value in state.distillation.items():
        assert torch.equal(value, loss.pairs.state_dict()[name])
        identity = torch.eye(8)[:, :, None, None]
        assert not torch.equal(value, identity)
        torch.testing.assert_close(value, identity, atol=0.5, rtol=0)


def has_no_maps(text: str) -> None:
    done = taught(text)
    state = load_checkpoint(done.checkpoint).training
    assert state is not None and state.distillation is None
    assert all(step["KD"] > 0 for step in logged(done))


def _case(name: str, variant: str, fields: str, why: str, *checks: Callable[[str], None]) -> Case:
    text = recipe(f"!{name} {{{fields}}}")
    return Case(name, variant, text, "patched" if why else "works", why, in_turn(*checks))


OUTPUTS, FEATURES = "DistillationModifier", "PerLayerDistillationModifier"

CASES = [
    _case(
        OUTPUTS,
        "--distill_teacher",
        "start_epoch: 0.3, end_epoch: 1.3, hardness: 0.5, temperature: 2.0",
        "its softmax over every output means nothing for boxes, coefficients and prototypes: "
        "classes, boxes and assembled masks have a term each (yolact/distill/loss.py)",
        distils_in(False, True, True, True, False, False),
    ),
    _case(OUTPUTS, "hardness: 0.5", "hardness: 0.5", "", halves_the_task),
    _case(OUTPUTS, "hardness: 1", "hardness: 1.0", "", leaves_only_the_teacher),
    _case(OUTPUTS, "hardness: 0", "hardness: 0.0", "", changes_nothing),
    _case(
        OUTPUTS,
        "distill_output_keys",
        "distill_output_keys: [conf, 2]",
        "names or indices of the network's outputs: loc, conf, and mask or proto for the masks",
        distils_in(*[True] * 6),
    ),
    Case(
        OUTPUTS,
        "teacher_input_keys",
        recipe("!DistillationModifier {teacher_input_keys: [image]}"),
        "cannot",
        "the network has one input, the images",
        refused(
            "DistillationModifier: teacher_input_keys ['image'] choose among inputs, "
            "but the network has one, the images",
            "leave the field out",
        ),
    ),
    _case(
        OUTPUTS,
        "update_frequency",
        "update_frequency: 0.5",
        "has no effect in sparseml: every step distils, which is said now",
        distils_in(*[True] * 6),
        says(
            "the recipe: DistillationModifier: update_frequency 0.5 has no effect, as in "
            "sparseml: every step between start_epoch and end_epoch distils"
        ),
    ),
    _case(
        FEATURES,
        "student_layer_names",
        f"start_epoch: 0.3, end_epoch: 1.3, gain: 0.5, {LAYERS}",
        "saw the last level only of layers that run at several, and other layers once quantization "
        "had fused them: a convolution stands for all that is fused with it",
        distils_in(False, True, True, True, False, False),
    ),
    _case(
        FEATURES,
        "project_features",
        f"gain: 0.5, {LAYERS}",
        "maps between channels begin as the identity, not at random, and are saved",
        maps_channels,
    ),
    _case(
        FEATURES, "project_features: False", f"project_features: False, {LAYERS}", "", has_no_maps
    ),
    _case(
        FEATURES,
        "all layers",
        "gain: 0.01, epsilon: 1.0, normalize: False",
        "",
        distils_in(*[True] * 6),
    ),
]
