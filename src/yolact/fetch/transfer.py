"""Fetching one file: resumed, verified, and never half-finished under its final name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from yolact.errors import DownloadError
from yolact.fetch.checks import Reading, accept, prepare, what_is_wrong
from yolact.fetch.lock import alone
from yolact.fetch.part import Part
from yolact.fetch.patience import Patience
from yolact.fetch.pull import Effort, pull
from yolact.fetch.source import UNSTATED, Digest, Source, digest_of
from yolact.files import storage_errors
from yolact.network import require_network

log = logging.getLogger(__name__)

PIECE = 16 << 20


@dataclass(frozen=True)
class Fetched:
    """A file that is now at its place and verified."""

    path: Path
    size: int
    """In bytes."""
    digest: Digest
    """Of the kind that its source states; SHA-256 where it states none."""
    url: str | None
    """Where it came from; None when it was there already."""


def fetch(
    source: Source,
    target: Path,
    *,
    patience: Patience | None = None,
    connections: int = 4,
    piece: int = PIECE,
) -> Fetched:
    """Download a file to ``target``, verify it, and only then give it that name.

    What arrives is kept in ``<name>.part``, and what is known of it in ``<name>.part.json``; the
    next call goes on from there, after a broken connection, a killed process or a power cut. A
    ``target`` that exists is hashed and kept if it is the source (or nothing is known of the
    source); otherwise it is replaced, in one step, by the verified download.

    Args:
        source: Where the file is and what is known of it.
        target: Its path; folders are made.
        patience: When to give up; the default suits home connections.
        connections: Parts of the file that are fetched at the same time.
        piece: Bytes in one request, where the server sends parts.

    Raises:
        DownloadError: There is no network or the user forbids it, no address delivers the file
            whole, it is not what it should be, or another process is downloading to ``target``.
        StorageError: ``target`` cannot be written, or the disk is too full.
    """
    effort = Effort(patience or Patience(), max(1, connections), piece)
    lock = target.with_name(f".{target.name}.lock")
    with storage_errors(target), alone(lock, target):
        fetched = _existing(source, target) or _fetch(source, target, effort)
        lock.unlink(missing_ok=True)  # whoever holds the removed file finds the target whole
        return fetched


def _existing(source: Source, target: Path) -> Fetched | None:
    if not target.is_file():
        return None
    size = target.stat().st_size
    digest = digest_of(target, source.digest.algorithm if source.digest else UNSTATED)
    if source.size not in (None, size) or source.digest not in (None, digest):
        return None
    Part(target).discard()
    return Fetched(target, size, digest, None)


def _fetch(source: Source, target: Path, effort: Effort) -> Fetched:
    require_network(target.name, source.urls, effort.patience.connect)
    part = Part(target)
    reasons: list[DownloadError] = []
    for url in source.urls:
        try:
            digest = _from(url, source, part, target, effort)
        except DownloadError as error:
            log.info("%s", error)
            reasons.append(error)
            continue
        size = part.received
        part.become(target)
        return Fetched(target, size, digest, url)
    if len(reasons) == 1:
        raise reasons[0]
    raise DownloadError(
        f"no address delivers {target.name}: " + "; ".join(map(str, reasons)),
        hint=reasons[-1].hint,
    )


def _from(url: str, source: Source, part: Part, target: Path, effort: Effort) -> Digest:
    """Complete and verify the part from one address; damage from earlier gets a second chance."""
    prepare(part, url, source)
    while True:
        resumed = part.received > 0
        with tqdm(desc=target.name, unit="B", unit_scale=True, disable=None) as bar:
            reading = Reading(source, part, bar, effort.patience.save_every)
            check = partial(accept, source, part, target)
            pull(url, part, effort, accept=check, tick=reading.tick)
            digest = reading.finish()
        wrong = what_is_wrong(url, source, part, digest)
        if wrong is None:
            return digest
        part.start_over()
        if not resumed:
            part.discard()
            raise wrong
        log.info("%s; starting over", wrong)
