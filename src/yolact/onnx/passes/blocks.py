"""Store integer weights with the input channels last, where blocks of zeros lie together."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from yolact.onnx.graph import Graph

_CHANNELS_LAST, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def store_blocks_together(model: onnx.ModelProto) -> None:
    """Turn integer weights [O, I, H, W] into [O, H, W, I], and let a Transpose turn them back.

    Recipes prune blocks of input channels. ONNX's order takes the blocks of a 3x3 weight apart, so
    that a packer has to tell every zero on its own; in this order it tells a block at once.

    Engines transpose when they load the file, and then compute as they always do. The Transpose
    stands behind DequantizeLinear: with one between the integers and it, OpenVINO computes in
    floats.
    """
    graph = Graph(model)
    for tensor in model.graph.initializer:
        weight = graph.constant(tensor.name) if len(tensor.dims) == 4 else None
        if weight is None or weight.dtype.itemsize > 1 or weight.shape[2:] == (1, 1):
            continue
        turned = np.ascontiguousarray(weight.transpose(_CHANNELS_LAST))
        stored = graph.add_constant(f"{tensor.name}_channels_last", turned)
        graph.replace_value(tensor.name, stored)
        dequantized = [
            node.output[0]
            for node in graph.readers(stored)
            if node.op_type == "DequantizeLinear"  # ConvInteger reads the integers themselves
        ]
        for value in dequantized or [stored]:
            _turn_back(graph, value)
    graph.commit()


def _turn_back(graph: Graph, value: str) -> None:
    restored = f"{value}_restored"
    first, *_ = graph.readers(value)
    graph.replace_value(value, restored)
    transpose = helper.make_node("Transpose", [value], [restored], f"{value}_transpose", perm=_BACK)
    graph.insert_before(first, transpose)
