"""The convolution weights of a graph, wherever and however they are stored."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph


def conv_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Stored arrays by name: float32, or int8 where a DequantizeLinear reads them.

    A weight that several convolutions share is listed once.
    """
    graph = Graph(model)
    weights: dict[str, Array] = {}
    for conv in graph.nodes("Conv"):
        name = conv.input[1]
        for op_type in ("DequantizeLinear", "QuantizeLinear"):
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
