"""Graph passes, each of which takes a model and edits it in place, and the order they run in.

To add one, write its function into the file of its kind, and put it into the list it belongs to or
into :func:`to_integers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx
from torch import Tensor, nn

from yolact.exporter.options import Layout
from yolact.exporter.passes.clean import (
    fold_constants,
    make_scales_scalar,
    merge_duplicates,
    pad_in_convolutions,
    remove_identities,
    simplify_reshapes,
    store_constants,
    write_sizes,
)
from yolact.exporter.passes.quantize import (
    join_tanhs,
    make_activations_unsigned,
    missing_ranges,
    quantize_activations,
    quantize_pixels,
    store_biases_as_int32,
    store_weights_as_int8,
)
from yolact.exporter.passes.ranges import measure_outputs
from yolact.exporter.passes.store import convolve_integers

Pass = Callable[[onnx.ModelProto], None]

CLEAN: Sequence[Pass] = (
    remove_identities,
    store_constants,
    fold_constants,
    pad_in_convolutions,
    simplify_reshapes,
    write_sizes,
)
"""Run on every export; results stay the same."""

INTEGERS: Sequence[Pass] = (
    make_activations_unsigned,
    store_weights_as_int8,
    make_scales_scalar,
    merge_duplicates,
    join_tanhs,
)
"""Turn simulated quantization into integers, and leave it where training has put it."""


def run_passes(model: onnx.ModelProto, passes: Sequence[Pass]) -> None:
    """Apply ``passes`` in order."""
    for apply in passes:
        apply(model)


def to_integers(
    graph: onnx.ModelProto,
    network: nn.Module,
    layout: Layout = "qdq",
    images: Iterable[Tensor] | None = None,
) -> int:
    """Write a graph of simulated quantization in integers, in place.

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
        convolve_integers(graph)
        return 0
    missing = missing_ranges(graph)
    measured = {} if images is None else measure_outputs(network, missing, images)
    quantize_activations(graph, measured, before_leaky_relu=layout != "openvino")
    quantize_pixels(graph)
    store_biases_as_int32(graph)
    return len(missing_ranges(graph)) if images is None else 0
