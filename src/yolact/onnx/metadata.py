"""What an exported file says about itself: ONNX ``metadata_props``, all strings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from yolact import __version__
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, YolactError

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
