"""The ONNX Runtime engine (CPU): our own exports, and YOLACT files of other exporters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import CheckpointError
from yolact.onnx.compress import compression_of, unpack
from yolact.onnx.metadata import ModelMetadata
from yolact.runtime.base import check_images
from yolact.types import RawOutputs

_RANKS = (3, 3, 3, 2, 4)
"""Axes of the outputs, in the order of :class:`RawOutputs`."""
_HINT = "export the model again with sparseml.yolact.export_onnx"


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
        self._session = _open_session(model, num_cores, label)
        self.metadata = ModelMetadata.from_props(self._session.get_modelmeta().custom_metadata_map)
        self._input = _image_input(self._session.get_inputs(), label)
        self._outputs = _output_names(self._session.get_outputs(), label)
        self.image_size = _image_size(self._input.shape, self.metadata, label)
        batch = self._input.shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        self.classes = self._find_classes(label)

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see :class:`yolact.runtime.base.Engine`. Outputs are on the CPU."""
        check_images(self, images)
        feed = np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)
        try:
            arrays = self._session.run(self._outputs, {self._input.name: feed})
        except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
            raise RuntimeError(str(error)) from error  # what memory that ran out is to torch, too
        loc, conf, mask, priors, proto = (torch.from_numpy(array) for array in arrays)
        # Some exporters give the priors a batch axis; they are the same for every image.
        return RawOutputs(loc, conf, mask, priors.reshape(-1, priors.shape[-2], 4)[0], proto)

    def _find_classes(self, label: str) -> Classes:
        by_name = {output.name: output for output in self._session.get_outputs()}
        count = by_name[self._outputs[1]].shape[-1]
        if not isinstance(count, int):
            probe = torch.zeros(self.batch_size or 1, 3, *self.image_size)
            count = self(probe).conf.shape[-1]
        classes = self.metadata.classes or Classes.assumed(count - 1)
        if len(classes) != count - 1:
            raise CheckpointError(
                f"{label} names {len(classes)} classes but predicts {count - 1}", hint=_HINT
            )
        return classes


def _open_session(model: Path | bytes, num_cores: int | None, label: str) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: they are raised, and warnings are not for users
    if num_cores is not None:
        options.intra_op_num_threads = num_cores
    source = model if isinstance(model, bytes) else _model_source(model)
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
            hint=f"the file may be truncated or of another kind; {_HINT}",
        ) from error


def _model_source(path: Path) -> str | bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a model", hint="name the file inside it")
    if not path.is_file():
        raise CheckpointError(f"model not found: {path}", hint="check the path")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is not a readable ONNX model: it is empty", hint=_HINT)
    try:
        if compression_of(path) is not None:
            return unpack(path)
        with path.open("rb"):
            return str(path)  # by path, so that files with external data find it
    except PermissionError as error:
        raise CheckpointError(f"no permission to read {path}", hint="check its mode") from error
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint="copy it again") from error


def _image_input(inputs: Sequence[Any], label: str) -> Any:
    found = [(i.name, i.type, i.shape) for i in inputs]
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, None):
        raise CheckpointError(
            f"{label} is not a YOLACT model: its inputs are {found}",
            hint="it needs one input of shape [batch, 3, height, width]",
        )
    if inputs[0].type != "tensor(float)":
        raise CheckpointError(f"{label} takes {inputs[0].type}, not float32 images", hint=_HINT)
    return inputs[0]


def _output_names(outputs: Sequence[Any], label: str) -> list[str]:
    by_name = {output.name: output for output in outputs}
    named = all(field in by_name for field in RawOutputs._fields)
    names = list(RawOutputs._fields) if named else list(by_name)
    ranks = [len(by_name[name].shape) for name in names]
    fits = len(names) == len(_RANKS) and all(
        rank == wanted or (field == "priors" and rank == 3)
        for field, rank, wanted in zip(RawOutputs._fields, ranks, _RANKS, strict=True)
    )
    if not fits or not _sizes_fit([by_name[name].shape[-1] for name in names]):
        raise CheckpointError(
            f"{label} is not a YOLACT model: its outputs are {', '.join(by_name)}",
            hint=f"it needs {', '.join(RawOutputs._fields)}, by name or in this order",
        )
    return names


def _sizes_fit(last: Sequence[Any]) -> bool:
    """Whether boxes and priors have four numbers, masks as many as there are prototypes."""
    loc, _, mask, priors, proto = last
    equal = ((loc, 4), (priors, 4), (mask, proto))
    return all(a == b for a, b in equal if isinstance(a, int) and isinstance(b, int))


def _image_size(shape: Sequence[Any], metadata: ModelMetadata, label: str) -> tuple[int, int]:
    height, width = shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    if metadata.image_size is None:
        raise CheckpointError(f"{label} does not say which image size it takes", hint=_HINT)
    return metadata.image_size
