"""``sparseml.yolact.download``: fetch COCO and weights, or generate the sample set of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import Command, setup_logging
from yolact.cli.options import options, options_of, read
from yolact.download.options import COCO_FOLDER, NONE, SHAPES_FOLDER, DownloadOptions
from yolact.errors import DataError
from yolact.model_files import read_once

if TYPE_CHECKING:
    from yolact.download.coco_archives import Archive, DataFolder

_WEIGHTS = Path("weights")
_LISTED = 20
"""Wrong files that are named one by one."""


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.download --dataset shapes --train_size 2000",
)
@options(*options_of(DownloadOptions))
def download(**given: Any) -> None:
    """Fetch COCO and weights, verify and unpack them; or generate a small sample set.

    What is there already is left alone, and an interrupted download goes on where it stopped.
    """
    setup_logging()
    wanted = read(DownloadOptions, given)
    if wanted.weights != NONE:
        _weights(wanted.weights, wanted.mirror, wanted.dry_run)
    if wanted.dataset == "shapes":
        _shapes(wanted, wanted.data_dir or SHAPES_FOLDER)
    elif wanted.dataset != NONE:
        _coco(wanted, wanted.data_dir or COCO_FOLDER)


def _shapes(wanted: DownloadOptions, folder: Path) -> None:
    train = 2000 if wanted.train_size is None else wanted.train_size
    val = 200 if wanted.val_size is None else wanted.val_size
    if wanted.dry_run:
        click.echo(f"{folder}/images: {train + val} images, {(train + val) * 14 // 1000 + 1} MB")
        for split in ("train", "val"):
            click.echo(f"{folder}/annotations/instances_{split}.json")
        return
    from yolact.data.sample_set import generate_shapes

    written = generate_shapes(folder, train=train, val=val, seed=wanted.seed or 0)
    state = "" if written else ", already there"
    click.echo(f"{folder}: {train} training and {val} validation images{state}")


def _weights(name: str, mirror: str | None, dry_run: bool) -> None:
    from yolact.download.stubs import WEIGHTS
    from yolact.download.trusted import fetch_weights

    if dry_run:
        path = _WEIGHTS / WEIGHTS[name].file
        click.echo(f"{WEIGHTS[name].url} -> {path}{', already there' if path.is_file() else ''}")
        return
    path = fetch_weights(WEIGHTS[name], _WEIGHTS, read_once, mirror=mirror)
    click.echo(f"{path}: {name} weights")


def _coco(wanted: DownloadOptions, folder: Path) -> None:
    from yolact.download.coco_archives import DATASETS, DataFolder, mirrors_with

    archives = DATASETS[wanted.dataset]
    if wanted.test:
        archives = (*archives, *(a for a in DATASETS["coco2017-test"] if a not in archives))
    mirrors = mirrors_with(wanted.mirror)
    if wanted.verify:
        _verify(archives, folder, wanted.connections)
    elif wanted.dry_run:
        _announce(archives, DataFolder(folder), mirrors)
    else:
        _download(wanted, archives, folder, mirrors)


def _download(
    wanted: DownloadOptions, archives: Sequence[Archive], folder: Path, mirrors: tuple[str, ...]
) -> None:
    from yolact.download.coco import Options, download

    options = Options(mirrors, wanted.keep_archives, wanted.connections)
    fetched = download(archives, folder, options)
    if fetched:
        from yolact.download.coco_archives import check_sense

        check_sense(fetched, folder)
    _summarize(archives, folder, f"{len(fetched)} of {len(archives)} archives fetched")
    click.echo(f"next: {_next_command(wanted.dataset, folder)}")


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
    if folder == COCO_FOLDER:
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
    from yolact.download.coco_archives import check_sense, verify

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
