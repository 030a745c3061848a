"""The OpenVINO engine (CPU), for the same ONNX files; an optional package."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolact.engines.base import Operators
from yolact.engines.onnx_file import EXPORT_AGAIN, OnnxEngine, Port, model_source
from yolact.errors import CheckpointError, ConfigError
from yolact.host import not_importable

_NOT_COMPUTING = ("Const", "Input", "Output", "Reorder", "Convert", "Reshape", "FakeQuantize")
"""Kinds of steps that hold, bring or convert numbers."""


class OpenVinoEngine(OnnxEngine):
    """Runs an ONNX file through OpenVINO's CPU plugin, in the precision the file has.

    A float model is computed in float32, also where the CPU would be faster in bfloat16.

    Args:
        model: As :class:`yolact.engines.onnxruntime.OrtEngine` takes it.
        num_cores: Likewise.

    Raises:
        CheckpointError: The file is missing, damaged, or not a YOLACT graph.
        ConfigError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, model: Path | bytes, *, num_cores: int | None = None) -> None:
        """Open the model; see the class."""
        source, label = model_source(model)
        self._compiled, props = _compile(source, num_cores, label)
        self._own = threading.local()
        inputs, outputs = map(_ports, (self._compiled.inputs, self._compiled.outputs))
        super().__init__(props, inputs, outputs, label)

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

    def _infer(self, images: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[Any]]:
        if not hasattr(self._own, "request"):  # requests are not safe to share between threads
            self._own.request = self._compiled.create_infer_request()
        results = self._own.request.infer({self._input.name: images}, share_inputs=True)
        return [results[name].copy() for name in self._outputs]


def _ports(ports: Sequence[Any]) -> list[Port]:
    kinds = [port.get_element_type().get_type_name() for port in ports]
    return [
        Port(
            name=port.get_any_name(),
            type="tensor(float)" if kind == "f32" else kind,
            shape=tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape),
        )
        for port, kind in zip(ports, kinds, strict=True)
    ]


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
        with not_importable("openvino_telemetry"):  # or importing it would report to its makers
            import openvino  # here, because it is optional
    except ImportError as error:
        raise ConfigError(
            "the engine openvino is not installed",
            hint="pip install 'sparseml-yolact[openvino]', or use --engine onnxruntime",
        ) from error
    return openvino.Core()
