"""Other programs read our files and find what we find: OpenCV, OpenVINO, DeepSparse.

DeepSparse's packages conflict with ours, and they let pip choose the newest ONNX Runtime;
``scripts/clients`` makes an environment for both, and YOLACT_DEEPSPARSE names its bin folder.
Without it those tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from onnx_models import CLASSES, SIDE, noise, quantized_model, small_model
from yolact.config import DetectConfig
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.engines.openvino import openvino_core
from yolact.exporter.deployment import write_deployment
from yolact.exporter.export import export
from yolact.exporter.options import ExportOptions
from yolact.exporter.trace import generated_picture
from yolact.exporter.verify import sqnr
from yolact.predict.detect import detect
from yolact.predict.pipeline import Selection
from yolact.types import Instances, RawOutputs

HERE = Path(__file__).parent / "clients"
PIPELINE_SIDE = 550
"""DeepSparse's pipeline takes no other."""


@pytest.fixture(scope="module")
def deepsparse() -> Path:
    folder = os.environ.get("YOLACT_DEEPSPARSE")
    if not folder:
        pytest.skip("YOLACT_DEEPSPARSE does not name an environment; see scripts/clients")
    return Path(folder)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a file once for each set of options."""
    made: dict[str, Path] = {}

    def make(
        *, quantized: bool = False, images: Sequence[Tensor] | None = None, **options: Any
    ) -> Path:
        key = f"{quantized} {images is None} {options}"
        if key not in made:
            model = quantized_model() if quantized else small_model()
            path = tmp_path_factory.mktemp("exports") / "m.onnx"
            made[key] = export(model, CLASSES, path, ExportOptions(**options), images=images).path
        return made[key]

    return make


def run_in(deepsparse: Path, script: str, *arguments: object) -> None:
    result = subprocess.run(
        [deepsparse / "python", HERE / script, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def assert_close(expected: dict[str, Any], actual: Any, tolerance: float) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, atol=tolerance, rtol=tolerance, err_msg=name
        )


def assert_alike(expected: dict[str, Any], actual: Any) -> None:
    """Two correct runs of a quantized graph differ by about as much as quantization costs."""
    for name, value in expected.items():
        assert sqnr(torch.from_numpy(value), torch.from_numpy(actual[name])) > 15, name


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"static": True}, {"half": True}])
def test_opencv_computes_the_float_network(
    exports: Callable[..., Path], options: dict[str, bool]
) -> None:
    path = exports(**options)
    images = noise(1, 1)
    expected = run_graph(path, images)
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(images.numpy())
    # OpenCV 4 does not put out the priors, a constant; OpenCV 5 puts out all or nothing.
    names = [name for name in expected if name in net.getUnconnectedOutLayersNames()]
    outputs = dict(zip(names, net.forward(names), strict=True))
    priors = torch.from_numpy(expected.pop("priors"))
    outputs.pop("priors", None)
    assert_close(expected, outputs, 1e-4)
    tensors = {name: torch.from_numpy(value) for name, value in outputs.items()}
    ours = detect(OrtEngine(path)(images), DetectConfig())[0]
    theirs = detect(RawOutputs(**tensors, priors=priors), DetectConfig())[0]
    assert len(theirs.scores) == len(ours.scores) > 10
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"), [({}, 1e-4), ({"half": True}, 1e-4), ({"with_nms": True}, 1e-4)]
)
def test_openvino_computes_every_float_file(
    exports: Callable[..., Path], options: dict[str, bool], tolerance: float
) -> None:
    pytest.importorskip("openvino")
    path = exports(**options)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(str(path), "CPU", settings)
    images = noise(2, 2)
    outputs = compiled({"input": images.numpy()})
    assert_close(run_graph(path, images), outputs, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["qdq", "openvino"])
def test_openvino_computes_integers(exports: Callable[..., Path], layout: str) -> None:
    pytest.importorskip("openvino")
    path = exports(quantized=True, layout=layout, images=[noise(1, seed) for seed in range(2)])
    compiled = openvino_core().compile_model(str(path), "CPU")
    kinds = {
        op.get_rt_info()["layerType"].astype(str): op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
    }
    assert kinds["Convolution"] in ("u8", "i8")
    images = noise(1, 4)
    outputs = compiled({"input": images.numpy()})
    assert_alike(run_graph(path, images), outputs)


@pytest.mark.parametrize(
    "options", [{}, {"half": True}, {"with_nms": True}, {"static": True, "batch_size": 2}]
)
def test_deepsparse_computes_every_float_file(
    deepsparse: Path, exports: Callable[..., Path], options: dict[str, Any], tmp_path: Path
) -> None:
    path = exports(**options)
    images = noise(2, 3)
    np.savez(tmp_path / "sample.npz", input=images.numpy())
    run_in(deepsparse, "deepsparse_run.py", path, tmp_path / "sample.npz", tmp_path / "result.npz")
    result = np.load(tmp_path / "result.npz")
    assert_close(run_graph(path, images), result, 1e-3)
    assert result["supported"] > (0.8 if "with_nms" in options else 0.99)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("layout", ["qdq", "deepsparse"])
def test_deepsparse_computes_integers(
    deepsparse: Path, exports: Callable[..., Path], layout: str, pack: bool, tmp_path: Path
) -> None:
    path = exports(quantized=True, layout=layout, pack_blocks=pack)
    images = noise(1, 4)
    np.savez(tmp_path / "sample.npz", input=images.numpy())
    run_in(deepsparse, "deepsparse_run.py", path, tmp_path / "sample.npz", tmp_path / "result.npz")
    result = np.load(tmp_path / "result.npz")
    assert_alike(run_graph(path, images), result)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"half": True},
        {"with_nms": True},
        {"image_size": PIPELINE_SIDE},
        {"quantized": True},
        {"quantized": True, "layout": "openvino"},
        {"quantized": True, "layout": "deepsparse"},
        {"quantized": True, "pack_blocks": True},
    ],
)
def test_the_newest_onnxruntime_computes_every_file(
    deepsparse: Path, exports: Callable[..., Path], options: dict[str, Any], tmp_path: Path
) -> None:
    path = exports(**options)
    side = options.get("image_size", SIDE)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    np.savez(tmp_path / "sample.npz", input=images.numpy())
    run_in(deepsparse, "onnxruntime_run.py", path, tmp_path / "sample.npz", tmp_path / "result.npz")
    result = np.load(tmp_path / "result.npz")
    if options.get("quantized"):
        assert_alike(run_graph(path, images), result)
    else:
        assert_close(run_graph(path, images), result, 1e-4)


@pytest.mark.parametrize(("quantized", "layout"), [(False, "qdq"), (True, "deepsparse")])
def test_the_pipeline_of_deepsparse_finds_what_we_find(
    deepsparse: Path,
    exports: Callable[..., Path],
    quantized: bool,
    layout: str,
    tmp_path: Path,
) -> None:
    path = exports(quantized=quantized, layout=layout, image_size=PIPELINE_SIDE)
    # Of the network's size: each resizes in its own way.
    image = generated_picture(PIPELINE_SIDE, PIPELINE_SIDE)
    np.save(tmp_path / "image.npy", image)
    run_in(
        *(deepsparse, "deepsparse_pipeline.py", path),
        *(tmp_path / "image.npy", tmp_path / "result.npz"),
    )
    theirs = np.load(tmp_path / "result.npz")
    found = Selection().find(OrtEngine(path), [image])[0].instances()
    ours = Instances(*(values[: len(theirs["scores"])] for values in found))
    assert len(ours.scores) == len(theirs["scores"]) == 50
    np.testing.assert_allclose(theirs["scores"], ours.scores, atol=0.02 if quantized else 1e-3)
    if not quantized:  # of an untrained network: its detections are too alike to survive noise
        assert matched(ours, theirs) >= 48  # those at the end of the list may be one place lower


def matched(ours: Instances, theirs: Any) -> int:
    """How many of ours are among theirs: the class, the box within 2 px, the mask within 2 %."""
    count = 0
    for box, label, mask in zip(
        ours.boxes.numpy(), ours.labels.tolist(), ours.masks.numpy(), strict=True
    ):
        near = (np.abs(theirs["boxes"] - box).max(1) <= 2) & (theirs["classes"] == label)
        masks = theirs["masks"][near]
        union = (masks | mask).sum((1, 2))
        count += bool(((masks ^ mask).sum((1, 2)) <= 0.02 * union + 2).any())
    return count


@pytest.mark.parametrize("quantized", [False, True])
def test_the_benchmark_of_deepsparse_runs_the_deployed_file(
    deepsparse: Path, exports: Callable[..., Path], quantized: bool, tmp_path: Path
) -> None:
    model = write_deployment(exports(quantized=quantized, layout="deepsparse")) / "model.onnx"
    result = subprocess.run(
        [
            *(deepsparse / "deepsparse.benchmark", model, "--time", "1", "--warmup_time", "0"),
            *("--num_cores", "1", "--scenario", "sync", "--export_path", tmp_path / "b.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["engine"].startswith("deepsparse")
    assert report["fraction_of_supported_ops"] == 1.0
    assert report["benchmark_result"]["items_per_sec"] > 1


@pytest.mark.parametrize("engine", ["deepsparse", "onnxruntime"])
def test_the_annotate_command_of_deepsparse_draws_what_it_finds(
    deepsparse: Path, exports: Callable[..., Path], engine: str, tmp_path: Path
) -> None:
    model = exports(quantized=True, layout="deepsparse", image_size=PIPELINE_SIDE)
    picture = generated_picture(PIPELINE_SIDE, PIPELINE_SIDE)
    cv2.imwrite(str(tmp_path / "card.png"), picture[..., ::-1])
    result = subprocess.run(
        [
            *(deepsparse / "deepsparse.instance_segmentation.annotate", "--engine", engine),
            *("--model_filepath", model, "--source", tmp_path / "card.png", "--num_cores", "1"),
            *("--save_dir", tmp_path / "results", "--name", "drawn"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (drawn,) = (tmp_path / "results" / "drawn").iterdir()
    image = np.asarray(cv2.imread(str(drawn)))
    assert image.shape == picture.shape
    assert np.abs(image.astype(int) - picture[..., ::-1]).max() > 100
