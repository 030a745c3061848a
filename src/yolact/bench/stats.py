"""From measured times to the numbers of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Summary of one run; times are of one batch, in milliseconds."""

    items_per_sec: float
    """Images per second of wall-clock time, over all streams."""
    seconds_ran: float
    iterations: int
    """Batches that were timed."""
    mean: float
    median: float
    std: float
    percentiles: dict[float, float]
    """By percent, one per :data:`PERCENTILES`."""


def summarize(seconds: Sequence[float], *, wall: float, batch_size: int) -> Latency:
    """Summarize a run.

    Args:
        seconds: Time of each batch; at least one.
        wall: From the first batch's start to the last one's end, in seconds.
        batch_size: Images per batch.
    """
    times = np.asarray(seconds, np.float64) * 1e3
    return Latency(
        items_per_sec=len(times) * batch_size / wall,
        seconds_ran=wall,
        iterations=len(times),
        mean=float(times.mean()),
        median=float(np.median(times)),
        std=float(times.std()),
        percentiles={p: float(np.percentile(times, p)) for p in PERCENTILES},
    )
