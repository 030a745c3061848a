"""Shift quantized activations from int8 to uint8, for which CPUs have the faster kernels."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Graph


def make_activations_unsigned(model: onnx.ModelProto) -> None:
    """Add 128 to the int8 zero points of QuantizeLinear / DequantizeLinear on activations.

    q + 128 with zero point z + 128 stands for the same number, so results do not change. x86's
    dot-product instructions (VNNI) multiply unsigned activations by signed weights.
    """
    graph = Graph(model)
    for quantize in graph.nodes("QuantizeLinear"):
        zero = graph.constant(quantize.input[2])
        if zero is None or zero.dtype != np.int8 or graph.constant(quantize.input[0]) is not None:
            continue
        readers = graph.readers(quantize.output[0])
        if any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        unsigned = (zero.astype(np.int16) + 128).astype(np.uint8)
        name = graph.add_constant(f"{quantize.output[0]}_zero_point", unsigned)
        for node in (quantize, *readers):
            node.input[2] = name
    graph.commit()
