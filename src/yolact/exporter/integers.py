"""From a traced quantization-aware network to a graph of integers, in one of three layouts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import onnx
from torch import Tensor, nn

from yolact.exporter.passes import CONV_INTEGER, INTEGERS, quantizing_passes, run_passes
from yolact.exporter.passes.quantize import missing_ranges
from yolact.exporter.passes.ranges import measure_outputs

Layout = Literal["qdq", "openvino", "deepsparse"]
"""How a quantized graph is written.

qdq: QuantizeLinear / DequantizeLinear around every node, the form that all engines read, and that
ONNX Runtime runs in integers throughout. openvino: the same without a pair between convolution and
LeakyReLU, which OpenVINO runs in one kernel. deepsparse: ConvInteger, as SparseML's exporter wrote;
quantizers are where training has put them, and ``images`` have no use.
"""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def to_integers(
    graph: onnx.ModelProto,
    network: nn.Module,
    layout: Layout = "qdq",
    images: Iterable[Tensor] | None = None,
) -> int:
    """Rewrite ``graph`` in place.

    Args:
        graph: Traced from ``network``, after the passes of every export.
        network: Run on ``images`` to measure the outputs that training has no range for.
        layout: See :data:`Layout`.
        images: Network inputs like those the model will see; None leaves those outputs float.

    Returns:
        How many convolutions have outputs that stay float for want of a range.
    """
    run_passes(graph, INTEGERS)
    if layout == "deepsparse":
        run_passes(graph, CONV_INTEGER)
        return 0
    missing = missing_ranges(graph)
    measured = {} if images is None else measure_outputs(network, missing, images)
    run_passes(graph, quantizing_passes(measured, before_leaky_relu=layout != "openvino"))
    return len(missing_ranges(graph)) if images is None else 0
