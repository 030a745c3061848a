"""The convolution weights of a graph, wherever and however they are stored."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph


def conv_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Stored arrays by name: float32 or float16, or int8 where integers are stored.

    A weight that several convolutions share is listed once. Those of ConvInteger are stored around
    a zero point, which is taken off.
    """
    graph = Graph(model)
    weights: dict[str, Array] = {}
    for conv in graph.nodes("ConvInteger"):
        stored, zero = (graph.constant(conv.input[index]) for index in (1, 3))
        if stored is not None and zero is not None:
            weights[conv.input[1]] = (stored.astype(np.int16) - zero).astype(np.int8)
    for conv in graph.nodes("Conv"):
        name = conv.input[1]
        for op_type in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            node = graph.producer(name, op_type)
            name = node.input[0] if node is not None else name
        array = graph.constant(name)
        if array is not None:
            weights[name] = array
    return weights


def graph_sparsity(model: onnx.ModelProto) -> float:
    """Share of exact zeros among the convolution weights, 0..1."""
    weights = conv_weights(model).values()
    total = sum(weight.size for weight in weights)
    return sum(weight.size - np.count_nonzero(weight) for weight in weights) / max(total, 1)
