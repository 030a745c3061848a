"""Remove Identity nodes: torch shares equal constants through them, which hides weight names."""

from __future__ import annotations

import onnx

from yolact.onnx.graph import Graph


def remove_identities(model: onnx.ModelProto) -> None:
    """Let readers of an Identity read its source. One that makes a graph output stays."""
    graph = Graph(model)
    outputs = graph.output_names()
    for node in graph.nodes("Identity"):
        if node.output[0] not in outputs:
            graph.replace_value(node.output[0], node.input[0])
    graph.commit()
