"""``sparseml.yolact.export_onnx --format``: quantized models for one engine or for all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_models import QUANTIZATION, quantized_model, save
from yolact.cli.export_onnx import export_onnx


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "q.pth"
    return save(quantized_model(), path, recipe=QUANTIZATION)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (60, 80, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    return folder


def export(*arguments: object) -> tuple[Result, Counter[str]]:
    """The command's result, and the node types of the file it wrote."""
    result = CliRunner().invoke(export_onnx, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    path = result.stdout.splitlines()[0].removeprefix("wrote ")
    return result, Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.slow
def test_images_let_the_last_layers_of_a_trained_model_stay_in_integers(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    name = ("--checkpoint", checkpoint, "--name", tmp_path / "m.onnx")
    without, fewer = export(*name)
    assert (
        "4 layers put out floats: with --calibration_images they can stay in integers\n"
        in without.stdout
    )
    result, count = export(*name, "--calibration_images", pictures)
    assert "put out floats" not in result.stdout
    assert "that PyTorch finds" not in result.stdout, "random weights are sure of nothing"
    assert count["QuantizeLinear"] > fewer["QuantizeLinear"]
    assert (fewer["Relu"], count["Relu"]) == (1, 0)


@pytest.mark.slow
def test_the_format_for_openvino_has_no_pair_between_convolution_and_activation(
    checkpoint: Path, tmp_path: Path
) -> None:
    name = ("--checkpoint", checkpoint, "--name", tmp_path / "m.onnx")
    _, plain = export(*name)
    _, count = export(*name, "--format", "openvino")
    assert plain["QuantizeLinear"] - count["QuantizeLinear"] == count["LeakyRelu"] == 22


@pytest.mark.slow
def test_the_format_for_deepsparse_has_integer_convolutions(
    checkpoint: Path, tmp_path: Path
) -> None:
    result, count = export(
        *("--checkpoint", checkpoint, "--name", tmp_path / "m.onnx", "--format", "deepsparse")
    )
    assert count["ConvInteger"] == 55 and "Conv" not in count
    assert "put out floats" not in result.stdout


@pytest.mark.slow
def test_weights_are_rounded_anew_on_request(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export("--checkpoint", checkpoint, "--name", path, "--per_channel", "--reduce_range")
    props = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert props["quantization"] == "int8 qdq, --per_channel, --reduce_range"


@pytest.mark.slow
def test_blocks_are_packed_on_request(checkpoint: Path, tmp_path: Path) -> None:
    name = ("--checkpoint", checkpoint, "--name", tmp_path / "m.onnx")
    _, plain = export(*name)
    _, count = export(*name, "--pack_blocks")
    assert count["Transpose"] > plain["Transpose"]
    assert count - plain == {"Transpose": count["Transpose"] - plain["Transpose"]}


def test_another_format_is_refused(checkpoint: Path) -> None:
    result = CliRunner().invoke(
        export_onnx, ["--checkpoint", str(checkpoint), "--format", "tensorrt"]
    )
    assert result.exit_code == 2
    assert "'tensorrt' is not one of 'qdq', 'openvino', 'deepsparse'" in result.stderr
