"""The network that a run is distilled from: taken from a checkpoint, or the run's own beginning."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from yolact.checkpoint import Checkpoint, load_checkpoint
from yolact.config import SAME_PRIORS, YolactConfig
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError
from yolact.model.yolact import Yolact
from yolact.restore import build_model, config_for
from yolact.sizes import size_words

SELF, DISABLE = "self", "disable"
"""Words that ``--distill_teacher`` takes in place of a file, as sparseml does."""

_SHARED = ("image_size", "prior_scales", "prior_aspect_ratios", "prior_base_size")
"""Settings without which two networks answer different questions about an image."""
_UNTOLD = ("image_size", "prior_base_size")
"""Those that files of other tools do not tell; a network computes the same with any."""


@dataclass(frozen=True)
class Teacher:
    """A network to learn from, in evaluation mode and without gradients."""

    model: Yolact
    origin: str
    """Where it comes from, in words."""


def check_wish(wish: str | None, *, distils: bool, continued: bool) -> bool:
    """Whether there will be a teacher.

    Args:
        wish: The value of ``--distill_teacher``.
        distils: Whether the recipe has a distillation modifier.
        continued: Whether the run goes on exactly where a checkpoint left it.

    Raises:
        ConfigError: The option and the recipe contradict each other.
    """
    if wish == DISABLE:
        return False
    if distils and wish is None and continued:
        raise ConfigError(
            "the run distils from a teacher, which its checkpoints do not hold",
            hint="give the same teacher again: --distill_teacher TEACHER.pth",
        )
    if distils and wish is None:
        raise ConfigError(
            "the recipe distils, but no --distill_teacher says from which network",
            hint="add --distill_teacher TEACHER.pth, or disable to train without",
        )
    if wish is not None and not distils:
        raise ConfigError(
            "--distill_teacher, but no !DistillationModifier in the recipe says how to use it",
            hint="add one to the recipe, with hardness and temperature",
        )
    if wish == SELF and continued:
        raise ConfigError(
            "--distill_teacher self means the weights that a run begins with, "
            "and a continued run no longer has them",
            hint="give the checkpoint that it began with: --distill_teacher BEGINNING.pth",
        )
    return wish is not None


def load_teacher(path: Path, config: YolactConfig, classes: Classes) -> Teacher:
    """The network of a checkpoint, if it answers the questions that the run asks.

    Its widths, its number of prototypes and whether it is quantized are its own affair.

    Args:
        path: A checkpoint.
        config: Of the run.
        classes: Of the run's data.

    Raises:
        CheckpointError: It cannot be read, or knows other classes, priors or image sizes.
    """
    checkpoint = load_checkpoint(path)
    _check_classes(path, checkpoint, classes)
    with torch.random.fork_rng(devices=[]):  # weights are drawn, then replaced
        model = build_model(checkpoint, config_for(checkpoint, path))
    for name in _SHARED:
        if name in _UNTOLD and checkpoint.config is None:
            continue
        theirs, ours = getattr(model.config, name), getattr(config.model, name)
        if name == "prior_base_size" and math.isclose(theirs, ours, rel_tol=SAME_PRIORS):
            continue
        if theirs != ours:
            _refuse(path, name, theirs, ours)
    return Teacher(model.requires_grad_(False), str(path))


def _refuse(path: Path, name: str, theirs: Any, ours: Any) -> NoReturn:
    """Say that a teacher's setting is not the run's, and which option makes them the same."""
    hint = "teacher and student need the same --image_size and the same priors"
    if name == "image_size":
        theirs, ours = size_words(theirs), size_words(ours)
    if name == "prior_base_size":
        hint += f": try --prior_base_size {theirs}"
    raise CheckpointError(
        f"{path} cannot be the teacher: its {name} is {theirs}, not {ours}", hint=hint
    )


def copy_as_teacher(model: Yolact) -> Teacher:
    """What ``model`` is now, as its own later teacher."""
    return Teacher(copy.deepcopy(model).eval().requires_grad_(False), "self, as the run begins")


def _check_classes(path: Path, checkpoint: Checkpoint, classes: Classes) -> None:
    known = checkpoint.classes
    if known.names == classes.names if known else checkpoint.num_classes == len(classes):
        return
    theirs = ", ".join(known.names[:5]) if known else f"{checkpoint.num_classes} of them"
    raise CheckpointError(
        f"{path} cannot be the teacher: it knows other classes ({theirs}) "
        f"than the data has ({', '.join(classes.names[:5])})",
        hint="a teacher has to be trained on the same categories",
    )
