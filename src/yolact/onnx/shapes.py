"""Shapes of all values of a graph, by ONNX's own inference."""

from __future__ import annotations

import onnx
from onnx import helper

Shape = tuple[int | str, ...]
"""Sizes, and labels of axes that are dynamic; "" where nothing is known."""

_LARGE = 64
"""Constants of more elements hold weights, not shapes."""


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


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights as inputs: their shapes are enough, and their bytes are many."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if len(tensor.dims) and _size(tensor) > _LARGE:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
        else:
            light.graph.initializer.append(tensor)
    for output in model.graph.output:  # without its shape: the tracer's may be wrong
        kind = output.type.tensor_type.elem_type
        light.graph.output.append(helper.make_tensor_value_info(output.name, kind, None))
    return light


def _size(tensor: onnx.TensorProto) -> int:
    total = 1
    for dim in tensor.dims:
        total *= dim
    return total
