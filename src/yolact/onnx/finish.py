"""What is done to a graph that is known to be right: smaller files, detection inside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import Tensor

from yolact.config import DetectConfig
from yolact.detect import detect
from yolact.errors import ExportError
from yolact.onnx.graph import Array
from yolact.onnx.nms import detect_inside
from yolact.onnx.parity import OutputParity, compare, require_parity
from yolact.onnx.passes.blocks import store_blocks_together
from yolact.onnx.passes.half import store_weights_as_half
from yolact.postprocess import low_masks
from yolact.runtime.ort_engine import OrtEngine, run_graph
from yolact.types import RawOutputs

HALF_SQNR = 40.0
"""Least accepted with weights of 16 bits, in dB. These have 11 digits, which alone gives 70."""

_CLOSE = 1e-4
"""Largest difference of scores, relative boxes and mask probabilities."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Which of the steps to take."""

    half: bool = False
    """Store weights in 16 bits."""
    pack_blocks: bool = False
    """Store integer weights so that blocks of zeros lie together."""
    with_nms: bool = False
    """Put boxes, scores, classes and masks out instead of raw outputs."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self.half or self.pack_blocks or self.with_nms


@dataclass(frozen=True)
class Finished:
    """How the finished graph compares."""

    outputs: tuple[OutputParity, ...] | None
    """Raw outputs against PyTorch's, where the finish changed them."""
    detections: int | None
    """How many objects the graph finds in the sample, all of them those that PyTorch code finds
    in its raw outputs; None without detection inside."""


def finish(
    graph: onnx.ModelProto,
    steps: Finish,
    config: DetectConfig,
    images: Tensor,
    expected: RawOutputs,
) -> Finished:
    """Edit ``graph`` in place, and compare what it computes.

    Args:
        graph: Exported, with raw outputs.
        steps: What to do.
        config: Thresholds for detection inside.
        images: [B, 3, S, S] sample.
        expected: PyTorch's outputs for it.

    Raises:
        ExportError: The result differs by more than 16 bits or float rounding explain; where blocks
            are packed, by more than float rounding.
    """
    outputs = None
    if steps.half:
        store_weights_as_half(graph)
        halved = compare(expected, _outputs(graph, images))
        outputs = tuple(replace(output, floor=HALF_SQNR) for output in halved)
        require_parity(outputs)
    if not (steps.pack_blocks or steps.with_nms):
        return Finished(outputs, None)
    raw = _outputs(graph, images)
    if steps.pack_blocks:
        store_blocks_together(graph)
        packed = _outputs(graph, images)
        require_parity(compare(raw, packed))
        raw = packed
    if not steps.with_nms:
        return Finished(outputs, None)
    detect_inside(graph, config)
    return Finished(outputs, _compare_detections(graph, config, images, raw))


def greedy(config: DetectConfig) -> DetectConfig:
    """The settings that detection inside a graph follows: classic suppression, class by class."""
    return replace(config, fast_nms=False, cross_class_nms=False)


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
