"""The OpenVINO engine, and what engines say about the operators they run in integers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import cv2
import pytest
import torch
from click.testing import CliRunner

from onnx_models import CLASSES, SIDE, noise, outputs_of, quantized_model, small_model
from yolact.cli.annotate import annotate
from yolact.cli.validation import validation
from yolact.engines import ENGINES, load_engine
from yolact.engines.base import Operators, ReportsOperators
from yolact.engines.compress import compress_file
from yolact.engines.onnxruntime import OrtEngine
from yolact.engines.openvino import OpenVinoEngine
from yolact.errors import CheckpointError
from yolact.exporter.export import export
from yolact.exporter.options import ExportOptions, Layout
from yolact.exporter.trace import generated_picture
from yolact.exporter.verify import sqnr

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "m.onnx"
    export(small_model(), CLASSES, path)
    return path


def quantized(folder: Path, layout: Layout) -> Path:
    path = folder / f"{layout}.onnx"
    export(quantized_model(), CLASSES, path, ExportOptions(layout=layout), images=[noise(2, 3)])
    return path


@pytest.mark.slow
def test_it_computes_what_pytorch_computes(dense: Path) -> None:
    engine = load_engine(dense, engine="openvino", num_cores=1)
    assert isinstance(engine, OpenVinoEngine)
    assert (engine.classes, engine.image_size, engine.batch_size) == (CLASSES, (SIDE, SIDE), None)
    images = noise(2, 0)
    for a, b in zip(outputs_of(small_model(), images), engine(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_annotate_and_validation_run_it_too(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (annotate, validation):
        (option,) = (o for o in command.params if o.name == "engine")
        assert isinstance(option.type, click.Choice)
        assert set(ENGINES) <= set(option.type.choices)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("card.png", generated_picture(90, 120))
    words = ["--model_filepath", str(dense), "--source", "card.png", "--score_threshold", "0.3"]
    lines = []
    for engine in ("openvino", "onnxruntime"):
        result = CliRunner().invoke(annotate, [*words, "--engine", engine])
        assert result.exit_code == 0, result.output
        assert Path("annotation-results", f"{engine}-annotations").is_dir()
        lines.append(result.stdout.splitlines()[0])
    assert lines[0] == lines[1] != ""


@pytest.mark.slow
def test_compressed_files_run_as_they_are(dense: Path) -> None:
    packed = OpenVinoEngine(compress_file(dense, "zst"), num_cores=1)
    images = noise(1, 0)
    for a, b in zip(OpenVinoEngine(dense, num_cores=1)(images), packed(images), strict=True):
        assert torch.equal(a, b)


def test_threads_do_not_get_each_others_results(dense: Path) -> None:
    engine = OpenVinoEngine(dense, num_cores=1)
    batches = [noise(1, seed) for seed in range(6)]
    alone = [engine(batch).conf for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        together = [outputs.conf for outputs in pool.map(engine, batches)]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["qdq", "openvino"])
def test_all_convolutions_run_in_integers_in_openvino(layout: Layout, tmp_path: Path) -> None:
    path = quantized(tmp_path, layout)
    engine = OpenVinoEngine(path, num_cores=1)
    operators = engine.operators()
    assert operators.integer["Convolution"] == 55
    assert "Convolution" not in operators.floating
    images = noise(1, 3)
    for name, a, b in zip(
        ("loc", "conf", "mask"), OrtEngine(path)(images), engine(images), strict=False
    ):
        assert sqnr(a, b) > 20, name


@pytest.mark.slow
def test_onnxruntime_runs_all_but_resizing_softmax_and_tanh_in_integers(tmp_path: Path) -> None:
    operators = OrtEngine(quantized(tmp_path, "qdq")).operators()
    assert operators.floating == {"Resize": 3, "Softmax": 1, "Tanh": 1}
    assert operators.integer == {
        "QLinearConv": 55,
        "QLinearLeakyRelu": 22,
        "QLinearAdd": 10,
        "Reshape": 15,
        "Concat": 3,
        "Transpose": operators.integer["Transpose"],
    }


def test_a_dense_model_runs_in_floats(dense: Path) -> None:
    for engine in (OrtEngine(dense), OpenVinoEngine(dense, num_cores=1)):
        operators = engine.operators()
        assert not operators.integer and operators.floating
        assert operators.lines()[0] == f"{engine.name} runs in int8: nothing"


def test_what_runs_is_listed_most_frequent_first() -> None:
    operators = Operators("onnxruntime", {"A": 1, "C": 2, "B": 2}, {})
    assert operators.lines() == [
        "onnxruntime runs in int8: 2 B, 2 C, 1 A",
        "onnxruntime runs in float: nothing",
    ]


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_unreadable_files_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.onnx is not a readable ONNX model: ") as caught:
        OpenVinoEngine(path)
    assert "export the model again" in str(caught.value.hint)


MISSING = """
import sys
sys.modules["openvino"] = None
from pathlib import Path
from yolact.engines import load_engine
from yolact.errors import ConfigError
try:
    load_engine(Path(sys.argv[1]), engine="openvino")
except ConfigError as error:
    print(error, error.hint, sep=": ")
"""


@pytest.mark.slow
def test_where_it_is_missing_the_way_to_get_it_is_named(dense: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MISSING, str(dense)], capture_output=True, text=True
    )
    assert result.stdout.startswith("the engine openvino is not installed: pip install "), result
    assert "sparseml-yolact[openvino]" in result.stdout


@pytest.mark.slow
def test_weights_with_the_channels_last_are_integers_as_before(tmp_path: Path) -> None:
    found = []
    for pack in (False, True):
        path = tmp_path / f"{pack}.onnx"
        images = [noise(1, seed) for seed in range(2)]
        export(quantized_model(), CLASSES, path, ExportOptions(pack_blocks=pack), images=images)
        loaded = load_engine(path, engine="openvino")
        assert isinstance(loaded, ReportsOperators)
        found.append(loaded.operators())
    assert found[0] == found[1]
    assert found[0].integer["Convolution"] > 50


SIGNALLED = """
import faulthandler, os, signal, sys
sys.modules["openvino_telemetry"] = None
faulthandler.enable()
from pathlib import Path
from yolact.engines import load_engine
engine = load_engine(Path(sys.argv[1]), engine="openvino")
engine = load_engine(Path(sys.argv[1]), engine="openvino")
del engine
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.slow
def test_ctrl_c_is_handled_after_engines_have_come_and_gone(dense: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(dense)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
