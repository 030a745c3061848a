"""The ONNX Runtime engine (CPU): our own exports, and YOLACT files of other exporters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import CheckpointError
from yolact.onnx.metadata import ModelMetadata
from yolact.runtime.base import check_images, input_array
from yolact.runtime.contract import (
    EXPORT_AGAIN,
    classes_for,
    image_input,
    image_size_of,
    model_source,
    output_names,
)
from yolact.runtime.operators import Operators
from yolact.runtime.ort_operators import ort_operators
from yolact.types import RawOutputs


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
        """Run the network; see :class:`yolact.runtime.base.Engine`. Outputs are on the CPU."""
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
