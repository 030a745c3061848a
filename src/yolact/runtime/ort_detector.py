"""Files with detection inside the graph, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import CheckpointError
from yolact.onnx.contract import DETECTED
from yolact.onnx.metadata import ModelMetadata
from yolact.runtime.base import check_images, input_array
from yolact.runtime.contract import EXPORT_AGAIN, image_input, image_size_of, model_source
from yolact.runtime.ort_engine import open_session
from yolact.types import Detections

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
        """Find objects; see :class:`yolact.runtime.base.DetectingEngine`.

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
