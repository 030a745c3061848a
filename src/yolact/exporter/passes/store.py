"""Passes that store a finished graph in another way: as DeepSparse reads it, or smaller."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper

from yolact.errors import ExportError
from yolact.exporter.graph import Array, Graph

_MIDDLE = np.uint8(128)
"""Zero point of weights: SparseML stored them as uint8."""
_CHANNELS_LAST, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def convolve_integers(model: onnx.ModelProto) -> None:
    """Replace quantized convolutions by ConvInteger, Add, Cast and Mul.

    They read the integers that a QuantizeLinear makes, add the bias in int32, and put out floats:
    (ConvInteger(q, w) + b) * scale. Quantizers stay where training has put them.
    """
    graph = Graph(model)
    nodes = []
    for node in graph.nodes():
        nodes += _integer_nodes(graph, node) if node.op_type == "Conv" else [node]
    graph.replace_nodes(nodes)
    graph.commit()


def store_weights_as_half(model: onnx.ModelProto) -> None:
    """Store weights as float16 and let a Cast make float32 of them again.

    Engines run the Cast once, when they load the file, and then compute as they always do: a
    graph that also computes in 16 bits is slower on CPUs without such units, where ONNX Runtime
    converts forth and back around every node.

    Raises:
        ExportError: A weight is too large for 16 bits.
    """
    graph = Graph(model)
    casts: dict[str, onnx.NodeProto] = {}
    for conv in graph.nodes("Conv"):
        name = conv.input[1]
        weight = graph.constant(name)
        if weight is None or weight.dtype != np.float32:
            continue
        if name not in casts:
            stored = graph.add_constant(f"{name}_half", _half(name, weight))
            casts[name] = helper.make_node(
                "Cast", [stored], [f"{name}_float"], f"{name}_cast", to=TensorProto.FLOAT
            )
        conv.input[1] = casts[name].output[0]
    graph.replace_nodes([*casts.values(), *graph.nodes()])
    graph.commit()


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


def _integer_nodes(graph: Graph, conv: onnx.NodeProto) -> list[onnx.NodeProto]:
    found = [graph.producer(name, "DequantizeLinear") for name in conv.input[:2]]
    inputs, weights = found
    if inputs is None or weights is None:
        return [conv]
    input_scale, weight_scale = (graph.constant(n.input[1]) for n in found if n is not None)
    stored = graph.constant(weights.input[0])
    if input_scale is None or weight_scale is None or stored is None:
        return [conv]
    # All in float64, whatever numpy makes of a single float64 among float32: numpy 1 and 2 differ.
    scale = _over_channels(input_scale.astype(np.float64) * weight_scale.astype(np.float64))
    value = conv.output[0]
    parts = [f"{value}_{part}" for part in ("integers", "sum", "cast")]
    shifted = (stored.astype(np.int16) + int(_MIDDLE)).astype(np.uint8)
    unsigned = graph.add_constant(f"{weights.input[0].removesuffix('_int8')}_uint8", shifted)
    operands = [inputs.input[0], unsigned, inputs.input[2]]
    zero = graph.add_constant("weight_zero_point", np.array(_MIDDLE))
    convolution = helper.make_node("ConvInteger", [*operands, zero], parts[:1], parts[0])
    convolution.attribute.extend(conv.attribute)
    nodes = [convolution]
    bias = graph.constant(conv.input[2]) if len(conv.input) > 2 else None
    if bias is not None:
        addend = np.rint(_over_channels(bias.astype(np.float64)) / scale).astype(np.int32)
        name = graph.add_constant(_name(conv.input[2], addend), addend)
        nodes.append(helper.make_node("Add", [parts[0], name], [parts[1]], parts[1]))
    last = nodes[-1].output[0]
    factor = scale.astype(np.float32)
    nodes += [
        helper.make_node("Cast", [last], [parts[2]], parts[2], to=TensorProto.FLOAT),
        helper.make_node(
            "Mul",
            [parts[2], graph.add_constant(_name(f"{weights.input[1]}_rescale", factor), factor)],
            [value],
            f"{value}_rescaled",
        ),
    ]
    return nodes


def _over_channels(values: Array) -> Array:
    """Shaped to broadcast over [N, C, H, W]; one value stays one."""
    return values.reshape(()) if values.size == 1 else values.reshape(1, -1, 1, 1)


def _name(base: str, content: Array) -> str:
    """A convolution that runs on several levels has a bias for each scale of its input."""
    return f"{base}_{hashlib.sha256(content.tobytes()).hexdigest()[:8]}"


def _half(name: str, weight: Array) -> Array:
    with np.errstate(over="ignore"):
        halved = weight.astype(np.float16)
    if not np.isfinite(halved).all():
        raise ExportError(
            f"{name} holds {np.abs(weight).max():.3g}, which 16 bits cannot",
            hint="nothing was written; export without --half",
        )
    return halved


def _turn_back(graph: Graph, value: str) -> None:
    restored = f"{value}_restored"
    first, *_ = graph.readers(value)
    graph.replace_value(value, restored)
    transpose = helper.make_node("Transpose", [value], [restored], f"{value}_transpose", perm=_BACK)
    graph.insert_before(first, transpose)
