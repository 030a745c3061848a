"""What an exported file says about itself: ONNX ``metadata_props``, all strings.

What the values at the edge of an exported graph mean, in words that travel with the file.

What makes an ONNX file a YOLACT model, checked the same way for every engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from yolact import __version__
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.engines.compress import compression_of, unpack
from yolact.errors import CheckpointError, YolactError
from yolact.types import RawOutputs

PREPROCESSING = (
    "RGB, resized to the input without keeping the aspect ratio, divided by 255; no mean or std"
)
"""How an image becomes the graph's input (DarkNet's preprocessing)."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """Everything needed to use an ONNX file without the checkpoint it came from.

    :meth:`to_props` and :meth:`from_props` are inverses; a file of another tool has no such
    properties and yields None for everything.
    """

    classes: Classes | None = None
    config: YolactConfig | None = None
    image_size: tuple[int, int] | None = None
    """(height, width) of the input, in pixels."""
    recipe: str | None = None
    """Text of the recipe that made the weights."""
    sparsity: float | None = None
    """Share of zeros among the exported convolution weights, 0..1."""
    one_shot: str | None = None
    """What was done to the weights without training, in words."""
    quantization: str | None = None
    """How integers are written, such as ``int8 qdq``; None for a float graph."""
    outputs: Mapping[str, str] | None = None
    """Output names and what they mean."""
    tools: Mapping[str, str] | None = None
    """Other packages that took part, and their versions."""
    version: str | None = __version__
    """Version of this package that wrote the file."""

    def to_props(self) -> dict[str, str]:
        """Keys and values for ``metadata_props``; structured values are JSON."""
        props = {"preprocessing": PREPROCESSING}
        if self.classes is not None:
            props["classes"] = json.dumps(self.classes.names, ensure_ascii=False)
            props["category_ids"] = json.dumps(self.classes.ids)
        if self.config is not None:
            props["config_name"] = self.config.name
            props["config"] = json.dumps(self.config.to_dict())
        if self.image_size is not None:
            props["image_size"] = json.dumps(self.image_size)
        if self.recipe is not None:
            props["recipe"] = self.recipe
        if self.sparsity is not None:
            props["sparsity"] = f"{self.sparsity:.6f}"
        if self.one_shot is not None:
            props["one_shot"] = self.one_shot
        if self.quantization is not None:
            props["quantization"] = self.quantization
        if self.outputs is not None:
            props["outputs"] = json.dumps(dict(self.outputs))
        if self.tools is not None:
            props["tools"] = json.dumps(dict(self.tools))
        if self.version is not None:
            props["version"] = self.version
        return props

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Read back what :meth:`to_props` wrote.

        Raises:
            CheckpointError: A property of ours is there but does not make sense.
        """
        try:
            return cls(
                classes=_classes(props),
                config=_config(props),
                image_size=_image_size(props),
                recipe=props.get("recipe"),
                sparsity=float(props["sparsity"]) if "sparsity" in props else None,
                one_shot=props.get("one_shot"),
                quantization=props.get("quantization"),
                outputs=_texts(props, "outputs"),
                tools=_texts(props, "tools"),
                version=props.get("version"),
            )
        except (ValueError, TypeError, AttributeError, YolactError) as error:
            raise CheckpointError(
                f"the file's metadata is damaged: {error}",
                hint="export the model again with sparseml.yolact.export_onnx",
            ) from error


def _classes(props: Mapping[str, str]) -> Classes | None:
    if "category_ids" not in props:
        return None
    names = tuple(str(name) for name in json.loads(props.get("classes", "[]")))
    return Classes(names, tuple(int(i) for i in json.loads(props["category_ids"])))


def _config(props: Mapping[str, str]) -> YolactConfig | None:
    # "config_name" marks the property as ours: other tools may well store a "config" too.
    if "config" not in props or "config_name" not in props:
        return None
    return YolactConfig.from_dict(json.loads(props["config"]))


def _texts(props: Mapping[str, str], key: str) -> dict[str, str] | None:
    # As with "config": the key alone does not mark the property as ours.
    if key not in props or "config_name" not in props:
        return None
    return {str(name): str(text) for name, text in json.loads(props[key]).items()}


def _image_size(props: Mapping[str, str]) -> tuple[int, int] | None:
    if "image_size" not in props:
        return None
    height, width = json.loads(props["image_size"])
    return int(height), int(width)


DETECTED = ("boxes", "scores", "classes", "masks")
"""Outputs of a graph with detection inside, in order; see :mod:`yolact.exporter.nms`."""

DEPLOYED = "model.onnx"
"""Name of the file in a folder that ``export_onnx --deployment`` has written."""

INPUT_MEANING = "RGB image, divided by 255, resized to height x width without keeping the ratio"

OUTPUT_MEANINGS = {
    "loc": "box regression: center and size offsets against the priors, variances not yet applied",
    "conf": "class probabilities after softmax; index 0 is the background",
    "mask": "mask coefficients, -1 to 1",
    "priors": "prior boxes: center x, center y, width, height, relative to the image",
    "proto": "prototype masks, at least 0; sigmoid(proto x coefficients) is the mask of an object",
    "boxes": "corners x1, y1, x2, y2 relative to the image, not clipped",
    "scores": "descending; 0 behind the last object",
    "classes": "index into the classes, from 0, without a background",
    "masks": "probabilities, cut at the box; enlarged to the image, more than 0.5 is inside",
}
"""Of every output that an exported file may have, by name."""


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
