"""Benchmarks: what is timed, what is counted, and what the report says."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from onnx_models import CLASSES, SIDE, save, small_model
from yolact.bench import BenchmarkOptions, parse_input_shapes
from yolact.bench.benchmark import benchmark, benchmark_pair
from yolact.bench.timing import PERCENTILES, STAGES, Speed, run, run_paired, summarize
from yolact.errors import ConfigError
from yolact.exporter.export import export
from yolact.exporter.options import ExportOptions
from yolact.host import physical_cores


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "small.onnx"
    export(small_model(), CLASSES, path)
    return path


def test_the_printed_stages_to_the_letter() -> None:
    times = dict(zip(STAGES, (1.0, 86.5, 2.25, 1234.5678), strict=True))
    assert Speed(times, 2, 7).table() == (
        "median of 7 batches of 2\n"
        "preprocess        1.00 ms   0.1 %\n"
        "network          86.50 ms   6.5 %\n"
        "detect            2.25 ms   0.2 %\n"
        "postprocess    1234.57 ms  93.2 %\n"
        "total          1324.32 ms    1.51 img/s"
    )


def test_statistics_by_hand() -> None:
    latency = summarize([0.010, 0.020, 0.030, 0.040], wall=0.2, batch_size=8)
    assert latency.items_per_sec == pytest.approx(4 * 8 / 0.2)
    assert (latency.iterations, latency.seconds_ran) == (4, 0.2)
    assert latency.mean == pytest.approx(25)
    assert latency.median == pytest.approx(25)
    assert latency.std == pytest.approx(125**0.5)
    assert list(latency.percentiles) == list(PERCENTILES)
    assert latency.percentiles[75.0] == pytest.approx(32.5)


def test_warm_up_is_not_counted() -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.05 if len(calls) == 1 else 0.005)

    latency = run(call, streams=1, seconds=0.1, warmup=0.04, batch_size=2)
    assert len(calls) == latency.iterations + 1
    assert latency.percentiles[99.9] < 50
    assert latency.items_per_sec == pytest.approx(2 * latency.iterations / latency.seconds_ran)


def test_a_call_longer_than_the_time_is_still_measured_once() -> None:
    latency = run(lambda: time.sleep(0.02), streams=1, seconds=0.001, warmup=0, batch_size=1)
    assert latency.iterations == 1


def test_streams_run_at_the_same_time() -> None:
    inside = threading.Barrier(3, timeout=5)
    latency = run(inside.wait, streams=3, seconds=0.0, warmup=0, batch_size=4)
    assert latency.iterations == 3


def test_a_failing_stream_fails_the_run() -> None:
    def call() -> None:
        raise ConfigError("no such shape")

    with pytest.raises(ConfigError, match="no such shape"):
        run(call, streams=2, seconds=0.01, warmup=0, batch_size=1)


def test_a_pair_is_measured_in_turns_and_the_ratio_is_that_of_the_medians() -> None:
    order: list[str] = []

    def first() -> None:
        order.append("a")
        time.sleep(0.010)

    def second() -> None:
        order.append("b")
        time.sleep(0.005)

    pair = run_paired(first, second, seconds=0.1, warmup=0, batch_size=1)
    rounds = order[2:]  # the first two are warm-up
    assert rounds[:4] == ["a", "b", "b", "a"]
    assert rounds.count("a") == rounds.count("b") == pair.first.iterations
    assert pair.speedup == pytest.approx(pair.first.median / pair.second.median)
    assert 1.5 < pair.speedup < 2.5
    assert pair.quartiles[0] <= pair.quartiles[1]


def test_options_default_to_all_cores_and_half_as_many_streams() -> None:
    cores = len(physical_cores())
    options = BenchmarkOptions(scenario="async")
    assert (options.cores, options.streams) == (cores, max(1, cores // 2))
    assert BenchmarkOptions(num_streams=7).streams == 1  # sync has one
    assert BenchmarkOptions(scenario="elastic", num_streams=7).streams == 7
    assert BenchmarkOptions(pinning="none").cpus is None
    assert len(BenchmarkOptions(num_cores=1).cpus or []) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_cores": -1}, "num_cores is -1"),
        ({"num_streams": 0}, "num_streams is 0"),
        ({"seconds": 0}, "time must be above 0"),
        ({"warmup": -1}, "warm-up time not below 0"),
        ({"batch_size": 2, "input_shape": (1, 3, 9, 9)}, "batch size 2 contradicts input shape"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BenchmarkOptions(**options)  # type: ignore[arg-type]
    assert caught.value.hint


def test_input_shapes_are_read_as_deepsparse_writes_them() -> None:
    assert parse_input_shapes("[4,3,550,550]") == (4, 3, 550, 550)
    assert parse_input_shapes("[[4, 3, 550, 550]]") == (4, 3, 550, 550)


@pytest.mark.parametrize("text", ["[1,2,3],[4,5,6]", "4x3", "[1,3,0,550]", "7", "open('x')"])
def test_other_input_shapes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="input shapes") as caught:
        parse_input_shapes(text)
    assert "[1,3,550,550]" in str(caught.value.hint)


def quick(**changes: object) -> BenchmarkOptions:
    return BenchmarkOptions(seconds=0.05, warmup=0, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_report_has_deepsparses_keys(onnx_file: Path) -> None:
    report = benchmark(onnx_file, quick(batch_size=2, num_cores=1)).to_dict()
    result = report.pop("benchmark_result")
    assert {
        "engine": "onnxruntime",
        "orig_model_path": str(onnx_file),
        "model_path": str(onnx_file),
        "batch_size": 2,
        "input_shapes": [[2, 3, SIDE, SIDE]],
        "num_cores": 1,
        "scenario": "sync",
        "num_streams": 1,
        "seconds_to_run": 0.05,
    }.items() <= report.items()
    assert {"version", "scheduler", "fraction_of_supported_ops"} <= set(report)
    assert report["size_on_disk"] == onnx_file.stat().st_size > report["size_on_disk_compressed"]
    percentiles = {"25.0%", "50.0%", "75.0%", "90.0%", "95.0%", "99.0%", "99.9%"}
    times = {"items_per_sec", "seconds_ran", "iterations", "median", "mean", "std"}
    assert set(result) == {"scenario"} | percentiles | times
    assert result["scenario"] == "singlestream"
    assert result["median"] == result["50.0%"] > 0


def test_streams_share_one_engine(onnx_file: Path) -> None:
    report = benchmark(onnx_file, quick(scenario="async", num_streams=3))
    assert report.options.streams == 3 and report.latency.iterations >= 3


def test_checkpoints_are_measured_through_torch(tmp_path: Path) -> None:
    report = benchmark(save(small_model(), tmp_path / "small.pth"), quick())
    assert (report.engine, report.batch_size) == ("torch", 1)


@pytest.mark.slow
def test_a_static_file_decides_the_batch_size(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    export(small_model(), CLASSES, path, ExportOptions(batch_size=2, static=True))
    assert benchmark(path, quick()).batch_size == 2
    with pytest.raises(ConfigError, match="takes batches of 2, not 3") as caught:
        benchmark(path, quick(batch_size=3))
    assert "--static" in str(caught.value.hint)


@pytest.mark.slow
def test_a_checkpoint_is_measured_at_any_size(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "m.pth")
    report = benchmark(path, quick(input_shape=(1, 3, 64, 128)))
    assert (report.engine, report.input_shape) == ("torch", (1, 3, 64, 128))


def test_another_image_size_is_refused(onnx_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes images of shape \[3, 96, 96\], not \[3, 550"):
        benchmark(onnx_file, quick(input_shape=(1, 3, 550, 550)))


@pytest.mark.slow
def test_two_sizes_are_compared_and_said(
    onnx_file: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    benchmark_pair(onnx_file, onnx_file, quick())
    assert package_log.messages == []
    wide = tmp_path / "wide.onnx"
    export(small_model(), CLASSES, wide, ExportOptions(image_size=(64, 128)))
    package_log.clear()
    benchmark_pair(onnx_file, wide, quick())
    (line,) = package_log.messages
    assert "images of 96 x 96" in line and f"{wide} of 64 x 128" in line


@pytest.mark.slow
def test_pairs_need_the_same_batch_size_and_one_stream(onnx_file: Path, tmp_path: Path) -> None:
    result = benchmark_pair(onnx_file, onnx_file, quick())
    (one, two), pair = result.reports, result.comparison
    assert pair is not None
    assert one.latency == pair.first and two.latency == pair.second
    assert one.latency.iterations == two.latency.iterations
    with pytest.raises(ConfigError, match="scenario sync only"):
        benchmark_pair(onnx_file, onnx_file, quick(scenario="async"))
    path = tmp_path / "two.onnx"
    export(small_model(), CLASSES, path, ExportOptions(batch_size=2, static=True))
    with pytest.raises(ConfigError, match="the models take batches of 1 and 2"):
        benchmark_pair(onnx_file, path, quick())
