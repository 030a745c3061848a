"""Store fake-quantized weights as the int8 numbers they stand for: a quarter of the bytes."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph


def store_weights_as_int8(model: onnx.ModelProto) -> None:
    """Run QuantizeLinear on constants now and keep the result, read by DequantizeLinear.

    A weight that several convolutions share is stored once.
    """
    graph = Graph(model)
    for dequantize in graph.nodes("DequantizeLinear"):
        quantize = graph.producer(dequantize.input[0], "QuantizeLinear")
        if quantize is None:
            continue
        weight, scale, zero = (graph.constant(name) for name in quantize.input)
        if weight is None or scale is None or zero is None:
            continue
        name = f"{quantize.input[0]}_int{'8' if zero.dtype == np.int8 else '8u'}"
        dequantize.input[0] = graph.add_constant(
            name, quantize_linear(weight, scale, zero, _axis(quantize))
        )
    graph.commit()


def quantize_linear(x: Array, scale: Array, zero_point: Array, axis: int = 1) -> Array:
    """ONNX's QuantizeLinear: round half to even, add the zero point, saturate.

    Args:
        x: float32, any shape.
        scale: One number, or one per index of ``axis``.
        zero_point: As many, of the result's type.
        axis: Only looked at when there are several scales.
    """
    if scale.size > 1:
        shape = [1] * x.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    limits = np.iinfo(zero_point.dtype)
    rounded = np.rint(x / scale) + zero_point.astype(np.float32)
    return np.clip(rounded, limits.min, limits.max).astype(zero_point.dtype).reshape(x.shape)


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
