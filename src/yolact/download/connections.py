"""Bringing the missing bytes of one file from one address, over several connections."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from requests import Session

from yolact.download.http import Answer, Broken, Patience, Restart, ask, new_session
from yolact.download.part import Part, Span, cut
from yolact.errors import DownloadError

log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between two looks at what has arrived."""
_FAREWELL = 0.2
"""Seconds that an interrupted download waits for each of its threads; they write no more."""


@dataclass(frozen=True)
class Effort:
    """How hard a file is pulled; the defaults suit home connections."""

    patience: Patience = Patience()
    connections: int = 4
    """Parts of the file that are fetched at the same time."""
    piece: int = 16 << 20
    """Bytes asked for in one request, where the server sends ranges."""


def pull(
    url: str,
    part: Part,
    effort: Effort,
    *,
    accept: Callable[[Answer], None],
    tick: Callable[[], None],
) -> None:
    """Bring all that is missing of ``part``.

    Args:
        url: Address of the file.
        part: What is there already, and where the rest goes.
        effort: How.
        accept: Raises an error when the first answer shows that the file is not the right one.
        tick: Called every few hundredths of a second.

    Raises:
        DownloadError: The address does not deliver, however often it is asked.
    """
    failures, most = 0, -1
    while True:
        try:
            with new_session() as session:
                answer = _first_answer(session, url, part, effort)
                if answer is not None:
                    accept(answer)
                    if not answer.partial:
                        part.start_over()
                    part.origin = answer.origin
                    pieces = _plan(answer, part, effort.piece)
                    _Crew(url, part, effort, answer, pieces).run(tick)
            return
        except (Broken, Restart) as error:
            failures = 1 if part.received > most else failures + 1
            most = max(most, part.received)
            if isinstance(error, Restart):
                part.start_over()
            if failures >= effort.patience.attempts:
                _give_up(url, error)
            wait = effort.patience.wait(failures, getattr(error, "retry_after", None))
            log.info("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(wait)


def _give_up(url: str, error: Exception) -> NoReturn:
    raise DownloadError(
        f"cannot download {url}: {error}",
        hint="check the connection and run the command again; it goes on from here",
    ) from error


def _first_answer(session: Session, url: str, part: Part, effort: Effort) -> Answer | None:
    """Ask for the first piece that is missing; None when nothing is."""
    start = part.prefix
    stop = start + effort.piece
    if part.origin and part.origin.size is not None:
        missing = part.missing(part.origin.size)
        if not missing:
            return None
        start, stop = cut(missing, effort.piece)[0]
    return ask(session, url, (start, stop), part.origin, effort.patience)


def _plan(answer: Answer, part: Part, length: int) -> deque[Span]:
    """What is to be asked for after the first answer, in the order of the file."""
    if not answer.partial or answer.origin.size is None or answer.end is None:
        return deque()
    first, *rest = part.missing(answer.origin.size)
    return deque(cut([(answer.end, first[1]), *rest], length))


@dataclass
class _Crew:
    """Threads that take one piece after the other, until nothing is missing."""

    url: str
    part: Part
    effort: Effort
    first: Answer
    """Open already; one thread begins with it."""
    pieces: deque[Span]
    stop: threading.Event = field(default_factory=threading.Event)
    broken: list[Broken] = field(default_factory=list)
    """Why threads gave up; the others go on."""
    errors: list[BaseException] = field(default_factory=list)
    """Why nobody goes on."""

    def run(self, tick: Callable[[], None]) -> None:
        helpers = min(self.effort.connections - 1, len(self.pieces))
        threads = [
            threading.Thread(target=self._guard, args=(answer,), daemon=True)
            for answer in (self.first, *(None for _ in range(helpers)))
        ]
        for thread in threads:
            thread.start()
        try:
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(_TICK)
                tick()
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(_FAREWELL)
            self.part.save()
        if self.errors:
            raise self.errors[0]
        if self.pieces:
            _give_up(self.url, self.broken[-1])

    def _guard(self, answer: Answer | None) -> None:
        try:
            with new_session() as session:
                self._work(session, answer)
        except BaseException as error:  # passed on to the thread that waits
            self.errors.append(error)
            self.stop.set()

    def _work(self, session: Session, answer: Answer | None) -> None:
        piece = (answer.start, answer.end or 0) if answer else self._next()
        failures, patience = 0, self.effort.patience
        while piece and not self.stop.is_set():
            position = piece[0]
            try:
                answer = answer or ask(session, self.url, piece, self.part.origin, patience)
                for reached in self._write(answer):
                    position, failures = reached, 0
            except Broken as error:
                failures += 1
                if not self.first.partial:
                    raise Restart(str(error)) from error
                if failures >= patience.attempts:
                    self.pieces.appendleft((position, piece[1]))
                    self.broken.append(error)
                    return
                self.stop.wait(patience.wait(failures, error.retry_after))
            answer = None
            piece = (position, piece[1]) if position < piece[1] else self._next()

    def _write(self, answer: Answer) -> Iterator[int]:
        """Write the blocks as they come; yields where the file is known up to."""
        position = answer.start
        with self.part.writer(answer.start) as write:
            for block in answer.blocks():
                if self.stop.is_set():
                    return
                write(block)
                position += len(block)
                yield position

    def _next(self) -> Span | None:
        try:
            return self.pieces.popleft()
        except IndexError:
            return None
