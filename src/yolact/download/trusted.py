"""Weights, models and recipes from the internet, checked before anything uses them.

Each has to be what it claims to be, and the same as before: a hash that nobody has published is
recorded on first use and compared from then on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

from yolact.download.file import Digest, Source, digest_of, fetch
from yolact.download.mirrors import map_path, read_mirrors, settings_folder
from yolact.download.offline import require_network, require_online
from yolact.download.stubs import Kind, Weights
from yolact.errors import ConfigError, DownloadError, YolactError
from yolact.files import atomic_path, storage_errors, write_text

_BEGINS: dict[Kind, tuple[bytes, ...]] = {
    Kind.CHECKPOINT: (b"PK\x03\x04", b"\x80"),  # the two formats that torch writes
    Kind.ONNX: (b"\x08",),  # the tag of ir_version, the first field of an ONNX file
    Kind.RECIPE: (),
}
_FILE = "known_hashes.json"


class OtherFileError(DownloadError):
    """A file is there, but it is not the one that was meant: never a reason to look elsewhere."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch."""

    name: str
    """What its hash is recorded under: the same for every address it may come from."""
    kind: Kind
    urls: tuple[str, ...]
    sha256: str | None = None
    """None: recorded on first use and compared from then on."""
    weights_only: bool = False
    """Whether the checkpoint of a run here, which may have the same name, is not meant."""


Validate = Callable[[Wanted, Path], None]
"""Reads a new file the way its users will and raises what they would. The caller hands it in, since
what reads models stands above what fetches them."""


def fetch_weights(
    weights: Weights,
    folder: Path,
    validate: Validate,
    *,
    mirror: str | None = None,
    offline: bool = False,
) -> Path:
    """Have one of the author's weights files in ``folder``; a second call only checks it.

    Where nobody has published its hash, that is recorded on first use and compared from then on,
    whatever address the file comes from.

    Args:
        weights: The file.
        folder: Usually ``weights/``.
        validate: Reads the file on first use.
        mirror: Address of a folder that has the file too and is asked first; then the entry for the
            file's name in the user's mirror map, then the author's own address.
        offline: Forbid the network, even where the user allows it.

    Raises:
        DownloadError: It cannot be fetched, is not the file it was before, or a run left a file of
            the same name there.
        ConfigError: ``mirror`` is no web address, or the mirror map has a mistake.
        CheckpointError: What is there is no file of tensors.
        StorageError: It cannot be written.
    """
    target = folder / weights.file
    place = read_mirrors().weights.get(weights.file)
    copied = False
    if place is not None and isinstance(place.location, Path) and not target.is_file():
        _copy(place.location, target)
        copied = True
    urls = [f"{mirror.rstrip('/')}/{weights.file}"] if mirror else []
    urls += [place.location] if place and isinstance(place.location, str) else []
    digest = weights.sha256 or (place.sha256 if place else None)
    wanted = Wanted(weights.file, Kind.CHECKPOINT, (*urls, weights.url), digest, weights_only=True)
    try:
        return fetch_checked(wanted, target, validate, offline=offline)
    except YolactError:
        if copied:
            target.unlink(missing_ok=True)
        raise


def fetch_checked(
    wanted: Wanted, target: Path, validate: Validate, *, offline: bool = False
) -> Path:
    """Have a file at ``target``, from there or from the internet, and check it.

    What comes from the internet for the first time is also read once, so that no damaged or
    dangerous file is recorded as the right one.

    Args:
        wanted: The file.
        target: Where it is or is put.
        validate: Reads what is there or comes for the first time.
        offline: Forbid the network, even where the user allows it.

    Raises:
        DownloadError: It is not there and cannot be fetched.
        OtherFileError: It is not the file that it was before.
        YolactError: It is not of its kind (of the kind's class), or cannot be written.
    """
    hashes = KnownHashes()
    there = target.is_file() and (not wanted.sha256 or digest_of(target).value == wanted.sha256)
    if not there:
        require_online(wanted.name, forbidden=offline)
        require_network(wanted.name, wanted.urls)
        digest = Digest("sha256", wanted.sha256) if wanted.sha256 else None
        fetch(Source(wanted.urls, digest=digest, begins=_BEGINS[wanted.kind]), target)
    try:
        if wanted.sha256 or hashes.knows(wanted.name, target):
            return target
        validate(wanted, target)
    except Exception:
        if not there:
            target.unlink()
        raise
    hashes.record(wanted.name, target)
    return target


def require_digest(path: Path, sha256: str, source: Path) -> None:
    """Compare a local file with the hash that ``source``, the mirror map, states for it.

    Raises:
        OtherFileError: They differ.
    """
    now = digest_of(path).value
    if now != sha256:
        raise OtherFileError(
            f"{path} is not the file that {source} means: its SHA-256 is {now}",
            hint=f"do not use it, or correct the map, which says {sha256}",
        )


class KnownHashes:
    """The hashes recorded on this machine, in a small JSON file of the user's settings folder.

    It maps the name of a file, or the address it came from, to ``sha256``, ``size`` in bytes and
    the day it was ``recorded``.
    """

    def __init__(self) -> None:
        """Read nothing yet."""
        self.path = settings_folder() / _FILE

    def knows(self, name: str, file: Path) -> bool:
        """Whether ``file`` is what was recorded for ``name``; False when nothing was.

        Raises:
            OtherFileError: Another file was recorded.
            ConfigError: The file of hashes cannot be read.
        """
        known, now = self._read().get(name), digest_of(file).value
        if known is not None and now != known["sha256"]:
            raise OtherFileError(
                f"{file} is not the file that {name} was on {known['recorded']}: its SHA-256 is "
                f"{now}, then it was {known['sha256']}",
                hint=f"do not use it, or, if the change is right, remove {name} from {self.path}",
            )
        return known is not None

    def record(self, name: str, file: Path) -> None:
        """Remember ``file`` as what ``name`` is.

        Raises:
            StorageError: The hashes cannot be written.
        """
        entry = {
            "sha256": digest_of(file).value,
            "size": file.stat().st_size,
            "recorded": date.today().isoformat(),
        }
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                content = {**self._read(), name: entry}
                write_text(self.path, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _read(self) -> Mapping[str, Any]:
        if not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if all({"sha256", "recorded"} <= entry.keys() for entry in content.values()):
                return dict(content)
        except (OSError, ValueError, AttributeError):
            pass
        raise ConfigError(
            f"{self.path} is not a file of recorded hashes",
            hint="remove it; hashes are then recorded anew",
        )


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ConfigError(
            f"{map_path()} says that {target.name} is {source}, which is no file",
            hint="correct the path, or remove the entry",
        )
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
