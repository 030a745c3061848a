"""Unpacking a zip file with several threads: every file is verified before it gets its name.

Nothing that an archive says about itself is taken on trust.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tqdm import tqdm

from yolact.errors import DownloadError
from yolact.files import storage_errors

_BLOCK = 1 << 20
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, NotImplementedError, UnicodeDecodeError),
)
"""What :mod:`zipfile` raises about archives that are not sound."""
_REGULAR = (0, stat.S_IFREG)
"""File types in a member's mode; 0 where the archive was not made on Unix."""
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Rules:
    """What is expected of an archive."""

    folder: str
    """The one folder that its files are in; they are unpacked without it."""
    suffix: str
    """How their names end."""
    most: int
    """Bytes that they may take unpacked, all together."""


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
    batch: int = 1 << 22,
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
        batch: Bytes that a thread unpacks before it looks for more to do.
        stop: Set by another thread to make the call end early.

    Raises:
        DownloadError: It is no zip file, is damaged, or holds what it must not; of the latter
            nothing is unpacked, and nothing is ever written outside ``folder``.
        StorageError: ``folder`` cannot be written, or the disk is full.
        KeyboardInterrupt: ``stop`` was set.
    """
    with storage_errors(folder), _readable(path), zipfile.ZipFile(path) as archive:
        members = _safe_members(path, archive, rules)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{path.name}.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        job = _Job(archive, temporary, folder, stop or threading.Event())
        try:
            _run(job, list(_batches(members, batch)), workers, path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if job.stop.is_set():
            raise KeyboardInterrupt
    return [Unpacked(name, info.file_size, info.CRC) for info, name in members]


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


class _Member(NamedTuple):
    """One file that is to be unpacked."""

    info: zipfile.ZipInfo
    name: str
    """Under which it will be; a plain file name."""


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DownloadError(
            f"{path} is damaged: {error}", hint="remove it and run the command again"
        ) from error


def _safe_members(path: Path, archive: zipfile.ZipFile, rules: Rules) -> list[_Member]:
    """The files of an archive, in its order; one that must not be there refuses the whole."""
    seen: set[str] = set()
    members = []
    for info in archive.infolist():
        if info.is_dir() and _is_inside(info.orig_filename):
            continue
        reason = _objection(info, rules)
        name = info.filename.rpartition("/")[2]
        if reason is None and name.lower() in seen:  # some disks do not tell A from a
            reason = "is there twice"
        if reason is not None:
            _refuse(f"{path} holds {info.orig_filename!r}, which {reason}")
        seen.add(name.lower())
        members.append(_Member(info, name))
    size = sum(member.info.file_size for member in members)
    if size > rules.most:
        _refuse(f"{path} would unpack to {size} bytes instead of at most {rules.most}")
    if not members:
        _refuse(f"{path} holds no files")
    return members


def _objection(info: zipfile.ZipInfo, rules: Rules) -> str | None:
    if not _is_inside(info.orig_filename):
        return "would be written outside its folder"
    if stat.S_IFMT(info.external_attr >> 16) not in _REGULAR:
        return "is a link or a device"
    folder, _, name = info.filename.rpartition("/")
    if folder != rules.folder or not name.endswith(rules.suffix) or name.startswith("."):
        return f"is not of the form {rules.folder}/*{rules.suffix}"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is compressed in an unusual way"
    if info.header_offset < 0:
        return "begins before the archive does"
    if not info.file_size:  # zipfile would not look at its CRC
        return "is empty"
    return None


def _is_inside(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    odd = any(ord(letter) < 32 or letter in ':\\"*<>?|' for letter in name)
    return not odd and ".." not in parts and parts[0] != ""


def _refuse(message: str) -> NoReturn:
    raise DownloadError(
        message,
        hint="it is not the archive that was expected: remove it and download it again, from "
        "another network",
    )


@dataclass(frozen=True)
class _Job:
    archive: zipfile.ZipFile
    temporary: Path
    folder: Path
    stop: threading.Event

    def unpack(self, members: Iterable[_Member], bar: tqdm[Any]) -> None:
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


def _run(job: _Job, batches: list[list[_Member]], workers: int, name: str) -> None:
    total = sum(member.info.file_size for batch in batches for member in batch)
    with (
        tqdm(desc=f"unpacking {name}", total=total, unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool,
    ):
        futures = [pool.submit(job.unpack, batch, bar) for batch in batches]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            future.result()


def _batches(members: list[_Member], least: int) -> Iterator[list[_Member]]:
    batch: list[_Member] = []
    size = 0
    for member in members:
        batch.append(member)
        size += member.info.file_size
        if size >= least:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
