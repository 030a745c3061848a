"""Graph passes on graphs small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from yolact.exporter.graph import conv_weights, graph_sparsity
from yolact.exporter.passes import INTEGERS, run_passes
from yolact.exporter.passes.clean import (
    merge_duplicates,
    remove_identities,
    scale_to,
    simplify_reshapes,
    store_constants,
    write_sizes,
)
from yolact.exporter.passes.quantize import (
    make_activations_unsigned,
    quantize_linear,
    store_weights_as_int8,
)

Array = npt.NDArray[Any]
PICTURE = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    rank: int = 4,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, PICTURE.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[:rank]))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)


def run(model: onnx.ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": x})[0]
    return result


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def quantized_convolution() -> onnx.ModelProto:
    """X -> Q/DQ -> two convolutions that share one weight (Q/DQ) -> sum."""
    constants: dict[str, Array] = {
        "w": np.array([0.5, -0.26, 0.0, 1.0], np.float32).reshape(2, 2, 1, 1),
        "sx": np.float32(0.1).reshape(1),
        "zx": np.int8(-28).reshape(1),
        "sw": np.float32(0.02).reshape(1),
        "zw": np.int8(0).reshape(1),
    }
    nodes = []
    for index in (1, 2):
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], [f"xq{index}"]),
            helper.make_node("DequantizeLinear", [f"xq{index}", "sx", "zx"], [f"xd{index}"]),
            helper.make_node("QuantizeLinear", ["w", "sw", "zw"], [f"wq{index}"]),
            helper.make_node("DequantizeLinear", [f"wq{index}", "sw", "zw"], [f"wd{index}"]),
            helper.make_node("Conv", [f"xd{index}", f"wd{index}"], [f"c{index}"]),
        ]
    nodes.append(helper.make_node("Add", ["c1", "c2"], ["y"]))
    return model_of(nodes, constants)


def test_quantization_passes_change_no_result() -> None:
    model = quantized_convolution()
    expected = run(model, PICTURE)
    run_passes(model, INTEGERS)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def test_a_shared_weight_is_stored_once_as_int8() -> None:
    model = quantized_convolution()
    store_weights_as_int8(model)
    names = {t.name: t for t in model.graph.initializer}
    assert set(names) == {"w_int8", "sx", "zx", "sw", "zw"}
    assert numpy_helper.to_array(names["w_int8"]).reshape(-1).tolist() == [25, -13, 0, 50]
    assert kinds(model).count("QuantizeLinear") == 2  # those of the activations
    assert graph_sparsity(model) == 0.25
    assert conv_weights(model)["w_int8"].dtype == np.int8


def test_activations_become_unsigned_and_weights_do_not() -> None:
    model = quantized_convolution()
    make_activations_unsigned(model)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = values[node.input[2]]
            weight = node.input[0] == "w"
            assert (zero.dtype, int(zero[0])) == ((np.int8, 0) if weight else (np.uint8, 100))


def test_equal_quantizers_merge_and_different_ones_do_not() -> None:
    model = quantized_convolution()
    merge_duplicates(model)
    assert kinds(model).count("QuantizeLinear") == 2
    assert kinds(model).count("DequantizeLinear") == 2
    model = quantized_convolution()
    second = [node for node in model.graph.node if node.output[0] in ("xq2", "xd2")]
    for node in second:
        node.input[1] = "sw"
    merge_duplicates(model)
    assert kinds(model).count("QuantizeLinear") == 3


@given(
    values=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20),
    scale=st.floats(2**-10, 8, width=32),
    zero=st.integers(-128, 127),
)
def test_quantizing_now_equals_quantizing_in_torch(
    values: list[float], scale: float, zero: int
) -> None:
    x = np.array(values, np.float32)
    stored = quantize_linear(x, np.float32(scale).reshape(1), np.int8(zero).reshape(1))
    assert stored.dtype == np.int8
    faked = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), scale, zero, -128, 127)
    steps = np.rint(faked.numpy() / np.float32(scale)) + zero
    # Torch multiplies by 1 / scale where ONNX divides, so exact ties may fall to either side.
    assert np.abs(stored - steps).max() <= 1
    away = np.abs(np.abs(x / np.float32(scale)) % 1 - 0.5) > 1e-3
    np.testing.assert_array_equal(stored[away], steps[away])


def test_halves_round_to_even_and_large_values_saturate() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e6, -1e6], np.float32)
    stored = quantize_linear(x, np.ones(1, np.float32), np.zeros(1, np.int8))
    assert stored.tolist() == [0, 2, 2, 0, 127, -128]


def test_every_channel_may_have_its_own_scale() -> None:
    x = np.ones((2, 3), np.float32)
    scale, zero = np.array([1, 0.5], np.float32), np.zeros(2, np.int8)
    assert quantize_linear(x, scale, zero, axis=0).tolist() == [[1, 1, 1], [2, 2, 2]]


def test_identities_go_unless_they_make_an_output() -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["b2"]),
        helper.make_node("Add", ["x", "b2"], ["z"]),
        helper.make_node("Identity", ["z"], ["y"]),
    ]
    model = model_of(nodes, {"b": np.float32(1).reshape(1)})
    expected = run(model, PICTURE)
    remove_identities(model)
    assert kinds(model) == ["Add", "Identity"]
    np.testing.assert_array_equal(run(model, PICTURE), expected)


def reshape_model(source: str, axis: int) -> onnx.ModelProto:
    """Reshape(transpose(x), [shape(source)[axis], -1, 2]), as torch writes it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Shape", [source], ["s"]),
        helper.make_node("Gather", ["s", "axis"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus", "width"], ["shape"], axis=0),
        helper.make_node("Reshape", ["t", "shape"], ["y"]),
    ]
    constants: dict[str, Array] = {
        "axis": np.array(axis, np.int64),
        "zero": np.array([0], np.int64),
        "minus": np.array([-1], np.int64),
        "width": np.array([2], np.int64),
    }
    return model_of(nodes, constants, rank=3)


@pytest.mark.parametrize("source", ["x", "t"])
def test_looking_up_the_batch_size_becomes_a_zero(source: str) -> None:
    model = reshape_model(source, axis=0)
    expected = run(model, PICTURE)
    simplify_reshapes(model)
    assert kinds(model) == ["Transpose", "Reshape"]
    np.testing.assert_array_equal(run(model, PICTURE), expected)
    shape = next(t for t in model.graph.initializer)
    assert numpy_helper.to_array(shape).tolist() == [0, -1, 2]


def test_looking_up_another_axis_stays() -> None:
    model = reshape_model("x", axis=1)
    simplify_reshapes(model)
    assert kinds(model).count("Gather") == 1


def test_constant_nodes_become_initializers_of_their_name() -> None:
    value = numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "v")
    nodes = [
        helper.make_node("Constant", [], ["b"], value=value),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    model = model_of(nodes, {})
    expected = run(model, PICTURE)
    store_constants(model)
    assert kinds(model) == ["Add"] and [t.name for t in model.graph.initializer] == ["b"]
    np.testing.assert_array_equal(run(model, PICTURE), expected)


@given(before=st.integers(1, 600), after=st.integers(1, 600))
def test_scales_lead_to_the_size_they_are_made_for(before: int, after: int) -> None:
    scale = scale_to(before, after)
    assert scale.dtype == np.float32
    assert int(np.floor(np.float32(before) * scale)) == after
    assert int(np.floor(before * float(scale))) == after, "as ONNX Runtime computes since 1.28"
    assert scale == pytest.approx(after / before, rel=1e-6)


def test_a_size_that_was_looked_up_becomes_a_scale() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two", "zero"], ["first"]),
        helper.make_node("Concat", ["first", "wanted"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear"),
    ]
    constants: dict[str, Array] = {
        "zero": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "wanted": np.array([7, 9], np.int64),
    }
    model = model_of(nodes, constants)
    expected = run(model, PICTURE)
    write_sizes(model)
    assert kinds(model) == ["Resize"]
    np.testing.assert_allclose(run(model, PICTURE), expected, atol=1e-6)


def test_a_size_that_depends_on_the_input_stays_computed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "factors"], ["sizes"]),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear"),
    ]
    model = model_of(nodes, {"factors": np.array([1, 1, 2, 3], np.int64)})
    write_sizes(model)
    assert kinds(model) == ["Shape", "Mul", "Resize"]
