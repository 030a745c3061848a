"""What makes an ONNX file a YOLACT model, and what it says about itself, for every engine alike.

The graph has one input and five outputs, or detects inside; ``metadata_props``, all strings, hold
the rest, so that a file can be used without the checkpoint it came from.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolact import __version__
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.engines.base import check_images, input_array
from yolact.engines.compress import compression_of, unpack
from yolact.errors import CheckpointError, YolactError
from yolact.types import RawOutputs

PREPROCESSING = (
    "RGB, resized to the input without keeping the aspect ratio, divided by 255; no mean or std"
)
"""How an image becomes the graph's input (DarkNet's preprocessing)."""
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
DETECTED = ("boxes", "scores", "classes", "masks")
"""Outputs of a graph with detection inside, in order; see :mod:`yolact.exporter.nms`."""
DEPLOYED = "model.onnx"
"""Name of the file in a folder that ``export_onnx --deployment`` has written."""
EXPORT_AGAIN = "export the model again with sparseml.yolact.export_onnx"
_RANKS = (3, 3, 3, 2, 4)
"""Axes of the outputs, in the order of :class:`RawOutputs`."""


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
    float_layers: tuple[str, ...] | None = None
    """Layers of a quantized graph that compute in floats to lose less; None without any."""
    accuracy: Mapping[str, Any] | None = None
    """What was measured right before the file was written: ``images``, and ``mask`` and ``box``
    mAP in percent of ``float``, the float model, and ``file``."""
    outputs: Mapping[str, str] | None = None
    """Output names and what they mean."""
    tools: Mapping[str, str] | None = None
    """Other packages that took part, and their versions."""
    version: str | None = __version__
    """Version of this package that wrote the file."""

    def to_props(self) -> dict[str, str]:
        """Keys and values for ``metadata_props``; structured values are JSON."""
        props = {
            "preprocessing": PREPROCESSING,
            "image_size": self.image_size and json.dumps(self.image_size),
            "recipe": self.recipe,
            "sparsity": None if self.sparsity is None else f"{self.sparsity:.6f}",
            "one_shot": self.one_shot,
            "quantization": self.quantization,
            "float_layers": json.dumps(self.float_layers) if self.float_layers else None,
            "accuracy": None if self.accuracy is None else json.dumps(dict(self.accuracy)),
            "outputs": None if self.outputs is None else json.dumps(dict(self.outputs)),
            "tools": None if self.tools is None else json.dumps(dict(self.tools)),
            "version": self.version,
        }
        if self.classes is not None:
            props["classes"] = json.dumps(self.classes.names, ensure_ascii=False)
            props["category_ids"] = json.dumps(self.classes.ids)
        if self.config is not None:
            props["config_name"] = self.config.name
            props["config"] = json.dumps(self.config.to_dict())
        return {key: value for key, value in props.items() if value is not None}

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Read back what :meth:`to_props` wrote.

        Raises:
            CheckpointError: A property of ours is there but does not make sense.
        """
        try:
            config = _json_of_ours(props, "config")
            return cls(
                classes=_classes(props),
                config=None if config is None else YolactConfig.from_dict(config),
                image_size=_image_size(props),
                recipe=props.get("recipe"),
                sparsity=float(props["sparsity"]) if "sparsity" in props else None,
                one_shot=props.get("one_shot"),
                quantization=props.get("quantization"),
                float_layers=_float_layers(props),
                accuracy=_json_of_ours(props, "accuracy"),
                outputs=_json_of_ours(props, "outputs"),
                tools=_json_of_ours(props, "tools"),
                version=props.get("version"),
            )
        except (ValueError, TypeError, AttributeError, YolactError) as error:
            raise CheckpointError(
                f"the file's metadata is damaged: {error}", hint=EXPORT_AGAIN
            ) from error


class DetectsInside(CheckpointError):
    """The file puts out detections, and is one of ours otherwise."""


class Port(NamedTuple):
    """An input or output of a graph."""

    name: str
    """In the file."""
    type: str
    """In ONNX Runtime's words: ``tensor(float)`` for float32."""
    shape: Sequence[int | str | None]
    """Numbers where an axis is fixed."""


class OnnxModel(ABC):
    """What a loaded file says of itself; a :class:`yolact.engines.base.LoadedModel`."""

    name: str
    classes: Classes

    def __init__(
        self, props: Mapping[str, str], inputs: Sequence[Port], outputs: Sequence[Port], label: str
    ) -> None:
        """Look at the edge of a graph.

        Args:
            props: The file's ``metadata_props``.
            inputs: Of the graph.
            outputs: Of the graph.
            label: What errors call the file.

        Raises:
            CheckpointError: It takes no float32 images, does not say of which size, or puts out
                something else than such a model does.
        """
        self.metadata = ModelMetadata.from_props(props)
        self._input = _image_input(inputs, label)
        self._outputs = self._find_outputs(outputs, label)
        self.image_size = _image_size_of(self._input.shape, self.metadata, label)
        batch = self._input.shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None

    @abstractmethod
    def _find_outputs(self, outputs: Sequence[Port], label: str) -> Sequence[str]:
        """Names of the outputs that are to be computed."""


