"""Writing a graph, only when it computes what the PyTorch model computes.

Its raw outputs are compared first; then it is finished: smaller weights, detection inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from yolact.config import DetectConfig
from yolact.engines.onnx_file import ModelMetadata
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import ExportError
from yolact.exporter.limit import Accuracy, Limit
from yolact.exporter.nms import detect_inside
from yolact.exporter.options import ExportOptions
from yolact.exporter.passes.store import store_blocks_together, store_weights_as_half
from yolact.exporter.prepare import Reference
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
class Comparison:
    """How a graph that was written compares with PyTorch."""

    outputs: tuple[OutputParity, ...]
    agreement: Agreement | None = None
    """Of the detections of a quantized network in the images that there are."""
    detections: int | None = None
    """How many objects the graph finds in the sample, all of them those that PyTorch code finds
    in its raw outputs; None without detection inside."""
    accuracy: Accuracy | None = None
    """Of the finished file, where it was asked for."""


def write_checked(
    graph: onnx.ModelProto,
    path: Path,
    reference: Reference,
    options: ExportOptions,
    detect: DetectConfig,
    limit: Limit | None = None,
) -> Comparison:
    """Write ``graph`` to ``path`` in one step, after comparing what it computes.

    Args:
        graph: Of raw outputs.
        path: Replaced only when everything agrees.
        reference: What to compare with.
        options: What is done to the graph after its raw outputs were compared, in place.
        detect: How detections are found that are compared.
        limit: What the finished file may lose, if that is limited.

    Raises:
        TargetMissedError: It loses more.
        ExportError: It does not agree, or is no valid ONNX; the first wrong layer is named.
        StorageError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        _save_valid(graph, temporary)
        engine = OrtEngine(temporary)
        parity = compare(reference.expected, engine(reference.sample), reference.unquantized)
        if not all(output.passed for output in parity):
            require_parity(parity, first_wrong_layer(graph, reference, reference.sample))
        done = Comparison(parity, _agreement(graph, engine, reference, detect))
        if options.half or options.pack_blocks or options.with_nms:
            done = _finish(graph, options, detect, reference, done)
            _save_valid(graph, temporary)
        if limit is not None:
            accuracy = limit.require(temporary)
            done = replace(done, accuracy=accuracy)
            _note(graph, accuracy)
            _save_valid(graph, temporary)
    return done


def greedy(config: DetectConfig) -> DetectConfig:
    """The settings that detection inside a graph follows: classic suppression, class by class."""
    return replace(config, fast_nms=False, cross_class_nms=False)


def _finish(
    graph: onnx.ModelProto,
    options: ExportOptions,
    config: DetectConfig,
    reference: Reference,
    done: Comparison,
) -> Comparison:
    """Do what ``options`` say to ``graph``, and compare anew what that changes.

    What 16 bits change is compared with PyTorch, all else with the graph right before.
    """
    images = reference.sample
    if options.half:
        store_weights_as_half(graph)
        halved = compare(reference.expected, _outputs(graph, images))
        done = replace(done, outputs=tuple(replace(out, floor=HALF_SQNR) for out in halved))
        require_parity(done.outputs)
    if not (options.pack_blocks or options.with_nms):
        return done
    raw = _outputs(graph, images)
    if options.pack_blocks:
        store_blocks_together(graph)
        packed = _outputs(graph, images)
        require_parity(compare(raw, packed))
        raw = packed
    if not options.with_nms:
        return done
    detect_inside(graph, config)
    return replace(done, detections=_compare_detections(graph, config, images, raw))


def _note(graph: onnx.ModelProto, accuracy: Accuracy) -> None:
    """Let the file say what was measured of it."""
    known = ModelMetadata.from_props({prop.key: prop.value for prop in graph.metadata_props})
    noted = replace(known, accuracy=accuracy.to_dict())
    onnx.helper.set_model_props(graph, noted.to_props())


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
        require_agreement(found, first_wrong_layer(graph, reference, reference.images[0]))
    return found


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
            np.allclose(a.numpy(), b[:count].numpy(), rtol=_CLOSE, atol=_CLOSE)
            for a, b in zip(wanted, got, strict=True)
        )
        if not same or not np.array_equal(found.labels, inside["classes"][index][:count]):
            raise ExportError(
                f"detection inside the graph finds something else than outside: "
                f"{int((got[0] > 0).sum())} objects, not {count}",
                hint="nothing was written; export without --with-nms",
            )
        total += count
    return total
