"""Sizes as numbers: only the batch axis is dynamic, so nothing else has to be computed."""

from __future__ import annotations

import math

import numpy as np
import onnx

from yolact.onnx.graph import Array, Graph
from yolact.onnx.shapes import Shape, infer_shapes


def write_sizes(model: onnx.ModelProto) -> None:
    """Give Resize constant scales, and Reshape the lengths it would have to find out.

    torch traces "to the size of that other tensor" as Shape, Slice and Concat nodes, because the
    sizes that Resize takes include the batch's. Scales do not.
    """
    for node in [node for node in model.graph.node if node.op_type == "Resize"]:
        # One by one, as each makes known the shapes that lead to the next.
        _scale(model, node.output[0], infer_shapes(model))
    shapes = infer_shapes(model)
    graph = Graph(model)
    for node in graph.nodes("Reshape"):
        lengths = _lengths(graph.constant(node.input[1]), shapes.get(node.input[0]))
        if lengths is not None:
            name = f"shape_{'_'.join(map(str, lengths))}"
            node.input[1] = graph.add_constant(name, np.array(lengths, np.int64))
    graph.commit()


def scale_to(before: int, after: int) -> np.float32:
    """The float32 s of about ``after / before`` for which floor(before * s) is ``after``.

    Resize computes the size so, and the quotient rounded to float32 may be a bit too small. Some
    engines multiply in float32 and some in float64: the exact product has to reach ``after``.

    >>> [int(np.floor(n * float(scale_to(n, 69)))) for n in (35, 18, 33)]
    [69, 69, 69]
    """
    scale = np.float32(after / before)
    while math.floor(before * float(scale)) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _scale(model: onnx.ModelProto, output: str, shapes: dict[str, Shape]) -> None:
    graph = Graph(model)
    node = next(n for n in graph.nodes("Resize") if n.output[0] == output)
    before = shapes.get(node.input[0], ())
    after = _wanted_sizes(graph, node)
    if after is None or len(before) != 2 + len(after):
        return
    sizes = [n for n in before[2:] if isinstance(n, int)]
    if len(sizes) != len(after):
        return
    scales = [1, 1, *(scale_to(a, b) for a, b in zip(sizes, after, strict=True))]
    node.input[2] = graph.add_constant(f"{output}_scales", np.array(scales, np.float32))
    del node.input[3:]
    graph.commit()


def _wanted_sizes(graph: Graph, resize: onnx.NodeProto) -> list[int] | None:
    """Height and width that a Resize asks for; None when they are not fixed, or given as scales."""
    if len(resize.input) < 4:
        return None
    whole = graph.constant(resize.input[3])
    if whole is not None:
        return [int(size) for size in whole[2:]]
    concat = graph.producer(resize.input[3], "Concat")
    last = graph.constant(concat.input[-1]) if concat is not None else None
    fixed = last is not None and concat is not None and len(concat.input) == 2 and last.size == 2
    return [int(size) for size in last] if fixed and last is not None else None


def _lengths(wanted: Array | None, shape: Shape | None) -> list[int] | None:
    """What [0, -1, n, ...] comes to for a value whose first axis alone is dynamic."""
    if wanted is None or shape is None or wanted.tolist().count(-1) != 1 or wanted[0] != 0:
        return None
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    others = [int(n) for n in wanted[1:] if n != -1]
    if len(sizes) != len(shape) - 1 or 0 in others:
        return None
    missing = math.prod(sizes) // math.prod(others)
    return [missing if n == -1 else int(n) for n in wanted]
