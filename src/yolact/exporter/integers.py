"""From a traced quantization-aware network to a graph of integers, in one of three layouts."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from torch import Tensor, nn

from yolact.exporter.options import Layout
from yolact.exporter.passes import CONV_INTEGER, INTEGERS, quantizing_passes, run_passes
from yolact.exporter.passes.quantize import missing_ranges
from yolact.exporter.passes.ranges import measure_outputs


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
        layout: See :data:`yolact.exporter.options.Layout`.
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
