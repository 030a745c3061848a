"""Quantized graphs in which everything between quantized layers is quantized, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnx_models import (
    CLASSES,
    QUANTIZATION,
    SIDE,
    noise,
    quantized_model,
    with_golden_weights,
)
from test_exporter_passes import PICTURE, Array, kinds, model_of, run
from yolact.data.labels import Classes
from yolact.engines.onnxruntime import OrtEngine
from yolact.errors import ConfigError
from yolact.exporter.export import export
from yolact.exporter.graph import Graph
from yolact.exporter.options import ExportOptions, Layout
from yolact.exporter.passes.quantize import (
    join_tanhs,
    missing_ranges,
    quantize_activations,
    store_biases_as_int32,
)
from yolact.exporter.passes.ranges import Quantizer, derive, found_quantizers
from yolact.exporter.passes.store import convolve_integers
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.sparsify.one_shot import calibrate
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure

FLOATS = st.floats(-1e4, 1e4, width=32)


@given(ends=st.tuples(FLOATS, FLOATS))
def test_a_range_is_held_to_half_a_step_and_holds_zero_exactly(
    ends: tuple[float, float],
) -> None:
    low, high = sorted(ends)
    quantizer = Quantizer.of_range(low, high)
    if quantizer is None:
        assert max(abs(low), abs(high)) < 1e-30
        return
    assert 0 <= quantizer.zero <= 255
    step = quantizer.scale
    assert quantizer.low <= min(low, 0) + 0.51 * step
    assert quantizer.high >= max(high, 0) - 0.51 * step
    assert quantizer.high - quantizer.low == pytest.approx(255 * step)


def pair(value: str, index: int, scale: str, zero: str) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear behind ``value``, which make ``value_d<index>``."""
    name = f"{value}_{{}}{index}"
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [name.format("q")]),
        helper.make_node("DequantizeLinear", [name.format("q"), scale, zero], [name.format("d")]),
    ]


def weight(name: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [f"{name}_int8", "sw", "zw"], [f"{name}_d"])


def residual_block() -> onnx.ModelProto:
    """As it is trained: x -> conv -> leaky -> conv -> leaky -> + x, and a convolution after."""
    rng = np.random.default_rng(1)
    constants: dict[str, Array] = {
        "sx": np.array(0.03, np.float32),
        "zx": np.array(128, np.uint8),
        "sc": np.array(0.02, np.float32),
        "zc": np.array(120, np.uint8),
        "sl": np.array(0.015, np.float32),
        "zl": np.array(20, np.uint8),
        "ss": np.array(0.05, np.float32),
        "zs": np.array(100, np.uint8),
        "sw": np.array(0.01, np.float32),
        "zw": np.array(0, np.int8),
        "b": np.array([0.1, -0.2], np.float32),
        **{f"w{i}_int8": rng.integers(-50, 50, (2, 2, 1, 1)).astype(np.int8) for i in range(3)},
    }
    nodes = [
        *pair("x", 0, "sx", "zx"),
        *(weight(f"w{i}") for i in range(3)),
        helper.make_node("Conv", ["x_d0", "w0_d", "b"], ["c0"]),
        *pair("c0", 0, "sc", "zc"),
        helper.make_node("LeakyRelu", ["c0_d0"], ["l0"], alpha=0.1),
        *pair("l0", 0, "sl", "zl"),
        helper.make_node("Conv", ["l0_d0", "w1_d", "b"], ["c1"]),
        *pair("c1", 0, "sc", "zc"),
        helper.make_node("LeakyRelu", ["c1_d0"], ["l1"], alpha=0.1),
        helper.make_node("Add", ["l1", "x"], ["s"]),
        *pair("s", 0, "ss", "zs"),
        helper.make_node("Conv", ["s_d0", "w2_d", "b"], ["y"]),
    ]
    return model_of(nodes, constants)


