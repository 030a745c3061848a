"""The convolution weights of a graph, wherever and however they are stored."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph


def conv_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Stored arrays by name: float32 or float16, or int8 where integers are stored.

    A weight that several convolutions share is listed once, in the order of axes that it is stored
    in. Those of ConvInteger are stored around a zero point, which is taken off.
    """
    graph = Graph(model)
    weights: dict[str, Array] = {}
    for conv in graph.nodes("ConvInteger"):
        name = _source(graph, conv.input[1])
        stored, zero = graph.constant(name), graph.constant(conv.input[3])
        if stored is not None and zero is not None:
            weights[name] = (stored.astype(np.int16) - zero).astype(np.int8)
    for conv in graph.nodes("Conv"):
        name = _source(graph, conv.input[1])
        array = graph.constant(name)
        if array is not None:
            weights[name] = array
    return weights


def _source(graph: Graph, weight: str) -> str:
    """Name of the constant that a convolution's weight is made of."""
    for op_type in ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast"):
        node = graph.producer(weight, op_type)
        weight = node.input[0] if node is not None else weight
    return weight


def graph_sparsity(model: onnx.ModelProto) -> float:
    """Share of exact zeros among the convolution weights, 0..1."""
    weights = conv_weights(model).values()
    total = sum(weight.size for weight in weights)
    return sum(weight.size - np.count_nonzero(weight) for weight in weights) / max(total, 1)
