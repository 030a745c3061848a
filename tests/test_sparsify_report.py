"""Sparsity: counted per convolution, compared with what the recipe wanted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from yolact.sparsify import (
    LayerSparsity,
    apply_structure,
    layer_sparsity,
    missed_targets,
    overall_sparsity,
    sparsity_targets,
)
from yolact.sparsify.report import table, to_json


def model() -> Any:
    """1 of 4 and 6 of 8 weights are zero."""
    net: Any = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)),
            "b": nn.Conv2d(2, 4, 1),
        }
    )
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    with torch.no_grad():
        net["a"][0].weight[0, 0] = 0
        net["b"].weight[:3] = 0
    return net


def recipe(**changes: Any) -> str:
    fields = {
        "start_epoch": 0,
        "end_epoch": 2,
        "init_sparsity": 0.1,
        "final_sparsity": 0.75,
        "update_frequency": 1,
        "params": ["a.0.weight", "b.weight"],
    }
    return f"- !GMPruningModifier {json.dumps(fields | changes)}\n"


LAYERS = [LayerSparsity("a.0.weight", 4, 1), LayerSparsity("b.weight", 8, 6)]


def test_zeros_are_counted_per_convolution() -> None:
    assert layer_sparsity(model()) == LAYERS
    assert overall_sparsity(model()) == pytest.approx(7 / 12)
    assert overall_sparsity(nn.ReLU()) == 0


def test_quantization_changes_neither_names_nor_counts() -> None:
    net = model()
    apply_structure(net, "- !QuantizationModifier {start_epoch: 0}\n")
    assert any("module" in name for name, _ in net.named_parameters())
    assert layer_sparsity(net) == LAYERS
    assert len(missed_targets(net, recipe())) == 1


def test_a_missed_target_is_said_in_words() -> None:
    assert missed_targets(model(), recipe()) == ["a.0.weight has sparsity 0.2500 instead of 0.7500"]
    assert missed_targets(model(), recipe(params=["re:b.*"])) == []
    assert missed_targets(model(), recipe(final_sparsity=0.2)) == []
    assert missed_targets(model(), recipe(), tolerance=0.5) == []


def test_targets_that_are_not_due_yet_are_left_out() -> None:
    assert missed_targets(model(), recipe(), epoch=1.9) == []
    assert len(missed_targets(model(), recipe(), epoch=2)) == 1


def test_targets_may_differ_by_layer() -> None:
    text = recipe(params=[], final_sparsity={0.25: ["a.0.weight"], 0.9: ["b.weight"]})
    assert [(t.name, t.wanted, t.actual) for t in sparsity_targets(model(), text)] == [
        ("a.0.weight", 0.25, 0.25),
        ("b.weight", 0.9, 0.75),
    ]


def test_the_last_target_of_a_parameter_counts() -> None:
    text = recipe(end_epoch=3, final_sparsity=0.25) + recipe(end_epoch=2)
    assert missed_targets(model(), text) == []


def test_a_recipe_without_targets_misses_none() -> None:
    assert missed_targets(model(), "- !ConstantPruningModifier {params: __ALL__}\n") == []


def test_a_report_is_json_and_a_table() -> None:
    assert json.loads(json.dumps(to_json(LAYERS))) == {
        "overall": pytest.approx(7 / 12),
        "layers": [
            {"name": "a.0.weight", "weights": 4, "zeros": 1, "sparsity": 0.25},
            {"name": "b.weight", "weights": 8, "zeros": 6, "sparsity": 0.75},
        ],
    }
    assert table(LAYERS) == (
        "parameter  weights sparsity\n"
        "a.0.weight       4   0.2500\n"
        "b.weight         8   0.7500\n"
        "all             12   0.5833"
    )