def single_readers(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """(node type, type of the only reader of its output)."""
    graph = Graph(model)
    found = set()
    for node in graph.nodes():
        readers = graph.readers(node.output[0])
        found |= {(node.op_type, readers[0].op_type)} if len(readers) == 1 else set()
    return found


def test_every_node_of_a_block_stands_between_two_pairs() -> None:
    model = residual_block()
    expected = run(model, PICTURE)
    quantize_activations(model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    for node in graph.nodes("LeakyRelu", "Add", "Conv"):
        for name in node.input[: 2 if node.op_type == "Add" else 1]:
            assert graph.producer(name, "DequantizeLinear") is not None, node.op_type
        if node.output[0] != "y":
            assert [r.op_type for r in graph.readers(node.output[0])] == ["QuantizeLinear"]
    # The shortcut and the last activation are rounded as well now: to half a step at most, which
    # the last convolution's 2 x 0.5 of weights carry on.
    assert np.abs(run(model, PICTURE) - expected).max() < 0.15


def test_ranges_behind_leaky_relu_follow_from_those_before_it() -> None:
    model = residual_block()
    graph = Graph(model)
    found = found_quantizers(graph)
    before = found["c1"]
    for dequantize in graph.nodes("DequantizeLinear"):
        graph.replace_value(dequantize.output[0], dequantize.input[0].replace("_q0", ""))
    after = derive(graph, found, {})["l1"]
    assert after.high == pytest.approx(before.high, abs=after.scale)
    assert after.low == pytest.approx(0.1 * before.low, abs=after.scale)


def test_openvino_gets_no_pair_between_convolution_and_leaky_relu() -> None:
    model = residual_block()
    quantize_activations(model, before_leaky_relu=False)
    assert ("Conv", "LeakyRelu") in single_readers(model)
    assert ("LeakyRelu", "QuantizeLinear") in single_readers(model)
    assert ("Add", "QuantizeLinear") in single_readers(model)


def test_the_widest_of_several_quantizers_of_a_value_counts() -> None:
    nodes = [
        *pair("x", 0, "wide", "zero"),
        *pair("x", 1, "fine", "zero"),
        *(weight(f"w{i}") for i in range(2)),
        helper.make_node("Conv", ["x_d0", "w0_d"], ["c0"]),
        helper.make_node("Conv", ["x_d1", "w1_d"], ["c1"]),
        helper.make_node("Sub", ["c0", "c1"], ["y"]),
    ]
    constants: dict[str, Array] = {
        "wide": np.array(0.05, np.float32),
        "fine": np.array(0.03, np.float32),
        "zero": np.array(128, np.uint8),
        "sw": np.array(0.01, np.float32),
        "zw": np.array(0, np.int8),
        **{f"w{i}_int8": np.full((2, 2, 1, 1), 7, np.int8) for i in range(2)},
    }
    model = model_of(nodes, constants)
    quantize_activations(model)
    (quantize,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert scales[quantize.input[1]] == np.float32(0.05)
    np.testing.assert_array_equal(run(model, PICTURE), 0)


def test_a_convolution_of_float_weights_needs_no_range() -> None:
    model = residual_block()
    first = next(node for node in model.graph.node if node.output[0] == "c0")
    first.input[1] = "float_weight"
    array = np.ones((2, 2, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array, "float_weight"))
    quantize_activations(model)
    onnx.checker.check_model(model, full_check=True)
    assert missing_ranges(model) == {"w2"}


def test_biases_become_int32_in_steps_of_input_times_weight() -> None:
    model = residual_block()
    quantize_activations(model, {"w2": (-3.0, 3.0)})
    expected = run(model, PICTURE)
    store_biases_as_int32(model)
    graph = Graph(model)
    first = next(node for node in graph.nodes("Conv") if node.output[0] == "c0")
    bias = graph.producer(first.input[2], "DequantizeLinear")
    assert bias is not None
    stored, scale, zero = (graph.constant(name) for name in bias.input)
    assert stored is not None and scale is not None and zero is not None
    assert stored.dtype == np.int32 and not zero.any()
    assert stored.tolist() == [round(0.1 / 3e-4), round(-0.2 / 3e-4)]
    np.testing.assert_allclose(scale, 3e-4, rtol=1e-6)
    assert np.abs(run(model, PICTURE) - expected).max() < 0.03


def test_no_number_or_name_in_a_file_depends_on_the_version_of_numpy() -> None:
    """Numpy 2 writes scalars in another way, and takes single ones for what their type says."""
    model = residual_block()
    quantize_activations(model)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"scale_0.03", "scale_0.02"} <= names
    model = residual_block()
    step = float(np.float32(0.03)) * float(np.float32(0.01))
    for tensor in model.graph.initializer:
        if tensor.name == "b":  # 103.4999996 steps, which float32 takes for 103.5
            bias = np.array([103.5 * step, 0], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(bias, "b"))
    convolve_integers(model)
    graph = Graph(model)
    first = next(node for node in graph.nodes("Add") if node.input[0].startswith("c0"))
    stored = graph.constant(first.input[1])
    assert stored is not None and stored.ravel()[0] == 103


def test_a_bias_beyond_int32_stays_float() -> None:
    model = residual_block()
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1e7, 0], np.float32), "b"))
    quantize_activations(model)
    store_biases_as_int32(model)
    graph = Graph(model)
    assert all(node.input[2] == "b" for node in graph.nodes("Conv"))


