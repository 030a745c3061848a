"""Weights of convolutions in 16 bits, for files of half the size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from yolact.errors import ExportError
from yolact.onnx.graph import Array, Graph


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


def _half(name: str, weight: Array) -> Array:
    with np.errstate(over="ignore"):
        halved = weight.astype(np.float16)
    if not np.isfinite(halved).all():
        raise ExportError(
            f"{name} holds {np.abs(weight).max():.3g}, which 16 bits cannot",
            hint="nothing was written; export without --half",
        )
    return halved
