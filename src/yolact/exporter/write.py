"""Writing a graph, only when it computes what the PyTorch model computes.

Its raw outputs are compared first; then it is finished: smaller weights, detection inside.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from yolact.config import DetectConfig
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import ExportError
from yolact.exporter.graph import Array
from yolact.exporter.nms import detect_inside
from yolact.exporter.options import ExportOptions
from yolact.exporter.passes.store import store_blocks_together, store_weights_as_half
from yolact.exporter.prepare import Reference, without_quantization
from yolact.exporter.verify import (
    Agreement,
    OutputParity,
    agreement,
    compare,
    first_wrong_layer,
    require_agreement,
    require_parity,
)
from yolact.files import atomic_path
from yolact.predict.detect import detect, low_masks
from yolact.types import RawOutputs

HALF_SQNR = 40.0
"""Least accepted with weights of 16 bits, in dB. These have 11 digits, which alone gives 70."""
_CLOSE = 1e-4
"""Largest difference of scores, relative boxes and mask probabilities."""


@dataclass(frozen=True)
class Finished:
    """How the finished graph compares."""

    outputs: tuple[OutputParity, ...] | None
    """Raw outputs against PyTorch's, where the finish changed them."""
    detections: int | None
    """How many objects the graph finds in the sample, all of them those that PyTorch code finds
    in its raw outputs; None without detection inside."""


def write_checked(
    graph: onnx.ModelProto,
    path: Path,
    reference: Reference,
    options: ExportOptions,
    detect: DetectConfig,
) -> tuple[tuple[OutputParity, ...], Agreement | None, Finished]:
    """Write ``graph`` to ``path`` in one step, after comparing what it computes.

    Args:
        graph: Of raw outputs.
        path: Replaced only when everything agrees.
        reference: What to compare with.
        options: What is done to the graph after its raw outputs were compared, in place.
        detect: How detections are found that are compared.

    Returns:
        How close the outputs are; how many detections are found again, of a quantized network with
        images; and what was found after that.

    Raises:
        ExportError: It does not agree, or is no valid ONNX; the first wrong layer is named.
        StorageError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        _save_valid(graph, temporary)
        engine = OrtEngine(temporary)
        parity = compare(reference.expected, engine(reference.sample), reference.unquantized)
        if not all(output.passed for output in parity):
            require_parity(parity, _first_wrong(graph, reference, reference.sample))
        found = _agreement(graph, engine, reference, detect)
        finished = Finished(None, None)
        if options.half or options.pack_blocks or options.with_nms:
            finished = finish(graph, options, detect, reference.sample, reference.expected)
            _save_valid(graph, temporary)
    return parity, found, finished


def finish(
    graph: onnx.ModelProto,
    options: ExportOptions,
    config: DetectConfig,
    images: Tensor,
    expected: RawOutputs,
) -> Finished:
    """Edit ``graph`` in place, and compare what it computes.

    Args:
        graph: Exported, with raw outputs.
        options: What to do: half, pack_blocks and with_nms, in this order.
        config: Thresholds for detection inside.
        images: [B, 3, S, S] sample.
        expected: PyTorch's outputs for it.

    Raises:
        ExportError: The result differs by more than 16 bits or float rounding explain; where blocks
            are packed, by more than float rounding.
    """
    outputs = None
    if options.half:
        store_weights_as_half(graph)
        halved = compare(expected, _outputs(graph, images))
        outputs = tuple(replace(output, floor=HALF_SQNR) for output in halved)
        require_parity(outputs)
    if not (options.pack_blocks or options.with_nms):
        return Finished(outputs, None)
    raw = _outputs(graph, images)
    if options.pack_blocks:
        store_blocks_together(graph)
        packed = _outputs(graph, images)
        require_parity(compare(raw, packed))
        raw = packed
    if not options.with_nms:
        return Finished(outputs, None)
    detect_inside(graph, config)
    return Finished(outputs, _compare_detections(graph, config, images, raw))


def greedy(config: DetectConfig) -> DetectConfig:
    """The settings that detection inside a graph follows: classic suppression, class by class."""
    return replace(config, fast_nms=False, cross_class_nms=False)


def _save_valid(graph: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(graph.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX: {error}",
            hint="nothing was written; try another --opset",
        ) from error


@torch.no_grad()
def _agreement(
    graph: onnx.ModelProto, engine: OrtEngine, reference: Reference, detect: DetectConfig
) -> Agreement | None:
    if reference.unquantized is None or not reference.images:
        return None
    pairs = ((reference.network(images), engine(images)) for images in reference.images)
    found = agreement(pairs, detect)
    if not found.passed:
        require_agreement(found, _first_wrong(graph, reference, reference.images[0]))
    return found


def _first_wrong(graph: onnx.ModelProto, reference: Reference, images: Tensor) -> str | None:
    if reference.unquantized is None:
        return first_wrong_layer(graph, reference.network, images, None)
    unquantized = deepcopy(reference.network)
    with without_quantization(unquantized):
        return first_wrong_layer(graph, reference.network, images, unquantized)


def _outputs(graph: onnx.ModelProto, images: Tensor) -> RawOutputs:
    return OrtEngine(graph.SerializeToString())(images)


def _compare_detections(
    graph: onnx.ModelProto, config: DetectConfig, images: Tensor, raw: RawOutputs
) -> int:
    inside = run_graph(graph.SerializeToString(), images)
    total = 0
    for index, found in enumerate(detect(raw, greedy(config))):
        count = len(found.scores)
        wanted = [found.scores, found.boxes, low_masks(found, raw.proto[index])]
        got = [torch.from_numpy(inside[name][index]) for name in ("scores", "boxes", "masks")]
        same = count == int((got[0] > 0).sum()) and all(
            _close(a.numpy(), b[:count].numpy()) for a, b in zip(wanted, got, strict=True)
        )
        if not same or not np.array_equal(found.labels, inside["classes"][index][:count]):
            raise ExportError(
                f"detection inside the graph finds something else than outside: "
                f"{int((got[0] > 0).sum())} objects, not {count}",
                hint="nothing was written; export without --with-nms",
            )
        total += count
    return total


def _close(expected: Array, actual: Array) -> bool:
    return bool(np.allclose(expected, actual, rtol=_CLOSE, atol=_CLOSE))
