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
``state_dict``, as dbolya/yolact published them, a safetensors file, and what other programs wrap
around weights (:mod:`yolact.model.foreign`).
"""

from __future__ import annotations

import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
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
from yolact.model.foreign import (
    LARGEST,
    adapt,
    find_weights,
    is_safetensors,
    other_kind_of_file,
    other_network,
    stand_ins,
)
from yolact.model.weights import is_quantized_state, num_classes_of

logger = logging.getLogger(__name__)
ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".pth.tar")
"""Of files with weights; a file that an option names may have any other."""
SCHEMA = 1
_PLAIN = {"epoch": int, "iteration": int, "checkpoint_recipe": str, "best_map": float}
"""Keys whose value is of this type or None."""


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
    average: tuple[int, dict[str, Tensor]] | None = None
    """Where ``model_state`` is a moving average, the steps that it is over, and the weights that
    are trained."""
    without_better: int = 0
    """Validations since that with the best mask mAP, as ``--patience`` counts them."""

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

    Weights that other programs wrapped, renamed or stored with other numbers of bits are brought
    into the form of this tool's, which the log says.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, holds anything but tensors and
            plain values, was written by a newer version of this tool, or is known to be of
            another network.
    """
    path = path.expanduser()
    content = _read(path)
    found = find_weights(content)
    if found is None:
        raise CheckpointError(
            f"{path} holds no model weights",
            hint="expected a state_dict or a dict with model_state_dict",
        )
    keys, state = found
    described = content if keys == ("model_state_dict",) else {}
    if "schema" not in described:  # other programs use the same keys for other things
        fits = {key: described.get(key) for key in ("epoch", "checkpoint_recipe")}
        described = {k: v for k, v in fits.items() if isinstance(v, _PLAIN[k])}
    schema = described.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version of sparseml-yolact",
            hint="upgrade: pip install -U sparseml-yolact",
        )
    weights = _as_ours(path, keys, state)
    try:
        return _from_content(weights, described)
    except (TypeError, KeyError, AttributeError, ConfigError, DataError) as error:
        raise CheckpointError(
            f"{path} holds weights, but what describes them cannot be understood: {error}",
            hint="it is damaged, or another version wrote it; its model_state_dict alone loads",
        ) from error


def classes_of(checkpoint: Checkpoint) -> Classes:
    """The checkpoint's classes; COCO's for an unnamed 80-class network, numbers otherwise."""
    return checkpoint.classes or Classes.assumed(checkpoint.num_classes)


def _as_ours(path: Path, keys: tuple[str, ...], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of this network and as plain float32 tensors; says what changed."""
    size = path.stat().st_size
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > LARGEST * size + 2**20 or any(value.is_meta for value in state.values()):
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: its tensors are of {claimed:,} bytes, "
            f"and the file has {size:,}",
            hint="it is damaged, or was saved without its values; save the state_dict again",
        )
    own, notes = adapt(state)
    other = other_network(own)
    if other:
        raise CheckpointError(
            f"{path} is {other}: only YOLACT on DarkNet-53 is supported",
            hint="sparseml.yolact.download --dataset none --weights base fetches such weights, "
            "--weights backbone the ImageNet ones of DarkNet-53",
        )
    floats = {name: value for name, value in own.items() if value.is_floating_point()}
    odd = {str(v.dtype).removeprefix("torch.") for v in floats.values()} - {"float32"}
    if keys and keys != ("model_state_dict",):
        notes = (f"from {'/'.join(map(repr, keys))}", *notes)
    if odd:
        notes = (*notes, f"float32 instead of {' and '.join(sorted(odd))}")
    if notes:
        said, first = "; ".join(notes), next(iter(state))
        logger.info(
            "%s: %d of %d tensors taken: %s (first: %s)", *(path, len(own), len(state)), said, first
        )
    return own | {
        name: value.detach().to_dense().float().contiguous() for name, value in floats.items()
    }


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint not found: {path}", hint="check the path, or train a model first"
        )
    _require_weights_file(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with path.open("rb") as file:
                if is_safetensors(file.read(9)):
                    from safetensors.torch import load_file  # only here: such files are rare

                    return load_file(path)
            return _read_torch(path)
    except pickle.UnpicklingError as error:
        objects = ", ".join(_objects_in(path)[:3])
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors and values"
            + f": it has objects of {objects}" * bool(objects),
            hint="files that need arbitrary code to load are refused; save a state_dict instead",
        ) from error
    except Exception as error:  # what is raised on damaged bytes can be almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}",
            hint="the file may be truncated; copy or download it again",
        ) from error


def _read_torch(path: Path) -> Any:
    """Read what torch wrote; what stands for settings of other programs is not read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        unread = stand_ins(_objects_in(path))
        if not unread:
            raise
    with torch.serialization.safe_globals(unread):
        return torch.load(path, map_location="cpu", weights_only=True)


def _objects_in(path: Path) -> list[str]:
    """Full names of the classes and functions in a file that torch does not read as they are."""
    try:
        if zipfile.is_zipfile(path):
            return _foreign_first(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with path.open("rb") as file:  # three pickles of torch's own, then what was saved
            *_, saved = [list(pickletools.genops(file)) for _ in range(4)]
    except Exception:  # damaged: there is nothing to tell
        return []
    names = {str(arg).replace(" ", ".") for code, arg, _ in saved if code.name == "GLOBAL"}
    names = {name.replace("__builtin__.", "builtins.") for name in names}  # of Python 2
    return _foreign_first(
        name for name in names if not re.match(r"torch\.(_utils|\w+Storage)", name)
    )


def _foreign_first(names: Iterable[str]) -> list[str]:
    """Those that say most about a file first: not the layers of torch."""
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def _require_weights_file(path: Path) -> None:
    """Tell files of other kinds from damaged ones, for which torch has the same words."""
    try:
        kind = other_kind_of_file(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error.strerror}",
            hint="check the file's permissions",
        ) from error
    if kind is not None:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is {kind}",
            hint="the file may be truncated; copy or download it again"
            if kind == "empty"
            else f"give a file of PyTorch or safetensors ({', '.join(ENDINGS)}) with weights",
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
