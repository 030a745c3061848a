"""Fields of native modifiers: both engines have the same, and refuse the same values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from recipe_engines import ENGINES_HERE, needs_sparseml
from test_sparsify_sweep import MODIFIERS, ODD
from yolact.errors import RecipeError
from yolact.sparsify.catalog import EngineName, facts_of
from yolact.sparsify.document import Entry
from yolact.sparsify.modifiers import build_modifier
from yolact.sparsify.recipe_engines import recipe_engine

WINDOW = {"start_epoch": 0.5, "end_epoch": 1.5}
RATE = {**WINDOW, "init_lr": 0.1}
GAMMA = {"gamma": 0.5}
RESTARTS = {"lr_min": 0.0, "cycle_epochs": 1}

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, fields)
        for name, fields in MODIFIERS.items()
        if facts_of(name.split(" ")[0]).kind not in ("pruning", "constant", "quantization")
    },
    "outputs": ("DistillationModifier", {**WINDOW, "hardness": 0.5, "temperature": 2.0}),
    "layers": (
        "PerLayerDistillationModifier",
        {**WINDOW, "student_layer_names": ["a"], "teacher_layer_names": ["b"], "gain": 1.0},
    ),
    **{
        kind: ("LearningRateModifier", {**RATE, "lr_class": kind, "lr_kwargs": options})
        for kind, options in (
            ("StepLR", {**GAMMA, "step_size": 1}),
            ("MultiStepLR", {**GAMMA, "milestones": [1]}),
            ("ExponentialLR", GAMMA),
            ("CosineAnnealingWarmRestarts", {**RESTARTS, "T_mult": 2}),
        )
    },
}
"""A modifier and all of its fields, by what it is about."""

VALUES = (*ODD, 1, 0.05, 1.5, [0], [0, 1], "false", "__all__")


def variants(name: str, whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields with each of them missing, and with every odd value."""
    yield whole
    for field in recipe_engine("native").fields()[name] - {"log_types"}:
        yield {key: value for key, value in whole.items() if key != field}
        yield from ({**whole, field: value} for value in VALUES)
    for option in (*whole.get("lr_kwargs", {}), "verbose") if "lr_kwargs" in whole else ():
        yield {**whole, "lr_kwargs": {k: v for k, v in whole["lr_kwargs"].items() if k != option}}
        for value in VALUES:
            yield {**whole, "lr_kwargs": {**whole["lr_kwargs"], option: value}}


def window(engine: EngineName, entry: Entry) -> tuple[float, ...] | None:
    """When a modifier acts; None if it is refused, with an error that a user can read."""
    try:
        modifier = build_modifier(deepcopy(entry), "the recipe", recipe_engine(engine))
    except RecipeError:
        return None
    frequency = float(getattr(modifier, "update_frequency", -1))
    return float(modifier.start_epoch), float(modifier.end_epoch), frequency


def names_something_else(entry: Entry) -> bool:
    """Values in a list of names that are none, which sparseml meets when the model comes."""
    names = entry.fields.get("params", entry.fields.get("layers"))
    return isinstance(names, dict) or re.search(r"\d[],]", str(names)) is not None


@pytest.mark.slow
@needs_sparseml
@pytest.mark.parametrize(("name", "whole"), WHOLE.values(), ids=WHOLE)
def test_both_engines_have_the_same_fields_and_refuse_the_same_values(
    name: str, whole: dict[str, Any]
) -> None:
    fields = [recipe_engine(engine).fields()[name] for engine in ENGINES_HERE]
    assert fields[0] == fields[1]
    differences = []
    for given in variants(name, whole):
        entry = Entry(name, given)
        mine, theirs = window("native", entry), window("sparseml", entry)
        if mine != theirs and not (names_something_else(entry) and mine is None):
            differences.append(f"{given}: {mine}, {theirs}")
    assert differences == []


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"lr_class": "StepLR", "lr_kwargs": {**GAMMA, "steps": 2}},
            "lr_kwargs {'gamma': 0.5, 'steps': 2}: StepLR needs step_size",
        ),
        (
            {"lr_class": "ExponentialLR", "lr_kwargs": {"gamma": "0.5"}},
            "lr_kwargs {'gamma': '0.5'}: gamma has to be a number from 0 on",
        ),
        (
            {"lr_class": "MultiStepLR", "lr_kwargs": {**GAMMA, "milestones": [1.5]}},
            "lr_kwargs {'gamma': 0.5, 'milestones': [1.5]}: "
            "milestones have to be after epoch 0.5 and before 1.5",
        ),
        (
            {"lr_class": "CosineAnnealingWarmRestarts", "lr_kwargs": {**RESTARTS, "T_mult": 0.5}},
            "lr_kwargs {'lr_min': 0.0, 'cycle_epochs': 1, 'T_mult': 0.5}: "
            "T_mult has to be a whole number, at least 1",
        ),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_before_its_epoch_comes(
    engine: EngineName, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        build_modifier(
            Entry("LearningRateModifier", {**RATE, **fields}), "x", recipe_engine(engine)
        )
    assert str(caught.value) == f"x: LearningRateModifier: {message}"
