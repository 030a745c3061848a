"""``sparseml.yolact.benchmark``: throughput and latency of a model file, as deepsparse measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.bench import BenchmarkOptions
from yolact.cli.base import FILE, Command, setup_logging
from yolact.cli.inputs import local_path
from yolact.cli.options import options, options_of, read
from yolact.errors import ConfigError
from yolact.model_files import model_kinds

if TYPE_CHECKING:
    from yolact.bench.benchmark import BenchmarkReport
    from yolact.bench.timing import Comparison

_FOR_LANGUAGE_MODELS = (
    click.option("-seq_len", "--sequence_length", hidden=True),
    click.option("-input_ids_len", "--input_ids_length", hidden=True),
    click.option("--no_internal_kv_cache", is_flag=True, hidden=True),
    click.option("--disable_kv_cache_overrides", is_flag=True, hidden=True),
    click.option("--num_kv_cache_tokens", hidden=True),
)
"""Options of ``deepsparse.benchmark`` that cannot apply: known, hidden, refused."""


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.benchmark dense.onnx --vs pruned.onnx -t 30",
)
@options(
    click.argument("model_path", type=FILE),
    click.option("--vs", type=FILE, help="Measure this model too, in turns with the first."),
    *options_of(BenchmarkOptions),
    click.option("-q", "--quiet", is_flag=True, help="Print the results only."),
    click.option(
        "-x", "--export_path", type=FILE, help="Also write the results to this JSON file."
    ),
    *_FOR_LANGUAGE_MODELS,
)
@click.pass_context
def benchmark(
    ctx: click.Context,
    /,
    model_path: Path,
    vs: Path | None,
    quiet: bool,
    export_path: Path | None,
    **given: Any,
) -> None:
    """Measure throughput, latency and size of MODEL_PATH on random images.

    It is an .onnx or .pth file, or a zoo: stub.
    """
    from yolact.bench.benchmark import BenchmarkResult, benchmark_pair
    from yolact.bench.benchmark import benchmark as run
    from yolact.files import require_own_places, require_writable_file, write_text

    setup_logging()
    _refuse_hidden(ctx, given)
    if export_path is not None:
        require_writable_file(export_path)
    chosen = read(BenchmarkOptions, given)
    model_path = local_path(model_path, *model_kinds(chosen.engine))
    vs = vs and local_path(vs, *model_kinds(chosen.engine))
    require_own_places([export_path], [model_path, vs])
    if not quiet:
        paths = " and ".join(str(path) for path in (model_path, vs) if path)
        click.echo(f"Measuring {paths} on {chosen.cores} cores ...", err=True)
    if vs is None:
        result = BenchmarkResult(reports=(run(model_path, chosen),))
    else:
        result = benchmark_pair(model_path, vs, chosen)
    for report in result.reports:
        click.echo("\n".join(report_lines(report)))
    if result.comparison is not None:
        click.echo(speedup_line(result.comparison))
    if export_path is not None:
        write_text(export_path, json.dumps(result.to_dict(), indent=2) + "\n")


def _refuse_hidden(ctx: click.Context, given: dict[str, Any]) -> None:
    for option in ctx.command.params:
        if isinstance(option, click.Option) and option.hidden and given[str(option.name)]:
            raise ConfigError(
                f"--{option.name} is for language models; YOLACT takes images",
                hint="leave it out",
            )


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
