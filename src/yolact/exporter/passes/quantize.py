"""Passes that turn simulated quantization into integers, from the weights to every activation."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from yolact.exporter.graph import Array, Graph
from yolact.exporter.passes.ranges import (
    LIMITING,
    MOVING,
    Quantizer,
    Ranges,
    data_inputs,
    derive,
    found_quantizers,
    limits_of,
    normalization,
    plain_quantizers,
    unknown_outputs,
)

_INTEGER = ("LeakyRelu", "Relu", "Add", "Resize", "MaxPool", *MOVING)
"""Besides convolutions of integer weights, what engines compute in integers."""
_LIMIT = 2**30
"""Half of what int32 holds: the other half is for what is added."""
_WHOLE = 1e-3
"""How near a number is to a whole one when it is meant to be one: float32 has 7 digits."""


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
        axis = next((int(a.i) for a in quantize.attribute if a.name == "axis"), 1)
        stored = quantize_linear(weight, scale, zero, axis)
        dequantize.input[0] = graph.add_constant(name, stored)
    graph.commit()


def join_tanhs(model: onnx.ModelProto) -> None:
    """Turn Concat(Tanh(a), Tanh(b), ...) into Tanh(Concat(a, b, ...)); same results.

    What comes before can then stay in integers up to the Concat.
    """
    graph = Graph(model)
    for concat in graph.nodes("Concat"):
        tanhs = [graph.producer(name, "Tanh") for name in concat.input]
        sources = [tanh.input[0] for tanh in tanhs if tanh is not None]
        if len(sources) != len(tanhs):
            continue
        joined, output = f"{concat.output[0]}_before_tanh", concat.output[0]
        concat.input[:] = sources
        concat.output[0] = joined
        graph.insert_after(concat, helper.make_node("Tanh", [joined], [output], f"{output}_tanh"))
    graph.commit()


def quantize_activations(
    model: onnx.ModelProto, measured: Ranges | None = None, *, before_leaky_relu: bool = True
) -> None:
    """Put one QuantizeLinear / DequantizeLinear pair behind every node whose range is known.

    Training gives each reader of a value its own pair, and some readers none: additions, shortcuts,
    and what comes before an output. Here all readers share one, so that between two pairs there is
    a single node, which engines replace by its integer kernel. A Relu whose quantizer starts at 0
    goes, and a ReLU6 whose quantizer ends at 6 as well: limiting to 0..255 does the same. Nodes
    that only move numbers work on the integers.

    Args:
        model: After the other passes of quantization; edited in place.
        measured: Ranges of convolution outputs that do not follow from others; where one is
            needed and missing, that output stays float.
        before_leaky_relu: Also quantize what a LeakyRelu alone reads. ONNX Runtime has integer
            kernels for convolution and LeakyRelu, and needs it to use them. OpenVINO computes
            both in one kernel, which it tears apart.
    """
    graph = Graph(model)
    found = found_quantizers(graph)
    _strip(graph)
    known = derive(graph, found, measured or {})
    for node in graph.nodes(*LIMITING):
        limits = _implied_limits(graph, node, known, found)
        if limits is not None:
            before, after = node.input[0], node.output[0]
            graph.replace_value(after, before)
            graph.remove(node)
            if before not in known or not known[before].implies(*limits):  # else limited already
                known[before] = known[after]
            found |= {before: known[before]} if after in found else {}
    fused = set() if before_leaky_relu else _leaky_relu_inputs(graph)
    graph.replace_nodes(_Rewriter(graph, known, found, fused).rewritten())
    graph.commit()


def missing_ranges(model: onnx.ModelProto) -> set[str]:
    """Weight names of the convolutions whose outputs have to be measured; see above."""
    graph = Graph(copy.deepcopy(model))
    found = found_quantizers(graph)
    _strip(graph)
    known = derive(graph, found, {})
    sums = {name for node in graph.nodes("Add") for name in node.input}
    found_directly = {name: q for name, q in known.items() if name not in sums or name in found}
    return {weight for weight, _ in unknown_outputs(graph, found_directly)}


def quantize_pixels(model: onnx.ModelProto) -> None:
    """Let the quantizer of normalised images read the image itself, where that is the same.

    round((x - mean) / std / scale) + zero is round(x / (std * scale)) + zero - shift when shift,
    which is mean / (std * scale), is a whole number: pixels of one mean and std for all channels
    may be their own bytes. The DequantizeLinear behind makes normalised values of them.
    """
    graph = Graph(model)
    for quantize in plain_quantizers(graph):
        found = normalization(graph, quantize.input[0])
        scale, zero = (graph.constant(name) for name in quantize.input[1:])
        if found is None or scale is None or zero is None or np.ptp(found[1]) + np.ptp(found[2]):
            continue
        image, mean, std = found[0], *(float(part.flat[0]) for part in found[1:])
        step = std * float(scale)
        shift = round(mean / step)
        if abs(mean / step - shift) < _WHOLE and 0 <= int(zero) - shift <= np.iinfo(np.uint8).max:
            moved = np.array(int(zero) - shift, np.uint8)
            quantize.input[:] = [
                image,
                graph.add_constant(f"{image}_scale", np.array(step, np.float32)),
                graph.add_constant(f"{image}_zero", moved),
            ]
    graph.commit()


def store_biases_as_int32(model: onnx.ModelProto) -> None:
    """Quantize biases in steps of input scale times weight scale, with a zero point of 0.

    Only where input and weight are quantized and the output is as well: the rest of an integer
    convolution. Each has constants of its own: OpenVINO takes no bias that others share into the
    convolution, and adds it to floats. A bias too large for its step makes the weights of its
    channel coarser, which are nothing beside it; one of a weight with one range stays float.
    """
    graph = Graph(model)
    for conv in graph.nodes("Conv"):
        if len(conv.input) < 3 or not _is_integer(graph, conv):
            continue
        bias = graph.constant(conv.input[2])
        if bias is None:
            continue
        step = _scale(graph, conv.input[0]).astype(np.float64)
        excess = np.abs(bias) / (step * _scale(graph, conv.input[1])) / _LIMIT
        if excess.max() > 1 and not _coarsen(graph, conv.input[1], np.maximum(excess, 1)):
            continue
        steps = step * _scale(graph, conv.input[1])
        stored = np.rint(bias.astype(np.float64) / steps)
        scale = np.broadcast_to(steps.astype(np.float32), bias.shape).copy()
        name = f"{conv.output[0]}_bias"
        inputs = [
            graph.add_constant(f"{name}_int32", stored.astype(np.int32)),
            graph.add_constant(f"{name}_scale", scale),
            graph.add_constant(f"zeros_{bias.size}", np.zeros(bias.shape, np.int32)),
        ]
        graph.insert_before(
            conv, helper.make_node("DequantizeLinear", inputs, [name], name, axis=0)
        )
        conv.input[2] = name
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
    clipped = np.clip(rounded, limits.min, limits.max)
    return np.asarray(clipped, zero_point.dtype).reshape(x.shape)


def _strip(graph: Graph) -> None:
    """Let everything read unquantized activations again. Weights stay as they are."""
    for quantize in plain_quantizers(graph):
        for dequantize in graph.readers(quantize.output[0]):
            graph.replace_value(dequantize.output[0], quantize.input[0])
            graph.remove(dequantize)
        graph.remove(quantize)


def _implied_limits(
    graph: Graph, node: onnx.NodeProto, known: Mapping[str, Quantizer], found: Collection[str]
) -> tuple[float, float] | None:
    """Limits that a quantizer, which will stand in a node's place, has as well.

    One that was found stands there. One that was derived does behind a convolution of integer
    weights; what one of float weights puts out stays float.
    """
    before, after = node.input[0], node.output[0]
    conv = graph.producer(before, "Conv")
    rounded = after in found or (conv is not None and _has_integer_weights(graph, conv))
    quantizer, limits = known.get(after), limits_of(graph, node)
    if not rounded or quantizer is None or limits is None or len(graph.readers(before)) > 1:
        return None
    return limits if quantizer.implies(*limits) else None


def _has_integer_weights(graph: Graph, conv: onnx.NodeProto) -> bool:
    return graph.producer(conv.input[1], "DequantizeLinear") is not None


def _leaky_relu_inputs(graph: Graph) -> set[str]:
    """Values that a LeakyRelu reads, and nothing else does."""
    values = {node.input[0] for node in graph.nodes("LeakyRelu")}
    return {value for value in values if len(graph.readers(value)) == 1}


class _Rewriter:
    """Writes the nodes anew, in order.

    Args:
        graph: The old nodes, without those that quantize activations.
        known: The ranges of values.
        found: Values that are quantized whatever makes them.
        fused: Values that stay inside one kernel with their only reader.
    """

    def __init__(
        self,
        graph: Graph,
        known: Mapping[str, Quantizer],
        found: Collection[str],
        fused: Collection[str],
    ) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._graph, self._known, self._found, self._fused = graph, known, found, fused
        self._outputs = graph.output_names()
        self._integers: dict[str, str] = {}

    def rewritten(self) -> list[onnx.NodeProto]:
        """All nodes, with those that quantize activations."""
        for value in self._graph.input_names():
            self._quantize(value)
        for node in self._graph.nodes():
            self._add(node)
        return self._nodes

    def _add(self, node: onnx.NodeProto) -> None:
        """Write ``node``, and the pair behind it."""
        inputs, output = data_inputs(node), node.output[0]
        quantized = all(name in self._integers or name in self._fused for name in inputs)
        same = {self._known.get(name) for name in (*inputs, output)}
        if node.op_type in MOVING and quantized and len(same) == 1:
            self._move(node)
            return
        for index, name in enumerate(node.input):
            if name in self._integers:
                node.input[index] = self._dequantized(name)
        self._nodes.append(node)
        if output in self._found or (quantized and self._is_integer(node)):
            self._quantize(output)

    def _quantize(self, value: str) -> None:
        """Write a QuantizeLinear and a DequantizeLinear behind ``value``, if its range is known."""
        if value in self._known and value not in self._outputs and value not in self._fused:
            parameters = self._parameters(value)
            self._integers[value] = f"{value}_quantized"
            inputs, output = [value, *parameters], self._integers[value]
            self._nodes.append(helper.make_node("QuantizeLinear", inputs, [output], output))
            self._dequantize(value)

    def _move(self, node: onnx.NodeProto) -> None:
        value = node.output[0]
        for index, name in enumerate(node.input):
            node.input[index] = self._integers.get(name, name)
        node.output[0] = self._integers[value] = f"{value}_quantized"
        self._nodes.append(node)
        self._dequantize(value)

    def _dequantize(self, value: str) -> None:
        inputs, output = [self._integers[value], *self._parameters(value)], self._dequantized(value)
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [output], output))

    def _dequantized(self, value: str) -> str:
        return value if value in self._outputs else f"{value}_dequantized"

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        """Whether engines compute it in integers, and something can read these."""
        if node.op_type == "Conv":
            return _has_integer_weights(self._graph, node)
        readers = self._graph.readers(node.output[0])
        only_floats = readers and all(
            reader.op_type == "Conv" and not _has_integer_weights(self._graph, reader)
            for reader in readers
        )
        return node.op_type in _INTEGER and not only_floats

    def _parameters(self, value: str) -> tuple[str, str]:
        """Names of scale and zero point; equal ones are stored once."""
        quantizer = self._known[value]
        scale = np.float32(quantizer.scale)
        return (
            self._graph.add_constant(f"scale_{scale!s}", np.array(scale)),
            self._graph.add_constant(f"zero_{quantizer.zero}", np.array(quantizer.zero, np.uint8)),
        )


def _is_integer(graph: Graph, conv: onnx.NodeProto) -> bool:
    readers = graph.readers(conv.output[0])
    return (
        all(graph.producer(name, "DequantizeLinear") is not None for name in conv.input[:2])
        and len(readers) == 1
        and readers[0].op_type == "QuantizeLinear"
    )


def _coarsen(graph: Graph, value: str, factors: Array) -> bool:
    """Make the steps of a weight's channels larger by ``factors``, if each has its own."""
    dequantize = graph.producer(value, "DequantizeLinear")
    stored = None if dequantize is None else graph.constant(dequantize.input[0])
    scale = _scale(graph, value)
    if dequantize is None or stored is None or scale.size != factors.size:
        return False
    if len(graph.readers(value)) > 1 or len(graph.readers(dequantize.input[0])) > 1:
        return False
    shaped = factors.reshape(-1, *(1,) * (stored.ndim - 1))
    graph.replace_constant(dequantize.input[0], np.rint(stored / shaped).astype(stored.dtype))
    coarser = (scale * factors).astype(np.float32)
    dequantize.input[1] = graph.add_constant(f"{dequantize.input[0]}_scale", coarser)
    return True


def _scale(graph: Graph, value: str) -> Array:
    """The scale of the DequantizeLinear that makes ``value``."""
    dequantize = graph.producer(value, "DequantizeLinear")
    scale = None if dequantize is None else graph.constant(dequantize.input[1])
    assert scale is not None
    return scale
