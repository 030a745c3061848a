"""SparseZoo's own client, run so that it can neither hang nor report on the user.

The service behind it ended in 2025; a company may still run one of its own, which
``SPARSEZOO_API_URL`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from yolact.network import why_unreachable
from yolact.zoo.cache import rank
from yolact.zoo.stub import Kind, Stub

PROGRAM = Path(__file__).with_name("ask_sparsezoo.py")
"""Run by its path: with ``-m``, a file yolact.py in the current folder would be in its place."""
SERVICE = "https://api.neuralmagic.com"


class NoAnswerError(Exception):
    """The service did not name a file; the message says why."""


@dataclass(frozen=True)
class Patience:
    """Time limits in seconds."""

    connect: float = 3.0
    answer: float = 15.0
    """For the whole question, the start of the client's process included."""


def service_url() -> str:
    """Where the client asks."""
    return os.environ.get("SPARSEZOO_API_URL") or SERVICE


class Service:
    """SparseZoo's service, asked at most once about a model."""

    def __init__(self, stub: Stub, patience: Patience) -> None:
        """Ask nothing yet."""
        self.stub = stub
        self.patience = patience

    def url_of(self, kind: Kind) -> str:
        """The address of a file of the model.

        Raises:
            NoAnswerError: The service cannot be reached, takes too long, or has no such file.
        """
        if isinstance(self._answer, str):
            raise NoAnswerError(self._answer)
        ranked = [(rank(name, self.stub, kind), url) for name, url in self._answer]
        fitting = [(place, url) for place, url in ranked if place is not None]
        if not fitting:
            raise NoAnswerError(f"{service_url()} has no {kind.value} of it")
        return min(fitting)[1]

    @cached_property
    def _answer(self) -> str | list[tuple[str, str]]:
        """Name and address of each file, or why there is no answer."""
        # Found in milliseconds, where the client would need seconds to start.
        unreachable = why_unreachable(service_url(), self.patience.connect)
        if unreachable:
            return unreachable
        try:
            done = subprocess.run(
                [sys.executable, str(PROGRAM), str(self.stub)],
                capture_output=True,
                text=True,
                timeout=self.patience.answer,
                env={**os.environ, "NM_DISABLE_ANALYTICS": "1", "NM_VERSION_CHECK": "false"},
            )
        except subprocess.TimeoutExpired:
            return f"{service_url()} did not answer within {self.patience.answer:g} s"
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
        try:
            return [(name, url) for name, url in json.loads(lines[-1])]
        except (ValueError, TypeError):
            return f"{service_url()} gave no files: {lines[-1]}"
