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
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact.config import ModelConfig, YolactConfig
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.files import atomic_path
from yolact.model.foreign import adapt, find_weights
from yolact.model.identify import differences, identify, other_network
from yolact.model.weight_file import LARGEST, read_file
from yolact.model.weights import is_quantized_state, num_classes_of
from yolact.presets import CONFIGS, config_of

logger = logging.getLogger(__name__)
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
    file: str = field(default="", compare=False)
    """Name of the file, which may tell what weights without a configuration are of."""

    @property
    def quantized(self) -> bool:
        """Whether the weights belong to a model with quantization observers."""
        return is_quantized_state(self.model_state)

    @property
    def num_classes(self) -> int:
        """Object classes of the network, read from the class head's shape."""
        return num_classes_of(self.model_state)

    @property
    def recognised(self) -> YolactConfig | None:
        """What weights without a configuration are taken for, by their shapes and the file's name.

        None with a configuration, and where the weights are of no network that is known.

        Raises:
            CheckpointError: They are of a YOLACT whose settings no configuration can name.
        """
        found = None if self.config else identify(self.model_state)
        return None if found is None else self._named(found)

    def _named(self, found: ModelConfig) -> YolactConfig:
        return config_of(found, self.file, exact=self.recipe is None)

    def config_or(self, wanted: YolactConfig | None) -> YolactConfig:
        """The configuration that was asked for, else the checkpoint's, else what it is taken for.

        The published one where its weights are not known.
        """
        return wanted or self.config or self.recognised or YolactConfig()

    def require_config(self, config: YolactConfig, path: object, *, more: str = "") -> None:
        """Refuse a checkpoint of a configuration with another name, or of other layers.

        Args:
            config: What the user wants to use it with.
            path: What the message calls the checkpoint.
            more: What else the user could do, for the end of the hint.

        Raises:
            CheckpointError: The names differ; or there is no name, and the weights are of other
                layers, as far as they tell.
        """
        if self.config is not None and self.config.name != config.name:
            raise CheckpointError(
                f"{path} is of {self.config.name}_config, not {config.name}_config",
                hint=f"add --config {self.config.name}_config{more}",
            )
        if self.config is None:
            self.require_layers(config, path, more=more)

    def require_layers(self, config: YolactConfig, path: object, *, more: str = "") -> None:
        """Refuse weights that are not those of a configuration's layers; as the method above.

        Raises:
            CheckpointError: They are of others; the message names both.
        """
        found = identify(self.model_state)
        other = found and differences(found, config.model, widths=self.recipe is None)
        if found is None or not other:
            return
        own = self._named(found)
        hint = f"add --config {own.name}_config{more}"
        if f"{own.name}_config" not in CONFIGS:
            hint = f"no configuration with a name has these layers{more}"
        raise CheckpointError(
            f"{path} does not fit {config.name}_config: it has {'; '.join(other)}", hint=hint
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
    content = read_file(path)
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
    weights = _as_ours(path, keys, state, ours=described.get("config") is not None)
    try:
        return replace(_from_content(weights, described), file=path.name)
    except (TypeError, KeyError, AttributeError, ConfigError, DataError) as error:
        raise CheckpointError(
            f"{path} holds weights, but what describes them cannot be understood: {error}",
            hint="it is damaged, or another version wrote it; its model_state_dict alone loads",
        ) from error


def classes_of(checkpoint: Checkpoint) -> Classes:
    """The checkpoint's classes; COCO's for an unnamed 80-class network, numbers otherwise."""
    return checkpoint.classes or Classes.assumed(checkpoint.num_classes)


def _as_ours(
    path: Path, keys: tuple[str, ...], state: dict[str, Tensor], *, ours: bool
) -> dict[str, Tensor]:
    """Weights under the names of this network and as plain float32 tensors; says what changed.

    ``ours`` tells that there is a configuration beside them, so that no name makes them others.
    """
    size = path.stat().st_size
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > LARGEST * size + 2**20 or any(value.is_meta for value in state.values()):
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: its tensors are of {claimed:,} bytes, "
            f"and the file has {size:,}",
            hint="it is damaged, or was saved without its values; save the state_dict again",
        )
    own, notes = adapt(state)
    other = None if ours else other_network(own)
    if other:
        raise CheckpointError(
            f"{path} is {other}",
            hint="sparseml.yolact.download --dataset none --weights base fetches weights that can "
            "be used, --weights backbone the ImageNet ones of DarkNet-53; --help names more",
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
