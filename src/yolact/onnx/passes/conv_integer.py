"""Convolutions as ConvInteger, the form that SparseML exported and DeepSparse looks for."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper

from yolact.onnx.graph import Array, Graph

_MIDDLE = np.uint8(128)
"""Zero point of weights: SparseML stored them as uint8."""


def convolve_integers(model: onnx.ModelProto) -> None:
    """Replace quantized convolutions by ConvInteger, Add, Cast and Mul.

    They read the integers that a QuantizeLinear makes, add the bias in int32, and put out floats:
    (ConvInteger(q, w) + b) * scale. Quantizers stay where training has put them.
    """
    graph = Graph(model)
    nodes = []
    for node in graph.nodes():
        nodes += _integer_nodes(graph, node) if node.op_type == "Conv" else [node]
    graph.replace_nodes(nodes)
    graph.commit()


def _integer_nodes(graph: Graph, conv: onnx.NodeProto) -> list[onnx.NodeProto]:
    found = [graph.producer(name, "DequantizeLinear") for name in conv.input[:2]]
    inputs, weights = found
    if inputs is None or weights is None:
        return [conv]
    input_scale, weight_scale = (graph.constant(n.input[1]) for n in found if n is not None)
    stored = graph.constant(weights.input[0])
    if input_scale is None or weight_scale is None or stored is None:
        return [conv]
    scale = _over_channels(input_scale.astype(np.float64) * weight_scale)
    value = conv.output[0]
    parts = [f"{value}_{part}" for part in ("integers", "sum", "cast")]
    operands = [inputs.input[0], _unsigned(graph, weights.input[0], stored), inputs.input[2]]
    zero = graph.add_constant("weight_zero_point", np.array(_MIDDLE))
    convolution = helper.make_node("ConvInteger", [*operands, zero], parts[:1], parts[0])
    convolution.attribute.extend(conv.attribute)
    nodes = [convolution]
    bias = graph.constant(conv.input[2]) if len(conv.input) > 2 else None
    if bias is not None:
        addend = np.rint(_over_channels(bias) / scale).astype(np.int32)
        name = graph.add_constant(_name(conv.input[2], addend), addend)
        nodes.append(helper.make_node("Add", [parts[0], name], [parts[1]], parts[1]))
    last = nodes[-1].output[0]
    factor = scale.astype(np.float32)
    nodes += [
        helper.make_node("Cast", [last], [parts[2]], parts[2], to=TensorProto.FLOAT),
        helper.make_node(
            "Mul",
            [parts[2], graph.add_constant(_name(f"{weights.input[1]}_rescale", factor), factor)],
            [value],
            f"{value}_rescaled",
        ),
    ]
    return nodes


def _unsigned(graph: Graph, name: str, stored: Array) -> str:
    shifted = (stored.astype(np.int16) + int(_MIDDLE)).astype(np.uint8)
    return graph.add_constant(f"{name.removesuffix('_int8')}_uint8", shifted)


def _over_channels(values: Array) -> Array:
    """Shaped to broadcast over [N, C, H, W]; one value stays one."""
    return values.reshape(()) if values.size == 1 else values.reshape(1, -1, 1, 1)


def _name(base: str, content: Array) -> str:
    """A convolution that runs on several levels has a bias for each scale of its input."""
    return f"{base}_{hashlib.sha256(content.tobytes()).hexdigest()[:8]}"
