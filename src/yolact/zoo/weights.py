"""The author's weights: YOLACT on COCO, and the ImageNet backbone that training begins with."""

from __future__ import annotations

import shutil
from pathlib import Path

from yolact.errors import ConfigError, YolactError
from yolact.files import atomic_path
from yolact.zoo.fetched import Validate, Wanted, fetch_checked
from yolact.zoo.known import WEIGHTS, Weights
from yolact.zoo.mirrors import map_path, read_mirrors
from yolact.zoo.stub import Kind


def fetch_weights(
    name: str, folder: Path, validate: Validate, *, mirror: str | None = None
) -> Path:
    """Have one of the author's weights files in ``folder``; a second call only checks it.

    Its hash is recorded on first use and compared from then on, whatever address it comes from.

    Args:
        name: ``backbone`` or ``base``.
        folder: Usually ``weights/``.
        validate: Reads the file on first use.
        mirror: Address of a folder that has the file too and is asked first; then the entry for the
            file's name in the user's mirror map, then the author's own address.

    Raises:
        DownloadError: It cannot be fetched, is not the file it was before, or a run left a file of
            the same name there.
        ConfigError: ``mirror`` is no web address, or the mirror map has a mistake.
        CheckpointError: What is there is no file of tensors.
        StorageError: It cannot be written.
    """
    return fetch_release(WEIGHTS[name], folder, validate, mirror=mirror)


def fetch_release(
    weights: Weights,
    folder: Path,
    validate: Validate,
    *,
    mirror: str | None = None,
    offline: bool | None = None,
    connect: float = 3.0,
) -> Path:
    """Have a published file in ``folder``; see :func:`fetch_weights` and :func:`fetch_checked`."""
    target = folder / weights.file
    place = read_mirrors().weights.get(weights.file)
    copied = False
    if place is not None and isinstance(place.location, Path) and not target.is_file():
        _copy(place.location, target)
        copied = True
    urls = [f"{mirror.rstrip('/')}/{weights.file}"] if mirror else []
    urls += [place.location] if place and isinstance(place.location, str) else []
    digest = weights.sha256 or (place.sha256 if place else None)
    wanted = Wanted(weights.file, Kind.CHECKPOINT, (*urls, weights.url), digest, True)
    try:
        return fetch_checked(wanted, target, validate, offline=offline, connect=connect)
    except YolactError:
        if copied:
            target.unlink(missing_ok=True)
        raise


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ConfigError(
            f"{map_path()} says that {target.name} is {source}, which is no file",
            hint="correct the path, or remove the entry",
        )
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
