"""Fetching COCO: resumable, verified, and never half-finished under its final name."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from yolact.errors import DownloadError, StorageError
from yolact.files import storage_errors, write_text

log = logging.getLogger(__name__)

MIRRORS = (
    "https://s3.amazonaws.com/images.cocodataset.org/",
    "http://images.cocodataset.org/",
)
"""The same files under two addresses; the second has no valid certificate for HTTPS."""


_BAD_RANGE = 416


@dataclass(frozen=True)
class Archive:
    """A zip file of COCO and what is known about it beforehand."""

    path: str
    """Below a mirror's address."""
    md5: str
    size: int | None
    """In bytes; None where no trustworthy source states it."""
    unpacked: int
    """Bytes of its files, rounded up."""
    folder: str
    """Where its files go, without their own folders: ``images`` or ``annotations``."""

    @property
    def name(self) -> str:
        """File name of the zip."""
        return PurePosixPath(self.path).name


_GB = 10**9
TRAIN = Archive(
    "zips/train2017.zip",
    "cced6f7f71b7629ddf16f17bbcfab6b2",
    *(19_336_861_798, 20 * _GB, "images"),
)
VAL = Archive(
    "zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330, 1 * _GB, "images"
)
TEST = Archive(
    "zips/test2017.zip", "77ad2c53ac5d0aea611d422c0938fb35", 6_646_970_404, 7 * _GB, "images"
)
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    "f4bbac642086de4f52a3fdda2de5fa2c",
    *(252_907_541, 1 * _GB, "annotations"),
)
TEST_INFO = Archive(
    "annotations/image_info_test2017.zip",
    "85da7065e5e600ebfee8af1edb634eb5",
    *(None, 100_000_000, "annotations"),
)
DATASETS = {
    "coco2017": (ANNOTATIONS, VAL, TRAIN),
    "coco2017-val": (ANNOTATIONS, VAL),
    "coco2017-test": (TEST_INFO, TEST),
}


@dataclass(frozen=True)
class Patience:
    """When to give up on a server."""

    attempts: int = 5
    """Failures in a row, without one new byte between them, on one mirror."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each later wait is twice as long."""
    timeout: float = 30.0
    """Seconds without an answer."""


def download(
    archives: Sequence[Archive],
    folder: Path,
    *,
    mirrors: Sequence[str] = MIRRORS,
    patience: Patience | None = None,
) -> int:
    """Fetch, verify and unpack archives into ``folder``; what is there already is skipped.

    An interrupted download leaves ``<name>.part``, which the next call goes on with.

    Returns:
        How many archives were fetched; 0 when all were there.

    Raises:
        DownloadError: No mirror delivers an archive whole, or it is not what it should be.
        StorageError: ``folder`` cannot be written, or the disk is too full.
    """
    missing = [archive for archive in archives if not is_present(archive, folder)]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(missing, folder)
        for archive in missing:
            path = fetch(archive, folder, mirrors, patience or Patience())
            names = unpack(path, folder / archive.folder)
            write_text(_receipt(archive, folder), "\n".join([archive.md5, *names, ""]))
            path.unlink()
    return len(missing)


def is_present(archive: Archive, folder: Path) -> bool:
    """Whether all files of an archive have been unpacked into ``folder`` before."""
    receipt = _receipt(archive, folder)
    if not receipt.is_file():
        return False
    md5, *names = receipt.read_text(encoding="utf-8").splitlines()
    target = folder / archive.folder
    present = set(os.listdir(target)) if target.is_dir() else set()
    return md5 == archive.md5 and present.issuperset(names)


def fetch(archive: Archive, folder: Path, mirrors: Sequence[str], patience: Patience) -> Path:
    """Download one archive next to where it is unpacked and verify its size and MD5.

    Raises:
        DownloadError: Every mirror failed; the message holds the last one's reason.
    """
    path, part = folder / archive.name, _part(archive, folder)
    if path.is_file() and _md5(path) == archive.md5:
        return path
    reason = DownloadError("there is no mirror to download from")
    for mirror in mirrors:
        try:
            _fetch_from(mirror + archive.path, part, archive, patience)
        except DownloadError as error:
            log.warning("%s", error)
            reason = error
            continue
        os.replace(part, path)
        return path
    raise reason


