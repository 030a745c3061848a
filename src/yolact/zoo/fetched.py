"""Files from the internet that are checked: for what they are, and for being the same as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolact.errors import DownloadError
from yolact.fetch.source import Digest, Source, digest_of
from yolact.network import require_network, require_online
from yolact.zoo.hashes import KnownHashes
from yolact.zoo.stub import Kind

_BEGINS: dict[Kind, tuple[bytes, ...]] = {
    Kind.CHECKPOINT: (b"PK\x03\x04", b"\x80"),  # the two formats that torch writes
    Kind.ONNX: (b"\x08",),  # the tag of ir_version, the first field of an ONNX file
    Kind.RECIPE: (),
}


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


def fetch_checked(
    wanted: Wanted,
    target: Path,
    validate: Validate,
    *,
    offline: bool | None = None,
    connect: float = 3.0,
) -> Path:
    """Have a file at ``target``, from there or from the internet, and check it.

    What comes from the internet for the first time is also read once, so that no damaged or
    dangerous file is recorded as the right one.

    Args:
        wanted: The file.
        target: Where it is or is put.
        validate: Reads what is there or comes for the first time.
        offline: Forbid the network; None asks :func:`yolact.network.is_offline`.
        connect: Seconds to find out whether there is a network.

    Raises:
        DownloadError: It is not there and cannot be fetched.
        OtherFileError: It is not the file that it was before.
        YolactError: It is not of its kind (of the kind's class), or cannot be written.
    """
    hashes = KnownHashes.of_user()
    there = target.is_file() and (not wanted.sha256 or _is(target, wanted.sha256))
    if not there:
        require_online(wanted.name, offline)
        _fetch(wanted, target, connect)
    try:
        if wanted.sha256 or _as_before(wanted.name, target, hashes):
            return target
        validate(wanted, target)
    except Exception:
        if not there:
            target.unlink()
        raise
    hashes.record(wanted.name, target)
    return target


def _as_before(name: str, path: Path, hashes: KnownHashes) -> bool:
    """Whether this is the file that was recorded; False when none was."""
    known, now = hashes.entry(name), digest_of(path).value
    if known is not None and now != known["sha256"]:
        raise OtherFileError(
            f"{path} is not the file that {name} was on {known['recorded']}: its SHA-256 is "
            f"{now}, then it was {known['sha256']}",
            hint=f"do not use it, or, if the change is right, remove {name} from {hashes.path}",
        )
    return known is not None


def _fetch(wanted: Wanted, target: Path, connect: float) -> None:
    from yolact.fetch.transfer import fetch

    require_network(wanted.name, wanted.urls, connect)
    digest = Digest("sha256", wanted.sha256) if wanted.sha256 else None
    fetch(Source(wanted.urls, digest=digest, begins=_BEGINS[wanted.kind]), target)


def require_digest(path: Path, sha256: str, source: Path) -> None:
    """Compare a local file with the hash that ``source``, the mirror map, states for it.

    Raises:
        OtherFileError: They differ.
    """
    if not _is(path, sha256):
        raise OtherFileError(
            f"{path} is not the file that {source} means: its SHA-256 is {digest_of(path).value}",
            hint=f"do not use it, or correct the map, which says {sha256}",
        )


def _is(path: Path, sha256: str) -> bool:
    return digest_of(path).value == sha256
