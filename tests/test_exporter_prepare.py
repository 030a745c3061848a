"""Weights rounded anew at export, and quantizers of fewer bits than ONNX knows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from onnx_models import CLASSES, QUANTIZATION, noise, outputs_of, quantized_model, small_model
from yolact.engines.onnx_file import ModelMetadata
from yolact.errors import ConfigError
from yolact.exporter.export import export
from yolact.exporter.graph import Graph
from yolact.exporter.options import ExportOptions, Layout
from yolact.exporter.prepare import (
    SEVEN_BITS,
    fold_quantized_batch_norms,
    requantize_weights,
    widen_quantizers,
)
from yolact.model.fake_quantize import FakeQuantize, fake_quantizers
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure

ZERO_POINTS = {onnx.TensorProto.INT8: 0, onnx.TensorProto.UINT8: 128}
"""Of weights, by type; DeepSparse's have the other."""
IMAGES = [noise(1, seed) for seed in range(2)]


def weight_scales(path: Path) -> dict[str, int]:
    """How many scales each int8 weight has."""
    graph = Graph(onnx.load(str(path)))
    found = {}
    for node in graph.nodes("DequantizeLinear"):
        weight, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        if weight is not None and weight.ndim == 4 and scale is not None:
            found[node.input[0]] = scale.size
    return found


def weight_quantizers(model: nn.Module) -> list[FakeQuantize]:
    return [q for n, q in model.named_modules() if n.endswith("weight_fake_quant")]


@pytest.mark.slow
def test_weights_trained_with_one_range_get_one_per_channel_on_request(tmp_path: Path) -> None:
    model = quantized_model()
    one = weight_scales(export(model, CLASSES, tmp_path / "one.onnx").path)
    report = export(model, CLASSES, tmp_path / "m.onnx", ExportOptions(per_channel=True))
    graph = onnx.load(str(report.path))
    channels = {t.name: t.dims[0] for t in graph.graph.initializer if len(t.dims) == 4}
    assert set(one.values()) == {1}
    assert weight_scales(report.path) == channels
    props = ModelMetadata.from_props({p.key: p.value for p in graph.metadata_props})
    assert props.quantization == "int8 qdq, --per_channel"
    assert all(q.scale.numel() == 1 for q in weight_quantizers(model)), "the model stays as it was"


@pytest.mark.slow
@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_format_takes_ranges_per_channel(layout: Layout, tmp_path: Path) -> None:
    report = export(
        *(quantized_model(), CLASSES, tmp_path / "m.onnx"),
        ExportOptions(layout=layout, per_channel=True),
        images=IMAGES,
    )
    assert report.float_outputs == 0
    assert all(output.sqnr > 25 for output in report.outputs)


def test_no_weight_is_rounded_further_than_half_a_step_of_its_channel() -> None:
    layer = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        layer.weight.mul_(3.0 ** -torch.arange(8).reshape(-1, 1, 1, 1))
        layer.weight[:, 1] = 0
    model = nn.Sequential(layer)
    apply_structure(model, load_recipe(QUANTIZATION))
    (quantizer,) = weight_quantizers(model)
    quantizer.enable_observer()
    coarse = quantizer(layer.weight).detach()
    requantize_weights(model, per_channel=True)
    (quantizer,) = weight_quantizers(model)
    fine, weight = quantizer(layer.weight).detach(), layer.weight.detach()
    half_steps = weight.abs().amax((1, 2, 3)) / 255
    assert bool(((fine - weight).abs().amax((1, 2, 3)) <= 1.01 * half_steps).all())
    assert bool((coarse[6:] == 0).all()), "one range for all loses the small ones"
    assert bool((fine[:, 1] == 0).all())


