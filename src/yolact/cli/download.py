"""``sparseml.yolact.download``: fetch COCO and weights, or generate the sample set of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FOLDER, SEED, Command, setup_logging
from yolact.cli.inputs import DATA, SHAPES
from yolact.errors import ConfigError, DataError
from yolact.model_files import read_once

if TYPE_CHECKING:
    from yolact.download.coco_archives import Archive
    from yolact.download.receipts import DataFolder

COCO_NAMES = ("coco2017", "coco2017-val", "coco2017-test")
_SHAPES = "shapes"
_NONE = "none"
_OF_SHAPES = ("seed", "train_size", "val_size")
_OF_COCO = ("test", "mirror", "keep_archives", "workers", "verify")
_WEIGHTS = Path("weights")
_WORKERS = 4
_LISTED = 20
"""Wrong files that are named one by one."""


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.download --dataset shapes --train_size 2000",
)
@click.option(
    "--dataset",
    type=click.Choice([*COCO_NAMES, _SHAPES, _NONE]),
    default="coco2017",
    show_default=True,
    help="COCO 2017 (21 GB), its validation or test part, generated shapes (no download), or "
    "none for weights only.",
)
@click.option("--test", is_flag=True, help="Fetch the test images of COCO 2017, too.")
@click.option(
    "--data_dir", type=FOLDER, help="Where to put it.  [default: data/coco or data/shapes]"
)
@click.option(
    "--weights",
    type=click.Choice(["backbone", "base", _NONE]),
    default=_NONE,
    show_default=True,
    help="Also fetch the author's ImageNet backbone, or the model trained on COCO, to weights/.",
)
@click.option("--mirror", metavar="URL", help="An address to try before the known ones.")
@click.option("--keep_archives", is_flag=True, help="Leave the zip files in --data_dir.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help=f"Connections at the same time, and threads that unpack.  [default: {_WORKERS}]",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched or written.")
@click.option("--verify", is_flag=True, help="Fetch nothing; check every file that is there.")
@click.option("--seed", type=SEED, help="Shapes: seed of the pictures.  [default: 0]")
@click.option("--train_size", type=int, help="Shapes: training images.  [default: 2000]")
@click.option("--val_size", type=int, help="Shapes: validation images.  [default: 200]")
def download(
    dataset: str, weights: str, data_dir: Path | None, dry_run: bool, **options: Any
) -> None:
    """Fetch COCO and weights, verify and unpack them; or generate a small sample set.

    What is there already is left alone, and an interrupted download goes on where it stopped.
    """
    setup_logging()
    _refuse_idle_options(dataset, weights, data_dir, dry_run, options)
    if weights != _NONE and not options["verify"]:
        _weights(weights, options["mirror"], dry_run)
    if dataset == _SHAPES:
        _shapes(data_dir or SHAPES, options, dry_run)
    elif dataset != _NONE:
        _coco(dataset, data_dir or DATA, options, dry_run)


def _refuse_idle_options(
    dataset: str, weights: str, data_dir: Path | None, dry_run: bool, options: dict[str, Any]
) -> None:
    """An option that would be ignored is a mistake."""
    if dataset == _NONE and weights == _NONE:
        raise ConfigError("there is nothing to download", hint="add --weights base or backbone")
    if options["verify"] and weights != _NONE:
        raise ConfigError(
            "--verify is for COCO; weights are checked whenever they are used",
            hint="leave --weights out",
        )
    if options["verify"] and dry_run:
        raise ConfigError("--verify and --dry-run exclude each other", hint="leave one of them out")
    if dataset == _NONE and data_dir:
        raise ConfigError("--data_dir is for a data set", hint="leave it or --dataset none out")
    for name in _OF_SHAPES if dataset != _SHAPES else ():
        if options[name] is not None:
            raise ConfigError(f"--{name} is for shapes", hint="add --dataset shapes")
    for name in _OF_COCO if dataset not in COCO_NAMES else ():
        if options[name] and not (name == "mirror" and weights != _NONE):
            raise ConfigError(
                f"--{name} is for COCO", hint=f"leave it out with --dataset {dataset}"
            )


def _shapes(folder: Path, options: dict[str, Any], dry_run: bool) -> None:
    train, val = (
        usual if options[name] is None else options[name]
        for name, usual in (("train_size", 2000), ("val_size", 200))
    )
    if dry_run:
        click.echo(f"{folder}/images: {train + val} images, {(train + val) * 14 // 1000 + 1} MB")
        for split in ("train", "val"):
            click.echo(f"{folder}/annotations/instances_{split}.json")
        return
    from yolact.data.sample_set import generate_shapes

    written = generate_shapes(folder, train=train, val=val, seed=options["seed"] or 0)
    state = "" if written else ", already there"
    click.echo(f"{folder}: {train} training and {val} validation images{state}")


def _weights(name: str, mirror: str | None, dry_run: bool) -> None:
    if dry_run:
        from yolact.download.stubs import WEIGHTS

        path = _WEIGHTS / WEIGHTS[name].file
        click.echo(f"{WEIGHTS[name].url} -> {path}{', already there' if path.is_file() else ''}")
        return
    from yolact.download.trusted import fetch_weights

    path = fetch_weights(name, _WEIGHTS, read_once, mirror=mirror)
    click.echo(f"{path}: {name} weights")


def _coco(dataset: str, folder: Path, options: dict[str, Any], dry_run: bool) -> None:
    from yolact.download.coco_archives import DATASETS, mirrors_with
    from yolact.download.receipts import DataFolder

    archives = DATASETS[dataset]
    if options["test"]:
        archives = (*archives, *(a for a in DATASETS["coco2017-test"] if a not in archives))
    mirrors = mirrors_with(options["mirror"])
    workers = options["workers"] or _WORKERS
    if options["verify"]:
        _verify(archives, folder, workers)
    elif dry_run:
        _announce(archives, DataFolder(folder), mirrors)
    else:
        _download(dataset, archives, folder, mirrors, workers, options["keep_archives"])


def _download(
    dataset: str,
    archives: Sequence[Archive],
    folder: Path,
    mirrors: tuple[str, ...],
    workers: int,
    keep: bool,
) -> None:
    from yolact.download.coco import Options, download

    fetched = download(archives, folder, Options(mirrors, keep, workers))
    if fetched:
        from yolact.download.receipts import check_sense

        check_sense(fetched, folder)
    _summarize(archives, folder, f"{len(fetched)} of {len(archives)} archives fetched")
    click.echo(f"next: {_next_command(dataset, folder)}")


def _summarize(archives: Sequence[Archive], folder: Path, rest: str) -> None:
    parts = ", ".join(
        f"{archive.files} {archive.rules.folder} images"
        if archive.folder == "images"
        else f"{archive.files} annotation files"
        for archive in archives
    )
    click.echo(f"{folder}: {parts}; {rest}")


def _next_command(dataset: str, folder: Path) -> str:
    """What the tutorial does with this data set."""
    info, images = folder / "annotations", folder / "images"
    if dataset == "coco2017-test":
        return (
            "sparseml.yolact.validation --output_coco_json --trained_model MODEL "
            f"--validation_info {info}/image_info_test-dev2017.json --validation_images {images}"
        )
    if dataset == "coco2017-val":
        return f"sparseml.yolact.validation --trained_model MODEL --dataset {folder}"
    train = "sparseml.yolact.train --resume weights/darknet53.pth --backbone"
    if folder == DATA:
        return train
    return (
        f"{train} --train_info {info}/instances_train2017.json --train_images {images} "
        f"--validation_info {info}/instances_val2017.json --validation_images {images}"
    )


def _announce(archives: Sequence[Archive], state: DataFolder, mirrors: tuple[str, ...]) -> None:
    from yolact.download.coco import bytes_needed, bytes_there, free_space

    missing = [archive for archive in archives if not state.holds(archive)]
    for archive in archives:
        size = "size unknown" if archive.size is None else f"{archive.size / 1e6:.0f} MB"
        there = bytes_there(archive, state)
        part = f", {there / 1e6:.0f} MB of it there" if there else ""
        line = part if archive in missing else ", already there"
        url = archive.source(mirrors).urls[0]
        click.echo(f"{url} -> {state.place(archive)}: {size}, md5 {archive.md5}{line}")
    needed, free = bytes_needed(missing, state), free_space(state.path)
    short = "" if free >= needed else ": NOT enough"
    click.echo(f"{state.path}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free{short}")


def _verify(archives: Sequence[Archive], folder: Path, workers: int) -> None:
    from yolact.download.receipts import check_sense, verify

    wrong = verify(archives, folder, workers=workers)
    for line in wrong[:_LISTED]:
        click.echo(line)
    if len(wrong) > _LISTED:
        click.echo(f"and {len(wrong) - _LISTED} more")
    if wrong:
        raise DataError(
            f"{folder} is not complete: {len(wrong)} findings",
            hint="run sparseml.yolact.download again; it fetches what is missing or damaged",
        )
    check_sense(archives, folder)
    _summarize(archives, folder, "all verified")
