"""Fetching COCO into the tutorial's layout: each archive downloaded, verified, unpacked, signed."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from yolact.download.coco_archives import DATASETS, MIRRORS, Archive, DataFolder, Receipt
from yolact.download.connections import Effort
from yolact.download.file import fetch
from yolact.download.http import Patience
from yolact.download.offline import require_online
from yolact.download.part import Part, alone
from yolact.download.unzip import flush_disks, unpack
from yolact.errors import DownloadError, StorageError
from yolact.files import storage_errors

log = logging.getLogger(__name__)

_SMALLEST = "coco2017-val"
"""Of the sets to train or validate on."""


@dataclass(frozen=True)
class Options:
    """How a data set is fetched."""

    mirrors: tuple[str, ...] = MIRRORS
    """Addresses in the order in which they are tried."""
    keep_archives: bool = False
    """Leave the zip files in the data folder."""
    workers: int = 4
    """Connections, and threads that unpack."""
    patience: Patience = Patience()


def download(
    archives: Sequence[Archive], folder: Path, options: Options | None = None
) -> list[Archive]:
    """Fetch, verify and unpack archives into ``folder``; what is there already is skipped.

    One archive is unpacked while the next one is fetched. Interrupted in whatever way, the next
    call goes on where this one stopped. A zip file that lies in ``folder`` already is used.

    Returns:
        The archives that were not there yet.

    Raises:
        DownloadError: The user forbids the network, no mirror delivers an archive whole, it is not
            what it should be, or another process is downloading to ``folder``.
        StorageError: ``folder`` cannot be written, or the disk is too full.
    """
    options = options or Options()
    state = DataFolder(folder)
    missing = [archive for archive in archives if not state.holds(archive)]
    with storage_errors(folder):
        _tidy((archive for archive in archives if archive not in missing), state)
        if not missing:
            return []
        with alone(state.records / "lock", folder):
            for path in map(state.zip, missing):
                if not path.is_file():  # else it can be unpacked offline
                    require_online(path.name)
            _require_space(missing, state)
            _fetch_all(missing, state, options)
    return missing


def bytes_needed(missing: Sequence[Archive], state: DataFolder) -> int:
    """Room for missing archives and their files, less what is there of them already."""
    here = sum(bytes_there(archive, state) for archive in missing)
    zips = sum(archive.size or archive.rules.most for archive in missing)
    files = 0
    for place in {archive.folder for archive in missing}:
        most = sum(archive.rules.most for archive in missing if archive.folder == place)
        files += max(0, most - state.loose_bytes(place))
    return max(0, zips - here) + files


def bytes_there(archive: Archive, state: DataFolder) -> int:
    """What an archive or its unfinished download takes on the disk."""
    path = state.zip(archive)
    return _allocated(path) + _allocated(Part(path).path)


def free_space(folder: Path) -> int:
    """Bytes free where ``folder`` is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _require_space(missing: Sequence[Archive], state: DataFolder) -> None:
    needed, free = bytes_needed(missing, state), free_space(state.path)
    if free < needed:
        least = bytes_needed(DATASETS[_SMALLEST], state)
        smaller = f", or take --dataset {_SMALLEST}" if needed > least else ""
        raise StorageError(
            f"{state.path} has {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.1f} GB",
            hint=f"free some space, choose another --data_dir{smaller}",
        )


def _fetch_all(missing: Sequence[Archive], state: DataFolder, options: Options) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1, "unpack") as pool:
        try:
            jobs: list[Future[None]] = []
            for archive in missing:
                source = archive.source(options.mirrors)
                log.info("fetching %s", archive.name)
                fetch(source, state.zip(archive), Effort(options.patience, options.workers))
                jobs.append(pool.submit(_unpack, archive, state, options, stop))
                _raise_of(job for job in jobs if job.done())
            _raise_of(jobs)
        except KeyboardInterrupt:
            stop.set()
            raise


def _raise_of(jobs: Iterable[Future[None]]) -> None:
    for job in jobs:
        job.result()


def _unpack(archive: Archive, state: DataFolder, options: Options, stop: threading.Event) -> None:
    """Unpack one archive and sign for it; only then may the archive go."""
    path = state.zip(archive)
    files = unpack(path, state.place(archive), archive.rules, workers=options.workers, stop=stop)
    if len(files) != archive.files:
        raise DownloadError(
            f"{path} holds {len(files)} files instead of {archive.files}",
            hint="remove it and run the command again",
        )
    flush_disks()
    names, sizes, crcs = zip(*files, strict=True)
    state.sign(archive, Receipt(names, sizes, crcs, options.keep_archives))
    if not options.keep_archives:
        path.unlink()


def _tidy(archives: Iterable[Archive], state: DataFolder) -> None:
    """Remove archives whose removal a killed process owes."""
    for archive in archives:
        if state.zip(archive).is_file():
            receipt = state.receipt(archive)
            if receipt and not receipt.kept:
                state.zip(archive).unlink()


def _allocated(path: Path) -> int:
    """Bytes that a file takes on the disk: an unfinished one has holes."""
    if not path.is_file():
        return 0
    stat = path.stat()
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)
