"""What ONNX Runtime computes in the middle of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from torch import Tensor


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
