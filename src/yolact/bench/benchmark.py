"""Benchmark model files: load, feed random images, time, and describe."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact import __version__
from yolact.bench import BenchmarkOptions
from yolact.bench.timing import Comparison, Latency, run, run_paired
from yolact.engines import engine_for, load_engine
from yolact.engines.base import Engine, Operators, ReportsOperators
from yolact.engines.compress import compressed_size
from yolact.errors import ConfigError
from yolact.host import pinned

log = logging.getLogger(__name__)

_REPORTED = {"sync": "singlestream", "async": "multistream", "elastic": "elastic"}
"""Scenario names in JSON reports, which are those of ``deepsparse.benchmark``."""


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


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One model, or two measured in turns."""

    reports: tuple[BenchmarkReport, ...]
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the first report, with the second and the speedup inside."""
        first, *others = [report.to_dict() for report in self.reports]
        if self.comparison is not None:
            speedup, quartiles = self.comparison.speedup, self.comparison.quartiles
            first["compared_with"] = others[0]
            first["speedup"] = {"median": speedup, "quartiles": quartiles}
        return first


def benchmark(path: Path, options: BenchmarkOptions) -> BenchmarkReport:
    """Measure one model file.

    Raises:
        CheckpointError: The file is missing, unreadable or not a YOLACT model.
        ConfigError: An option does not fit the file.
    """
    with pinned(options.cpus):
        engine, images = _load(path, options)
        latency = run(
            lambda: engine(images),
            streams=options.streams,
            seconds=options.seconds,
            warmup=options.warmup,
            batch_size=images.shape[0],
        )
    return _report(path, engine, images, options, latency)


def benchmark_pair(first: Path, second: Path, options: BenchmarkOptions) -> BenchmarkResult:
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
        if images_a.shape != images_b.shape:
            log.info(
                "%s sees images of %d x %d, %s of %d x %d: times are of different work",
                *(first, *images_a.shape[2:], second, *images_b.shape[2:]),
            )
        comparison = run_paired(
            lambda: engine_a(images_a),
            lambda: engine_b(images_b),
            seconds=options.seconds,
            warmup=options.warmup,
            batch_size=images_a.shape[0],
        )
    reports = (
        _report(first, engine_a, images_a, options, comparison.first),
        _report(second, engine_b, images_b, options, comparison.second),
    )
    return BenchmarkResult(reports=reports, comparison=comparison)


def _load(path: Path, options: BenchmarkOptions) -> tuple[Engine, Tensor]:
    shape = options.input_shape
    any_size = engine_for(path, options.engine) == "torch"
    engine = load_engine(
        path,
        engine=options.engine,
        num_cores=options.cores,
        config=options.config,
        image_size=(shape[2], shape[3]) if shape and any_size else None,
    )
    batch = shape[0] if shape else options.batch_size or engine.batch_size or 1
    if engine.batch_size not in (None, batch):
        raise ConfigError(
            f"{path} takes batches of {engine.batch_size}, not {batch}",
            hint="leave --static out of sparseml.yolact.export_onnx for other batch sizes",
        )
    if shape is not None and shape[1:] != (3, *engine.image_size):
        raise ConfigError(
            f"{path} takes images of shape {[3, *engine.image_size]}, not {list(shape[1:])}",
            hint="export the model at the size that is to be measured",
        )
    generator = torch.Generator().manual_seed(0)
    return engine, torch.rand(batch, 3, *engine.image_size, generator=generator)


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
