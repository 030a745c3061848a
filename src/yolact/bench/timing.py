"""Measure time: of an engine in one stream, in many or in turns with another, and of each stage.

:func:`run` and :func:`run_paired` time an engine alone, for ``sparseml.yolact.benchmark``.
:func:`measure` times the way from decoded images to full-size masks, stage by stage, for
``sparseml.yolact.validation --benchmark``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np

from yolact.data.images import RgbImage
from yolact.engines.base import Engine
from yolact.predict.pipeline import Selection, Stopwatch
from yolact.tables import columns

Call = Callable[[], object]
"""One inference of one batch."""
PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
STAGES = ("preprocess", "network", "detect", "postprocess")


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two engines measured in turns, so that a busy machine slows both alike."""

    first: Latency
    second: Latency
    speedup: float
    """Median time of the first over that of the second: above 1, the second is faster."""
    quartiles: tuple[float, float]
    """Lower and upper quartile of the ratios of neighbouring runs: how far to trust it."""


@dataclass(frozen=True)
class Speed:
    """Median times of one batch."""

    milliseconds: dict[str, float]
    """Median per batch of each of :data:`STAGES`."""
    batch_size: int
    batches: int
    """Batches measured, after the warm-up."""

    @property
    def total(self) -> float:
        """Milliseconds per batch."""
        return sum(self.milliseconds.values())

    @property
    def images_per_second(self) -> float:
        """Throughput with all stages one after the other."""
        return 1000 * self.batch_size / self.total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready.

        | key | value |
        |---|---|
        | ``batch_size`` | images per batch |
        | ``batches`` | number of batches measured |
        | ``milliseconds`` | stage -> median time of a batch, and ``total``, their sum |
        | ``images_per_second`` | with all stages one after the other |
        """
        return {
            "batch_size": self.batch_size,
            "batches": self.batches,
            "milliseconds": {**self.milliseconds, "total": self.total},
            "images_per_second": self.images_per_second,
        }

    def table(self) -> str:
        """One line per stage, and the sum."""
        rows = [
            (stage, f"{time:9.2f} ms {100 * time / self.total:5.1f} %")
            for stage, time in self.milliseconds.items()
        ]
        rows.append(("total", f"{self.total:9.2f} ms {self.images_per_second:7.2f} img/s"))
        return f"median of {self.batches} batches of {self.batch_size}\n{columns(rows, '<<')}"


def run(call: Call, *, streams: int, seconds: float, warmup: float, batch_size: int) -> Latency:
    """Time batches for ``seconds``; what happens in ``warmup`` seconds before is not counted.

    Args:
        call: Runs a batch.
        streams: Threads that each send batches to the same engine as fast as it answers; one
            stream is this thread.
        seconds: How long to measure.
        warmup: How long to run before.
        batch_size: Images per batch.

    Raises:
        Exception: Whatever ``call`` raised first in one of the streams.
    """
    _in_streams(call, streams, warmup)
    start = time.perf_counter()
    times = _in_streams(call, streams, seconds)
    return summarize(times, wall=time.perf_counter() - start, batch_size=batch_size)


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


def measure(
    engine: Engine,
    images: Sequence[RgbImage],
    selection: Selection,
    *,
    batch_size: int = 1,
    warm_up: int = 10,
    batches: int | None = None,
) -> Speed:
    """Time the path from decoded images to full-size masks.

    Args:
        engine: A loaded model.
        images: Taken in turns, as often as it takes.
        selection: Which objects get a mask.
        batch_size: Images per call of the engine.
        warm_up: Batches to run before measuring.
        batches: How many to measure; None goes through the images once.

    Returns:
        Medians, which a single slow batch does not move.
    """
    endless, watch = cycle(images), Stopwatch()

    def run(watch: Stopwatch) -> None:
        found = selection.find(engine, list(islice(endless, batch_size)), watch=watch)
        with watch("postprocess"):
            for image in found:
                image.instances(crop=selection.crop, masks=selection.masks)

    for _ in range(warm_up):
        run(Stopwatch())
    count = batches or max(1, len(images) // batch_size)
    for _ in range(count):
        run(watch)
    times = {stage: 1000 * median(watch.seconds[stage]) for stage in STAGES}
    return Speed(times, batch_size, count)


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


def _in_streams(call: Call, streams: int, seconds: float) -> list[float]:
    if streams == 1:
        return _repeat(call, seconds)
    stop = threading.Event()
    # The pool waits for its threads also on Ctrl-C (Thread.join, once interrupted, does not any
    # more): a process that ends while one of them is inside an engine is aborted.
    with ThreadPoolExecutor(streams) as pool:
        running = [pool.submit(_repeat, call, seconds, stop) for _ in range(streams)]
        try:
            return [elapsed for stream in running for elapsed in stream.result()]
        finally:
            stop.set()
