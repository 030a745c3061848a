"""The export command: where the file goes, what is printed, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_models import CLASSES, QUANTIZATION, quantized_model, save, small_model
from yolact.cli.export_onnx import export_onnx, input_side, onnx_path
from yolact.errors import CheckpointError, ConfigError, DataError, RecipeError
from yolact.onnx.weights import graph_sparsity
from yolact.runtime import load_engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(small_model(), tmp_path / "weights" / "small_1_10.pth")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(export_onnx, [str(argument) for argument in arguments])


def test_the_file_appears_beside_the_checkpoint(checkpoint: Path) -> None:
    result = invoke("--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    path = checkpoint.with_suffix(".onnx")
    lines = result.stdout.splitlines()
    assert lines[0] == f"wrote {path}"
    assert re.fullmatch(r"size \d\.\d\d MB, compressed \d\.\d\d MB", lines[1])
    assert lines[2] == "FP32, opset 14, 0.00% of the convolution weights are zero"
    assert lines[3] == "input input [batch, 3, 96, 96]"
    assert re.fullmatch(r"output loc \[batch, 582, 4\] max difference \d\.\d\de-\d\d", lines[4])
    assert lines[7] == "output priors [582, 4] max difference 0.00e+00"
    assert re.fullmatch(r"max difference from PyTorch \d\.\d\de-0\d", lines[-1])
    assert load_engine(path).classes == CLASSES
    assert sorted(p.name for p in path.parent.iterdir()) == ["small_1_10.onnx", "small_1_10.pth"]


@pytest.mark.parametrize(
    ("name", "save_dir", "expected"),
    [
        (None, None, "weights/a.onnx"),
        (None, "out", "out/a.onnx"),
        ("b.onnx", None, "b.onnx"),
        ("d/b.onnx", None, "d/b.onnx"),
        ("d", None, "d/model.onnx"),
        ("d/e", "out", "out/d/e/model.onnx"),
        ("b.onnx", "out", "out/b.onnx"),
    ],
)
def test_name_is_a_path_and_a_name_without_ending_a_folder(
    name: str | None, save_dir: str | None, expected: str
) -> None:
    path = onnx_path(
        Path("weights/a.pth"), Path(name) if name else None, Path(save_dir) if save_dir else None
    )
    assert path == Path(expected)


def test_another_ending_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--name model\.pb ends in \.pb"):
        onnx_path(Path("a.pth"), Path("model.pb"), None)


def test_shape_and_size_are_two_spellings_of_one_number() -> None:
    assert input_side(None, None) is None
    assert input_side(None, 400) == 400
    assert input_side((3, 400, 400), None) == input_side((3, 400, 400), 400) == 400
    with pytest.raises(ConfigError, match="--image-shape 3 400 300 cannot be exported"):
        input_side((3, 400, 300), None)
    with pytest.raises(ConfigError, match="--image-shape 1 400 400 cannot be exported"):
        input_side((1, 400, 400), None)
    with pytest.raises(ConfigError, match="--image-shape says 400 and --image_size 550"):
        input_side((3, 400, 400), 550)


def test_options_reach_the_file(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(
        *("--checkpoint", checkpoint, "-S", 3, 128, 128, "-b", 2, "--static", "--opset", 17),
        *("--name", "deploy", "--save-dir", tmp_path / "out", "--compress", "gz"),
    )
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / "deploy" / "model.onnx"
    engine = load_engine(path)
    assert (engine.image_size, engine.batch_size) == ((128, 128), 2)
    assert onnx.load(str(path)).opset_import[0].version == 17
    packed = path.with_name("model.onnx.gz")
    assert result.stdout.splitlines()[-1] == f"wrote {packed}"
    assert load_engine(packed).classes == CLASSES


def test_dashes_and_underscores_are_one(checkpoint: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--batch_size", 1, "--image-size", 96)
    assert result.exit_code == 0, result.output


def test_a_quantized_checkpoint_becomes_int8(tmp_path: Path) -> None:
    checkpoint = save(quantized_model(), tmp_path / "q.pth", recipe=QUANTIZATION)
    result = invoke("--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    assert "INT8, opset 14" in result.stdout
    assert re.search(r"output loc .* max difference \S+, SQNR \d+\.\d dB\n", result.stdout)
    graph = onnx.load(str(checkpoint.with_suffix(".onnx")))
    assert {p.key: p.value for p in graph.metadata_props}["recipe"] == QUANTIZATION


def test_a_quantized_checkpoint_without_recipe_takes_the_one_given(tmp_path: Path) -> None:
    checkpoint = save(quantized_model(), tmp_path / "q.pth")
    result = invoke("--checkpoint", checkpoint)
    assert result.exit_code == CheckpointError.exit_code
    assert "holds no recipe" in result.stderr
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QUANTIZATION)
    result = invoke("--checkpoint", checkpoint, "--recipe", recipe, "--skip-qat-convert")
    assert result.exit_code == 0, result.output


PRUNING = """
pruning_modifiers:
  - !GMPruningModifier
      params: ["re:backbone.*0.weight", "re:proto_net.*weight", "re:fpn.*weight"]
      init_sparsity: 0.2
      final_sparsity: 0.75
      start_epoch: 0.0
      end_epoch: 3.0
      update_frequency: 0.5
"""


def test_a_pruning_recipe_can_be_applied_in_one_shot(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PRUNING)
    result = invoke("--checkpoint", checkpoint, "--one-shot", recipe)
    assert result.exit_code == 0, result.output
    graph = onnx.load(str(checkpoint.with_suffix(".onnx")))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert (weights["proto_net.0.weight"] == 0).mean() == pytest.approx(0.75, abs=0.001)
    assert 0.4 < graph_sparsity(graph) < 0.75
    assert "GMPruningModifier" in {p.key: p.value for p in graph.metadata_props}["recipe"]


def test_quantizing_in_one_shot_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QUANTIZATION)
    result = invoke("--checkpoint", checkpoint, "-o", recipe)
    assert result.exit_code == ConfigError.exit_code
    assert re.fullmatch(
        r"error: \S+ quantizes, which cannot be done in one shot\nhint: train it .+\n",
        result.stderr,
    )
    assert not checkpoint.with_suffix(".onnx").exists()


def test_a_missing_checkpoint_reads_as_two_lines(tmp_path: Path) -> None:
    result = invoke("--checkpoint", tmp_path / "no.pth")
    assert result.exit_code == CheckpointError.exit_code
    assert re.fullmatch(r"error: checkpoint not found: \S+\nhint: .+\n", result.stderr)


def test_a_missing_recipe_is_named(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--recipe", tmp_path / "no.md")
    assert result.exit_code == RecipeError.exit_code
    assert "no.md" in result.stderr


def test_a_missing_picture_is_named(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--image", tmp_path / "no.jpg")
    assert result.exit_code == DataError.exit_code
    assert "no.jpg" in result.stderr


def test_a_checkpoint_is_needed() -> None:
    result = invoke()
    assert result.exit_code == 2 and "Missing option '--checkpoint'" in result.stderr
