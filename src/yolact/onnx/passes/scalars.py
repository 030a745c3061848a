"""Scales and zero points of a whole tensor as scalars, which some fused kernels insist on."""

from __future__ import annotations

import onnx

from yolact.onnx.graph import Graph


def make_scales_scalar(model: onnx.ModelProto) -> None:
    """Turn one-element lists of QuantizeLinear / DequantizeLinear into scalars; same results.

    The tracer writes lists, with which onnxruntime cannot load the sum of two quantized inputs
    that is itself quantized.
    """
    graph = Graph(model)
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        for index, name in list(enumerate(node.input))[1:]:
            array = graph.constant(name)
            if array is not None and array.shape == (1,):
                node.input[index] = graph.add_constant(f"{name}_scalar", array.reshape(()))
    graph.commit()
