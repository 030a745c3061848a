"""The benchmark command: its lines, its file, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnx_models import CLASSES, small_model
from yolact.cli.benchmark import benchmark
from yolact.errors import CheckpointError, ConfigError, StorageError
from yolact.exporter.export import export

QUICK = ["-t", "0.05", "-w", "0", "-ncores", "1"]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "small.onnx"
    export(small_model(), CLASSES, path)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(benchmark, [str(argument) for argument in arguments])


def test_the_lines_are_deepsparses_and_go_to_stdout(onnx_file: Path) -> None:
    result = invoke(onnx_file, *QUICK, "-b", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:3] == [f"Original Model Path: {onnx_file}", "Batch Size: 2", "Scenario: sync"]
    names = [line.split(":")[0] for line in lines[3:]]
    assert names == [
        "Throughput (items/sec)",
        "Latency Mean (ms/batch)",
        "Latency Median (ms/batch)",
        "Latency Std (ms/batch)",
        "Latency 90% (ms/batch)",
        "Latency 95% (ms/batch)",
        "Latency 99% (ms/batch)",
        "Iterations",
        "Engine",
        "Size on Disk (MB)",
        "Size on Disk Compressed (MB)",
        "onnxruntime runs in int8",
        "onnxruntime runs in float",
    ]
    assert re.fullmatch(r"Throughput \(items/sec\): \d+\.\d{4}", lines[3])
    assert result.stderr == f"Measuring {onnx_file} on 1 cores ...\n"


def test_quiet_leaves_stderr_empty(onnx_file: Path) -> None:
    assert invoke(onnx_file, *QUICK, "-q").stderr == ""


def test_two_models_are_compared(onnx_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = invoke(onnx_file, "--vs", onnx_file, *QUICK, "-x", report)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("Original Model Path: ") == 2
    last = result.stdout.splitlines()[-1]
    found = re.fullmatch(r"Speedup of the second model: ([\d.]+) \(quartiles [\d.]+-[\d.]+\)", last)
    assert found, last
    content = json.loads(report.read_text())
    assert content["compared_with"]["model_path"] == str(onnx_file)
    assert content["speedup"]["median"] == pytest.approx(float(found[1]), abs=1e-3)


def test_the_report_is_json(onnx_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.json"
    result = invoke(onnx_file, *QUICK, "--export-path", report, "-s", "async", "-nstreams", "2")
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    assert content["benchmark_result"]["scenario"] == "multistream"
    assert content["num_streams"] == 2


def test_short_spellings_of_deepsparse_work(onnx_file: Path) -> None:
    shape = "[3,3,96,96]"
    result = invoke(onnx_file, *QUICK, "-shapes", shape, "-pin", "none", "-e", "ort", "-q")
    assert result.exit_code == 0, result.output
    assert "Batch Size: 3" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-seq_len", "8"], "--sequence_length"),
        (["--sequence-length", "8"], "--sequence_length"),
        (["-input_ids_len", "2"], "--input_ids_length"),
        (["--no-internal-kv-cache"], "--no_internal_kv_cache"),
        (["--disable_kv_cache_overrides"], "--disable_kv_cache_overrides"),
        (["--num_kv_cache_tokens", "3"], "--num_kv_cache_tokens"),
    ],
)
def test_options_for_language_models_are_refused(
    arguments: list[str], name: str, onnx_file: Path
) -> None:
    result = invoke(onnx_file, *arguments)
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == (
        f"error: {name} is for language models; YOLACT takes images\nhint: leave it out\n"
    )


def test_a_report_never_replaces_the_model(onnx_file: Path) -> None:
    before = onnx_file.read_bytes()
    result = CliRunner().invoke(benchmark, [str(onnx_file), "-x", str(onnx_file)])
    assert result.exit_code == 2 and "would replace a file that is read" in result.stderr
    assert onnx_file.read_bytes() == before


def test_a_missing_model_reads_as_two_lines(tmp_path: Path) -> None:
    result = invoke(tmp_path / "no.onnx", "-q")
    assert result.exit_code == CheckpointError.exit_code
    assert re.fullmatch(r"error: model not found: \S+\nhint: .+\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "0"], "batch_size is 0"),
        (["-i", "nonsense"], "cannot read input shapes 'nonsense'"),
        (["-e", "deepsparse"], "unknown engine 'deepsparse'"),
        (["--config", "resnet"], "unknown config 'resnet'"),
    ],
)
def test_wrong_options_read_as_two_lines(
    arguments: list[str], message: str, onnx_file: Path
) -> None:
    result = invoke(onnx_file, "-q", *arguments)
    assert result.exit_code == ConfigError.exit_code
    assert re.fullmatch(rf"error: {re.escape(message)}\nhint: .+\n", result.stderr)


def test_a_report_that_cannot_be_written_is_known_before_the_measurement(
    onnx_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = invoke(onnx_file, "-t", "600", "-q", "-x", tmp_path / "file" / "report.json")
    assert result.exit_code == StorageError.exit_code
    assert "in the way" in result.stderr
