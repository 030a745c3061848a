"""What light backbones bring into graphs: padding on one side, ReLU6, normalization, depthwise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import Tensor, nn

from onnx_models import QUANTIZATION, outputs_of
from test_exporter_integers import is_weight, optimized, pair, weight
from test_exporter_passes import PICTURE, Array, kinds, model_of, run
from yolact.config import BackboneConfig, ModelConfig, YolactConfig
from yolact.data.labels import Classes
from yolact.engines.onnxruntime import OrtEngine
from yolact.exporter.export import export
from yolact.exporter.graph import Graph
from yolact.exporter.options import ExportOptions, Layout
from yolact.exporter.passes.clean import fold_constants, pad_in_convolutions
from yolact.exporter.passes.quantize import (
    quantize_activations,
    quantize_linear,
    quantize_pixels,
    store_biases_as_int32,
)
from yolact.exporter.passes.ranges import Quantizer
from yolact.exporter.prepare import prepare
from yolact.exporter.verify import sqnr
from yolact.model.quantized_layers import is_quant_wrapper
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.sparsify.one_shot import apply_at_once
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure
from yolact.types import RawOutputs

CLASSES = Classes.numbered(3)
WEIGHT = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3) / 36 - 0.4
ZEROS: Array = np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)
"""Around [N, C, H, W]: one row above and two below, one column on the right."""
ONE_SIDED = {"pads": ZEROS, "w": WEIGHT, "none": np.zeros((), np.float32)}
Q: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(100, np.uint8)}


class Images(list[Tensor]):
    """Network inputs as one shot takes them."""


def lite_config(side: int = 64) -> YolactConfig:
    """EfficientNet-Lite of the fewest blocks and few channels, with the normalization of lite0."""
    preset = named_config("yolact_lite0")
    backbone = BackboneConfig(
        name="efficientnet_lite",
        stem_channels=8,
        stage_channels=(8, 8, 8, 16, 16, 16, 16),
        stage_blocks=(1, 1, 1, 1, 2, 1, 1),
        mean=preset.model.backbone.mean,
        std=preset.model.backbone.std,
    )
    model = ModelConfig(
        image_size=side,
        num_classes=3,
        backbone=backbone,
        fpn_channels=16,
        proto_channels=16,
        head_channels=16,
        num_prototypes=8,
    )
    return YolactConfig(name="lite", model=model)


def seen(config: YolactConfig) -> Yolact:
    """A network whose batch norms have seen a few images, in evaluation mode."""
    torch.manual_seed(0)
    model = Yolact(config.model)
    with torch.no_grad():
        for images in noise(config, 3, batch=4):
            model.train()(images)
    return model.eval()


def noise(config: YolactConfig, count: int, batch: int = 1) -> Images:
    generator = torch.Generator().manual_seed(1)
    size = config.model.input_size
    return Images(torch.rand(batch, 3, *size, generator=generator) for _ in range(count))


def conv(data: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [data, "w"], [output], **attributes)


PAD = helper.make_node("Pad", ["x", "pads"], ["p"])
PADDED: dict[str, list[onnx.NodeProto]] = {
    "alone": [PAD, conv("p", "y")],
    "behind a stride": [PAD, conv("p", "y", strides=[2, 2])],
    "to padding that is there": [PAD, conv("p", "y", pads=[1, 0, 0, 2])],
    "for two readers": [
        PAD,
        conv("p", "a"),
        conv("p", "b", auto_pad="NOTSET"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ],
    "before quantizers": [PAD, *pair("p", 0, "s", "z"), conv("p_d0", "y")],
    "before a quantizer of each reader": [
        PAD,
        *pair("p", 0, "s", "z"),
        *pair("p", 1, "s", "z"),
        conv("p_d0", "a"),
        conv("p_d1", "b", strides=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ],
    "before limits and a quantizer": [
        PAD,
        helper.make_node("Clip", ["p", "low", "high"], ["c"]),
        *pair("c", 0, "s", "z"),
        conv("c_d0", "y"),
    ],
    "before limits of integers": [
        PAD,
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "first", "last"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"]),
        conv("d", "y"),
    ],
    "of a said value": [helper.make_node("Pad", ["x", "pads", "none"], ["p"]), conv("p", "y")],
}
CONSTANTS: dict[str, Array] = {
    **ONE_SIDED,
    **Q,
    "low": np.array(-1, np.float32),
    "high": np.array(1, np.float32),
    "first": np.array(64, np.uint8),
    "last": np.array(127, np.uint8),
}


@pytest.mark.parametrize("nodes", PADDED.values(), ids=PADDED)
def test_zeros_that_convolutions_alone_read_are_added_by_them(nodes: list[onnx.NodeProto]) -> None:
    model = model_of(nodes, CONSTANTS)
    expected = run(model, PICTURE)
    pad_in_convolutions(model)
    onnx.checker.check_model(model, full_check=True)
    assert "Pad" not in kinds(model)
    np.testing.assert_allclose(run(model, PICTURE), expected, rtol=0, atol=1e-6)


KEPT: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "another value": (
        [helper.make_node("Pad", ["x", "pads", "one"], ["p"]), conv("p", "y")],
        {"one": np.ones((), np.float32)},
    ),
    "mirrored pixels": (
        [helper.make_node("Pad", ["x", "pads"], ["p"], mode="reflect"), conv("p", "y")],
        {},
    ),
    "channels": ([PAD, conv("p", "y")], {"pads": np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int64)}),
    "images": ([PAD, conv("p", "y")], {"pads": np.array([1, 0, 0, 0, 0, 0, 0, 0], np.int64)}),
    "fewer pixels": ([PAD, conv("p", "y")], {"pads": np.array([0, 0, -1, 0, 0, 0, 2, 0])}),
    "another reader": (
        [PAD, conv("p", "a", pads=[1, 1, 1, 1]), helper.make_node("Add", ["p", "a"], ["y"])],
        {},
    ),
    "a size that is found out": ([PAD, conv("p", "y", auto_pad="SAME_UPPER")], {}),
    "another zero behind": (
        [
            PAD,
            helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "other"], ["d"]),
            conv("d", "y"),
        ],
        {"other": np.array(90, np.uint8)},
    ),
    "limits without 0": (
        [PAD, helper.make_node("Clip", ["p", "some", "high"], ["c"]), conv("c", "y")],
        {"some": np.array(0.25, np.float32)},
    ),
}


@pytest.mark.parametrize(("nodes", "constants"), KEPT.values(), ids=KEPT)
def test_any_other_padding_stays(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
    wider = np.concatenate([WEIGHT, WEIGHT[:, :1]], 1)
    adds_channel = "pads" in constants and constants["pads"][1] == 1
    given_constants = {**CONSTANTS, **constants, "w": wider if adds_channel else WEIGHT}
    model = model_of(nodes, given_constants)
    expected = run(model, PICTURE)
    pad_in_convolutions(model)
    assert kinds(model).count("Pad") == 1
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def test_padding_of_named_axes_is_added_as_well() -> None:
    nodes = [helper.make_node("Pad", ["x", "rows", "", "axes"], ["p"]), conv("p", "y")]
    constants: dict[str, Array] = {
        "rows": np.array([1, 2, 0, 1], np.int64),
        "axes": np.array([3, -2], np.int64),
        "w": WEIGHT,
    }
    model = model_of(nodes, constants)
    model.opset_import[0].version, model.ir_version = 18, 8
    expected = run(model, PICTURE)
    pad_in_convolutions(model)
    assert kinds(model) == ["Conv"]
    np.testing.assert_allclose(run(model, PICTURE), expected, rtol=0, atol=1e-6)


def test_integers_that_follow_from_constants_are_computed() -> None:
    """As torch writes paddings: [0, 1, 0, 2] of the last axes, backwards and with zeros before."""
    nodes = [
        helper.make_node("ConstantOfShape", ["four"], ["zeros"], value=helper.make_tensor(
            "v", onnx.TensorProto.INT64, [1], [0])),
        helper.make_node("Concat", ["backwards", "zeros"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["table"]),
        helper.make_node("Slice", ["table", "last", "before", "axis", "last"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        helper.make_node("Reshape", ["columns", "last"], ["pads"]),
        PAD,
        conv("p", "y"),
    ]  # fmt: skip
    constants: dict[str, Array] = {
        "four": np.array([4], np.int64),
        "backwards": np.array([0, 1, 0, 2], np.int64),
        "pairs": np.array([-1, 2], np.int64),
        "last": np.array([-1], np.int64),
        "before": np.array([-(2**62)], np.int64),
        "axis": np.array([0], np.int64),
        "w": WEIGHT,
    }
    model = model_of(nodes, constants)
    expected = run(model, PICTURE)
    fold_constants(model)
    assert kinds(model) == ["Pad", "Conv"]
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def test_weights_and_what_depends_on_the_input_are_not_computed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Concat", ["many", "many"], ["long"], axis=0),
        helper.make_node("Gather", ["long", "zero"], ["first"]),
        helper.make_node("Concat", ["shape", "first"], ["joined"], axis=0),
        weight("w"),
        helper.make_node("Conv", ["x", "w_d"], ["c"]),
        helper.make_node("Cast", ["joined"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    constants: dict[str, Array] = {
        "many": np.arange(40),
        "zero": np.zeros(1, np.int64),
        "w_int8": np.ones((2, 2, 3, 3), np.int8),
        "sw": np.array(0.1, np.float32),
        "zw": np.array(0, np.int8),
    }
    model = model_of(nodes, constants, rank=1)
    expected = run(model, PICTURE)
    fold_constants(model)
    assert {"Shape", "Concat"} <= set(kinds(model))
    np.testing.assert_array_equal(run(model, PICTURE), expected)


@given(
    scale=st.integers(4, 128).map(lambda n: n / 1024),
    zero=st.integers(0, 255),
    low=st.sampled_from([0.0, -1.0, -4.0]),
    high=st.sampled_from([6.0, 5.5, 1.0]),
)
def test_limits_are_implied_where_they_change_no_integer(
    scale: float, zero: int, low: float, high: float
) -> None:
    x = np.linspace(-60, 60, 4001, dtype=np.float32)
    parameters = np.array(scale, np.float32), np.array(zero, np.uint8)
    plain = quantize_linear(x, *parameters)
    limited = quantize_linear(x.clip(low, high), *parameters)
    assert Quantizer(scale, zero).implies(low, high) == np.array_equal(plain, limited)


def relu6(after: float, zero: int, before: bool = True) -> onnx.ModelProto:
    """X -> conv -> (pair) -> ReLU6 -> pair -> conv."""
    pre = pair("c", 0, "wide", "middle") if before else []
    nodes = [
        *pair("x", 0, "s", "z"),
        *(weight(name) for name in ("w0", "w1")),
        helper.make_node("Conv", ["x_d0", "w0_d"], ["c"]),
        *pre,
        helper.make_node("Clip", ["c_d0" if before else "c", "zero", "six"], ["r"]),
        *pair("r", 0, "after", "point"),
        helper.make_node("Conv", ["r_d0", "w1_d"], ["y"]),
    ]
    constants: dict[str, Array] = {
        **Q,
        "wide": np.array(0.1, np.float32),
        "middle": np.array(128, np.uint8),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "after": np.array(after, np.float32),
        "point": np.array(zero, np.uint8),
        "sw": np.array(0.1, np.float32),
        "zw": np.array(0, np.int8),
        "w0_int8": np.array([[90, -60], [-30, 120]], np.int8).reshape(2, 2, 1, 1),
        "w1_int8": np.array([[1, 2], [3, -4]], np.int8).reshape(2, 2, 1, 1),
    }
    return model_of(nodes, constants)


@pytest.mark.parametrize("after", [6 / 255, 5 / 255, 1 / 255], ids=["6", "5", "1"])
def test_a_relu6_is_what_its_quantizer_limits_to(after: float) -> None:
    model = relu6(after, 0, before=False)
    expected = run(model, PICTURE)
    quantize_activations(model)
    assert "Clip" not in kinds(model)
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def test_what_a_relu6_reads_is_rounded_only_behind_it() -> None:
    model, alone = relu6(6 / 255, 0), relu6(6 / 255, 0, before=False)
    expected = run(alone, PICTURE)
    quantize_activations(model)
    assert kinds(model).count("QuantizeLinear") == 2
    np.testing.assert_array_equal(run(model, PICTURE), expected)


@pytest.mark.parametrize(("scale", "zero"), [(6 / 127.5, 128), (0.041, 0), (0.053, 20)])
def test_a_quantizer_behind_a_relu6_holds_0_to_6_and_no_more(scale: float, zero: int) -> None:
    model = relu6(scale, zero)
    expected = run(model, PICTURE)
    quantize_activations(model)
    assert "Clip" not in kinds(model)
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    used = [scales[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert used[-1] == pytest.approx(6 / 255, rel=0.01)
    assert np.abs(run(model, PICTURE) - expected).max() < scale


def test_limits_of_fewer_bits_stay() -> None:
    """16 levels behind a ReLU6: 0 to 15 steps of 0.4, which 8 bits go beyond."""
    model = relu6(0.4, 0)
    expected = run(model, PICTURE)
    quantize_activations(model)
    assert kinds(model).count("Clip") == 1
    assert np.abs(run(model, PICTURE) - expected).max() < 0.1


def normalized(mean: Array, std: Array) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["m"]),
        helper.make_node("Div", ["m", "std"], ["n"]),
        *pair("n", 0, "sn", "zn"),
        weight("w"),
        helper.make_node("Conv", ["n_d0", "w_d"], ["y"], pads=[0, 0, 1, 1]),
    ]
    constants: dict[str, Array] = {
        "mean": mean.astype(np.float32).reshape(1, -1, 1, 1),
        "std": std.astype(np.float32).reshape(1, -1, 1, 1),
        "sn": np.array(0.0077, np.float32),
        "zn": np.array(126, np.uint8),
        "sw": np.array(0.01, np.float32),
        "zw": np.array(0, np.int8),
        "w_int8": np.array([[90, -60], [-30, 120]], np.int8).reshape(2, 2, 1, 1),
    }
    return model_of(nodes, constants)


BYTES = np.random.default_rng(3).integers(0, 256, PICTURE.shape)
BYTES.ravel()[:2] = 0, 255
IMAGE = (BYTES / np.float32(255)).astype(np.float32)


def test_pixels_of_one_mean_and_std_are_their_own_bytes() -> None:
    model = normalized(np.array([127, 127]) / 255, np.array([128, 128]) / 255)
    quantize_activations(model)
    quantize_pixels(model)
    assert not {"Sub", "Div"} & set(kinds(model))
    pixels = onnx.ModelProto()
    pixels.CopyFrom(model)
    del pixels.graph.output[:]
    first = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    pixels.graph.output.append(
        helper.make_tensor_value_info(first.output[0], onnx.TensorProto.UINT8, PICTURE.shape)
    )
    np.testing.assert_array_equal(run(pixels, IMAGE), BYTES)
    weights = np.array([[0.9, -0.6], [-0.3, 1.2]], np.float32)
    exact = np.einsum("oc,nchw->nohw", weights, (BYTES - 127) / 128)
    np.testing.assert_allclose(run(model, IMAGE)[:, :, :4, :4], exact, atol=1e-5)
    np.testing.assert_array_equal(run(model, IMAGE)[:, :, 4:], 0)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.485, 0.406], [0.229, 0.225]), ([0.5, 0.4], [0.5, 0.5]), ([0.3, 0.3], [0.31, 0.31])],
    ids=["both differ", "means differ", "no whole bytes"],
)
def test_other_normalization_stays_before_a_quantizer_that_holds_0_to_1(
    mean: list[float], std: list[float]
) -> None:
    model = normalized(np.array(mean), np.array(std))
    quantize_activations(model)
    quantize_pixels(model)
    graph = Graph(model)
    (quantize,) = graph.nodes("QuantizeLinear")
    found = [graph.constant(name) for name in quantize.input[1:]]
    scale, zero = (float(value) for value in found if value is not None)
    ends = [(value - m) / s for m, s in zip(mean, std, strict=True) for value in (0, 1)]
    assert -zero * scale == pytest.approx(min(ends), abs=0.6 * scale)
    assert (255 - zero) * scale == pytest.approx(max(ends), abs=0.6 * scale)
    weights = np.array([[0.9, -0.6], [-0.3, 1.2]], np.float32)
    shaped = [np.array(part).reshape(1, 2, 1, 1) for part in (mean, std)]
    exact = np.einsum("oc,nchw->nohw", weights, (IMAGE - shaped[0]) / shaped[1])
    assert np.abs(run(model, IMAGE)[:, :, :4, :4] - exact).max() < 1.6 * scale


TENSORS = load_recipe(QUANTIZATION)


def test_one_shot_gives_depthwise_channels_ranges_and_cuts_off_what_relu6_does() -> None:
    config = lite_config()
    model, images = seen(config), noise(config, 2)
    apply_at_once(model, TENSORS, images)
    layers = dict(model.named_modules())
    for name, module in layers.items():
        quantizer = getattr(module, "weight_fake_quant", None)
        if quantizer is not None:
            assert (quantizer.scale.numel() > 1) == ("depthwise" in name), name
    ranges: list[Any] = [
        module.quant.activation_post_process
        for module in layers.values()
        if is_quant_wrapper(module) and isinstance(module.module, nn.ReLU6)
    ]
    assert ranges
    for quantizer in ranges:
        assert float(quantizer.activation_post_process.min_val) == 0
        assert 0 < float(quantizer.activation_post_process.max_val) <= 6


def test_one_range_for_depthwise_weights_is_named(package_log: pytest.LogCaptureFixture) -> None:
    config = lite_config()
    model = seen(config)
    apply_structure(model, TENSORS)
    (images,) = noise(config, 1)
    model(images)
    prepare(model, images, None, ExportOptions(per_channel=True))
    assert "depthwise" not in package_log.text
    prepare(model, images, None, ExportOptions())
    assert "8 depthwise convolutions have one range" in package_log.text


def test_a_float_graph_of_a_light_network_has_no_padding(tmp_path: Path) -> None:
    config, path = lite_config(), tmp_path / "m.onnx"
    report = export(seen(config), CLASSES, path, config=config)
    assert all(output.passed for output in report.outputs)
    count = Counter(kinds(onnx.load(str(path))))
    assert not {"Pad", "Cast", "Shape", "Slice", "BatchNormalization"} & set(count)


def exported(
    config: YolactConfig, path: Path, layout: Layout
) -> tuple[Graph, RawOutputs, RawOutputs]:
    """The graph after one shot; what the float network and ONNX Runtime make of two images."""
    model, images = seen(config), noise(config, 2)
    both = torch.cat(list(images))
    before = outputs_of(model, both)
    apply_at_once(model, TENSORS, images)
    options = ExportOptions(layout=layout, per_channel=True)
    report = export(model, CLASSES, path, options, config=config, images=images)
    assert all(output.passed for output in report.outputs) and report.float_outputs == 0
    return Graph(onnx.load(str(path))), before, OrtEngine(path)(both)


@pytest.mark.slow
def test_lite0_runs_in_integers_from_pixels_to_outputs(tmp_path: Path) -> None:
    config = named_config("yolact_lite0").with_model(image_size=64, num_classes=3)
    graph, before, after = exported(config, tmp_path / "m.onnx", "qdq")
    assert graph.nodes()[0].op_type == "QuantizeLinear"
    ends = [n for n in graph.nodes("DequantizeLinear") if not is_weight(graph, n)]
    assert {n.output[0] for n in ends if not graph.readers(n.output[0])} == {"loc", "proto"}
    ran = optimized(tmp_path / "m.onnx", tmp_path)
    assert set(ran) == {
        "QuantizeLinear", "QLinearConv", "QLinearAdd", "DequantizeLinear", "Resize", "Transpose",
        "Reshape", "Concat", "Tanh", "Softmax",
    }  # fmt: skip
    assert (ran["QLinearConv"], ran["QLinearAdd"]) == (81, 11)
    assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (1 + 3, 4 + 3)  # around Resize
    for name in ("loc", "conf", "mask", "proto"):
        assert sqnr(getattr(before, name), getattr(after, name)) > 15, name


@pytest.mark.slow
def test_deepsparse_gets_padding_inside_of_integer_convolutions(tmp_path: Path) -> None:
    graph, before, after = exported(lite_config(), tmp_path / "m.onnx", "deepsparse")
    assert graph.nodes("ConvInteger") and not graph.nodes("Pad", "Conv")
    for name in ("loc", "conf", "mask", "proto"):
        assert sqnr(getattr(before, name), getattr(after, name)) > 15, name


def two_levels(bias: float, scale: list[float]) -> onnx.ModelProto:
    """Two convolutions of the same weight and bias in a row, as a head that levels share."""
    nodes = [
        *pair("x", 0, "s", "z"),
        *(helper.make_node(
            "DequantizeLinear", [f"{n}_int8", f"{n}_scale", "zw"], [f"{n}_d"], axis=0
        ) for n in ("w", "v")),
        helper.make_node("Conv", ["x_d0", "w_d", "b"], ["c"]),
        *pair("c", 0, "wide", "middle"),
        helper.make_node("Conv", ["c_d0", "v_d", "b"], ["d"]),
        *pair("d", 0, "wide", "middle"),
        helper.make_node("Conv", ["d_d0", "v_d", "b"], ["y"]),
    ]  # fmt: skip
    eye = np.array([[90, 0], [0, 90]], np.int8).reshape(2, 2, 1, 1)
    constants: dict[str, Array] = {
        **Q,
        "wide": np.array(0.03, np.float32),
        "middle": np.array(128, np.uint8),
        "zw": np.zeros(2, np.int8),
        "w_int8": eye,
        "w_scale": np.array(scale, np.float32),
        "v_int8": eye,
        "v_scale": np.array([0.01, 0.01], np.float32),
        "b": np.array([0.5, bias], np.float32),
    }
    return model_of(nodes, constants)


def test_convolutions_share_weights_and_no_biases() -> None:
    model = two_levels(0.25, [0.01, 0.01])
    quantize_activations(model, {"v": (-4.0, 4.0)})
    expected = run(model, PICTURE)
    store_biases_as_int32(model)
    graph = Graph(model)
    biases = [graph.producer(conv.input[2], "DequantizeLinear") for conv in graph.nodes("Conv")]
    stored = [bias.input[0] for bias in biases if bias is not None]
    assert len(set(stored)) == len(stored) >= 2
    assert len({conv.input[1] for conv in graph.nodes("Conv")}) == 2
    assert np.abs(run(model, PICTURE) - expected).max() < 0.04


def test_a_channel_with_next_to_no_weights_keeps_its_bias_as_an_integer() -> None:
    """As a dead channel after its batch norm is folded: 1e-12 a step, and a bias of 2."""
    model = two_levels(2.0, [0.01, 1e-12])
    quantize_activations(model, {"v": (-4.0, 4.0)})
    expected = run(model, PICTURE)
    store_biases_as_int32(model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    first = graph.producer(graph.nodes("Conv")[0].input[2], "DequantizeLinear")
    assert first is not None
    stored, scale = (graph.constant(name) for name in first.input[:2])
    assert stored is not None and scale is not None and stored.dtype == np.int32
    np.testing.assert_allclose(stored * scale.astype(np.float64), [0.5, 2.0], rtol=1e-3)
    assert np.abs(run(model, PICTURE) - expected).max() < 0.04


def test_pooling_stays_between_integers() -> None:
    nodes = [
        *pair("x", 0, "s", "z"),
        *(weight(name) for name in ("w0", "w1")),
        helper.make_node("Conv", ["x_d0", "w0_d"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        *pair("m", 0, "after", "point"),
        helper.make_node("Conv", ["m_d0", "w1_d"], ["y"]),
    ]
    model = relu6(6 / 255, 0, before=False)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    expected = run(model, PICTURE)
    quantize_activations(model)
    graph = Graph(model)
    (pool,) = graph.nodes("MaxPool")
    assert graph.producer(pool.input[0], "DequantizeLinear") is not None
    assert [reader.op_type for reader in graph.readers(pool.output[0])] == ["QuantizeLinear"]
    assert not graph.nodes("Relu")
    np.testing.assert_array_equal(run(model, PICTURE), expected)
