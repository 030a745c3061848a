"""What is to be downloaded: the download command's options as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolact.errors import ConfigError
from yolact.setting import LARGEST_SEED, setting

COCO_NAMES = ("coco2017", "coco2017-val", "coco2017-test")
SHAPES, NONE = "shapes", "none"
COCO_FOLDER, SHAPES_FOLDER = Path("data/coco"), Path("data/shapes")
"""Where each data set is put unless another folder is named."""
_OF_SHAPES = ("seed", "train_size", "val_size")
_OF_COCO = ("test", "mirror", "keep_archives", "workers", "verify")


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """A data set, weights, or both."""

    dataset: str = setting(
        default="coco2017",
        choices=(*COCO_NAMES, SHAPES, NONE),
        help="COCO 2017 (21 GB), its validation or test part, generated shapes (no download), or "
        "none for weights only.",
    )
    test: bool = setting(default=False, help="Fetch the test images of COCO 2017, too.")
    data_dir: Path | None = setting(
        default=None,
        path="folder",
        help="Where to put it.  [default: data/coco or data/shapes]",
    )
    weights: Literal[
        "backbone",
        "base",
        "resnet50",
        "resnet101",
        "yolact_resnet50",
        "yolact_base",
        "yolact_im700",
        "none",
    ] = setting(
        default="none",
        help="Also fetch weights of YOLACT's author to weights/: DarkNet-53 or a ResNet trained on "
        "ImageNet, or a model trained on COCO, on DarkNet-53 (base) or of the config of this name.",
    )
    mirror: str | None = setting(
        default=None, metavar="URL", help="An address to try before the known ones."
    )
    keep_archives: bool = setting(default=False, help="Leave the zip files in --data_dir.")
    workers: int | None = setting(
        default=None,
        at_least=1,
        at_most=64,
        help="Connections at the same time, and threads that unpack.  [default: 4]",
    )
    dry_run: bool = setting(
        "--dry-run", default=False, help="Only say what would be fetched or written."
    )
    verify: bool = setting(default=False, help="Fetch nothing; check every file that is there.")
    seed: int | None = setting(
        default=None,
        at_least=0,
        at_most=LARGEST_SEED,
        help="Shapes: seed of the pictures.  [default: 0]",
    )
    train_size: int | None = setting(default=None, help="Shapes: training images.  [default: 2000]")
    val_size: int | None = setting(default=None, help="Shapes: validation images.  [default: 200]")

    def __post_init__(self) -> None:
        """Refuse an option that would be ignored with a ConfigError: it is a mistake."""
        if self.dataset == NONE and self.weights == NONE:
            raise ConfigError("there is nothing to download", hint="add --weights base or backbone")
        if self.verify and self.weights != NONE:
            raise ConfigError(
                "--verify is for COCO; weights are checked whenever they are used",
                hint="leave --weights out",
            )
        if self.verify and self.dry_run:
            raise ConfigError(
                "--verify and --dry-run exclude each other", hint="leave one of them out"
            )
        if self.dataset == NONE and self.data_dir:
            raise ConfigError("--data_dir is for a data set", hint="leave it or --dataset none out")
        for name in _OF_SHAPES if self.dataset != SHAPES else ():
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name} is for shapes", hint="add --dataset shapes")
        for name in _OF_COCO if self.dataset not in COCO_NAMES else ():
            if getattr(self, name) and not (name == "mirror" and self.weights != NONE):
                raise ConfigError(
                    f"--{name} is for COCO", hint=f"leave it out with --dataset {self.dataset}"
                )

    @property
    def connections(self) -> int:
        """How many there are at the same time, and how many threads unpack."""
        return self.workers or 4
