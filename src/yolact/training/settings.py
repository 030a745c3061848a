"""What a training run is asked to do: the train command's options as frozen records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact.config import OnBadImage, YolactConfig, on_bad_image, strict
from yolact.errors import ConfigError
from yolact.setting import LARGEST_SEED, setting
from yolact.sizes import prior_base_size_setting
from yolact.sparsify.catalog import EngineName


def read_batch_alloc(text: str) -> tuple[int, ...]:
    """The numbers in ``4,4``.

    Raises:
        ConfigError: It is something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--batch_alloc {text!r} is not a list of whole numbers", hint="for instance 4,4"
        ) from error


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the images and their COCO-format annotations are."""

    train_info: Path = setting(help="COCO-format annotations to train on.")
    train_images: Path = setting(path="folder", help="Folder of the training images.")
    validation_info: Path = setting(help="Annotations to validate on.")
    validation_images: Path = setting(path="folder", help="Folder of the validation images.")
    num_workers: int = setting(
        default=4, at_least=0, at_most=256, help="Processes that prepare images."
    )
    """They never change what is trained on."""
    on_bad_image: OnBadImage = on_bad_image()
    strict: bool = strict()


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Which weights a run begins with."""

    checkpoint: Path | None = None
    resume: bool = False
    """Continue the run that wrote ``checkpoint``; False takes its weights for a new run."""
    backbone: Path | None = None
    """ImageNet weights of the backbone alone, such as ``darknet53.pth``."""
    pretrained: bool = setting(
        "--no_pretrained",
        default=True,
        help="Begin with random weights also where the ImageNet weights of a backbone are "
        "installed, or timm has them.",
    )
    """Of no matter where the run begins with a file."""
    prior_base_size: float | None = prior_base_size_setting(
        "as many pixels if it is smaller, the same share of the image if it is larger"
    )
    """See :func:`yolact.restore.config_to_train`."""
    start_iter: int = setting(
        default=0,
        at_least=-1,
        help="First step for a checkpoint that does not know it; -1 reads it from the name.",
    )
    use_checkpoint_epoch: bool = setting(
        default=False, help="Begin at the epoch stored in a checkpoint of another tool."
    )
    continue_recipe: bool = setting(
        "--cont", default=False, help="Go on with the recipe stored in the checkpoint."
    )


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """Which checkpoints are kept, and where."""

    folder: Path = setting(
        "--save_folder",
        default=Path("weights"),
        path="folder",
        shown="weights/",
        help="Where checkpoints go, as <config>_<epoch>_<iter>.pth.",
    )
    interval: int = setting("--save_interval", default=10_000, help="Steps between them.")
    keep_latest: bool = setting(default=False, help="Delete the previous one on saving.")
    keep_latest_interval: int = setting(
        default=100_000,
        help="With --keep_latest, keep those at multiples of this many steps.",
    )
    """0 makes no exception."""
    interrupt: bool = setting(
        "--no_interrupt", default=True, help="Do not save on Ctrl-C or SIGTERM."
    )
    """Save ``*_interrupt.pth`` then."""


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where the course of a run is written down."""

    folder: Path | None = setting(
        "--log_folder",
        default=Path("logs"),
        path="folder",
        shown="logs/",
        help="Where <config>.log and TensorBoard events go.",
    )
    """None writes neither."""
    gpu: bool = setting("--log_gpu", default=False, help="Add GPU memory to the log.")
    wandb: bool = setting(default=False, help="Also send losses and mAP to Weights & Biases.")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything :func:`yolact.training.loop.train` needs to know."""

    config: YolactConfig
    """``config.model.num_classes`` is replaced by the number of categories in the data."""
    data: DataSettings
    start: StartSettings = field(default_factory=StartSettings)
    save: SaveSettings = field(default_factory=SaveSettings)
    log: LogSettings = field(default_factory=LogSettings)
    recipe: str | None = setting(
        "--recipe",
        "-r",
        default=None,
        help="Recipe: a path, a packaged name, a zoo: stub, or YAML.",
    )
    """Here a stub has been resolved to the path of its file."""
    recipe_label: str | None = None
    """What messages call it, when not by its path or name."""
    recipe_args: Mapping[str, Any] = setting(
        default_factory=dict,
        words=tuple[str, ...],
        help="Set a variable of the recipe, as name=value or JSON; may be repeated.",
    )
    recipe_engine: EngineName | None = setting(
        default=None,
        help="Who runs the recipe.  [default: sparseml where it is installed, else native]",
    )
    """None stands for that default."""
    distill_teacher: str | None = setting(
        default=None,
        help="Whom a recipe with distillation learns from: a checkpoint, self (the weights the "
        "run begins with) or disable. Give it again on --resume.",
    )
    batch_size: int = setting(default=8, at_least=1, help="Images per batch.")
    accumulate: int = setting(
        default=1,
        at_least=1,
        help="Batches per optimizer step: the effective batch is batch_size times this.",
    )
    """The step averages their gradients."""
    epochs: float | None = setting(default=None, help="Length of the run.  [default: --max_iter]")
    max_iter: int | None = setting(
        default=None, help="Length in steps.  [default: config's, autoscaled]"
    )
    autoscale: bool = setting(
        "--no_autoscale",
        default=True,
        help="Do not scale learning rate and schedule with the batch size (they are for 8).",
    )
    """The effective batch size is meant."""
    half: bool = setting(
        "--fp16",
        default=False,
        help="Mixed precision: float16 on CUDA, bfloat16 on the CPU; off once QAT begins.",
    )
    freeze_bn: bool = setting(
        default=False, help="Keep the statistics, scales and biases of batch norms as they are."
    )
    device: str = setting(default="auto", help="auto, cpu, cuda or cuda:N.")
    batch_alloc: tuple[int, ...] | None = setting(
        default=None,
        words=str,
        read=read_batch_alloc,
        help="Images of a batch for each GPU, for instance 4,4.",
    )
    seed: int = setting(default=0, at_least=0, at_most=LARGEST_SEED, help="Of every random choice.")
    validation_epoch: int = setting(
        default=2, help="Epochs between validations; -1 turns them off."
    )
    """0 does so too."""
    validation_size: int = setting(default=5000, at_least=1, help="Images to validate on.")
    patience: int | None = setting(
        default=None,
        at_least=1,
        help="End the run after this many validations without a better mask mAP.",
    )
    """Counted from where the recipe, if there is one, has nothing left to do."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: Two options contradict each other or a number is out of range.
        """
        self._check_length()
        self._check_patience()
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

    def _check_patience(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigError(
                f"--patience must be at least 1, got {self.patience}",
                hint="leave it out, and the run goes on to its end",
            )
        if self.patience is not None and self.validation_epoch < 1:
            raise ConfigError(
                f"--patience counts validations, and --validation_epoch {self.validation_epoch} "
                "turns them off",
                hint="leave one of them out",
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