class OnnxEngine(OnnxModel):
    """A file with raw outputs in an engine: all of a :class:`yolact.engines.base.Engine` but how.

    The input's name, image size and batch size come from the graph. The five outputs are found
    by name, or by order (loc, conf, mask, priors, proto) where a file has its own names. Classes
    come from the file's metadata; a file without them gets :meth:`Classes.assumed`.
    """

    def __init__(
        self, props: Mapping[str, str], inputs: Sequence[Port], outputs: Sequence[Port], label: str
    ) -> None:
        """Look at the edge of a graph that can be run already; see :class:`OnnxModel`."""
        super().__init__(props, inputs, outputs, label)
        count = next(port.shape[-1] for port in outputs if port.name == self._outputs[1])
        if not isinstance(count, int):
            probe = torch.zeros(self.batch_size or 1, 3, *self.image_size)
            count = self(probe).conf.shape[-1]
        self.classes = self.metadata.classes or Classes.assumed(count - 1)
        if len(self.classes) != count - 1:
            raise CheckpointError(
                f"{label} names {len(self.classes)} classes but predicts {count - 1}",
                hint=EXPORT_AGAIN,
            )

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see :class:`yolact.engines.base.Engine`. Outputs are on the CPU."""
        check_images(self, images)
        arrays = self._infer(input_array(images))
        loc, conf, mask, priors, proto = (torch.from_numpy(array) for array in arrays)
        # Some exporters give the priors a batch axis; they are the same for every image.
        return RawOutputs(loc, conf, mask, priors.reshape(-1, priors.shape[-2], 4)[0], proto)

    def _find_outputs(self, outputs: Sequence[Port], label: str) -> Sequence[str]:
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

    @abstractmethod
    def _infer(self, images: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[Any]]:
        """The values called ``self._outputs``, in that order, for [B, 3, H, W] images."""


def model_source(model: Path | bytes) -> tuple[str | bytes, str]:
    """What an engine can open, and what errors call it.

    Args:
        model: A path, or the content of a file. A compressed file is unpacked.

    Raises:
        CheckpointError: The file is missing, empty, unreadable or damaged.
    """
    if isinstance(model, bytes):
        return model, "the model"
    if model.is_dir():
        raise CheckpointError(f"{model} is a folder, not a model", hint="name the file inside it")
    if not model.is_file():
        raise CheckpointError(f"model not found: {model}", hint="check the path")
    if not model.stat().st_size:
        raise CheckpointError(
            f"{model} is not a readable ONNX model: it is empty", hint=EXPORT_AGAIN
        )
    try:
        if compression_of(model) is not None:
            return unpack(model), str(model)
        with model.open("rb"):
            return str(model), str(model)  # by path, so that files with external data find it
    except PermissionError as error:
        raise CheckpointError(f"no permission to read {model}", hint="check its mode") from error
    except OSError as error:
        raise CheckpointError(f"{model} is damaged: {error}", hint="copy it again") from error


def _image_input(inputs: Sequence[Port], label: str) -> Port:
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


def _image_size_of(shape: Sequence[Any], metadata: ModelMetadata, label: str) -> tuple[int, int]:
    """(height, width) of the input, by its shape or by what the file says."""
    height, width = shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    if metadata.image_size is None:
        raise CheckpointError(f"{label} does not say which image size it takes", hint=EXPORT_AGAIN)
    return metadata.image_size


def _sizes_fit(last: Sequence[Any]) -> bool:
    """Whether boxes and priors have four numbers, masks as many as there are prototypes."""
    loc, _, mask, priors, proto = last
    equal = ((loc, 4), (priors, 4), (mask, proto))
    return all(a == b for a, b in equal if isinstance(a, int) and isinstance(b, int))


def _classes(props: Mapping[str, str]) -> Classes | None:
    if "category_ids" not in props:
        return None
    names = tuple(str(name) for name in json.loads(props.get("classes", "[]")))
    return Classes(names, tuple(int(i) for i in json.loads(props["category_ids"])))


def _json_of_ours(props: Mapping[str, str], key: str) -> dict[str, Any] | None:
    """A property whose name other tools may well use, too: "config_name" marks it as ours."""
    if key not in props or "config_name" not in props:
        return None
    return dict(json.loads(props[key]).items())


def _float_layers(props: Mapping[str, str]) -> tuple[str, ...] | None:
    if "float_layers" not in props:
        return None
    return tuple(str(name) for name in json.loads(props["float_layers"]))


def _image_size(props: Mapping[str, str]) -> tuple[int, int] | None:
    if "image_size" not in props:
        return None
    height, width = json.loads(props["image_size"])
    return int(height), int(width)
