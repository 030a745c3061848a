"""Unpacking a zip file with several threads: every file is verified before it gets its name."""

from __future__ import annotations

import os
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from yolact.errors import DownloadError
from yolact.fetch.members import Member, Rules, safe_members
from yolact.files import storage_errors

_BLOCK = 1 << 20
_BATCH = 1 << 22
"""Bytes that a thread unpacks before it looks for more to do."""
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, NotImplementedError, UnicodeDecodeError),
)
"""What :mod:`zipfile` raises about archives that are not sound."""


class Unpacked(NamedTuple):
    """A file that came out of an archive."""

    name: str
    size: int
    """In bytes."""
    crc: int
    """CRC-32 of its content."""


def unpack(
    path: Path,
    folder: Path,
    rules: Rules,
    *,
    workers: int = 2,
    stop: threading.Event | None = None,
) -> list[Unpacked]:
    """Put the files of a zip into ``folder``, without their own folder.

    Files that are there already with the same size and CRC are left alone, so that an
    interrupted call is gone on with; others of the same name are replaced.

    Args:
        path: The zip file.
        folder: Made if need be.
        rules: What the archive may hold.
        workers: Threads; at most one for each CPU, because more only wait for the folder's lock.
        stop: Set by another thread to make the call end early.

    Raises:
        DownloadError: It is no zip file, is damaged, or holds what it must not; of the latter
            nothing is unpacked, and nothing is ever written outside ``folder``.
        StorageError: ``folder`` cannot be written, or the disk is full.
        KeyboardInterrupt: ``stop`` was set.
    """
    with storage_errors(folder), _readable(path), zipfile.ZipFile(path) as archive:
        members = safe_members(path, archive, rules)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{path.name}.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        job = _Job(archive, temporary, folder, stop or threading.Event())
        try:
            _run(job, members, workers, path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if job.stop.is_set():
            raise KeyboardInterrupt
    return [Unpacked(name, info.file_size, info.CRC) for info, name in members]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DownloadError(
            f"{path} is damaged: {error}", hint="remove it and run the command again"
        ) from error


def file_crc(path: Path, stop: threading.Event | None = None) -> int:
    """CRC-32 of a file's content; ends early, with a wrong result, when ``stop`` is set."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while (block := file.read(_BLOCK)) and not (stop and stop.is_set()):
            crc = zlib.crc32(block, crc)
    return crc


def flush_disks() -> None:
    """Wait until everything that was written would survive a power cut."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


@dataclass(frozen=True)
class _Job:
    archive: zipfile.ZipFile
    temporary: Path
    folder: Path
    stop: threading.Event

    def unpack(self, members: Iterable[Member], bar: tqdm[Any]) -> None:
        for info, name in members:
            if self.stop.is_set():
                return
            if not self._is_there(info, name):
                self._write(info, self.temporary / name)
                if not self.stop.is_set():
                    os.replace(self.temporary / name, self.folder / name)
            bar.update(info.file_size)

    def _is_there(self, info: zipfile.ZipInfo, name: str) -> bool:
        path = self.folder / name
        try:
            same_size = path.stat().st_size == info.file_size
        except OSError:
            return False
        return same_size and path.is_file() and file_crc(path, self.stop) == info.CRC

    def _write(self, info: zipfile.ZipInfo, path: Path) -> None:
        """Copy a member; reading its last byte checks its CRC, and more than it states is cut."""
        with self.archive.open(info) as source, path.open("wb") as target:
            while (block := source.read(_BLOCK)) and not self.stop.is_set():
                target.write(block)


def _run(job: _Job, members: list[Member], workers: int, name: str) -> None:
    total = sum(member.info.file_size for member in members)
    with (
        tqdm(desc=f"unpacking {name}", total=total, unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool,
    ):
        futures = [pool.submit(job.unpack, batch, bar) for batch in _batches(members)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            future.result()


def _batches(members: list[Member]) -> Iterator[list[Member]]:
    batch: list[Member] = []
    size = 0
    for member in members:
        batch.append(member)
        size += member.info.file_size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
