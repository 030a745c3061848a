"""What every inference engine looks like to evaluation, annotation and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from yolact.data.labels import Classes
from yolact.errors import ConfigError
from yolact.types import Detections, RawOutputs


class LoadedModel(Protocol):
    """What a loaded model says of itself, whatever it puts out."""

    @property
    def name(self) -> str:
        """Short name for reports, such as ``torch`` or ``onnxruntime``."""

    @property
    def classes(self) -> Classes:
        """What the class indices mean."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""

    @property
    def batch_size(self) -> int | None:
        """The only batch size the model takes, or None where any will do."""


class Engine(LoadedModel, Protocol):
    """Images in, raw outputs out. Calls from several threads are safe."""

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network.

        Args:
            images: [B, 3, H, W] float32 RGB in 0..1, of :attr:`image_size`.

        Returns:
            Raw outputs on the engine's own device.

        Raises:
            ConfigError: The images' shape is not one the model takes.
        """


@runtime_checkable
class DetectingEngine(LoadedModel, Protocol):
    """A model that detects inside its graph."""

    def detect(self, images: Tensor) -> list[tuple[Detections, Tensor]]:
        """Find the objects of each image.

        Args:
            images: As :meth:`Engine.__call__` takes them.

        Returns:
            Detections and prototypes [h, w, k] of each image.
        """


@runtime_checkable
class ReportsOperators(Protocol):
    """An engine that can say what it runs how."""

    def operators(self) -> Operators:
        """After the engine's optimizations, on this CPU."""


@dataclass(frozen=True)
class Operators:
    """Counts by the engine's own names of what it runs, after its optimizations.

    Steps that only convert between numbers, hold or rearrange them for the hardware do not count.
    """

    engine: str
    integer: Mapping[str, int]
    floating: Mapping[str, int]

    def lines(self) -> list[str]:
        """Two lines for people.

        >>> Operators("onnxruntime", {"QLinearConv": 55}, {"Tanh": 1}).lines()
        ['onnxruntime runs in int8: 55 QLinearConv', 'onnxruntime runs in float: 1 Tanh']
        """
        return [
            f"{self.engine} runs in {name}: {_listed(counts)}"
            for name, counts in (("int8", self.integer), ("float", self.floating))
        ]


def input_array(images: Tensor) -> npt.NDArray[np.float32]:
    """``images`` as engines other than torch take them: float32, contiguous, on the CPU."""
    return np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)


def check_images(engine: LoadedModel, images: Tensor) -> None:
    """Refuse images that ``engine`` cannot take, with a message that names both shapes.

    Raises:
        ConfigError: Wrong batch size, channel count or image size.
    """
    batch = engine.batch_size
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1:] == (3, *engine.image_size) and batch in (None, shape[0]):
        return
    wanted = ["any" if batch is None else batch, 3, *engine.image_size]
    raise ConfigError(
        f"the model takes images of shape {wanted}, got {list(shape)}",
        hint="use the image size and batch size the model was exported with",
    )


def _listed(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in most_first) or "nothing"
