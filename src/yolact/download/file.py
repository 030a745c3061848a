"""Fetching one file: resumed, verified, and never half-finished under its final name."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from yolact.download.connections import Effort, pull
from yolact.download.http import Answer
from yolact.download.offline import require_network
from yolact.download.part import Origin, Part, alone
from yolact.errors import ConfigError, DownloadError
from yolact.files import require_space, storage_errors

log = logging.getLogger(__name__)

_USUAL = Effort()
_UNSTATED = "sha256"
"""What is computed of a file whose digest nobody states."""
_BLOCK = 1 << 20
_new_hash = partial(hashlib.new, usedforsecurity=False)
"""MD5 is there to find damage, not to keep forgers out."""
_AGAIN = "run the command again; if it happens again, try another network"


@dataclass(frozen=True)
class Digest:
    """A hash of a file's content."""

    algorithm: str
    """A name of :mod:`hashlib`: ``md5``, ``sha256``."""
    value: str
    """In lower-case hexadecimal digits."""

    def __str__(self) -> str:
        """Such as ``md5 442b8da7639aecaf257c1dceb8ba8c80``."""
        return f"{self.algorithm} {self.value}"


@dataclass(frozen=True)
class Source:
    """A file on the internet, at one address or at several that hold the same bytes."""

    urls: tuple[str, ...]
    """http or https addresses in the order in which they are tried."""
    size: int | None = None
    """In bytes; None where it is not known beforehand."""
    digest: Digest | None = None
    """None where it is not known beforehand; then no redirect may leave https."""
    begins: tuple[bytes, ...] = ()
    """What its content can begin with, such as ``b"PK\\3\\4"`` for a zip file; empty: anything."""

    def __post_init__(self) -> None:
        """Refuse addresses that are no web addresses.

        Raises:
            ConfigError: There is no address, or one with another scheme than http and https.
        """
        if not self.urls:
            raise ConfigError("there is no address to download from", hint="give a mirror")
        for url in self.urls:
            require_web_address(url)


def fetch(source: Source, target: Path, effort: Effort = _USUAL) -> str | None:
    """Download a file to ``target``, verify it, and only then give it that name.

    What arrives is kept in ``<name>.part``, and what is known of it in ``<name>.part.json``; the
    next call goes on from there, after a broken connection, a killed process or a power cut. A
    ``target`` that exists is hashed and kept if it is the source (or nothing is known of the
    source); otherwise it is replaced, in one step, by the verified download.

    Args:
        source: Where the file is and what is known of it.
        target: Its path; folders are made.
        effort: How many connections there are, and when to give up.

    Returns:
        The address that it came from; None when it was there already.

    Raises:
        DownloadError: There is no network or the user forbids it, no address delivers the file
            whole, it is not what it should be, or another process is downloading to ``target``.
        StorageError: ``target`` cannot be written, or the disk is too full.
    """
    lock = target.with_name(f".{target.name}.lock")
    with storage_errors(target), alone(lock, target):
        url = None if _is_there(source, target) else _fetch(source, target, effort)
        lock.unlink(missing_ok=True)  # whoever holds the removed file finds the target whole
        return url


def accept(source: Source, part: Part, target: Path, answer: Answer) -> None:
    """Check the first answer, before any byte is read.

    Raises:
        DownloadError: It announces another size or none, or comes over an unsafe line.
        StorageError: The disk has no room for the rest.
    """
    url, size = answer.origin.url, answer.origin.size
    if source.size is not None and size not in (None, source.size):
        raise DownloadError(
            f"{url} has {size} bytes instead of {source.size}",
            hint="something between here and the server answers in its place",
        )
    if size is None and source.size is None and source.digest is None and not _ends(answer):
        raise DownloadError(
            f"{url} does not say how long it is, so that nobody can tell whether all came",
            hint="fetch it by hand",
        )
    ended = answer.response.url
    if source.digest is None and url.startswith("https:") and not ended.startswith("https:"):
        raise DownloadError(
            f"{url} leads to {ended}, which is not encrypted", hint="report it, or fetch it by hand"
        )
    if size is not None:
        there = part.received if answer.partial else 0
        require_space(target.parent, size - there, f"the rest of {target.name}")


def digest_of(path: Path, algorithm: str = _UNSTATED) -> Digest:
    """Hash the content of a file."""
    digest = _new_hash(algorithm)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Digest(algorithm, digest.hexdigest())


def require_web_address(url: str) -> None:
    """Check that ``url`` begins with http:// or https:// and a host.

    Raises:
        ConfigError: It does not.
    """
    if not re.match(r"https?://[^/\s]+", url, re.IGNORECASE):
        raise ConfigError(
            f"{url!r} is not an address to download from",
            hint="give one that starts with https:// or http://",
        )


