"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from yolact.errors import DownloadError


@contextmanager
def alone(lock: Path, target: Path) -> Iterator[None]:
    """Hold the file ``lock``, so that no other process downloads to ``target`` meanwhile.

    Raises:
        DownloadError: Another one does.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise DownloadError(
            f"another process is downloading to {target}", hint="wait for it, or end it"
        ) from None
    try:
        yield
    finally:
        held.release()
