"""Passes that tidy a traced graph up without changing what it computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from yolact.exporter.graph import Array, Graph, Shape, infer_shapes

_MOST_FOLDED = 64
"""Integers of a shape or of paddings; more would be data."""


def remove_identities(model: onnx.ModelProto) -> None:
    """Let readers of an Identity read its source. One that makes a graph output stays."""
    graph = Graph(model)
    outputs = graph.output_names()
    for node in graph.nodes("Identity"):
        if node.output[0] not in outputs:
            graph.replace_value(node.output[0], node.input[0])
    graph.commit()


def store_constants(model: onnx.ModelProto) -> None:
    """Replace Constant nodes by initializers of the same name. The priors become one, too."""
    graph = Graph(model)
    for node in graph.nodes("Constant"):
        array = graph.constant(node.output[0])
        if array is not None:
            graph.add_constant(node.output[0], array)
            graph.remove(node)
    graph.commit()


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace nodes that make a few integers out of constant integers by what they make.

    torch traces the paddings of an image as six nodes that put constants into another order.
    """
    graph = Graph(model)
    for node in graph.nodes():
        arrays = {name: graph.constant(name) for name in node.input if name}
        known = {name: array for name, array in arrays.items() if array is not None}
        if not known or len(known) < len(arrays) or not all(map(_is_short, known.values())):
            continue
        result = _evaluated(model, node, known)
        if _is_short(result):
            graph.add_constant(node.output[0], result)
            graph.remove(node)
    graph.commit()


def pad_in_convolutions(model: onnx.ModelProto) -> None:
    """Let convolutions add the zeros that a Pad adds to height and width before them.

    Quantizers may stand in between: 0 is a number that each of them holds. A Pad of which a reader
    is anything else stays.
    """
    graph = Graph(model)
    for pad in graph.nodes("Pad"):
        before_after = _zeros_around(graph, pad)
        convolutions = _padded(graph, pad.output[0], np.zeros(()))
        if before_after is None or convolutions is None:
            continue
        for conv in convolutions:
            own = next((a for a in conv.attribute if a.name == "pads"), None)
            if own is None:
                conv.attribute.append(helper.make_attribute("pads", before_after))
            else:
                own.ints[:] = [a + b for a, b in zip(own.ints, before_after, strict=True)]
        graph.replace_value(pad.output[0], pad.input[0])
    graph.commit()


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


def _is_short(array: Array) -> bool:
    return array.dtype.kind == "i" and array.size <= _MOST_FOLDED


def _evaluated(model: onnx.ModelProto, node: onnx.NodeProto, inputs: dict[str, Array]) -> Array:
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "constant", infos, [output])
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
    return np.asarray(evaluator.run(None, inputs)[0])


def _zeros_around(graph: Graph, pad: onnx.NodeProto) -> list[int] | None:
    """What a Pad adds to [H, W] before and after, or None when it does anything else."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    widths, value, axes = (
        graph.constant(pad.input[index]) if len(pad.input) > index and pad.input[index] else default
        for index, default in ((1, None), (2, np.zeros(())), (3, np.arange(4)))
    )
    if mode != b"constant" or widths is None or value is None or axes is None or value.any():
        return None
    added = np.zeros((2, 4), np.int64)
    if axes.size > 4 or widths.size != 2 * axes.size or axes.max() > 3 or widths.min() < 0:
        return None
    added[:, axes] = widths.reshape(2, -1)
    return None if added[:, :2].any() else [int(n) for n in added[:, 2:].ravel()]


def _padded(graph: Graph, value: str, zero: Array) -> list[onnx.NodeProto] | None:
    """The convolutions that read ``value`` as images, where nothing else does.

    Args:
        graph: Of them.
        value: Where they begin; quantizers and limits in between do not change what 0 stands for.
        zero: What stands for 0 in ``value``.
    """
    found: list[onnx.NodeProto] = []
    for node in graph.readers(value):
        if list(node.input).count(value) > 1 or node.input[0] != value:
            return None
        if node.op_type == "Conv":
            if any(a.name == "auto_pad" and a.s != b"NOTSET" for a in node.attribute):
                return None
            found.append(node)
            continue
        next_zero = _zero_behind(graph, node, zero)
        behind = None if next_zero is None else _padded(graph, node.output[0], next_zero)
        if behind is None:
            return None
        found += behind
    return None if value in graph.output_names() else found


def _zero_behind(graph: Graph, node: onnx.NodeProto, zero: Array) -> Array | None:
    """What ``zero`` becomes behind a quantizer or a limit; None where padding cannot move along."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        point = graph.constant(node.input[2])
        if node.op_type == "QuantizeLinear":
            return point
        return np.zeros(()) if point is not None and np.array_equal(zero, point) else None
    if node.op_type == "Clip":
        limits = [graph.constant(name) for name in node.input[1:] if name]
        arrays = [limit for limit in limits if limit is not None]
        if len(arrays) == len(limits) == 2 and np.all((arrays[0] <= zero) & (zero <= arrays[1])):
            return zero
    return None


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
    if transpose is not None and transpose.attribute[0].ints[0] == 0:  # of the permutation
        sources.add(transpose.input[0])
    return shape.input[0] in sources


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
