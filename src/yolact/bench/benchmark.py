"""Benchmark model files: load, feed random images, time, and describe."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from yolact import __version__
from yolact.bench.timing import Call, Comparison, Latency, run_async, run_paired, run_sync
from yolact.config import YolactConfig
from yolact.engines import load_engine
from yolact.engines.base import Engine, Operators, ReportsOperators
from yolact.engines.compress import compressed_size
from yolact.errors import ConfigError
from yolact.host import numa_cpus, physical_cores, pinned

Scenario = Literal["sync", "async", "elastic"]
Pinning = Literal["none", "core", "numa"]

MOST_STREAMS = 256
"""Each is a thread; more are taken for a mistake."""
_REPORTED = {"sync": "singlestream", "async": "multistream", "elastic": "elastic"}
"""Scenario names in JSON reports, which are those of ``deepsparse.benchmark``."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """How to measure; the defaults are those of ``deepsparse.benchmark``."""

    batch_size: int | None = None
    """Images per batch; None for what the file is fixed to, else 1."""
    input_shape: tuple[int, ...] | None = None
    """[batch, 3, height, width] that the file must take; None for any."""
    scenario: Scenario = "sync"
    """sync: one batch at a time. async: several streams share the engine. elastic: the same as
    async, as ONNX Runtime has one scheduler for both."""
    seconds: float = 10
    warmup: float = 2
    num_cores: int | None = None
    """Threads of the engine; None for all physical cores this process may use."""
    num_streams: int | None = None
    """Of async and elastic; None for half the cores."""
    pinning: Pinning = "core"
    engine: str | None = None
    config: YolactConfig | None = None
    """For checkpoints that carry none."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, value in vars(self).items():
            if name in ("batch_size", "num_cores", "num_streams") and value is not None:
                if value < 1:
                    raise ConfigError(f"{name} is {value}", hint="use 1 or more")
                if name == "num_streams" and value > MOST_STREAMS:
                    raise ConfigError(f"{name} is {value}", hint=f"use 1 to {MOST_STREAMS}")
        if self.seconds <= 0 or self.warmup < 0:
            raise ConfigError(
                "time must be above 0 and warm-up time not below 0", hint="they are in seconds"
            )
        if self.input_shape and self.batch_size not in (None, self.input_shape[0]):
            raise ConfigError(
                f"batch size {self.batch_size} contradicts input shape {list(self.input_shape)}",
                hint="give one of them",
            )

    @property
    def cores(self) -> int:
        """Threads of the engine."""
        return self.num_cores or len(physical_cores())

    @property
    def streams(self) -> int:
        """Streams that send batches at the same time."""
        return 1 if self.scenario == "sync" else self.num_streams or max(1, self.cores // 2)

    @property
    def cpus(self) -> list[int] | None:
        """CPUs to stay on: the first of each core, those of one memory node, or any (None)."""
        if self.pinning == "core":
            return [core[0] for core in physical_cores()[: self.cores]]
        return numa_cpus() if self.pinning == "numa" else None


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """The result for one file."""

    path: Path
    engine: str
    batch_size: int
    input_shape: tuple[int, ...]
    options: BenchmarkOptions
    latency: Latency
    size: int
    """Bytes of the file."""
    compressed: int
    """Bytes of the file after gzip; of a compressed file, its own."""
    operators: Operators | None = None
    """What the engine runs in integers; None where it cannot say."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys that ``deepsparse.benchmark -x`` writes and a few more."""
        latency, options = self.latency, self.options
        return {
            "engine": self.engine,
            "version": __version__,
            "orig_model_path": str(self.path),
            "model_path": str(self.path),
            "batch_size": self.batch_size,
            "input_shapes": [list(self.input_shape)],
            "num_cores": options.cores,
            "scenario": options.scenario,
            "scheduler": options.scenario,
            "seconds_to_run": options.seconds,
            "num_streams": options.streams,
            "fraction_of_supported_ops": 1.0,  # a file with an op the engine lacks does not load
            "thread_pinning": options.pinning,
            "size_on_disk": self.size,
            "size_on_disk_compressed": self.compressed,
            "operators": self.operators
            and {"int8": self.operators.integer, "float": self.operators.floating},
            "benchmark_result": {
                "scenario": _REPORTED[options.scenario],
                "items_per_sec": latency.items_per_sec,
                "seconds_ran": latency.seconds_ran,
                "iterations": latency.iterations,
                "median": latency.median,
                "mean": latency.mean,
                "std": latency.std,
                **{f"{percent}%": value for percent, value in latency.percentiles.items()},
            },
        }


def benchmark(path: Path, options: BenchmarkOptions) -> BenchmarkReport:
    """Measure one model file.

    Raises:
        CheckpointError: The file is missing, unreadable or not a YOLACT model.
        ConfigError: An option does not fit the file.
    """
    with pinned(options.cpus):
        engine, images = _load(path, options)
        latency = _measure(lambda: engine(images), options, images.shape[0])
    return _report(path, engine, images, options, latency)


def benchmark_pair(
    first: Path, second: Path, options: BenchmarkOptions
) -> tuple[BenchmarkReport, BenchmarkReport, Comparison]:
    """Measure two model files in turns, batch by batch, in this process.

    Raises:
        CheckpointError: A file is missing, unreadable or not a YOLACT model.
        ConfigError: An option does not fit a file, or the scenario is not sync.
    """
    if options.scenario != "sync":
        raise ConfigError("two models are compared in scenario sync only", hint="leave out -s")
    with pinned(options.cpus):
        loaded = [_load(path, options) for path in (first, second)]
        (engine_a, images_a), (engine_b, images_b) = loaded
        if images_a.shape[0] != images_b.shape[0]:
            raise ConfigError(
                f"the models take batches of {images_a.shape[0]} and {images_b.shape[0]}",
                hint="compare models of the same batch size",
            )
        comparison = run_paired(
            lambda: engine_a(images_a),
            lambda: engine_b(images_b),
            seconds=options.seconds,
            warmup=options.warmup,
            batch_size=images_a.shape[0],
        )
    return (
        _report(first, engine_a, images_a, options, comparison.first),
        _report(second, engine_b, images_b, options, comparison.second),
        comparison,
    )


def parse_input_shapes(text: str) -> tuple[int, ...]:
    """Read ``[1,3,550,550]``, the notation of ``deepsparse.benchmark``.

    Raises:
        ConfigError: It is not one shape of four positive numbers.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"cannot read input shapes {text!r}", hint="write them as [1,3,550,550]"
        ) from error
    if isinstance(value, (tuple, list)) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    fits = isinstance(value, list) and len(value) == 4
    if not fits or not all(isinstance(n, int) and n > 0 for n in value):
        raise ConfigError(
            f"input shapes {text!r} do not fit: YOLACT has one input",
            hint="write its shape as [batch,3,height,width], such as [1,3,550,550]",
        )
    return tuple(value)


def _load(path: Path, options: BenchmarkOptions) -> tuple[Engine, Tensor]:
    engine = load_engine(
        path, engine=options.engine, num_cores=options.cores, config=options.config
    )
    shape = options.input_shape
    batch = shape[0] if shape else options.batch_size or engine.batch_size or 1
    if engine.batch_size not in (None, batch):
        raise ConfigError(
            f"{path} takes batches of {engine.batch_size}, not {batch}",
            hint="export it without --static for other batch sizes",
        )
    if shape is not None and shape[1:] != (3, *engine.image_size):
        raise ConfigError(
            f"{path} takes images of shape {[3, *engine.image_size]}, not {list(shape[1:])}",
            hint="export the model with the --image_size you want to measure",
        )
    generator = torch.Generator().manual_seed(0)
    return engine, torch.rand(batch, 3, *engine.image_size, generator=generator)


def _measure(call: Call, options: BenchmarkOptions, batch_size: int) -> Latency:
    seconds, warmup = options.seconds, options.warmup
    if options.scenario == "sync":
        return run_sync(call, seconds=seconds, warmup=warmup, batch_size=batch_size)
    return run_async(
        call, streams=options.streams, seconds=seconds, warmup=warmup, batch_size=batch_size
    )


def _report(
    path: Path, engine: Engine, images: Tensor, options: BenchmarkOptions, latency: Latency
) -> BenchmarkReport:
    return BenchmarkReport(
        path=path,
        engine=engine.name,
        batch_size=images.shape[0],
        input_shape=tuple(images.shape),
        options=options,
        latency=latency,
        size=path.stat().st_size,
        compressed=compressed_size(path),
        operators=engine.operators() if isinstance(engine, ReportsOperators) else None,
    )
