"""``sparseml.yolact.download``: fetch COCO, or generate the sample set of shapes."""

from __future__ import annotations

from pathlib import Path

import click

from yolact.cli.base import FOLDER, SEED, Command, setup_logging
from yolact.errors import ConfigError

COCO_NAMES = ("coco2017", "coco2017-val", "coco2017-test")
SHAPES = "shapes"


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.download --dataset shapes --train_size 2000",
)
@click.option(
    "--dataset",
    type=click.Choice([*COCO_NAMES, SHAPES]),
    default="coco2017",
    show_default=True,
    help="COCO 2017 (21 GB), its validation or test part, or generated shapes (no download).",
)
@click.option("--test", is_flag=True, help="Fetch the test images of COCO 2017, too.")
@click.option(
    "--data_dir", type=FOLDER, help="Where to put it.  [default: data/coco or data/shapes]"
)
@click.option("--seed", type=SEED, help="Shapes: seed of the pictures.  [default: 0]")
@click.option("--train_size", type=int, help="Shapes: training images.  [default: 2000]")
@click.option("--val_size", type=int, help="Shapes: validation images.  [default: 200]")
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched or written.")
def download(
    dataset: str,
    test: bool,
    data_dir: Path | None,
    seed: int | None,
    train_size: int | None,
    val_size: int | None,
    dry_run: bool,
) -> None:
    """Fetch COCO, verify and unpack it; or generate a small sample set.

    What is there already is left alone, and an interrupted download goes on where it stopped.
    """
    setup_logging()
    folder = data_dir or Path("data") / (SHAPES if dataset == SHAPES else "coco")
    if dataset == SHAPES:
        if test:
            raise ConfigError("--test is for COCO", hint="leave it out with --dataset shapes")
        sizes = (2000 if train_size is None else train_size, 200 if val_size is None else val_size)
        _shapes(folder, *sizes, seed or 0, dry_run)
        return
    for name, value in (("seed", seed), ("train_size", train_size), ("val_size", val_size)):
        if value is not None:
            raise ConfigError(f"--{name} is for shapes", hint="add --dataset shapes")
    _coco(dataset, test, folder, dry_run)


def _shapes(folder: Path, train: int, val: int, seed: int, dry_run: bool) -> None:
    if dry_run:
        click.echo(f"{folder}/images: {train + val} images, {(train + val) * 14 // 1000 + 1} MB")
        for split in ("train", "val"):
            click.echo(f"{folder}/annotations/instances_{split}.json")
        return
    from yolact.data.shapes import generate_shapes

    written = generate_shapes(folder, train=train, val=val, seed=seed)
    state = "" if written else ", already there"
    click.echo(f"{folder}: {train} training and {val} validation images{state}")


def _coco(dataset: str, test: bool, folder: Path, dry_run: bool) -> None:
    from yolact.data.download import DATASETS, MIRRORS, download, is_present

    archives = DATASETS[dataset]
    if test:
        archives = (*archives, *(a for a in DATASETS["coco2017-test"] if a not in archives))
    if dry_run:
        for archive in archives:
            size = "size unknown" if archive.size is None else f"{archive.size / 1e6:.0f} MB"
            state = ", already there" if is_present(archive, folder) else ""
            url = MIRRORS[0] + archive.path
            click.echo(f"{url} -> {folder / archive.folder}: {size}, md5 {archive.md5}{state}")
        return
    fetched = download(archives, folder)
    click.echo(f"{folder}: {dataset} complete, {fetched} of {len(archives)} archives fetched")
