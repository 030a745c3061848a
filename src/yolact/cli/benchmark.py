"""``sparseml.yolact.benchmark``: throughput and latency of a model file, as deepsparse measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FILE, Command, setup_logging
from yolact.cli.inputs import local_path
from yolact.errors import ConfigError
from yolact.model_files import model_kinds

if TYPE_CHECKING:
    from yolact.bench.benchmark import BenchmarkOptions, BenchmarkReport
    from yolact.bench.timing import Comparison

_FOR_LANGUAGE_MODELS = (
    "sequence_length",
    "input_ids_length",
    "no_internal_kv_cache",
    "disable_kv_cache_overrides",
    "num_kv_cache_tokens",
)
"""Options of ``deepsparse.benchmark`` that cannot apply: known, hidden, refused."""


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.benchmark dense.onnx --vs pruned.onnx -t 30",
)
@click.argument("model_path", type=FILE)
@click.option("--vs", type=FILE, help="Measure this model too, in turns with the first.")
@click.option("-b", "--batch_size", type=int, help="Images per batch.  [default: 1]")
@click.option(
    "-i", "-shapes", "--input_shapes", default="", help="Shape of the input: [1,3,550,550]."
)
@click.option(
    "-ncores", "--num_cores", type=int, help="Threads to use.  [default: all physical cores]"
)
@click.option(
    "-s",
    "--scenario",
    type=click.Choice(["async", "sync", "elastic"]),
    default="sync",
    show_default=True,
    help="One batch at a time (sync), or several streams at once.",
)
@click.option("-t", "--time", type=float, default=10, show_default=True, help="Seconds to measure.")
@click.option(
    "-w", "--warmup_time", type=float, default=2, show_default=True, help="Seconds before that."
)
@click.option(
    "-nstreams",
    "--num_streams",
    type=int,
    help="Streams of async and elastic.  [default: half the cores]",
)
@click.option(
    "-pin",
    "--thread_pinning",
    type=click.Choice(["none", "core", "numa"]),
    default="core",
    show_default=True,
    help="Stay on one thread per core, on one memory node, or anywhere.",
)
@click.option(
    "-e", "--engine", help="onnxruntime, openvino or torch.  [default: by the file's ending]"
)
@click.option("--config", help="Configuration of a .pth file that carries none.")
@click.option("-q", "--quiet", is_flag=True, help="Print the results only.")
@click.option("-x", "--export_path", type=FILE, help="Also write the results to this JSON file.")
@click.option("-seq_len", "--sequence_length", hidden=True)
@click.option("-input_ids_len", "--input_ids_length", hidden=True)
@click.option("--no_internal_kv_cache", is_flag=True, hidden=True)
@click.option("--disable_kv_cache_overrides", is_flag=True, hidden=True)
@click.option("--num_kv_cache_tokens", hidden=True)
def benchmark(
    model_path: Path,
    vs: Path | None,
    batch_size: int | None,
    input_shapes: str,
    quiet: bool,
    export_path: Path | None,
    **options: Any,
) -> None:
    """Measure throughput, latency and size of MODEL_PATH on random images.

    It is an .onnx or .pth file, or a zoo: stub.
    """
    from yolact.bench.benchmark import benchmark as run
    from yolact.bench.benchmark import benchmark_pair, parse_input_shapes
    from yolact.files import require_writable_file

    setup_logging()
    for name in _FOR_LANGUAGE_MODELS:
        if options.pop(name):
            raise ConfigError(
                f"--{name} is for language models; YOLACT takes images", hint="leave it out"
            )
    if export_path is not None:
        require_writable_file(export_path)
    chosen = _options(
        batch_size=batch_size,
        input_shape=parse_input_shapes(input_shapes) if input_shapes else None,
        **options,
    )
    model_path = local_path(model_path, *model_kinds(chosen.engine))
    vs = vs and local_path(vs, *model_kinds(chosen.engine))
    if not quiet:
        paths = " and ".join(str(path) for path in (model_path, vs) if path)
        click.echo(f"Measuring {paths} on {chosen.cores} cores ...", err=True)
    if vs is None:
        reports = [run(model_path, chosen)]
        comparison = None
    else:
        *reports, comparison = benchmark_pair(model_path, vs, chosen)
    for report in reports:
        click.echo("\n".join(report_lines(report)))
    if comparison is not None:
        click.echo(speedup_line(comparison))
    if export_path is not None:
        _write_json(export_path, reports, comparison)


def report_lines(report: BenchmarkReport) -> list[str]:
    """The lines printed for one model; the first ones are ``deepsparse.benchmark``'s."""
    latency = report.latency
    return [
        f"Original Model Path: {report.path}",
        f"Batch Size: {report.batch_size}",
        f"Scenario: {report.options.scenario}",
        f"Throughput (items/sec): {latency.items_per_sec:.4f}",
        f"Latency Mean (ms/batch): {latency.mean:.4f}",
        f"Latency Median (ms/batch): {latency.median:.4f}",
        f"Latency Std (ms/batch): {latency.std:.4f}",
        *(f"Latency {p}% (ms/batch): {latency.percentiles[p]:.4f}" for p in (90, 95, 99)),
        f"Iterations: {latency.iterations}",
        f"Engine: {report.engine}, {report.options.cores} cores, {report.options.streams} streams",
        f"Size on Disk (MB): {report.size / 1e6:.2f}",
        f"Size on Disk Compressed (MB): {report.compressed / 1e6:.2f}",
        *(report.operators.lines() if report.operators else ()),
    ]


def speedup_line(comparison: Comparison) -> str:
    """How many times faster the second model is, with the spread of single pairs."""
    low, high = comparison.quartiles
    return f"Speedup of the second model: {comparison.speedup:.3f} (quartiles {low:.3f}-{high:.3f})"


def _options(
    time: float, warmup_time: float, thread_pinning: str, config: str | None, **others: Any
) -> BenchmarkOptions:
    from yolact.bench.benchmark import BenchmarkOptions
    from yolact.config import named_config

    return BenchmarkOptions(
        seconds=time,
        warmup=warmup_time,
        pinning=thread_pinning,  # type: ignore[arg-type]  # click has checked the choice
        config=named_config(config) if config else None,
        **others,
    )


def _write_json(path: Path, reports: list[BenchmarkReport], comparison: Comparison | None) -> None:
    from yolact.files import write_text

    first, *others = [report.to_dict() for report in reports]
    if comparison is not None:
        first["compared_with"] = others[0]
        first["speedup"] = {"median": comparison.speedup, "quartiles": comparison.quartiles}
    write_text(path, json.dumps(first, indent=2) + "\n")