def unpack(path: Path, folder: Path) -> list[str]:
    """Move an archive's files into ``folder``, without their own folders; return their names.

    Raises:
        DownloadError: It is no zip file, is damaged, or has a member that would leave ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            names = [_safe_name(path, member.filename) for member in members]
            for member, name in zip(tqdm(members, path.name, disable=None), names, strict=True):
                with archive.open(member) as source, (temporary / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        for name in names:
            os.replace(temporary / name, folder / name)
        return names
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(
            f"{path} is damaged: {error}", hint="remove it and run the command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _safe_name(path: Path, member: str) -> str:
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in member:
        raise DownloadError(
            f"{path} holds {member!r}, which would be written outside its folder",
            hint="the archive is not COCO's; remove it and download from another network",
        )
    return parts.name


def _receipt(archive: Archive, folder: Path) -> Path:
    return folder / ".downloaded" / f"{archive.name}.txt"


def _part(archive: Archive, folder: Path) -> Path:
    return folder / f"{archive.name}.part"


def _require_space(archives: Sequence[Archive], folder: Path) -> None:
    """Each zip is removed once unpacked, so only the largest needs room beside its files."""
    if not archives:
        return
    here = sum(_size(_part(a, folder)) + _size(folder / a.name) for a in archives)
    needed = sum(a.unpacked for a in archives) + max(a.size or 0 for a in archives) - here
    free = shutil.disk_usage(folder).free
    if free < needed:
        smaller = ", or take --dataset coco2017-val" if needed > 3 * _GB else ""
        raise StorageError(
            f"{folder} has {free / _GB:.1f} GB free, the download needs {needed / _GB:.1f} GB",
            hint=f"free some space, choose another --data_dir{smaller}",
        )


_NETWORK_ERRORS = (
    *(urllib.error.URLError, http.client.HTTPException),
    *(ConnectionError, TimeoutError, ssl.SSLError),
)


def _fetch_from(url: str, part: Path, archive: Archive, patience: Patience) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            _append(url, part, archive, patience.timeout)
            break
        except _NETWORK_ERRORS as error:
            _refuse_hopeless(url, error)
            if isinstance(error, urllib.error.HTTPError) and error.code == _BAD_RANGE:
                part.unlink()  # longer than the file, hence of another one
            failures = 1 if _size(part) > before else failures + 1
            if failures >= patience.attempts:
                raise DownloadError(
                    f"cannot download {url}: {error}",
                    hint="check the connection and run the command again; it goes on from here",
                ) from error
            time.sleep(patience.first_wait * 2 ** (failures - 1))
    _verify(url, part, archive)


def _refuse_hopeless(url: str, error: Exception) -> None:
    """Do not ask again where the answer will be the same."""
    if not isinstance(error, urllib.error.HTTPError):
        return
    if error.code < 500 and error.code not in (408, 429, _BAD_RANGE):
        raise DownloadError(
            f"{url} answered {error.code} {error.reason}",
            hint="the file may have moved: report it, or fetch it by hand",
        ) from error


def _append(url: str, part: Path, archive: Archive, timeout: float) -> None:
    """Get what is missing of a file; raises an OSError when the connection ends early."""
    start = _size(part)
    if archive.size is not None and start >= archive.size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (start if resumed else 0)
        if archive.size is not None and total not in (None, archive.size):
            raise DownloadError(
                f"{url} has {total} bytes instead of {archive.size}",
                hint="something between here and the server answers in its place",
            )
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, total, archive.name)
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _copy(
    response: http.client.HTTPResponse, file: BufferedWriter, total: int | None, name: str
) -> None:
    with tqdm(
        desc=name, total=total, initial=file.tell(), unit="B", unit_scale=True, disable=None
    ) as progress:
        while block := response.read(1 << 20):
            file.write(block)
            progress.update(len(block))


def _verify(url: str, part: Path, archive: Archive) -> None:
    wrong_size = archive.size is not None and _size(part) != archive.size
    if wrong_size or _md5(part) != archive.md5:
        part.unlink()
        raise DownloadError(
            f"{url} is not the expected file: its {'size' if wrong_size else 'MD5'} differs",
            hint="run the command again; if it happens again, try another network",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what COCO's publishers are known by
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
