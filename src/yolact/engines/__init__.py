"""One small class per inference engine behind one interface; only this room imports them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from yolact.checkpoint import classes_of, load_checkpoint
from yolact.config import YolactConfig
from yolact.engines.base import DetectingEngine, Engine, LoadedModel
from yolact.engines.onnx_file import DetectsInside
from yolact.engines.onnxruntime import OrtDetector, OrtEngine
from yolact.engines.openvino import OpenVinoEngine
from yolact.engines.torch import TorchEngine
from yolact.errors import CheckpointError, ConfigError
from yolact.model.weight_file import ENDINGS
from yolact.restore import build_model, config_for
from yolact.sizes import ImageSize, checked_size, sides_of

__all__ = ["ENGINES", "DetectingEngine", "Engine", "engine_for", "load_detector", "load_engine"]

_Loaded = TypeVar("_Loaded", bound=LoadedModel)
_ONNX = (".onnx", ".onnx.gz", ".onnx.xz", ".onnx.zst")
ENGINES = {
    "torch": ENDINGS,
    "onnxruntime": _ONNX,
    "openvino": _ONNX,
}
"""Engine names and the file endings each one reads; the first that reads a file is its default."""

MOST_CORES = 256
"""More threads are taken for a mistake, on a machine with fewer CPUs."""
_ALIASES = {"ort": "onnxruntime", "ov": "openvino", "pytorch": "torch"}


def load_engine(
    path: Path,
    *,
    engine: str | None = None,
    device: str = "cpu",
    num_cores: int | None = None,
    config: YolactConfig | None = None,
    image_size: ImageSize | None = None,
    prior_base_size: float | None = None,
) -> Engine:
    """Load a model file into the engine that runs it.

    Args:
        path: A checkpoint, with an ending of :data:`yolact.model.weight_file.ENDINGS`, or an
            ``.onnx`` file, which may be compressed (.gz, .xz, .zst).
        engine: A name of :data:`ENGINES`, or ``ort``; None lets the file's ending decide.
        device: Where the torch engine runs; ONNX Runtime always uses the CPU here.
        num_cores: Threads one inference may use; None leaves the choice to the engine.
        config: For checkpoints that carry none, such as upstream's releases.
        image_size: Of the network input. A checkpoint runs at any, an ONNX file has one; None
            for that of training or of the file.
        prior_base_size: As :func:`yolact.restore.config_for` takes it, of a checkpoint only.

    Raises:
        CheckpointError: The file is missing, unreadable or not a YOLACT model.
        ConfigError: ``engine`` is unknown or does not read this kind of file, or the file is of
            another image size.
    """
    path = Path(path).expanduser()
    most = max(MOST_CORES, os.cpu_count() or 1)
    if num_cores is not None and not 1 <= num_cores <= most:
        raise ConfigError(f"number of cores is {num_cores}", hint=f"use 1 to {most}")
    chosen = engine_for(path, engine)
    if chosen == "torch":
        checkpoint = load_checkpoint(path)
        config = config_for(checkpoint, path, config, image_size, prior_base_size)
        model = build_model(checkpoint, config)
        return TorchEngine(model, classes_of(checkpoint), device, num_cores)
    if prior_base_size is not None:
        raise ConfigError(
            f"the priors of {path} are part of the file",
            hint="give --prior_base_size when a checkpoint is exported",
        )
    loaded = (OpenVinoEngine if chosen == "openvino" else OrtEngine)(path, num_cores=num_cores)
    return _require_size(loaded, path, image_size)


def load_detector(
    path: Path,
    *,
    engine: str | None = None,
    device: str = "cpu",
    num_cores: int | None = None,
    config: YolactConfig | None = None,
    image_size: ImageSize | None = None,
) -> Engine | DetectingEngine:
    """As :func:`load_engine`, and files that detect inside the graph too (ONNX Runtime only)."""
    try:
        return load_engine(
            path,
            engine=engine,
            device=device,
            num_cores=num_cores,
            config=config,
            image_size=image_size,
        )
    except DetectsInside:
        if engine_for(path, engine) != "onnxruntime":
            raise
        return _require_size(OrtDetector(path, num_cores=num_cores), path, image_size)


def engine_for(path: Path, engine: str | None = None) -> str:
    """The name of the engine that runs ``path``; a wish in ``engine`` is checked against it.

    Raises:
        CheckpointError: No engine reads files of this ending.
        ConfigError: ``engine`` is unknown or does not read this kind of file.
    """
    fits = [name for name, ends in ENGINES.items() if path.name.lower().endswith(ends)]
    if not fits:
        endings = ", ".join(dict.fromkeys(end for ends in ENGINES.values() for end in ends))
        raise CheckpointError(f"not a model file: {path}", hint=f"models end in {endings}")
    if engine is None:
        return fits[0]
    wanted = _ALIASES.get(engine.lower(), engine.lower())
    if wanted not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}", hint=f"choose from {', '.join(ENGINES)}")
    if wanted not in fits:
        raise ConfigError(
            f"engine {wanted} does not read {path.name}",
            hint="convert checkpoints with sparseml.yolact.export_onnx"
            if fits == ["torch"]
            else f"use --engine {fits[0]}",
        )
    return wanted


def _require_size(loaded: _Loaded, path: Path, wanted: ImageSize | None) -> _Loaded:
    if wanted is None:
        return loaded
    height, width = loaded.image_size
    asked_height, asked_width = sides_of(checked_size(wanted))
    if (asked_height, asked_width) == (height, width):
        return loaded
    raise ConfigError(
        f"{path} takes images of {height} x {width}, not {asked_height} x {asked_width}",
        hint="leave the size out, or export the checkpoint at it",
    )
