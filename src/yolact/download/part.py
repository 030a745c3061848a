"""The unfinished file beside a target, and the small records of what has arrived of it.

The bytes that are there are spans: sorted, disjoint, non-empty ranges [start, end).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolact.errors import DownloadError

Span = tuple[int, int]


@dataclass(frozen=True)
class Origin:
    """Which version of a file the bytes belong to."""

    url: str
    size: int | None
    """Of the whole file in bytes; None where the server does not say."""
    validator: str | None
    """The ETag or, without one, the Last-Modified of the server's answer."""


class Part:
    """``<name>.part`` and ``<name>.part.json``; threads may write different ranges at once."""

    def __init__(self, target: Path) -> None:
        """Find out what is there already; a record that cannot be read counts as none."""
        self.path = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.part.json")
        self.origin: Origin | None = None
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        on_disk = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.origin, spans = _parse(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            spans = [(0, on_disk)]
        self._spans = clamp(union(spans), on_disk)
        self.epoch = 0
        """How often what was there has been forgotten."""

    @property
    def received(self) -> int:
        """Bytes that are there."""
        with self._lock:
            return total(self._spans)

    @property
    def prefix(self) -> int:
        """Bytes that are there without a gap from the beginning on."""
        with self._lock:
            return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    def missing(self, size: int) -> list[Span]:
        """The ranges that have not arrived of a file of ``size`` bytes."""
        with self._lock:
            return gaps(self._spans, size)

    def start_over(self) -> None:
        """Forget and empty what is there."""
        with self._lock:
            self._spans, self.origin = [], None
            self.epoch += 1
            remove_record(self.record)
            self.path.write_bytes(b"")

    def discard(self) -> None:
        """Remove both files."""
        remove_record(self.record)
        self.path.unlink(missing_ok=True)

    @contextmanager
    def writer(self, start: int) -> Iterator[Callable[[bytes], None]]:
        """A function that puts its argument behind what it wrote before, from ``start`` on."""
        position = start
        with self.path.open("r+b", buffering=0) as file:
            file.seek(start)

            def write(block: bytes) -> None:
                nonlocal position
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                with self._lock:
                    self._spans = union([*self._spans, (position, position + len(block))])
                position += len(block)

            yield write

    def save(self) -> None:
        """Record what is there. Bytes reach the disk before the record that counts on them."""
        with self._lock:
            content = {"origin": self.origin and vars(self.origin), "spans": self._spans}
        self.flush()
        write_record(self.record, json.dumps(content))

    def flush(self) -> None:
        """Wait until what is there would survive a power cut."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())

    def become(self, target: Path) -> None:
        """Give the finished file its name; on the disk it is whole before that."""
        self.flush()
        os.replace(self.path, target)
        remove_record(self.record)


def write_record(path: Path, text: str) -> None:
    """Replace ``path`` in one step, on the disk before that.

    Unlike :func:`yolact.files.write_text`, a killed process leaves at most one file of a known
    name behind, which the next call uses up. Only one process may write a record at a time.
    """
    spare = _spare(path)
    with spare.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(spare, path)


def remove_record(path: Path) -> None:
    """Remove a record and what a killed process may have left beside it."""
    path.unlink(missing_ok=True)
    _spare(path).unlink(missing_ok=True)


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


def union(spans: Iterable[Span]) -> list[Span]:
    """Sort spans and join those that touch or overlap.

    >>> union([(4, 6), (0, 2), (2, 3), (5, 9)])
    [(0, 3), (4, 9)]
    """
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return joined


def gaps(spans: Sequence[Span], size: int) -> list[Span]:
    """What is missing of a file of ``size`` bytes.

    >>> gaps([(0, 3), (4, 9)], 12)
    [(3, 4), (9, 12)]
    """
    edges = [0, *(edge for span in spans for edge in span), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def cut(spans: Iterable[Span], length: int) -> list[Span]:
    """Divide spans into pieces of at most ``length`` bytes.

    >>> cut([(0, 5), (7, 8)], 2)
    [(0, 2), (2, 4), (4, 5), (7, 8)]
    """
    return [(at, min(at + length, b)) for a, b in spans for at in range(a, b, length)]


def clamp(spans: Iterable[Span], size: int) -> list[Span]:
    """What of some spans lies within the first ``size`` bytes.

    >>> clamp([(0, 3), (4, 9)], 5)
    [(0, 3), (4, 5)]
    """
    return [(a, min(b, size)) for a, b in spans if a < size]


def total(spans: Iterable[Span]) -> int:
    """Bytes in all spans together."""
    return sum(b - a for a, b in spans)


def _parse(content: Any) -> tuple[Origin, list[Span]]:
    spans = [(int(start), int(end)) for start, end in content["spans"]]
    if any(start < 0 for start, _ in spans):
        raise ValueError(spans)
    return Origin(**content["origin"]), spans


def _spare(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
