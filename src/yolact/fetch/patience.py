"""When to give up on a server."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long and how often a server is waited for, all times in seconds."""

    attempts: int = 6
    """Failures in a row, without one new byte between them, before an address is given up."""
    first_wait: float = 1.0
    """Before the second attempt; each later wait is twice as long."""
    longest_wait: float = 60.0
    """Bound of each wait, also of one that the server asks for."""
    connect: float = 15.0
    """For a connection."""
    stall: float = 30.0
    """Without one byte."""
    save_every: float = 1.0
    """Between two records of what has arrived; a killed process loses at most this much."""

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after so many failures in a row.

        They are drawn from the upper half of the interval, so that clients that failed together do
        not come back together.

        Args:
            failures: 1 after the first.
            asked: What the server's Retry-After asks for.
        """
        base: float = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
        drawn = base * random.uniform(0.5, 1.0)
        return drawn if asked is None else max(drawn, min(asked, self.longest_wait))
