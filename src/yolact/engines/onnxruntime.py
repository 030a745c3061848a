"""The ONNX Runtime engine (CPU): our own exports, and YOLACT files of other exporters.

Files with detection inside the graph, in ONNX Runtime.

What ONNX Runtime makes of a graph on this CPU: which operators became integer ones.

What ONNX Runtime computes in the middle of a graph.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    ModelMetadata,
    classes_for,
    image_input,
    image_size_of,
    model_source,
    output_names,
)
from yolact.errors import CheckpointError
from yolact.types import Detections, RawOutputs


class OrtEngine:
    """Runs an ONNX file through ONNX Runtime's CPU provider.

    The input's name, image size and batch size come from the graph. The five outputs are found
    by name, or by order (loc, conf, mask, priors, proto) where a file has its own names. Classes
    come from the file's metadata; a file without them gets :meth:`Classes.assumed`.

    Args:
        model: Path of the file (``.onnx``, or that compressed: .gz, .xz, .zst), or its bytes.
        num_cores: Threads one inference may use; None lets ONNX Runtime decide.

    Raises:
        CheckpointError: The file is missing, damaged, or not a YOLACT graph.
    """

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        label = "the model" if isinstance(model, bytes) else str(model)
        self._source = model if isinstance(model, bytes) else model_source(model)
        self._session = open_session(self._source, num_cores, label)
        self.metadata = ModelMetadata.from_props(self._session.get_modelmeta().custom_metadata_map)
        self._input = image_input(self._session.get_inputs(), label)
        self._outputs = output_names(self._session.get_outputs(), label)
        self.image_size = image_size_of(self._input.shape, self.metadata, label)
        batch = self._input.shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        self.classes = self._find_classes(label)

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see :class:`yolact.engines.base.Engine`. Outputs are on the CPU."""
        check_images(self, images)
        feed = input_array(images)
        try:
            arrays = self._session.run(self._outputs, {self._input.name: feed})
        except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
            raise RuntimeError(str(error)) from error  # what memory that ran out is to torch, too
        loc, conf, mask, priors, proto = (torch.from_numpy(array) for array in arrays)
        # Some exporters give the priors a batch axis; they are the same for every image.
        return RawOutputs(loc, conf, mask, priors.reshape(-1, priors.shape[-2], 4)[0], proto)

    def operators(self) -> Operators:
        """What runs in integers, and what does not."""
        return ort_operators(self._source)

    def _find_classes(self, label: str) -> Classes:
        by_name = {output.name: output for output in self._session.get_outputs()}
        count = by_name[self._outputs[1]].shape[-1]
        if not isinstance(count, int):
            probe = torch.zeros(self.batch_size or 1, 3, *self.image_size)
            count = self(probe).conf.shape[-1]
        return classes_for(self.metadata, count, label)


def run_graph(model: Path | bytes, images: Tensor) -> dict[str, npt.NDArray[Any]]:
    """All outputs of a graph by name, whatever they are; see :class:`OrtEngine` for ``model``.

    Args:
        model: With one input.
        images: What that takes.
    """
    label = "the model" if isinstance(model, bytes) else str(model)
    source = model if isinstance(model, bytes) else model_source(model)
    session = open_session(source, None, label)
    feed = input_array(images)
    arrays = session.run(None, {session.get_inputs()[0].name: feed})
    names = (output.name for output in session.get_outputs())
    return dict(zip(names, arrays, strict=True))


def open_session(source: str | bytes, num_cores: int | None, label: str) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        source: Path of the file, or its content.
        num_cores: Threads one inference may use; None lets ONNX Runtime decide.
        label: What errors call the file.

    Raises:
        CheckpointError: It is no readable ONNX model.
    """
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


_MOST = 80.0
"""Logit of a probability that float32 cannot tell from 1, and its negative from 0."""


class OrtDetector:
    """Runs a file that was exported with detection inside.

    Args:
        model: Path of the file (``.onnx``, or that compressed: .gz, .xz, .zst).
        num_cores: Threads one inference may use; None lets ONNX Runtime decide.

    Raises:
        CheckpointError: The file is missing or damaged, or does not say what its classes are.
    """

    name = "onnxruntime"

    def __init__(self, model: Path, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        label = str(model)
        self._session = open_session(model_source(model), num_cores, label)
        self.metadata = ModelMetadata.from_props(self._session.get_modelmeta().custom_metadata_map)
        self._input = image_input(self._session.get_inputs(), label)
        self.image_size = image_size_of(self._input.shape, self.metadata, label)
        batch = self._input.shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        if self.metadata.classes is None:
            raise CheckpointError(f"{label} does not name its classes", hint=EXPORT_AGAIN)
        self.classes: Classes = self.metadata.classes

    def detect(self, images: Tensor) -> list[tuple[Detections, Tensor]]:
        """Find objects; see :class:`yolact.engines.base.DetectingEngine`.

        Every mask is a prototype of its own, so that masks are enlarged and drawn as those of
        other files are. ``prior_index`` is -1: the graph does not tell.
        """
        check_images(self, images)
        feed = input_array(images)
        results = self._session.run(list(DETECTED), {self._input.name: feed})
        return [_found(*rows) for rows in zip(*results, strict=True)]


def _found(
    boxes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    masks: npt.NDArray[Any],
) -> tuple[Detections, Tensor]:
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


def ort_values(
    model: onnx.ModelProto, names: Sequence[str], images: Tensor
) -> list[npt.NDArray[Any]]:
    """Run ``model``, and return values inside it.

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
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: they are raised
    session = ort.InferenceSession(
        probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images.numpy()}
    values: list[npt.NDArray[Any]] = session.run(list(names), feed)
    return values
