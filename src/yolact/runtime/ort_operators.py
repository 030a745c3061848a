"""What ONNX Runtime makes of a graph on this CPU: which operators became integer ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort

from yolact.runtime.operators import Operators

_CONVERTING = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "QGemm", "QuantizeLinear")
"""Beginnings of the names of operators that put out integers."""
_MOVING = ("Transpose", "Reshape", "Concat", "Resize", "Upsample", "Slice", "MaxPool")
"""Operators that put out what they take in."""


def ort_operators(source: str | bytes) -> Operators:
    """Optimize a graph as for running, and count.

    Args:
        source: Path of an ``.onnx`` file that opens, or its content.
    """
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4  # that the file fits this CPU only is what it is for
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    integers: set[str] = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    }
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for node in graph.node:
        moves = node.op_type in _MOVING and node.input[0] in integers
        whole = moves or node.op_type.startswith(_INTEGER)
        integers.update(node.output if whole else ())
        if node.op_type not in _CONVERTING:
            counts[whole][node.op_type] += 1
    return Operators("onnxruntime", dict(counts[True]), dict(counts[False]))
