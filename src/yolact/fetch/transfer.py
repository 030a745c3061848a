"""Fetching one file: resumed, verified, and never half-finished under its final name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolact.fetch.patience import Patience
from yolact.fetch.source import Digest, Source


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

    Raises:
        DownloadError: No address delivers the file whole, or it is not what it should be, or
            another process is downloading to ``target``.
        StorageError: ``target`` cannot be written, or the disk is too full.
    """
    raise NotImplementedError
