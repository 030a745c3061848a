"""Ctrl-C and SIGTERM end a run between two steps, so that what is saved is whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

PATIENCE = 1.0
"""Seconds after a first signal within which a Ctrl-C counts as the same one: what starts a process
often passes on a signal that the process got from the terminal, too."""
NOTICE = "stopping after this step; Ctrl-C again stops at once, without saving\n"


class Interrupted(Exception):
    """The user or the system asked the run to end."""


class GracefulStop:
    """While entered, SIGINT and SIGTERM set :attr:`requested` instead of killing the process.

    A second Ctrl-C, not sooner than PATIENCE, raises KeyboardInterrupt. Outside the main thread,
    where Python does not deliver signals, it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        """Nothing requested yet."""
        self.requested = False
        self._at_once = False
        self._shielded = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal came; called where the state is consistent."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal interrupt the block immediately: it changes no training state."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let no signal interrupt the block: it saves what an interruption would lose."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first:
            self._since = time.monotonic()
        if self._shielded:
            return
        if self._at_once:
            raise Interrupted
        if first:
            with suppress(OSError):  # a closed stderr
                os.write(2, NOTICE.encode())  # print() must not run in a handler
        elif number == signal.SIGINT and time.monotonic() - self._since > PATIENCE:
            raise KeyboardInterrupt
