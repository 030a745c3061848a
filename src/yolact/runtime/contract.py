"""What makes an ONNX file a YOLACT model, checked the same way for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from yolact.data.labels import Classes
from yolact.errors import CheckpointError
from yolact.onnx.compress import compression_of, unpack
from yolact.onnx.contract import DETECTED
from yolact.onnx.metadata import ModelMetadata
from yolact.types import RawOutputs

_RANKS = (3, 3, 3, 2, 4)
"""Axes of the outputs, in the order of :class:`RawOutputs`."""
EXPORT_AGAIN = "export the model again with sparseml.yolact.export_onnx"


class DetectsInside(CheckpointError):
    """The file puts out detections, and is one of ours otherwise."""


class Port(Protocol):
    """An input or output of a graph, as ONNX Runtime describes it."""

    @property
    def name(self) -> str:
        """In the file."""

    @property
    def type(self) -> str:
        """``tensor(float)`` for float32."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Numbers where an axis is fixed."""


P = TypeVar("P", bound=Port)


def model_source(path: Path) -> str | bytes:
    """What an engine can open: the path, or the content of a compressed file.

    Raises:
        CheckpointError: The file is missing, empty, unreadable or damaged.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a model", hint="name the file inside it")
    if not path.is_file():
        raise CheckpointError(f"model not found: {path}", hint="check the path")
    if not path.stat().st_size:
        raise CheckpointError(
            f"{path} is not a readable ONNX model: it is empty", hint=EXPORT_AGAIN
        )
    try:
        if compression_of(path) is not None:
            return unpack(path)
        with path.open("rb"):
            return str(path)  # by path, so that files with external data find it
    except PermissionError as error:
        raise CheckpointError(f"no permission to read {path}", hint="check its mode") from error
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint="copy it again") from error


def image_input(inputs: Sequence[P], label: str) -> P:
    """The only input.

    Raises:
        CheckpointError: There are others, or it takes no float32 images.
    """
    found = [(i.name, i.type, i.shape) for i in inputs]
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, None):
        raise CheckpointError(
            f"{label} is not a YOLACT model: its inputs are {found}",
            hint="it needs one input of shape [batch, 3, height, width]",
        )
    if inputs[0].type != "tensor(float)":
        raise CheckpointError(
            f"{label} takes {inputs[0].type}, not float32 images", hint=EXPORT_AGAIN
        )
    return inputs[0]


def output_names(outputs: Sequence[Port], label: str) -> list[str]:
    """Names of the five outputs in the order of :class:`RawOutputs`.

    Raises:
        CheckpointError: They are others.
    """
    by_name = {output.name: output for output in outputs}
    if list(by_name) == list(DETECTED):
        raise DetectsInside(
            f"{label} detects inside the graph, and raw outputs are needed here",
            hint="use a file exported without --with-nms; sparseml.yolact.annotate and "
            "deployment/run.py run this one",
        )
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


def image_size_of(shape: Sequence[Any], metadata: ModelMetadata, label: str) -> tuple[int, int]:
    """(height, width) of the input, by its shape or by what the file says.

    Raises:
        CheckpointError: Neither says it.
    """
    height, width = shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    if metadata.image_size is None:
        raise CheckpointError(f"{label} does not say which image size it takes", hint=EXPORT_AGAIN)
    return metadata.image_size


def classes_for(metadata: ModelMetadata, count: int, label: str) -> Classes:
    """The classes of a file that predicts ``count``, background included.

    Raises:
        CheckpointError: It names another number of them.
    """
    classes = metadata.classes or Classes.assumed(count - 1)
    if len(classes) != count - 1:
        raise CheckpointError(
            f"{label} names {len(classes)} classes but predicts {count - 1}", hint=EXPORT_AGAIN
        )
    return classes
