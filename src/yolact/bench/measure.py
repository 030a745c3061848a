"""Time an engine: one stream, many streams, or two engines in turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from yolact.bench.stats import Latency, summarize

Call = Callable[[], object]
"""One inference of one batch."""


def run_sync(call: Call, *, seconds: float, warmup: float, batch_size: int) -> Latency:
    """One batch after the other for ``seconds``; what happens in ``warmup`` is not counted."""
    _repeat(call, warmup)
    start = time.perf_counter()
    times = _repeat(call, seconds)
    return summarize(times, wall=time.perf_counter() - start, batch_size=batch_size)


def run_async(
    call: Call, *, streams: int, seconds: float, warmup: float, batch_size: int
) -> Latency:
    """``streams`` threads, each sending batches to the same engine as fast as it answers.

    Raises:
        Exception: Whatever ``call`` raised first in one of the threads.
    """
    _in_threads(call, streams, warmup)
    start = time.perf_counter()
    times = _in_threads(call, streams, seconds)
    return summarize(times, wall=time.perf_counter() - start, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two engines measured in turns, so that a busy machine slows both alike."""

    first: Latency
    second: Latency
    speedup: float
    """Median time of the first over that of the second: above 1, the second is faster."""
    quartiles: tuple[float, float]
    """Lower and upper quartile of the ratios of neighbouring runs: how far to trust it."""


def run_paired(
    first: Call, second: Call, *, seconds: float, warmup: float, batch_size: int
) -> Comparison:
    """Alternate between two engines for twice ``seconds``; who starts changes every round."""
    _repeat(first, warmup)
    _repeat(second, warmup)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + 2 * seconds
    while not pairs or time.perf_counter() < end:
        if len(pairs) % 2:
            late = _timed(second)
            pairs.append((_timed(first), late))
        else:
            pairs.append((_timed(first), _timed(second)))
    times = np.array(pairs)
    ratios = times[:, 0] / times[:, 1]
    a, b = (
        summarize(column, wall=float(column.sum()), batch_size=batch_size) for column in times.T
    )
    return Comparison(
        first=a,
        second=b,
        speedup=a.median / b.median,
        quartiles=(float(np.percentile(ratios, 25)), float(np.percentile(ratios, 75))),
    )


def _repeat(call: Call, seconds: float, stop: threading.Event | None = None) -> list[float]:
    """Times of the calls that start within ``seconds``, or before ``stop`` is set; one at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(_timed(call))
        if stop is not None and stop.is_set():
            break
    return times


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _in_threads(call: Call, streams: int, seconds: float) -> list[float]:
    stop = threading.Event()
    # The pool waits for its threads also on Ctrl-C (Thread.join, once interrupted, does not any
    # more): a process that ends while one of them is inside an engine is aborted.
    with ThreadPoolExecutor(streams) as pool:
        running = [pool.submit(_repeat, call, seconds, stop) for _ in range(streams)]
        try:
            return [elapsed for stream in running for elapsed in stream.result()]
        finally:
            stop.set()