@pytest.mark.slow
def test_weights_trained_with_ranges_per_channel_keep_them(tmp_path: Path) -> None:
    recipe = load_recipe("yolact_small.quantized", {"weight_ranges": "channel"})
    model = small_model()
    apply_structure(model, recipe)
    for quantizer in fake_quantizers(model):
        quantizer.enable_observer()
    model(IMAGES[0])
    files = [
        export(model.eval(), CLASSES, tmp_path / f"{on}.onnx", ExportOptions(per_channel=on)).path
        for on in (False, True)
    ]
    weights = [
        {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(str(path)).graph.initializer}
        for path in files
    ]
    assert weights[0] == weights[1]
    assert min(weight_scales(files[0]).values()) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["yolact.quantized", "yolact.pruned_quant", "yolact_small.thinned_quant"]
)
def test_recipes_quantize_as_sparseml_does_unless_told_otherwise(name: str) -> None:
    plain, published = small_model(), small_model()
    apply_structure(plain, load_recipe(QUANTIZATION))
    apply_structure(published, load_recipe(name))
    for a, b in zip(weight_quantizers(plain), weight_quantizers(published), strict=True):
        assert (a.qscheme, a.quant_min, a.quant_max) == (b.qscheme, b.quant_min, b.quant_max)
    finer = small_model()
    apply_structure(finer, load_recipe(name, {"weight_ranges": "channel"}))
    assert {q.qscheme for q in weight_quantizers(finer)} == {torch.per_channel_symmetric}


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", get_args(Layout))
def test_products_of_seven_bits_do_not_overflow_sums_of_pairs(
    layout: Layout, per_channel: bool, tmp_path: Path
) -> None:
    report = export(
        *(quantized_model(), CLASSES, tmp_path / "m.onnx"),
        ExportOptions(layout=layout, reduce_range=True, per_channel=per_channel),
    )
    weights = [
        numpy_helper.to_array(tensor).astype(int) - ZERO_POINTS[tensor.data_type]
        for tensor in onnx.load(str(report.path)).graph.initializer
        if len(tensor.dims) == 4 and tensor.data_type in ZERO_POINTS
    ]
    assert len(weights) > 20
    assert 2 * 255 * max(abs(int(w.min())) for w in weights) < 2**15
    assert {max(abs(int(w.min())), int(w.max())) for w in weights} <= {63, 64}
    assert all(output.passed for output in report.outputs)


def test_fewer_bits_than_seven_stay_as_few() -> None:
    model = small_model()
    apply_structure(model, load_recipe(QUANTIZATION + "      scheme: {weights: {num_bits: 4}}\n"))
    requantize_weights(model, reduce_range=True)
    assert {(q.quant_min, q.quant_max) for q in weight_quantizers(model)} == {(-8, 7)}
    assert SEVEN_BITS == (-64, 63)


OPTIONS = ["per_channel", "reduce_range"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_float_model_has_no_ranges(option: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: True}
    with pytest.raises(ConfigError) as caught:
        export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(**options))
    assert str(caught.value) == f"--{option} has no use for a model that is not quantized"
    assert caught.value.hint == (
        "add --one-shot yolact.one_shot_int8, or another recipe that quantizes"
    )


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_written_as_trained_keeps_its_ranges(option: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: True}
    with pytest.raises(ConfigError) as caught:
        export(
            quantized_model(),
            CLASSES,
            tmp_path / "m.onnx",
            ExportOptions(convert_qat=False, **options),
        )
    assert str(caught.value) == (
        f"--{option} changes what --skip-qat-convert leaves as it was trained"
    )
    assert caught.value.hint == "give one of them"


@pytest.mark.slow
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "as it trains"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_eight_bits_behind_a_limit_are_fewer_bits(strategy: str, folded: bool) -> None:
    weights = f"{{num_bits: 4, symmetric: False, strategy: {strategy}}}"
    scheme = f"{{weights: {weights}, input_activations: {{num_bits: 6}}}}"
    model = small_model()
    apply_structure(
        model,
        load_recipe(f"modifiers:\n- !QuantizationModifier {{start_epoch: 0, scheme: {scheme}}}"),
    )
    model.eval()(noise(1, 0))  # with gradients on: observers look
    for quantizer in fake_quantizers(model):
        quantizer.disable_observer()
    if folded:
        fold_quantized_batch_norms(model)
    wide = copy.deepcopy(model)
    widen_quantizers(wide)
    ranges = {(q.quant_min, q.quant_max) for q in fake_quantizers(wide)}
    assert ranges == {(-128, 127)}
    for one, other in zip(
        outputs_of(model, noise(1, 1)), outputs_of(wide, noise(1, 1)), strict=True
    ):
        assert torch.equal(one, other)


def test_eight_bits_are_left_alone() -> None:
    model = small_model()
    apply_structure(model, load_recipe("modifiers:\n- !QuantizationModifier {start_epoch: 0}"))
    before = [type(module) for module in model.modules()]
    widen_quantizers(model)
    assert [type(module) for module in model.modules()] == before
