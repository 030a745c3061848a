"""Checking a downloaded data set: every byte against its CRC, or whether it makes sense."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from yolact.data.archives import Archive
from yolact.data.receipts import DataFolder
from yolact.errors import DataError
from yolact.fetch.source import digest_of
from yolact.fetch.unpack import Unpacked, file_crc

_SOME = 32
"""Images of each archive that are decoded."""


def verify(archives: Sequence[Archive], folder: Path, *, workers: int = 4) -> list[str]:
    """Compare everything on disk with the sizes and CRCs that the archives state.

    The receipt of an archive with a damaged file is withdrawn, so that the next download fetches
    the archive again and mends that file.

    Returns:
        A line for each file that is missing or damaged.
    """
    state = DataFolder(folder)
    found: list[str] = []
    for archive in archives:
        wrong = list(_wrong_in(archive, state, workers))
        if wrong:
            state.withdraw(archive)
        found += wrong
    return found


def _wrong_in(archive: Archive, state: DataFolder, workers: int) -> Iterator[str]:
    path = state.zip(archive)
    if path.is_file() and digest_of(path, "md5").value != archive.md5:
        yield f"{path}: its MD5 differs"
    receipt = state.receipt(archive)
    if receipt is None:
        yield f"{archive.name}: not downloaded, or not completely"
        return
    place = state.place(archive)
    misfits = dict(state.misfits(archive, receipt))
    for file, reason in misfits.items():
        yield f"{place / file.name}: {reason}"
    rest = [file for file in receipt.files if file not in misfits]
    for file in _damaged(rest, place, archive.name, workers):
        yield f"{place / file.name}: its content differs"


def _damaged(files: Sequence[Unpacked], place: Path, name: str, workers: int) -> Iterator[Unpacked]:
    def crc(file: Unpacked) -> int:
        return file_crc(place / file.name)

    with ThreadPoolExecutor(workers) as pool:
        crcs = tqdm(pool.map(crc, files), f"verifying {name}", len(files), disable=None)
        for file, found in zip(files, crcs, strict=True):
            if found != file.crc:
                yield file


def check_sense(archives: Sequence[Archive], folder: Path) -> None:
    """Read the annotations, look for every image that they name, and decode a sample of images.

    Raises:
        DataError: Something cannot be read, or an image is missing.
    """
    state = DataFolder(folder)
    receipts = {archive: state.receipt(archive) for archive in archives}
    names = {
        archive.rules.folder: list(receipt.names)
        for archive, receipt in receipts.items()
        if receipt and archive.folder == "images"
    }
    for split, images in names.items():
        _decode_some(folder / "images", images, split)
    for archive, receipt in receipts.items():
        for name in receipt.names if receipt and archive.folder == "annotations" else ():
            path = state.place(archive) / name
            split = path.stem.rpartition("_")[2]
            _require_images(path, set(names[split]) if split in names else None)


def _decode_some(folder: Path, names: Sequence[str], split: str) -> None:
    from yolact.data.images import read_rgb  # loads OpenCV

    step = max(1, len(names) // _SOME)
    for name in tqdm(sorted(names)[::step], f"decoding some of {split}", disable=None):
        read_rgb(folder / name)


def _require_images(path: Path, there: set[str] | None) -> None:
    """Parse an annotation file; ``there`` are the images of its split, if they were fetched."""
    try:
        named = {image["file_name"] for image in json.loads(path.read_bytes())["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no annotation file of COCO: {error!r}",
            hint="run sparseml.yolact.download --verify",
        ) from error
    lost = sorted(named - there) if there is not None else []
    if lost:
        raise DataError(
            f"{path} names images that are not there ({len(lost)}), such as {lost[0]}",
            hint="run sparseml.yolact.download --verify",
        )
