"""Checkpoints: one documented schema, safe to read, written in one step.

A file is a dict of plain values and tensors (``torch.load(weights_only=True)`` reads it):

| key | value |
|---|---|
| ``epoch`` | int, index of the epoch the last step belonged to |
| ``model_state_dict`` | parameter name -> tensor |
| ``checkpoint_recipe`` | str or None, every recipe applied so far, composed |
| ``schema`` | 1; absent from files of other tools |
| ``iteration`` | int, optimizer steps since the run began |
| ``classes`` | ``{"names": [...], "ids": [...]}`` |
| ``config`` | :meth:`yolact.config.YolactConfig.to_dict` |
| ``training`` | :class:`TrainingState` as a dict, or None when the file is for inference only |
| ``best_map`` | float or None, best mask mAP (percent) seen so far in the run |

The first three are the layout of neuralmagic/yolact, whose files load too; so does a bare
``state_dict``, as dbolya/yolact published them.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.files import atomic_path
from yolact.model.weights import is_quantized_state, num_classes_of

SCHEMA = 1
_PLAIN = {"epoch": int, "iteration": int, "checkpoint_recipe": str, "best_map": float}
"""Keys whose value is of this type or None."""
_BEGINNINGS = (b"PK", b"\x80")
"""Of a zip archive and of a pickle, the two formats that torch writes."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What continuing a run exactly needs besides the weights."""

    optimizer: dict[str, Any]
    """``Optimizer.state_dict()``."""
    scaler: dict[str, Any] | None
    """``GradScaler.state_dict()`` of a CUDA half-precision run."""
    rng: dict[str, Tensor]
    """Generator states by device: ``cpu`` and, on a GPU, ``cuda``."""
    steps_per_epoch: int
    """Optimizer steps; iteration / steps_per_epoch is the recipe's clock."""
    batch_size: int
    accumulate: int
    seed: int
    stage_recipe: str | None
    """The recipe of this run alone, without those of earlier stages."""
    earlier_recipe: str | None
    """Composed recipe of the stages before this run."""
    distillation: dict[str, Tensor] | None = None
    """What a run with a teacher trains besides the network; the teacher itself is not saved."""

    def __post_init__(self) -> None:
        """Refuse counts below 1 with a ConfigError: only damage makes them."""
        if min(self.steps_per_epoch, self.batch_size, self.accumulate) < 1:
            raise ConfigError(
                "a run without steps cannot go on", hint="take the file as training saved it"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file in memory; absent parts are None (see the module's table)."""

    model_state: Mapping[str, Tensor]
    epoch: int | None = None
    iteration: int | None = None
    recipe: str | None = None
    classes: Classes | None = None
    config: YolactConfig | None = None
    training: TrainingState | None = None
    best_map: float | None = None

    @property
    def quantized(self) -> bool:
        """Whether the weights belong to a model with quantization observers."""
        return is_quantized_state(self.model_state)

    @property
    def num_classes(self) -> int:
        """Object classes of the network, read from the class head's shape."""
        return num_classes_of(self.model_state)

    def config_or(self, wanted: YolactConfig | None) -> YolactConfig:
        """The configuration that was asked for, else the checkpoint's, else the published one."""
        return wanted or self.config or YolactConfig()

    def require_config(self, config: YolactConfig, path: object, *, more: str = "") -> None:
        """Refuse a checkpoint of a configuration with another name.

        Args:
            config: What the user wants to use it with.
            path: What the message calls the checkpoint.
            more: What else the user could do, for the end of the hint.

        Raises:
            CheckpointError: The names differ; one without a configuration fits any.
        """
        if self.config is not None and self.config.name != config.name:
            raise CheckpointError(
                f"{path} is of {self.config.name}_config, not {config.name}_config",
                hint=f"add --config {self.config.name}_config{more}",
            )

    @property
    def clock(self) -> float:
        """Epoch of the last step taken in the run that wrote this; inf when unknown."""
        if self.training is None or self.iteration is None:
            return float("inf")
        return max(self.iteration - 1, 0) / self.training.steps_per_epoch

    @property
    def position(self) -> float:
        """Epochs done in the run that wrote this, as recipes count them; inf when unknown."""
        if self.training is None or self.iteration is None:
            return float("inf")
        return self.iteration / self.training.steps_per_epoch


def checkpoint_name(config_name: str, epoch: int, iteration: int, *, interrupt: bool) -> str:
    """File name of a checkpoint.

    >>> checkpoint_name("yolact_darknet53", 54, 800000, interrupt=False)
    'yolact_darknet53_54_800000.pth'
    """
    return f"{config_name}_{epoch}_{iteration}{'_interrupt' if interrupt else ''}.pth"


def parse_checkpoint_name(path: Path) -> tuple[str, int, int] | None:
    """(config name, epoch, iteration) of a file named by :func:`checkpoint_name`, else None."""
    found = re.fullmatch(r"(.+)_(\d+)_(\d+)(_interrupt)?", path.stem)
    return (found[1], int(found[2]), int(found[3])) if found else None


def find_checkpoint(folder: Path, which: str, config_name: str) -> Path:
    """The newest checkpoint of ``config_name`` in ``folder``.

    Args:
        folder: Where a run saved its checkpoints.
        which: ``interrupt`` for the one an interrupted run left, ``latest`` for the one furthest
            along, interrupted or not.
        config_name: First part of the file names.

    Raises:
        CheckpointError: There is none.
    """
    pattern = "*_interrupt.pth" if which == "interrupt" else "*.pth"
    named = [(path, parse_checkpoint_name(path)) for path in folder.glob(pattern)]
    ours = [(parts[2], path) for path, parts in named if parts and parts[0] == config_name]
    if not ours:
        raise CheckpointError(
            f"no {which} checkpoint of {config_name} in {folder}",
            hint="give the file's path, or the --save_folder of the run to continue",
        )
    return max(ours)[1]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` in one step.

    Raises:
        StorageError: The folder cannot be written or the disk is full; an older file survives.
    """
    classes, config = checkpoint.classes, checkpoint.config
    content = {
        "epoch": checkpoint.epoch,
        "model_state_dict": dict(checkpoint.model_state),
        "checkpoint_recipe": checkpoint.recipe,
        "schema": SCHEMA,
        "iteration": checkpoint.iteration,
        "classes": classes and {"names": list(classes.names), "ids": list(classes.ids)},
        "config": config and config.to_dict(),
        "training": checkpoint.training and vars(checkpoint.training),
        "best_map": checkpoint.best_map,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file, _plain_os_errors():
        torch.save(content, file)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this tool, of neuralmagic/yolact or of dbolya/yolact, on the CPU.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, holds anything but tensors and
            plain values, or was written by a newer version of this tool.
    """
    path = path.expanduser()
    content = _read(path)
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not _all_tensors(state):
        raise CheckpointError(
            f"{path} holds no model weights",
            hint="expected a state_dict or a dict with model_state_dict",
        )
    if state is content:
        return Checkpoint(model_state=state)
    schema = content.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version of sparseml-yolact",
            hint="upgrade: pip install -U sparseml-yolact",
        )
    try:
        return _from_content(state, content)
    except (TypeError, KeyError, AttributeError, ConfigError, DataError) as error:
        raise CheckpointError(
            f"{path} holds weights, but what describes them cannot be understood: {error}",
            hint="it is damaged, or another version wrote it; its model_state_dict alone loads",
        ) from error


def classes_of(checkpoint: Checkpoint) -> Classes:
    """The checkpoint's classes; COCO's for an unnamed 80-class network, numbers otherwise."""
    return checkpoint.classes or Classes.assumed(checkpoint.num_classes)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint not found: {path}", hint="check the path, or train a model first"
        )
    _require_torch_file(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors and values",
            hint="files that need arbitrary code to load are refused; save a state_dict instead",
        ) from error
    except Exception as error:  # what torch raises on damaged bytes can be almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}",
            hint="the file may be truncated; copy or download it again",
        ) from error


def _require_torch_file(path: Path) -> None:
    """Tell files of other kinds from damaged ones, for which torch has the same words."""
    try:
        with path.open("rb") as file:
            begin = file.read(2)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error.strerror}",
            hint="check the file's permissions",
        ) from error
    if not begin:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is empty",
            hint="the file may be truncated; copy or download it again",
        )
    if not begin.startswith(_BEGINNINGS):
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is not a file of PyTorch",
            hint="look into it: a failed download is often a web page; ONNX files end in .onnx",
        )


def _from_content(state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Checkpoint:
    for key, kind in _PLAIN.items():
        if not isinstance(content.get(key), kind | None):
            raise TypeError(f"{key} is {content[key]!r}")
    classes, config, training = (content.get(key) for key in ("classes", "config", "training"))
    return Checkpoint(
        model_state=state,
        epoch=content.get("epoch"),
        iteration=content.get("iteration"),
        recipe=content.get("checkpoint_recipe"),
        classes=Classes(tuple(classes["names"]), tuple(classes["ids"])) if classes else None,
        config=YolactConfig.from_dict(config) if config else None,
        training=TrainingState(**training) if training else None,
        best_map=content.get("best_map"),
    )


@contextmanager
def _plain_os_errors() -> Iterator[None]:
    """Torch's writer ends in an error of its own when the file cannot take more: show the cause."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _all_tensors(state: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(value, Tensor) for k, value in state.items())
