"""One Tanh behind a Concat instead of one on each of its inputs."""

from __future__ import annotations

import onnx
from onnx import helper

from yolact.onnx.graph import Graph


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
