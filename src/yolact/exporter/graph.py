"""A thin view of an ONNX graph that makes passes short, and what can be read off a whole graph.

The view knows who makes a value, who reads it and what is constant; shapes come from ONNX's own
inference; convolution weights are found wherever and however they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]
"""Sizes, and labels of axes that are dynamic; "" where nothing is known."""
_LARGE = 64
"""Constants of more elements hold weights, not shapes."""


class Graph:
    """The main graph of ``model``. A pass edits the view, then :meth:`commit` writes it back.

    Values are known by name, as in ONNX; every value has one producer.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index ``model``, which stays unchanged until :meth:`commit`."""
        self._graph = model.graph
        self._nodes = list(self._graph.node)
        self._producers = {output: node for node in self._nodes for output in node.output}
        self._initializers = {tensor.name: tensor for tensor in self._graph.initializer}
        self._arrays: dict[str, Array] = {}

    def nodes(self, *op_types: str) -> list[onnx.NodeProto]:
        """Nodes of these types in execution order; all when none is named."""
        return [node for node in self._nodes if not op_types or node.op_type in op_types]

    def producer(self, value: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes ``value``, if it is of this type."""
        node = self._producers.get(value)
        return node if node is not None and node.op_type == op_type else None

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """Nodes that read ``value``."""
        return [node for node in self._nodes if value in node.input]

    def constant(self, value: str) -> Array | None:
        """The array behind ``value`` when it is an initializer or a Constant node, else None."""
        if value not in self._arrays:
            tensor = self._initializers.get(value)
            node = self.producer(value, "Constant")
            if node is not None and node.attribute[0].name == "value":
                tensor = node.attribute[0].t
            if tensor is None:
                return None
            self._arrays[value] = numpy_helper.to_array(tensor)
        return self._arrays[value]

    def add_constant(self, name: str, array: Array) -> str:
        """Store ``array`` as initializer ``name``; a second call with that name changes nothing."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def replace_constant(self, name: str, array: Array) -> None:
        """Store ``array`` in place of what initializer ``name`` holds."""
        self._initializers[name] = numpy_helper.from_array(array, name)
        self._arrays.pop(name, None)

    def replace_value(self, old: str, new: str) -> None:
        """Let every node that reads ``old`` read ``new``."""
        for node in self._nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def remove(self, node: onnx.NodeProto) -> None:
        """Drop ``node``; something else makes what it made, or nothing reads it."""
        self._nodes = [other for other in self._nodes if other is not node]
        for output in node.output:
            self._producers.pop(output, None)

    def insert_before(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put ``new`` in front of ``node``, which reads what it makes."""
        self._nodes.insert(self._place(node), new)
        self._producers.update((output, new) for output in new.output)

    def insert_after(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put ``new`` behind ``node``, whose result it reads."""
        self._nodes.insert(self._place(node) + 1, new)
        self._producers.update((output, made) for made in (node, new) for output in made.output)

    def replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put ``nodes``, in execution order, in place of all that there are."""
        self._nodes = list(nodes)
        self._producers = {output: node for node in self._nodes for output in node.output}

    def input_names(self) -> list[str]:
        """Names of the graph's inputs."""
        return [value.name for value in self._graph.input]

    def output_names(self) -> set[str]:
        """Names of the graph's outputs."""
        return {output.name for output in self._graph.output}

    def commit(self) -> None:
        """Write the view back, without the nodes and constants that no output depends on."""
        needed = self.output_names()
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self._nodes = kept[::-1]
        self._initializers = {k: v for k, v in self._initializers.items() if k in needed}
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.initializer[:]
        self._graph.initializer.extend(self._initializers.values())
        del self._graph.value_info[:]  # shapes that the tracer noted for values now renamed or gone

    def _place(self, node: onnx.NodeProto) -> int:
        return next(i for i, other in enumerate(self._nodes) if other is node)


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every value that one can be inferred for, inputs and outputs of the graph too."""
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def conv_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Stored arrays by name: float32 or float16, or int8 where integers are stored.

    A weight that several convolutions share is listed once, in the order of axes that it is stored
    in. Those of ConvInteger are stored around a zero point, which is taken off.
    """
    graph = Graph(model)
    weights: dict[str, Array] = {}
    for conv in graph.nodes("ConvInteger"):
        name = _source(graph, conv.input[1])
        stored, zero = graph.constant(name), graph.constant(conv.input[3])
        if stored is not None and zero is not None:
            weights[name] = (stored.astype(np.int16) - zero).astype(np.int8)
    for conv in graph.nodes("Conv"):
        name = _source(graph, conv.input[1])
        array = graph.constant(name)
        if array is not None:
            weights[name] = array
    return weights


def graph_sparsity(model: onnx.ModelProto) -> float:
    """Share of exact zeros among the convolution weights, 0..1."""
    weights = conv_weights(model).values()
    total = sum(weight.size for weight in weights)
    return sum(weight.size - np.count_nonzero(weight) for weight in weights) / max(total, 1)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights as inputs: their shapes are enough, and their bytes are many."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if len(tensor.dims) and math.prod(tensor.dims) > _LARGE:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
        else:
            light.graph.initializer.append(tensor)
    for output in model.graph.output:  # without its shape: the tracer's may be wrong
        kind = output.type.tensor_type.elem_type
        light.graph.output.append(helper.make_tensor_value_info(output.name, kind, None))
    return light


def _source(graph: Graph, weight: str) -> str:
    """Name of the constant that a convolution's weight is made of."""
    for op_type in ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast"):
        node = graph.producer(weight, op_type)
        weight = node.input[0] if node is not None else weight
    return weight
