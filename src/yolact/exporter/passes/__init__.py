"""Graph passes, one per file: each takes a model and edits it in place.

To add one, write ``passes/<name>.py`` and put its function into the list it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx

from yolact.exporter.passes.clean import (
    make_scales_scalar,
    merge_duplicates,
    remove_identities,
    simplify_reshapes,
    store_constants,
    write_sizes,
)
from yolact.exporter.passes.quantize import (
    join_tanhs,
    make_activations_unsigned,
    quantize_activations,
    store_biases_as_int32,
    store_weights_as_int8,
)
from yolact.exporter.passes.ranges import Ranges
from yolact.exporter.passes.store import convolve_integers

Pass = Callable[[onnx.ModelProto], None]

CLEAN: Sequence[Pass] = (remove_identities, store_constants, simplify_reshapes, write_sizes)
"""Run on every export; results stay the same."""

INTEGERS: Sequence[Pass] = (
    make_activations_unsigned,
    store_weights_as_int8,
    make_scales_scalar,
    merge_duplicates,
    join_tanhs,
)
"""Turn simulated quantization into integers, and leave it where training has put it."""


CONV_INTEGER: Sequence[Pass] = (convolve_integers,)
"""Behind :data:`INTEGERS`, for DeepSparse."""


def quantizing_passes(
    measured: Ranges | None = None, *, before_leaky_relu: bool = True
) -> list[Pass]:
    """Passes behind :data:`INTEGERS`: everything between quantized layers in integers, too.

    Args:
        measured: See :func:`yolact.exporter.passes.quantize.quantize_activations`.
        before_leaky_relu: See there.
    """
    activations = partial(quantize_activations, measured=measured or {})
    return [
        partial(activations, before_leaky_relu=before_leaky_relu),
        store_biases_as_int32,
    ]


def run_passes(model: onnx.ModelProto, passes: Sequence[Pass]) -> None:
    """Apply ``passes`` in order."""
    for apply in passes:
        apply(model)
