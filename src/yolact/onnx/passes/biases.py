"""Biases as int32, in the unit that integer convolutions add up in."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from onnx import helper

from yolact.onnx.graph import Array, Graph

_LIMIT = 2**30
"""Half of what int32 holds: the other half is for what is added."""


def store_biases_as_int32(model: onnx.ModelProto) -> None:
    """Quantize biases in steps of input scale times weight scale, with a zero point of 0.

    Only where input and weight are quantized and the output is as well: the rest of an integer
    convolution. A bias too large for its step stays float.
    """
    graph = Graph(model)
    for conv in graph.nodes("Conv"):
        if len(conv.input) < 3 or not _is_integer(graph, conv):
            continue
        bias = graph.constant(conv.input[2])
        if bias is None:
            continue
        steps = _scale(graph, conv.input[0]) * _scale(graph, conv.input[1]).astype(np.float64)
        stored = np.rint(bias.astype(np.float64) / steps)
        if np.abs(stored).max() > _LIMIT:
            continue
        scale = np.broadcast_to(steps.astype(np.float32), bias.shape).copy()
        name = f"{conv.input[2]}_int32_{hashlib.sha256(scale.tobytes()).hexdigest()[:8]}"
        inputs = [
            graph.add_constant(name, stored.astype(np.int32)),
            graph.add_constant(f"{name}_scale", scale),
            graph.add_constant(f"{name}_zero", np.zeros(bias.shape, np.int32)),
        ]
        output = f"{conv.output[0]}_bias"
        graph.insert_before(
            conv, helper.make_node("DequantizeLinear", inputs, [output], output, axis=0)
        )
        conv.input[2] = output
    graph.commit()


def _is_integer(graph: Graph, conv: onnx.NodeProto) -> bool:
    readers = graph.readers(conv.output[0])
    return (
        all(graph.producer(name, "DequantizeLinear") is not None for name in conv.input[:2])
        and len(readers) == 1
        and readers[0].op_type == "QuantizeLinear"
    )


def _scale(graph: Graph, value: str) -> Array:
    """The scale of the DequantizeLinear that makes ``value``."""
    dequantize = graph.producer(value, "DequantizeLinear")
    scale = None if dequantize is None else graph.constant(dequantize.input[1])
    assert scale is not None
    return scale
