"""The recipes in the package: the published numbers, the model's names, the promised sparsity."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
import torch

from conftest import PUBLISHED as FACTS
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.sparsify.check.examine import PlannedRun, examine
from yolact.sparsify.document import Entry, entry_lists, parse
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import load_recipe, packaged_recipes, read_source
from yolact.sparsify.sparsity import overall_sparsity, sparsity_targets

ONE_SHOT = "yolact.one_shot_int8"
PUBLISHED = ["yolact.pruned", "yolact.pruned_quant", "yolact.quantized"]
THINNED = ["yolact.thinned", "yolact.thinned_quant"]
KINDS = ("pruned", "pruned_quant", "quantized", "thinned", "thinned_quant")
SMALL = [f"yolact_small.{kind}" for kind in KINDS]
LITE = [f"yolact_lite0.{kind}" for kind in KINDS]
RESNET = [f"yolact_resnet.{kind}" for kind in KINDS]
TRANSFER = ["yolact.transfer", "yolact.transfer_quant"]
OURS = [*PUBLISHED, *THINNED, *SMALL, *LITE, *RESNET, *TRANSFER]
LAST_PART = [
    *("yolact.pruned_quant", "yolact.thinned_quant", "yolact.transfer_quant"),
    *("yolact_resnet.pruned_quant", "yolact_resnet.thinned_quant"),
]
"""Recipes with a length of their own for quantization."""
SHORT: dict[str, dict[str, Any]] = {name: {"num_epochs": 2} for name in OURS} | {
    name: {"num_epochs": 2, "num_quantization_epochs": 0.5} for name in LAST_PART
}
CONFIGS = {
    "yolact": ["yolact_darknet53"],
    "yolact_small": ["yolact_darknet_small"],
    "yolact_lite0": ["yolact_lite0", "yolact_lite2"],
    "yolact_resnet": ["yolact_resnet50", "yolact_base", "yolact_im400", "yolact_im700"],
}
"""What recipes are for, by the first part of their names."""


def network(recipe: str) -> Yolact:
    torch.manual_seed(0)
    return Yolact(named_config(CONFIGS[recipe.split(".")[0]][0]).model)


def test_the_package_has_these_recipes() -> None:
    assert packaged_recipes() == sorted([*OURS, ONE_SHOT])


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyperparameters_are_the_published_ones(name: str) -> None:
    published = json.loads((FACTS / "recipes.json").read_text())[name]
    ours = parse(read_source(name)[0], name)
    assert ours.keys() - {"weight_ranges"} == published.keys()
    for key, value in published.items():
        if key.endswith("modifiers"):
            found = [{"modifier": entry.name, **entry.fields} for entry in ours[key]]
            for entry in found:  # by default as without; tests/test_exporter_prepare.py
                entry.pop("scheme", None)
            assert found == value, key
        else:
            assert ours[key] == value, key


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("short", [False, True])
def test_recipes_fit_their_model(name: str, short: bool) -> None:
    recipe = load_recipe(name, SHORT[name] if short else None)
    assert examine(recipe, network(name), PlannedRun()).errors == ()
    driver = RecipeDriver(recipe)
    assert driver.max_epochs == (2 if short else parse(read_source(name)[0], name)["num_epochs"])
    assert driver.quantizes_by(99) == ("quant" in name)
    assert driver.controls_lr == (name != "yolact.pruned")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LITE, *RESNET, ONE_SHOT])
def test_recipes_fit_every_network_of_their_family_without_a_warning(name: str) -> None:
    every = [config for configs in CONFIGS.values() for config in configs]
    for config in every if name == ONE_SHOT else CONFIGS[name.split(".")[0]]:
        with torch.device("meta"):
            model = Yolact(named_config(config).model)
        report = examine(load_recipe(name), model, PlannedRun(1.0 if name == ONE_SHOT else None))
        assert (report.errors, report.warnings) == ((), ()), config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        ("yolact.pruned", 0.9057),
        ("yolact.pruned_quant", 0.8316),
        ("yolact_small.pruned", 0.826),
        ("yolact_small.pruned_quant", 0.776),
        ("yolact_lite0.pruned", 0.7185),
        ("yolact_lite0.pruned_quant", 0.623),
    ],
)
def test_recipes_end_at_the_promised_sparsity(name: str, sparsity: float) -> None:
    model = network(name)
    driver = RecipeDriver(load_recipe(name, SHORT[name]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver.start(model, optimizer, 0, steps_per_epoch=1)
    for epoch in range(2):  # no gradients: magnitudes alone decide
        driver.before_step(model, optimizer, epoch)
        driver.after_step(model, optimizer, epoch)
    driver.finish(model)
    assert overall_sparsity(model) == pytest.approx(sparsity, abs=0.002)
    assert not any(t.missed for t in sparsity_targets(model, driver.composed))
    if "quant" in name:
        _check_blocks(model)


def _check_blocks(model: Yolact) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and weight.shape[1] % 4 == 0:
            rows, columns, height, width = weight.shape
            zeros = weight.eq(0).reshape(rows, columns // 4, 4, height, width).sum(2)
            assert set(torch.unique(zeros).tolist()) <= {0, 4}, name


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_variable_can_be_set(name: str) -> None:
    """A variable that no modifier depends on would be a switch without effect."""
    document = parse(read_source(name)[0], name)
    lists = entry_lists(document)
    used = " ".join(_expressions(list(lists.values()))) + " ".join(
        value for value in document.values() if isinstance(value, str)
    )
    for variable in document.keys() - lists.keys():
        assert re.search(rf"\b{variable}\b", used), variable
        load_recipe(name, {variable: load_value(document[variable])})


def load_value(value: Any) -> Any:
    return 60 if isinstance(value, str) and value.startswith("eval") else value


def _expressions(value: Any) -> list[str]:
    if isinstance(value, Entry):
        value = value.fields
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _expressions(item)]
    return [value] if isinstance(value, str) and value.startswith("eval(") else []


@pytest.mark.parametrize("name", [*OURS, ONE_SHOT])
def test_cards_say_what_when_how_and_what_to_expect(name: str) -> None:
    card = resources.files("yolact.recipes").joinpath(f"{name}.md").read_text("utf-8")
    card = card.split("\n---\n", 1)[1]
    assert re.match(r"\n# .+\n", card)
    for part in ("**When to use it:**", "## Commands", f"--recipe {name}", "## Expected results"):
        assert part in card, part
