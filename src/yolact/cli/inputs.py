"""Reading option values that several commands share: model files, recipes and data sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from yolact.download.options import COCO_FOLDER, SHAPES_FOLDER
from yolact.download.stubs import Kind, is_stub
from yolact.errors import CheckpointError, ConfigError
from yolact.model_files import find_checkpoint, stub_file

RELEASES = "https://huggingface.co/dbolya/yolact-darknet53"


class Layout(NamedTuple):
    """Where the parts of a named data set usually are."""

    folder: Path
    """Holds ``annotations/`` and ``images/``."""
    validation: str
    """Annotation file of the validation part."""
    training: str | None
    """That of the training part, if there is one."""


USUAL = "coco2017_dataset"
LAYOUTS = {
    USUAL: Layout(COCO_FOLDER, "instances_val2017.json", "instances_train2017.json"),
    "coco2017_testdev_dataset": Layout(COCO_FOLDER, "image_info_test-dev2017.json", None),
    "coco2014_dataset": Layout(COCO_FOLDER, "instances_val2014.json", "instances_train2014.json"),
    "shapes": Layout(SHAPES_FOLDER, "instances_val.json", "instances_train.json"),
}
"""Data sets that ``--dataset`` knows by name."""


def local_path(path: Path, *kinds: Kind) -> Path:
    """``path``, or the file on this machine that it names when it is a ``zoo:`` stub.

    Args:
        path: As given on the command line.
        kinds: What of the stub's model will do.

    Raises:
        CheckpointError: There never was such a model, or its file is gone.
    """
    return stub_file(str(path), *kinds) if is_stub(str(path)) else path


def recipe_source(text: str) -> tuple[str, str | None]:
    """What a recipe option names: the recipe, and its label where that is not the recipe's own.

    Args:
        text: A path, a packaged name, YAML text (recognised by its line breaks), or a ``zoo:``
            stub, whose file is found and goes by the stub's name.

    Raises:
        RecipeError: There never was such a model, or its recipe is gone.
    """
    if "\n" in text or not is_stub(text):
        return text, None
    return str(stub_file(text, Kind.RECIPE)), text


def model_path(text: str, save_folder: Path, config_name: str, *kinds: Kind) -> Path:
    """The model file that an option means.

    Args:
        text: A path, a ``zoo:`` stub, ``latest`` or ``interrupt``.
        save_folder: Where the checkpoints that the last two mean are looked for.
        config_name: First part of their names.
        kinds: What of a stub's model will do; a checkpoint when none is given.

    Raises:
        CheckpointError: There is no such checkpoint, or a stub's file is gone.
    """
    if is_stub(text):
        return stub_file(text, *(kinds or (Kind.CHECKPOINT,)))
    if text.startswith("hf:"):
        raise CheckpointError(
            f"{text} cannot be fetched: stubs begin with zoo:",
            hint=f"give a file; the published DarkNet-53 weights are at {RELEASES}",
        )
    if text in ("latest", "interrupt"):
        return find_checkpoint(save_folder, text, config_name)
    return Path(text)


ENGINE_NAMES = ("onnxruntime", "ort", "openvino", "torch", "deepsparse")
"""What ``--engine`` takes: the engines there are, a short name, and one that has gone."""


def engine_name(name: str | None) -> str | None:
    """Check an ``--engine`` for the one that cannot be had any more.

    Raises:
        ConfigError: It is DeepSparse.
    """
    if name == "deepsparse":
        raise ConfigError(
            "the engine deepsparse is not available: its development has ended",
            hint="leave --engine out, or use ort for .onnx files and torch for .pth files",
        )
    return name


@dataclass(frozen=True)
class DataPaths:
    """A validation set on disk."""

    info: Path
    """COCO annotation file."""
    images: Path
    """Folder that its file names are relative to."""


def validation_paths(dataset: str | None, info: Path | None, images: Path | None) -> DataPaths:
    """Where the validation set is.

    Args:
        dataset: A folder in the tutorial's layout (``annotations/`` and ``images/``) or that of
            the sample set, or the name of one of these sets; None means COCO 2017.
        info: Annotation file that overrides it.
        images: Folder of images that overrides it.

    Raises:
        ConfigError: ``dataset`` is neither a folder nor a known name.
    """
    name = USUAL if dataset is None else dataset
    folder, file, _ = LAYOUTS.get(name, LAYOUTS[USUAL]._replace(folder=Path(name)))
    if name not in LAYOUTS:
        if not folder.is_dir():
            raise ConfigError(
                f"no data set called {dataset}",
                hint=f"give a folder with annotations/ and images/, or {', '.join(LAYOUTS)}",
            )
        of_shapes = folder / "annotations" / LAYOUTS["shapes"].validation
        if of_shapes.is_file() and not of_shapes.with_name(file).is_file():
            file = of_shapes.name
    return DataPaths(info or folder / "annotations" / file, images or folder / "images")


def split_pair(text: str) -> tuple[str, str | None]:
    """Split ``IN:OUT``; without an OUT the second is None. Drive letters are no separators.

    Colons inside the name of a file that is there, or inside an address, are none either.

    >>> split_pair("dog.jpg:out/dog.png")
    ('dog.jpg', 'out/dog.png')
    >>> split_pair("0")
    ('0', None)
    >>> split_pair("C:/dog.jpg:D:/dog.png")
    ('C:/dog.jpg', 'D:/dog.png')
    >>> split_pair("rtsp://cam:554/1:out.mp4")
    ('rtsp://cam:554/1', 'out.mp4')
    """
    if Path(text).exists():
        return text, None
    address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*", text)
    if address:
        colon = text.rfind(":", address.end())
        if colon < 0 or not Path(text[colon + 1 :]).suffix:
            return text, None
        return text[:colon], text[colon + 1 :]
    start = 2 if re.match(r"[A-Za-z]:[\\/]", text) else 0
    colons = [place.start() for place in re.finditer(":", text) if place.start() >= start]
    if not colons:
        return text, None
    colon = next((place for place in colons if Path(text[:place]).exists()), colons[0])
    return text[:colon], text[colon + 1 :] or None