def _is_there(source: Source, target: Path) -> bool:
    """Whether ``target`` is the source already; removes what is left of a download of it."""
    if not target.is_file() or source.size not in (None, target.stat().st_size):
        return False
    if source.digest and digest_of(target, source.digest.algorithm) != source.digest:
        return False
    Part(target).discard()
    return True


def _fetch(source: Source, target: Path, effort: Effort) -> str:
    require_network(target.name, source.urls, effort.patience.connect)
    part = Part(target)
    reasons: list[DownloadError] = []
    for url in source.urls:
        try:
            _complete(part, url, source, target, effort)
        except DownloadError as error:
            log.info("%s", error)
            reasons.append(error)
            continue
        part.become(target)
        return url
    if len(reasons) == 1:
        raise reasons[0]
    raise DownloadError(
        f"no address delivers {target.name}: " + "; ".join(map(str, reasons)),
        hint=reasons[-1].hint,
    )


def _complete(part: Part, url: str, source: Source, target: Path, effort: Effort) -> None:
    """Complete and verify the part from one address; damage from earlier gets a second chance."""
    _prepare(part, url, source)
    while True:
        resumed = part.received > 0
        with tqdm(desc=target.name, unit="B", unit_scale=True, disable=None) as bar:
            reading = _Reading(source, part, bar, effort.patience.save_every)
            check = partial(accept, source, part, target)
            pull(url, part, effort, accept=check, tick=reading.tick)
            digest = reading.finish()
        wrong = _what_is_wrong(url, source, part, digest)
        if wrong is None:
            return
        part.start_over()
        if not resumed:
            part.discard()
            raise wrong
        log.info("%s; starting over", wrong)


def _prepare(part: Part, url: str, source: Source) -> None:
    """Empty a part that cannot be gone on with from ``url``.

    Without a digest only bytes of the same address and version are put together; with one, any
    that come with the right size, because the digest decides in the end.
    """
    part.path.touch()
    size = part.origin.size if part.origin else source.size
    fits = source.size in (None, size) and part.received <= (size or part.received)
    if part.origin is not None and part.origin.url == url and fits:
        return
    if source.digest is None or not fits:
        part.start_over()
    else:
        part.origin = Origin(url, size, None)


class _Reading:
    """Hashes a part while it grows, records its growth and shows it.

    The hash follows the first gap, so that it is nearly done when the last byte arrives.
    """

    def __init__(self, source: Source, part: Part, bar: tqdm, save_every: float) -> None:  # type: ignore[type-arg]
        """Begin with the part's first byte, whatever is there already."""
        self.part, self.bar, self.save_every = part, bar, save_every
        self.algorithm = source.digest.algorithm if source.digest else _UNSTATED
        self._begin()

    def _begin(self) -> None:
        self.hash, self.position = _new_hash(self.algorithm), 0
        self.epoch, self.saved = self.part.epoch, time.monotonic()

    def tick(self) -> None:
        """Take in what has arrived since the last call, for a moment at most."""
        if self.epoch != self.part.epoch:
            self._begin()
        self._read(until=time.monotonic() + self.save_every)
        if time.monotonic() - self.saved >= self.save_every:
            self.part.save()
            self.saved = time.monotonic()
        self.bar.total = self.part.origin.size if self.part.origin else None
        self.bar.update(self.part.received - self.bar.n)

    def finish(self) -> Digest:
        """The digest of the whole part."""
        self.tick()
        self._read()
        return Digest(self.algorithm, self.hash.hexdigest())

    def _read(self, until: float = float("inf")) -> None:
        with self.part.path.open("rb", buffering=0) as file:
            file.seek(self.position)
            while (left := self.part.prefix - self.position) > 0 and time.monotonic() < until:
                block = file.read(min(_BLOCK, left))
                self.hash.update(block)
                self.position += len(block)


def _ends(answer: Answer) -> bool:
    """Whether the transfer encoding marks the end of the file."""
    return "chunked" in answer.response.headers.get("Transfer-Encoding", "").lower()


def _what_is_wrong(url: str, source: Source, part: Part, digest: Digest) -> DownloadError | None:
    """The error that a complete part is, or None."""
    size = part.received
    if source.size not in (None, size):
        return DownloadError(f"{url} has {size} bytes instead of {source.size}", hint=_AGAIN)
    with part.path.open("rb") as file:
        head = file.read(max(map(len, source.begins), default=0))
    if source.begins and not head.startswith(source.begins):
        return DownloadError(
            f"{url} is not the expected file: it begins with {head!r}", hint=_AGAIN
        )
    if source.digest not in (None, digest):
        return DownloadError(
            f"{url} is not the expected file: it has {digest} instead of {source.digest}",
            hint=_AGAIN,
        )
    return None
