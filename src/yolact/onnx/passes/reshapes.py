"""Replace the arithmetic that looks a batch size up by Reshape's own way to keep an axis."""

from __future__ import annotations

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph


def simplify_reshapes(model: onnx.ModelProto) -> None:
    """Turn Reshape(x, [shape(x)[0], -1, width]) into Reshape(x, [0, -1, width]).

    For Reshape, 0 means "as in the input". torch traces ``x.shape[0]`` as Shape, Gather,
    Unsqueeze and Concat nodes: four per reshape, and a shape that tools cannot infer.
    """
    graph = Graph(model)
    for node in graph.nodes("Reshape"):
        shape = _constant_shape(graph, node)
        if shape is not None:
            name = f"shape_{'_'.join(map(str, shape))}".replace("-", "m")
            node.input[1] = graph.add_constant(name, shape)
    graph.commit()


def _constant_shape(graph: Graph, node: onnx.NodeProto) -> Array | None:
    concat = graph.producer(node.input[1], "Concat")
    if concat is None:
        return None
    first, *rest = concat.input
    parts = [graph.constant(name) for name in rest]
    if any(part is None or 0 in part for part in parts):
        return None
    if not _is_batch_size(graph, first, of=node.input[0]):
        return None
    return np.array([0, *(int(v) for part in parts if part is not None for v in part)], np.int64)


def _is_batch_size(graph: Graph, value: str, of: str) -> bool:
    """Whether ``value`` is the length of the first axis of ``of``."""
    unsqueeze = graph.producer(value, "Unsqueeze")
    gather = unsqueeze and graph.producer(unsqueeze.input[0], "Gather")
    shape = gather and graph.producer(gather.input[0], "Shape")
    if shape is None or gather is None or graph.constant(gather.input[1]) != 0:
        return False
    sources = {of}
    transpose = graph.producer(of, "Transpose")
    if transpose is not None and _permutation(transpose)[0] == 0:
        sources.add(transpose.input[0])
    return shape.input[0] in sources


def _permutation(transpose: onnx.NodeProto) -> list[int]:
    return next(list(a.ints) for a in transpose.attribute if a.name == "perm")
