"""The unfinished file beside a target, and the record of what has arrived of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact.fetch.record import remove_record, write_record
from yolact.fetch.spans import Span, clamp, gaps, total, union


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


def _parse(content: Any) -> tuple[Origin, list[Span]]:
    spans = [(int(start), int(end)) for start, end in content["spans"]]
    if any(start < 0 for start, _ in spans):
        raise ValueError(spans)
    return Origin(**content["origin"]), spans
