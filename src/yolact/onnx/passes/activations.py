"""Quantize every value between quantized layers, once: the form that engines run in integers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from yolact.onnx.graph import Graph
from yolact.onnx.passes.ranges import (
    MOVING,
    Ranges,
    data_inputs,
    derive,
    found_quantizers,
    plain_quantizers,
    unknown_outputs,
)
from yolact.onnx.quantizer import Quantizer

_INTEGER = ("LeakyRelu", "Relu", "Add", "Resize", *MOVING)
"""Besides convolutions of integer weights, what engines compute in integers."""


def quantize_activations(
    model: onnx.ModelProto, measured: Ranges | None = None, *, before_leaky_relu: bool = True
) -> None:
    """Put one QuantizeLinear / DequantizeLinear pair behind every node whose range is known.

    Training gives each reader of a value its own pair, and some readers none: additions, shortcuts,
    and what comes before an output. Here all readers share one, so that between two pairs there is
    a single node, which engines replace by its integer kernel. A Relu whose quantizer starts at 0
    goes: limiting to 0..255 does the same. Nodes that only move numbers work on the integers.

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
    for node in graph.nodes("Relu"):
        if _is_implied(graph, node, known):
            before, after = node.input[0], node.output[0]
            graph.replace_value(after, before)
            graph.remove(node)
            if before not in known or known[before].zero:  # else it is limited already
                known[before] = known[after]
            found |= {before: known[before]} if after in found else {}
    _insert(graph, known, found, set() if before_leaky_relu else _leaky_relu_inputs(graph))
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


def _strip(graph: Graph) -> None:
    """Let everything read unquantized activations again. Weights stay as they are."""
    for quantize in plain_quantizers(graph):
        for dequantize in graph.readers(quantize.output[0]):
            graph.replace_value(dequantize.output[0], quantize.input[0])
            graph.remove(dequantize)
        graph.remove(quantize)


def _is_implied(graph: Graph, relu: onnx.NodeProto, known: Mapping[str, Quantizer]) -> bool:
    after = known.get(relu.output[0])
    alone = len(graph.readers(relu.input[0])) == 1
    return after is not None and after.zero == 0 and alone


def _leaky_relu_inputs(graph: Graph) -> set[str]:
    """Values that a LeakyRelu reads, and nothing else does."""
    values = {node.input[0] for node in graph.nodes("LeakyRelu")}
    return {value for value in values if len(graph.readers(value)) == 1}


def _insert(
    graph: Graph, known: Mapping[str, Quantizer], found: Collection[str], fused: Collection[str]
) -> None:
    rewriter = _Rewriter(graph, known, found, fused)
    for value in graph.input_names():
        rewriter.quantize(value)
    for node in graph.nodes():
        rewriter.add(node)
    graph.replace_nodes(rewriter.nodes)


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
        self.nodes: list[onnx.NodeProto] = []
        self._graph, self._known, self._found, self._fused = graph, known, found, fused
        self._outputs = graph.output_names()
        self._integers: dict[str, str] = {}

    def add(self, node: onnx.NodeProto) -> None:
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
        self.nodes.append(node)
        if output in self._found or (quantized and self._has_integer_kernel(node)):
            self.quantize(output)

    def quantize(self, value: str) -> None:
        """Write a QuantizeLinear and a DequantizeLinear behind ``value``, if its range is known."""
        if value in self._known and value not in self._outputs and value not in self._fused:
            parameters = self._parameters(value)
            self._integers[value] = f"{value}_quantized"
            inputs, output = [value, *parameters], self._integers[value]
            self.nodes.append(helper.make_node("QuantizeLinear", inputs, [output], output))
            self._dequantize(value)

    def _move(self, node: onnx.NodeProto) -> None:
        value = node.output[0]
        for index, name in enumerate(node.input):
            node.input[index] = self._integers.get(name, name)
        node.output[0] = self._integers[value] = f"{value}_quantized"
        self.nodes.append(node)
        self._dequantize(value)

    def _dequantize(self, value: str) -> None:
        inputs, output = [self._integers[value], *self._parameters(value)], self._dequantized(value)
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], output))

    def _dequantized(self, value: str) -> str:
        return value if value in self._outputs else f"{value}_dequantized"

    def _has_integer_kernel(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Conv":
            return self._graph.producer(node.input[1], "DequantizeLinear") is not None
        return node.op_type in _INTEGER

    def _parameters(self, value: str) -> tuple[str, str]:
        """Names of scale and zero point; equal ones are stored once."""
        quantizer = self._known[value]
        scale = np.float32(quantizer.scale)
        return (
            self._graph.add_constant(f"scale_{scale!r}", np.array(scale)),
            self._graph.add_constant(f"zero_{quantizer.zero}", np.array(quantizer.zero, np.uint8)),
        )
