"""ONNX Runtime on the CPU: our own exports, YOLACT files of other exporters, and other graphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.engines.base import Operators, check_images, input_array
from yolact.engines.onnx_file import (
    DETECTED,
    EXPORT_AGAIN,
    OnnxEngine,
    OnnxModel,
    Port,
    model_source,
)
from yolact.errors import CheckpointError
from yolact.types import Detections

Array = npt.NDArray[Any]

_MOST = 80.0
"""Logit of a probability that float32 cannot tell from 1, and its negative from 0."""
_CONVERTING = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "QGemm", "QuantizeLinear")
"""Beginnings of the names of operators that put out integers."""
_MOVING = ("Transpose", "Reshape", "Concat", "Resize", "Upsample", "Slice", "MaxPool")
"""Operators that put out what they take in."""


class OrtEngine(OnnxEngine):
    """Runs an ONNX file through ONNX Runtime's CPU provider.

    Args:
        model: Path of the file (``.onnx``, or that compressed: .gz, .xz, .zst), or its bytes.
        num_cores: Threads one inference may use; None lets ONNX Runtime decide.

    Raises:
        CheckpointError: The file is missing, damaged, or not a YOLACT graph.
    """

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        self._source, label = model_source(model)
        self._session = _open(self._source, num_cores, label)
        super().__init__(*_edge(self._session), label)

    def operators(self) -> Operators:
        """What runs in integers, and what does not."""
        return _count_operators(self._source)

    def _infer(self, images: npt.NDArray[np.float32]) -> Sequence[Array]:
        return _run(self._session, self._outputs, images)


class OrtDetector(OnnxModel):
    """Runs a file that was exported with detection inside.

    Args:
        model: Path of the file, as for :class:`OrtEngine`.
        num_cores: Likewise.

    Raises:
        CheckpointError: The file is missing or damaged, or does not say what its classes are.
    """

    name = "onnxruntime"

    def __init__(self, model: Path, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        source, label = model_source(model)
        self._session = _open(source, num_cores, label)
        super().__init__(*_edge(self._session), label)
        if self.metadata.classes is None:
            raise CheckpointError(f"{label} does not name its classes", hint=EXPORT_AGAIN)
        self.classes: Classes = self.metadata.classes

    def detect(self, images: Tensor) -> list[tuple[Detections, Tensor]]:
        """Find objects; see :class:`yolact.engines.base.DetectingEngine`.

        Every mask is a prototype of its own, so that masks are enlarged and drawn as those of
        other files are. ``prior_index`` is -1: the graph does not tell.
        """
        check_images(self, images)
        results = _run(self._session, self._outputs, input_array(images))
        return [_found(*rows) for rows in zip(*results, strict=True)]

    def _find_outputs(self, outputs: Sequence[Port], label: str) -> Sequence[str]:
        return DETECTED


def run_graph(model: Path | bytes, images: Tensor) -> dict[str, Array]:
    """All outputs of a graph by name, whatever they are; see :class:`OrtEngine` for ``model``.

    Args:
        model: With one input.
        images: What that takes.
    """
    source, label = model_source(model)
    session = _open(source, None, label)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, _run(session, names, input_array(images)), strict=True))


def values_inside(model: onnx.ModelProto, names: Sequence[str], images: Tensor) -> list[Array]:
    """Run ``model``, and return values in the middle of it.

    Args:
        model: Not changed.
        names: Of float32 values that nodes make.
        images: [B, 3, H, W] input.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        probed.graph.output.append(value)
    values = run_graph(probed.SerializeToString(), images)
    return [values[name] for name in names]


def _open(source: str | bytes, num_cores: int | None, label: str) -> Any:
    """An ONNX Runtime session on the CPU, of what :func:`model_source` gives."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: they are raised, and warnings are not for users
    if num_cores is not None:
        options.intra_op_num_threads = num_cores
    errors = ort.capi.onnxruntime_pybind11_state
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
        raise CheckpointError(
            f"{label} is not a readable ONNX model: {reason.partition(chr(10))[0][:300]}",
            hint=f"the file may be truncated or of another kind; {EXPORT_AGAIN}",
        ) from error


def _edge(session: Any) -> tuple[dict[str, str], list[Port], list[Port]]:
    """Metadata, inputs and outputs of a graph."""
    inputs, outputs = (
        [Port(port.name, port.type, port.shape) for port in ports]
        for ports in (session.get_inputs(), session.get_outputs())
    )
    return dict(session.get_modelmeta().custom_metadata_map), inputs, outputs


def _run(session: Any, names: Sequence[str], images: npt.NDArray[np.float32]) -> Sequence[Array]:
    """The values called ``names``, of a graph with one input."""
    try:
        values: Sequence[Array] = session.run(list(names), {session.get_inputs()[0].name: images})
    except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
        raise RuntimeError(str(error)) from error  # what memory that ran out is to torch, too
    return values


def _found(boxes: Array, scores: Array, classes: Array, masks: Array) -> tuple[Detections, Tensor]:
    count = int((scores > 0).sum())  # the rest fills the file's fixed number of rows
    soft = torch.from_numpy(masks[:count])
    detections = Detections(
        boxes=torch.from_numpy(boxes[:count]),
        scores=torch.from_numpy(scores[:count]),
        labels=torch.from_numpy(classes[:count]),
        coefficients=torch.eye(count),
        prior_index=torch.full((count,), -1, dtype=torch.int64),
    )
    return detections, soft.logit().clamp(-_MOST, _MOST).permute(1, 2, 0)


def _count_operators(source: str | bytes) -> Operators:
    """Optimize a graph as for running on this CPU, and count what became integer operators."""
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
