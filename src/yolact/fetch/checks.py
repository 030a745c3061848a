"""Whether a file that arrives is the one that was asked for."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from yolact.errors import DownloadError
from yolact.fetch.answer import Answer
from yolact.fetch.part import Origin, Part
from yolact.fetch.source import UNSTATED, Digest, Source, new_hash
from yolact.files import require_space

_BLOCK = 1 << 20
_AGAIN = "run the command again; if it happens again, try another network"


class Reading:
    """Hashes a part while it grows, records its growth and shows it.

    The hash follows the first gap, so that it is nearly done when the last byte arrives.
    """

    def __init__(self, source: Source, part: Part, bar: tqdm, save_every: float) -> None:  # type: ignore[type-arg]
        """Begin with the part's first byte, whatever is there already."""
        self.part, self.bar, self.save_every = part, bar, save_every
        self.algorithm = source.digest.algorithm if source.digest else UNSTATED
        self._begin()

    def _begin(self) -> None:
        self.hash, self.position = new_hash(self.algorithm), 0
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


def prepare(part: Part, url: str, source: Source) -> None:
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


def _ends(answer: Answer) -> bool:
    """Whether the transfer encoding marks the end of the file."""
    return "chunked" in answer.response.headers.get("Transfer-Encoding", "").lower()


def what_is_wrong(url: str, source: Source, part: Part, digest: Digest) -> DownloadError | None:
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