def test_no_runtime_cuts_off_what_it_interpolates_between_integers() -> None:
    """ONNX Runtime 1.26 does, where the ranges on both sides are the same."""
    nodes = [
        *pair("x", 0, "sx", "zx"),
        helper.make_node("Resize", ["x_d0", "", "scales"], ["r"], mode="linear"),
        *pair("r", 0, "sx", "zx"),
        weight("w"),
        helper.make_node("Conv", ["r_d0", "w_d"], ["y"]),
    ]
    constants: dict[str, Array] = {
        "sx": np.array(0.03, np.float32),
        "zx": np.array(128, np.uint8),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "sw": np.array(0.01, np.float32),
        "zw": np.array(0, np.int8),
        "w_int8": np.full((2, 2, 1, 1), 7, np.int8),
    }
    model = model_of(nodes, constants)
    quantize_activations(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": PICTURE})[0], run(model, PICTURE), atol=1e-6)


def test_tanhs_move_behind_their_concat() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t0"]),
        helper.make_node("Tanh", ["b"], ["t1"]),
        helper.make_node("Concat", ["t0", "t1"], ["y"], axis=1),
    ]
    model = model_of(nodes, {"b": PICTURE})
    expected = run(model, PICTURE)
    join_tanhs(model)
    assert kinds(model) == ["Concat", "Tanh"]
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def optimized(path: Path, folder: Path) -> Counter[str]:
    """Node types that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return Counter(node.op_type for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["qdq", "openvino"])
def test_the_network_runs_in_integers_from_input_to_outputs(layout: Layout, tmp_path: Path) -> None:
    images = [noise(1, seed) for seed in range(2)]
    path = tmp_path / "m.onnx"
    report = export(quantized_model(), CLASSES, path, ExportOptions(layout=layout), images=images)
    assert report.float_outputs == 0
    assert all(output.passed for output in report.outputs)
    graph = Graph(onnx.load(str(path)))
    before = "QuantizeLinear" if layout == "qdq" else "LeakyRelu"
    for conv in graph.nodes("Conv"):
        (reader,) = graph.readers(conv.output[0])
        leaky = conv.output[0].endswith("Conv_output_0") and "backbone" in conv.output[0]
        assert reader.op_type == (before if leaky else "QuantizeLinear")
    # What is left in floats: activation functions of outputs, and the outputs themselves.
    floats = [node for node in graph.nodes("DequantizeLinear") if not is_weight(graph, node)]
    last = {name for node in floats if not graph.readers(node.output[0]) for name in node.output}
    assert last == {"loc", "proto"}
    assert Counter(n.op_type for n in graph.nodes("Tanh", "Softmax", "Relu")) == Counter(
        {"Tanh": 1, "Softmax": 1}
    )
    if layout == "qdq":
        ran = optimized(path, tmp_path)
        assert not {"Conv", "FusedConv", "LeakyRelu", "Add"} & set(ran)
        assert (ran["QLinearConv"], ran["QLinearLeakyRelu"], ran["QLinearAdd"]) == (55, 22, 10)
        assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (1 + 3, 4 + 3)  # around Resize


def is_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    return graph.constant(node.input[0]) is not None


@pytest.mark.slow
def test_without_images_only_the_outputs_stay_float(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export(quantized_model(), CLASSES, path)
    assert report.float_outputs == 4  # boxes, classes, coefficients, prototypes
    ran = optimized(path, tmp_path)
    assert ran["Conv"] + ran["FusedConv"] == 3 * 5 + 1
    assert ran["QLinearConv"] == 55 - 16


@pytest.mark.slow
def test_batches_of_an_integer_graph_equal_single_images(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(quantized_model(), CLASSES, path, images=[noise(1, 0)])
    engine = OrtEngine(path)
    images = noise(2, 7)
    together: Any = engine(images)
    for index in range(2):
        alone: Any = engine(images[index : index + 1])
        for name in ("loc", "conf", "mask", "proto"):
            a, b = getattr(together, name)[index], getattr(alone, name)[0]
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert engine.image_size == (SIDE, SIDE)


@pytest.mark.slow
def test_deepsparse_gets_what_sparseml_wrote(tmp_path: Path) -> None:
    path, plain = tmp_path / "m.onnx", tmp_path / "plain.onnx"
    model = quantized_model()
    report = export(model, CLASSES, path, ExportOptions(layout="deepsparse"))
    assert all(output.passed for output in report.outputs)
    graph = Graph(onnx.load(str(path)))
    count = Counter(node.op_type for node in graph.nodes())
    assert (count["ConvInteger"], count["Conv"], count["Cast"], count["Mul"]) == (55, 0, 55, 55)
    for node in graph.nodes("ConvInteger"):
        weights, zero = (graph.constant(node.input[index]) for index in (1, 3))
        assert weights is not None and weights.dtype == np.uint8 and zero == 128
        assert graph.producer(node.input[0], "QuantizeLinear") is not None
        chain = [node]
        for wanted in ("Add", "Cast", "Mul"):
            (reader,) = graph.readers(chain[-1].output[0])
            assert reader.op_type == wanted
            chain.append(reader)
        bias = graph.constant(chain[1].input[1])
        assert bias is not None and bias.dtype == np.int32
    raw = export(model, CLASSES, plain, ExportOptions(convert_qat=False))
    assert report.sparsity == pytest.approx(raw.sparsity, abs=2e-3)
    assert report.size < 0.33 * raw.size


def test_integer_convolutions_equal_those_they_replace() -> None:
    model = residual_block()
    expected = run(model, PICTURE)
    convolve_integers(model)
    onnx.checker.check_model(model, full_check=True)
    assert Counter(kinds(model))["ConvInteger"] == 3
    assert nearly_all_equal(run(model, PICTURE), expected)


def nearly_all_equal(a: Array, b: Array) -> bool:
    """But for rounded biases, and values that another sum puts on the next step."""
    return bool(np.quantile(np.abs(a - b), 0.9) < 1e-3)


def test_every_channel_has_its_scale_behind_an_integer_convolution() -> None:
    model = residual_block()
    for tensor in model.graph.initializer:
        if tensor.name in ("sw", "zw"):
            dtype = np.float32 if tensor.name == "sw" else np.int8
            values = np.array([0.01, 0.03] if tensor.name == "sw" else [0, 0], dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_int8"):
            node.attribute.append(helper.make_attribute("axis", 0))
    expected = run(model, PICTURE)
    convolve_integers(model)
    assert nearly_all_equal(run(model, PICTURE), expected)


@pytest.mark.slow
def test_the_published_network_takes_less_than_52_mb(tmp_path: Path) -> None:
    config = named_config("yolact_darknet53").with_model(image_size=96)
    model = with_golden_weights(Yolact(config.model)).eval()
    apply_structure(model, load_recipe(QUANTIZATION))
    images = [noise(1, 0)]
    calibrate(model, images)
    path = tmp_path / "m.onnx"
    report = export(model, Classes.numbered(80), path, config=config, images=images)
    assert report.size < 52e6
    count = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    assert (count["Conv"], count["LeakyRelu"], count["Add"]) == (85, 52, 25)


@pytest.mark.slow
def test_an_input_of_two_sides_is_integers_all_through(tmp_path: Path) -> None:
    model, size, path = quantized_model(), (64, 96), tmp_path / "m.onnx"
    images = [
        torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    ]
    report = export(
        model,
        CLASSES,
        path,
        ExportOptions(image_size=size, with_nms=True, opset=13),
        images=images,
    )
    assert report.quantized and report.float_outputs == 0
    assert report.input_shape == ("batch", 3, *size)
    with pytest.raises(ConfigError, match="opset 12 cannot say how the model is quantized"):
        export(model, CLASSES, path, ExportOptions(opset=12))
