"""Constants as initializers, where tools look for them."""

from __future__ import annotations

import onnx

from yolact.onnx.graph import Graph


def store_constants(model: onnx.ModelProto) -> None:
    """Replace Constant nodes by initializers of the same name. The priors become one, too."""
    graph = Graph(model)
    for node in graph.nodes("Constant"):
        array = graph.constant(node.output[0])
        if array is not None:
            graph.add_constant(node.output[0], array)
            graph.remove(node)
    graph.commit()
