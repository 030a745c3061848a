"""The OpenVINO engine (CPU), for the same ONNX files; an optional package."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.engines.base import Operators, check_images, input_array
from yolact.engines.onnx_file import (
    EXPORT_AGAIN,
    ModelMetadata,
    classes_for,
    image_input,
    image_size_of,
    model_source,
    output_names,
)
from yolact.errors import CheckpointError, ConfigError
from yolact.host import hidden
from yolact.types import RawOutputs

_NOT_COMPUTING = ("Const", "Input", "Output", "Reorder", "Convert", "Reshape", "FakeQuantize")
"""Kinds of steps that hold, bring or convert numbers."""


class OpenVinoEngine:
    """Runs an ONNX file through OpenVINO's CPU plugin, in the precision the file has.

    Contract, classes and errors are those of :class:`yolact.engines.onnxruntime.OrtEngine`. A float
    model is computed in float32, also where the CPU would be faster in bfloat16.

    Args:
        model: Path of the file (``.onnx``, or that compressed: .gz, .xz, .zst), or its bytes.
        num_cores: Threads one inference may use; None lets OpenVINO decide.

    Raises:
        CheckpointError: The file is missing, damaged, or not a YOLACT graph.
        ConfigError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, model: Path | bytes, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        label = "the model" if isinstance(model, bytes) else str(model)
        source = model if isinstance(model, bytes) else model_source(model)
        self._compiled, props = _compile(source, num_cores, label)
        self.metadata = ModelMetadata.from_props(props)
        self._input = image_input([_port(port) for port in self._compiled.inputs], label)
        outputs = {port.name: port for port in map(_port, self._compiled.outputs)}
        self._outputs = output_names(list(outputs.values()), label)
        self.image_size = image_size_of(self._input.shape, self.metadata, label)
        batch = self._input.shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        self._own = threading.local()
        count = outputs[self._outputs[1]].shape[-1]
        if not isinstance(count, int):
            probe = torch.zeros(self.batch_size or 1, 3, *self.image_size)
            count = self._run(probe).conf.shape[-1]
        self.classes: Classes = classes_for(self.metadata, count, label)

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see :class:`yolact.engines.base.Engine`. Outputs are on the CPU."""
        check_images(self, images)
        return self._run(images)

    def operators(self) -> Operators:
        """What runs in integers, and what does not."""
        integer: Counter[str] = Counter()
        floating: Counter[str] = Counter()
        for step in self._compiled.get_runtime_model().get_ops():
            info = step.get_rt_info()
            kind, precision = info["layerType"].astype(str), info["runtimePrecision"].astype(str)
            if kind not in _NOT_COMPUTING:
                (integer if precision in ("u8", "i8") else floating)[kind] += 1
        return Operators(self.name, dict(integer), dict(floating))

    def _run(self, images: Tensor) -> RawOutputs:
        feed = input_array(images)
        if not hasattr(self._own, "request"):  # requests are not safe to share between threads
            self._own.request = self._compiled.create_infer_request()
        results = self._own.request.infer({self._input.name: feed}, share_inputs=True)
        arrays = (results[name].copy() for name in self._outputs)
        loc, conf, mask, priors, proto = (torch.from_numpy(array) for array in arrays)
        return RawOutputs(loc, conf, mask, priors.reshape(-1, priors.shape[-2], 4)[0], proto)


@dataclass(frozen=True)
class _Port:
    """A :class:`yolact.engines.onnx_file.Port`."""

    name: str
    type: str
    shape: tuple[int | None, ...]


def _port(port: Any) -> _Port:
    kind = port.get_element_type().get_type_name()
    return _Port(
        name=port.get_any_name(),
        type="tensor(float)" if kind == "f32" else kind,
        shape=tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape),
    )


def _compile(source: str | bytes, num_cores: int | None, label: str) -> tuple[Any, dict[str, str]]:
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_cores is not None:
        settings["INFERENCE_NUM_THREADS"] = num_cores
    core = openvino_core()
    try:
        model = core.read_model(source)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise CheckpointError(
            f"{label} is not a readable ONNX model: {reason}",
            hint=f"the file may be truncated or of another kind; {EXPORT_AGAIN}",
        ) from error
    props = dict(model.get_rt_info()).get("framework", {})
    return compiled, {key: value.astype(str) for key, value in props.items()}


@cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process, which is never given back.

    A core gives the thread that compiles a stack for signal handlers and takes it away when it
    ends; of two, the second may put back what the first has freed. The next signal that Python
    handles, such as that of Ctrl-C, then kills the process.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    try:
        with hidden("openvino_telemetry"):  # or importing it would report to its makers
            import openvino
    except ImportError as error:
        raise ConfigError(
            "the engine openvino is not installed",
            hint="pip install 'sparseml-yolact[openvino]', or use --engine onnxruntime",
        ) from error
    return openvino.Core()
