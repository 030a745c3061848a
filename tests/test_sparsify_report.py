"""Sparsity and quantization, layer by layer, compared with what the recipe wanted."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recipe_engines import needs_sparseml
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.report import report, report_path, save_report, table, to_json
from yolact.sparsify.sparsity import (
    LayerSparsity,
    Mask,
    SparsityTarget,
    broken_groups,
    layer_sparsity,
    overall_sparsity,
    sparsity_targets,
)
from yolact.sparsify.structure import apply_structure

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


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


def read(text: str) -> Recipe:
    return Recipe.of_text(text, "the recipe")


def missed_targets(net: nn.Module, recipe: Recipe, epoch: float = math.inf) -> list[str]:
    targets = sparsity_targets(net, recipe, epoch=epoch)
    return [target.missed for target in targets if target.missed]


LAYERS = [LayerSparsity("a.0.weight", (2, 2, 1, 1), 1), LayerSparsity("b.weight", (4, 2, 1, 1), 6)]


def test_zeros_are_counted_per_convolution() -> None:
    assert layer_sparsity(model()) == LAYERS
    assert overall_sparsity(model()) == pytest.approx(7 / 12)
    assert overall_sparsity(nn.ReLU()) == 0


def test_quantization_changes_neither_names_nor_counts() -> None:
    net = model()
    apply_structure(net, read("- !QuantizationModifier {start_epoch: 0}\n"))
    assert any("module" in name for name, _ in net.named_parameters())
    assert layer_sparsity(net) == LAYERS
    assert len(missed_targets(net, read(recipe()))) == 1


def test_a_missed_target_is_said_in_words() -> None:
    assert missed_targets(model(), read(recipe())) == [
        "a.0.weight has sparsity 0.2500 instead of 0.7500"
    ]
    assert missed_targets(model(), read(recipe(params=["re:b.*"]))) == []


def test_zeros_that_nobody_asked_for_miss_a_target_too() -> None:
    assert missed_targets(model(), read(recipe(final_sparsity=0.2))) == [
        "b.weight has sparsity 0.7500 instead of 0.2000, more than asked"
    ]


@given(st.integers(0, 2000), st.floats(0, 1))
def test_a_target_is_met_within_half_a_percent_or_one_weight(zeros: int, wanted: float) -> None:
    target = SparsityTarget("x", wanted, zeros / 2000, granule=1 / 2000)
    assert (target.missed is None) == (abs(zeros / 2000 - wanted) <= 0.005)
    coarse = SparsityTarget("x", wanted, round(wanted * 10) / 10, granule=1 / 10)
    assert coarse.missed is None, "ten weights cannot be closer"


def test_targets_that_are_not_due_yet_are_left_out() -> None:
    assert missed_targets(model(), read(recipe()), epoch=1.9) == []
    assert len(missed_targets(model(), read(recipe()), epoch=2)) == 1


def test_targets_may_differ_by_layer() -> None:
    text = recipe(params=[], final_sparsity={0.25: ["a.0.weight"], 0.9: ["b.weight"]})
    assert [(t.name, t.wanted, t.actual) for t in sparsity_targets(model(), read(text))] == [
        ("a.0.weight", 0.25, 0.25),
        ("b.weight", 0.9, 0.75),
    ]


def test_the_last_target_of_a_parameter_counts() -> None:
    text = recipe(end_epoch=3, final_sparsity=0.25, params=["a.0.weight"]) + recipe(end_epoch=2)
    assert missed_targets(model(), read(text)) == []


def test_a_recipe_without_targets_misses_none() -> None:
    assert missed_targets(model(), read("- !ConstantPruningModifier {params: __ALL__}\n")) == []


def test_a_sparsity_of_all_layers_together_is_judged_together() -> None:
    fields = recipe(final_sparsity=7 / 12).replace("GMPruning", "GlobalMagnitudePruning")
    assert missed_targets(model(), read(fields)) == []
    result = report(model(), read(fields.replace(str(7 / 12), "0.9")))
    assert [layer.target for layer in result.layers] == [None, None]
    name = "a.0.weight, b.weight (2 layers together)"
    assert result.missed == (f"{name} has sparsity 0.5833 instead of 0.9000",)
    assert to_json(result)["together"] == [
        {"name": name, "target": 0.9, "sparsity": pytest.approx(7 / 12), "met": False}
    ]
    assert f"{name}: sparsity 0.5833, target 0.9000" in table(result)


# Patterns of masks


def weight(*zeros: tuple[int, int]) -> torch.Tensor:
    """[2, 8, 1, 1] of ones, but for zeros at some (output, input) channels."""
    values = torch.ones(2, 8, 1, 1)
    for row, column in zeros:
        values[row, column] = 0
    return values


FOUR = [(0, 4), (0, 5), (0, 6), (0, 7)]
ROW = [(1, i) for i in range(8)]
COLUMN = [(0, 3), (1, 3)]


@pytest.mark.parametrize(
    ("mask", "whole", "broken"),
    [
        ((1, 4), FOUR, [*FOUR[1:], (1, 0)]),
        ("block4", FOUR, [(0, 3), (0, 4)]),
        ("filter", ROW, [ROW[0], (0, 0)]),
        ("channel", COLUMN, [(0, 1), (1, 2)]),
        ("2:4", [(r, c) for r in (0, 1) for c in (0, 1, 4, 6)], [(0, 0), *ROW]),
    ],
)
def test_groups_that_lost_their_pattern_are_counted(
    mask: Mask, whole: list[tuple[int, int]], broken: list[tuple[int, int]]
) -> None:
    assert broken_groups(weight(*whole), mask) == 0
    assert broken_groups(weight(*broken), mask) == 2


def test_masks_without_a_pattern_cannot_lose_it() -> None:
    assert broken_groups(weight((0, 1)), "unstructured") is None


@needs_sparseml
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_masks_of_sparseml_have_the_pattern_that_is_looked_for(seed: int, sparsity: float) -> None:
    from yolact.sparsify.sparseml import get_mask_creator_default

    values = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(seed)) + 0.1
    (mask,) = get_mask_creator_default([1, 4]).create_sparsity_masks([values], sparsity)
    assert broken_groups(values * mask, (1, 4)) == 0
    torn = values * mask
    torn[0, 0, 0, 0] = 0.5 if mask[0, 0, 0, 0] == 0 else 0
    assert broken_groups(torn, (1, 4)) == 1


# The report of a whole model

QUANTIZE = "- !QuantizationModifier {start_epoch: 2}\n"


def quantized(text: str = QUANTIZE) -> Any:
    """The model after quantization-aware training on a few numbers."""
    net = model().train()
    apply_structure(net, read(text))
    for values in (torch.rand(4, 2, 3, 3), -torch.rand(4, 2, 3, 3)):
        net["b"](net["a"](values))
    return net


def test_a_model_that_follows_its_recipe_misses_nothing() -> None:
    text = recipe(params=["b.weight"], mask_type=[4, 1]) + QUANTIZE
    net = model()
    with torch.no_grad():
        net["b"].weight[:] = 1
        net["b"].weight[:, 0] = 0
    apply_structure(net.train(), read(text))
    net["b"](net["a"](torch.rand(4, 2, 3, 3)))
    result = report(net, read(text.replace("0.75", "0.5")))
    assert result.missed == () and result.quantized == 2
    assert result.layers[1].target == 0.5 and result.layers[1].mask_intact
    assert table(result).endswith("\nall targets met")


def test_layers_say_how_they_are_quantized() -> None:
    first, second = report(quantized(), read(QUANTIZE)).layers
    assert (first.batch_norm, second.batch_norm) == ("fused", None)
    for layer in (first, second):
        assert layer.quantized and layer.problems == ()
        assert layer.weight_quantizer is not None and layer.input_quantizer is not None
        assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (8, 8)
        assert layer.weight_quantizer.scheme == "symmetric per tensor"
        assert layer.input_quantizer.scheme == "asymmetric per tensor"
    assert second.weight_quantizer is not None
    assert second.weight_quantizer.scale == pytest.approx((2 / 255, 2 / 255))
    assert report(model(), None).layers[0].batch_norm == "separate"


def test_ranges_are_those_of_the_values_seen() -> None:
    net = model().train()
    apply_structure(net, read(QUANTIZE))
    net["b"](net["a"](torch.tensor([-1.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)))
    quantizer = report(net, None).layers[0].input_quantizer
    assert quantizer is not None
    assert quantizer.range == pytest.approx((-1, 3), abs=0.02)


def test_quantization_that_never_came_is_missed() -> None:
    assert report(model(), read(QUANTIZE)).missed == (
        "the weights of a.0.weight are not quantized",
        "the inputs of a.0.weight are not quantized",
        "the weights of b.weight are not quantized",
        "the inputs of b.weight are not quantized",
    )
    assert report(model(), read(QUANTIZE), epoch=1.9).missed == ()


def test_quantizers_that_have_seen_nothing_are_missed() -> None:
    net = model()
    apply_structure(net, read(QUANTIZE))
    assert "the quantizer of the weights of a.0.weight has seen no values" in (
        report(net, read(QUANTIZE)).missed
    )
    json.dumps(to_json(report(net, read(QUANTIZE))), allow_nan=False)


def test_another_scheme_than_the_recipes_is_missed() -> None:
    wish = QUANTIZE.replace("2}", "2, scheme: {weights: {num_bits: 4, strategy: channel}}}")
    assert report(quantized(), read(wish)).missed[0] == (
        "the weights of a.0.weight are 8 bits, symmetric per tensor "
        "instead of 4 bits, asymmetric per channel"
    )


@pytest.mark.parametrize(
    "fields",
    [
        "ignore: [a]",
        "ignore: [b]",
        "ignore: [Conv2d]",
        "ignore: [ConvBn2d]",
        "scheme_overrides: {b: {weights: null}}",
        "scheme_overrides: {a.0: {input_activations: null}}",
        "scheme_overrides: {Conv2d: {weights: {num_bits: 4, symmetric: true}}}",
        "scheme: {weights: {num_bits: 4, symmetric: true, strategy: channel}}",
        "scheme: deepsparse",
        "model_fuse_fn_name: no_fuse",
    ],
)
def test_what_a_recipe_leaves_out_is_not_missed(fields: str) -> None:
    text = QUANTIZE.replace("2}", f"2, {fields}}}")
    result = report(quantized(text), read(text))
    assert result.missed == ()
    assert [layer.name for layer in result.layers] == ["a.0.weight", "b.weight"]


def test_numbers_that_are_not_finite_are_missed() -> None:
    net = model()
    with torch.no_grad():
        net["b"].weight[3, 0] = torch.nan
    result = report(net, None)
    assert result.missed == ("b.weight has weights that are not finite",)
    assert table(result).splitlines()[2].endswith("MISSED")


def test_broken_blocks_are_missed() -> None:
    result = report(model(), read(recipe(params=["b.weight"], mask_type=[4, 1])))
    assert result.missed == ("b.weight has 2 broken groups of mask [4, 1]",)
    assert result.layers[1].mask_intact is False


def test_a_report_is_json_of_the_documented_schema(tmp_path: Path) -> None:
    result = report(quantized(), read(recipe(mask_type=[1, 2]) + QUANTIZE), macs=1000)
    checkpoint = tmp_path / "tiny_1_6.pth"
    path = save_report(result, checkpoint)
    assert path == report_path(checkpoint) == tmp_path / "tiny_1_6.report.json"
    content = json.loads(path.read_text())
    layers = content.pop("layers")
    assert content == {
        **{"schema": 1, "checkpoint": "tiny_1_6.pth", "met": False, "missed": list(result.missed)},
        **{"sparsity": pytest.approx(7 / 12), "weights": 12, "zeros": 7},
        **{"parameters": 20, "macs": 1000, "convolutions": 2, "quantized": 2, "together": []},
    }
    ranges = {"scale_min", "scale_max", "range_min", "range_max"}
    for layer in layers:
        for part in ("weight_quantizer", "input_quantizer"):
            assert layer.pop(part).keys() == {"bits", "scheme"} | ranges
    assert layers[0] == {
        **{"name": "a.0.weight", "shape": [2, 2, 1, 1], "weights": 4, "zeros": 1},
        **{"sparsity": 0.25, "target": 0.75, "mask": [1, 2], "mask_intact": False},
        **{"batch_norm": "fused", "quantized": True},
        "problems": ["a.0.weight has 1 broken groups of mask [1, 2]"],
    }
    documented = importlib.import_module("yolact.sparsify.report").__doc__ or ""
    for key in (*content, *layers[0], *ranges):
        assert f"``{key}``" in documented, key


def test_a_report_is_a_table() -> None:
    assert table(report(model(), read(recipe()))) == (
        "parameter   shape    sparsity  target  mask          batch norm\n"
        "a.0.weight  2x2x1x1    0.2500  0.7500  unstructured  separate    MISSED\n"
        "b.weight    4x2x1x1    0.7500  0.7500  unstructured\n"
        "\n"
        "sparsity 0.5833 of 0.00 M convolution weights, 0 of 2 convolutions quantized, "
        "0.00 M parameters\n"
        "targets missed: 1"
    )
    assert table(report(model(), None, macs=2 * 10**9)) == (
        "parameter   shape    sparsity  batch norm\n"
        "a.0.weight  2x2x1x1    0.2500  separate\n"
        "b.weight    4x2x1x1    0.7500\n"
        "\n"
        "sparsity 0.5833 of 0.00 M convolution weights, 0 of 2 convolutions quantized, "
        "0.00 M parameters, 2 GMACs\n"
        "no targets"
    )
