"""What a training run is asked to do: the train command's options as frozen records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact.config import YolactConfig
from yolact.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the images and their COCO-format annotations are."""

    train_images: Path
    train_info: Path
    validation_images: Path
    validation_info: Path
    num_workers: int = 4
    """Loader processes; they never change what is trained on."""


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Which weights a run begins with."""

    checkpoint: Path | None = None
    resume: bool = False
    """Continue the run that wrote ``checkpoint``; False takes its weights for a new run."""
    backbone: Path | None = None
    """ImageNet weights of DarkNet-53 alone (``darknet53.pth``)."""
    start_iter: int = 0
    """First step of a run whose checkpoint does not know it; -1 reads it from the file's name."""
    use_checkpoint_epoch: bool = False
    """Begin at the epoch stored in a checkpoint of another tool."""
    continue_recipe: bool = False
    """Go on with the recipe stored in the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """Which checkpoints are kept, and where."""

    folder: Path = Path("weights")
    interval: int = 10_000
    """Steps between checkpoints."""
    keep_latest: bool = False
    """Delete the previous checkpoint when a new one is written ..."""
    keep_latest_interval: int = 100_000
    """... but not those at multiples of this many steps (0: no exception)."""
    interrupt: bool = True
    """Save ``*_interrupt.pth`` on Ctrl-C and SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where the course of a run is written down."""

    folder: Path | None = Path("logs")
    """JSON lines and TensorBoard events; None writes neither."""
    gpu: bool = False
    wandb: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything :func:`yolact.training.loop.train` needs to know."""

    config: YolactConfig
    """``config.model.num_classes`` is replaced by the number of categories in the data."""
    data: DataSettings
    start: StartSettings = field(default_factory=StartSettings)
    save: SaveSettings = field(default_factory=SaveSettings)
    log: LogSettings = field(default_factory=LogSettings)
    batch_size: int = 8
    accumulate: int = 1
    """Batches whose gradients one optimizer step averages."""
    device: str = "auto"
    batch_alloc: tuple[int, ...] | None = None
    """Images of a batch that each GPU gets."""
    seed: int = 0
    epochs: float | None = None
    max_iter: int | None = None
    autoscale: bool = True
    """Scale the learning rate and schedule with the effective batch size."""
    recipe: str | None = None
    """A path, a packaged name or YAML text."""
    recipe_label: str | None = None
    """What messages call it, when not by its path or name."""
    recipe_args: Mapping[str, Any] = field(default_factory=dict)
    distill_teacher: str | None = None
    """Whom a recipe with a distillation modifier learns from: a checkpoint's path, ``self`` for
    the weights the run begins with, or ``disable`` to train without."""
    half: bool = False
    """Mixed precision: float16 on CUDA, bfloat16 on the CPU; off as soon as QAT is due."""
    validation_epoch: int = 2
    """Epochs between validations; <= 0 turns them off."""
    validation_size: int = 5000

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: Two options contradict each other or a number is out of range.
        """
        self._check_length()
        self._check_batch()
        self._check_recipe()

    def _check_length(self) -> None:
        if self.epochs is not None and self.max_iter is not None:
            raise ConfigError(
                "--epochs and --max_iter both set the length of the run", hint="give one of them"
            )
        for name, value in (("epochs", self.epochs), ("max_iter", self.max_iter)):
            if value is not None and not 0 < value < math.inf:  # NaN is neither
                raise ConfigError(
                    f"--{name} must be above 0, got {value}", hint="a run needs a length"
                )
        if self.save.interval < 1:
            raise ConfigError(
                f"--save_interval must be at least 1, got {self.save.interval}",
                hint="a number beyond the run's length saves at its end only",
            )

    def _check_batch(self) -> None:
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--{name} must be at least 1, got {getattr(self, name)}",
                    hint="--batch_size 1 --accumulate 8 needs the least memory",
                )
        parts = self.batch_alloc
        if parts is not None and (sum(parts) != self.batch_size or min(parts) < 1):
            raise ConfigError(
                f"--batch_alloc {','.join(map(str, parts))} adds up to "
                f"{sum(parts)}, but the batch size is {self.batch_size}",
                hint="the parts must be at least 1 and add up to --batch_size",
            )

    def _check_recipe(self) -> None:
        if self.recipe_args and self.recipe is None:
            raise ConfigError(
                "--recipe_args without --recipe",
                hint="a recipe stored in a checkpoint has its variables filled in already",
            )
        if self.start.continue_recipe and not self.start.resume:
            raise ConfigError(
                "--cont continues a run, but no --resume says which",
                hint="give its checkpoint: --resume latest --cont",
            )
        if self.start.continue_recipe and self.recipe is not None:
            raise ConfigError(
                "--cont goes on with the stored recipe, --recipe gives another",
                hint="leave out one of them",
            )
