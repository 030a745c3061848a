"""Merge QuantizeLinear / DequantizeLinear nodes that compute the same thing."""

from __future__ import annotations

from typing import Any

import onnx

from yolact.onnx.graph import Graph


def merge_duplicates(model: onnx.ModelProto) -> None:
    """Keep one of several nodes with the same type, input, scale and zero point.

    Training gives every reader of a tensor a quantizer of its own. Where their ranges agree they
    are one; a convolution with a single quantizer behind it is what runtimes fuse.
    """
    graph = Graph(model)
    first: dict[tuple[Any, ...], str] = {}
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        parameters = [graph.constant(name) for name in node.input[1:]]
        if any(array is None for array in parameters):
            continue
        contents = [(a.dtype.str, a.tobytes()) for a in parameters if a is not None]
        attributes = sorted(a.SerializeToString() for a in node.attribute)
        key = (node.op_type, node.input[0], *contents, *attributes)
        kept = first.setdefault(key, node.output[0])
        if kept != node.output[0]:
            graph.replace_value(node.output[0], kept)
    graph.commit()
