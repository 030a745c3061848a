"""The export command: where the file goes, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_models import CLASSES, QUANTIZATION, quantized_model, save, small_model
from yolact.cli.export_onnx import export_onnx, input_size, onnx_path
from yolact.engines import load_engine
from yolact.engines.compress import compressed_size
from yolact.engines.onnx_file import ModelMetadata
from yolact.engines.onnxruntime import OrtEngine
from yolact.errors import CheckpointError, ConfigError, DataError, RecipeError, StorageError
from yolact.exporter.graph import graph_sparsity
from yolact.exporter.trace import generated_picture
from yolact.files import Compression


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
    assert re.fullmatch(r"size \d\.\d\d MB, compressed gz \d\.\d\d MB, zst \d\.\d\d MB", lines[1])
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


def test_shape_and_size_are_two_spellings_of_one_thing() -> None:
    assert input_size(None, None) is None
    assert input_size(None, 400) == 400
    assert input_size((3, 400, 400), None) == input_size((3, 400, 400), 400) == (400, 400)
    assert input_size((3, 96, 160), None) == input_size((3, 96, 160), (96, 160)) == (96, 160)
    with pytest.raises(ConfigError, match="--image-shape 1 400 400 cannot be exported"):
        input_size((1, 400, 400), None)
    with pytest.raises(ConfigError, match="--image-shape says 400 x 400 and --image_size 550"):
        input_size((3, 400, 400), 550)
    with pytest.raises(ConfigError, match="says 160 x 96 and --image_size 96 x 160"):
        input_size((3, 160, 96), (96, 160))


def test_options_reach_the_file(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(
        *("--checkpoint", checkpoint, "-S", 3, 128, 128, "-b", 2, "--static", "--opset", 17),
        *("--name", "deploy", "--save-dir", tmp_path / "out", "--compress", "gz"),
        *("--compress", "zst"),
    )
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / "deploy" / "model.onnx"
    engine = load_engine(path)
    assert (engine.image_size, engine.batch_size) == ((128, 128), 2)
    assert onnx.load(str(path)).opset_import[0].version == 17
    endings = ("gz", "zst")
    packed = [path.with_name(f"model.onnx.{ending}") for ending in endings]
    lines = result.stdout.splitlines()
    assert lines[:3] == [f"wrote {file}" for file in (path, *packed)]
    sizes = [f"{e} {f.stat().st_size / 1e6:.2f} MB" for e, f in zip(endings, packed, strict=True)]
    assert lines[3].endswith(f" MB, compressed {', '.join(sizes)}")
    for file in packed:
        assert load_engine(file).classes == CLASSES


@pytest.mark.slow
def test_an_input_of_two_sides_is_told_with_its_priors(checkpoint: Path) -> None:
    base = 77
    words = ("--image-shape", 3, 96, 128, "--image_size", 96, 128, "--prior_base_size", base)
    result = invoke("--checkpoint", checkpoint, *words)
    assert result.exit_code == 0, result.output
    assert "input input [batch, 3, 96, 128]" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{checkpoint}: trained at 96 px, now used at 96 x 128 px: priors have")
    assert "(prior_base_size 77, was 128)" in line
    metadata = OrtEngine(checkpoint.with_suffix(".onnx")).metadata
    assert metadata.config is not None and metadata.image_size == (96, 128)
    assert metadata.config.model.prior_base_size == base


@pytest.mark.slow
def test_a_deployment_folder_is_written_beside_the_file(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--save_dir", tmp_path / "out", "--deployment")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"wrote {tmp_path / 'out' / 'deployment'}"
    config = json.loads((tmp_path / "out" / "deployment" / "config.json").read_text("utf-8"))
    assert [c["name"] for c in config["classes"]] == list(CLASSES.names)


def test_a_folder_that_is_in_use_is_refused_before_the_export(checkpoint: Path) -> None:
    (checkpoint.parent / "deployment").mkdir()
    (checkpoint.parent / "deployment" / "notes.txt").write_text("mine")
    result = invoke("--checkpoint", checkpoint, "--deployment")
    assert result.exit_code == StorageError.exit_code
    assert result.stderr == (
        f"error: {checkpoint.parent / 'deployment'} holds notes.txt, which no export has written\n"
        "hint: move it away, or choose another --save-dir\n"
    )
    assert not checkpoint.with_suffix(".onnx").exists()


def test_detection_inside_is_reported_output_by_output(checkpoint: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--with-nms", "--half", "--deployment")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r"inside loc \[batch, 582, 4\] max difference \S+, SQNR \d+\.\d dB", lines[5]
    )
    assert lines[10:14] == [
        "output boxes [batch, 100, 4]",
        "output scores [batch, 100]",
        "output classes [batch, 100]",
        "output masks [batch, 100, 24, 24]",
    ]
    assert re.fullmatch(r"finds the \d+ objects that PyTorch finds in the sample", lines[14])
    folder = checkpoint.parent / "deployment"
    picture = folder.parent / "picture.png"
    cv2.imwrite(str(picture), generated_picture(60, 80))
    done = subprocess.run(
        [sys.executable, folder / "run.py", picture, folder.parent / "result.png"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r".+ 0\.\d{4} \d+ \d+ \d+ \d+ \d+ pixels", first)
    assert (folder.parent / "result.png").is_file()


@pytest.mark.slow
def test_nothing_is_compressed_twice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def count(path: Path, kind: Compression) -> int:
        counted.append(kind)
        return compressed_size(path, kind)

    monkeypatch.setattr("yolact.exporter.export.compressed_size", count)
    assert invoke("--checkpoint", checkpoint, "--compress", "gz").exit_code == 0
    assert counted == ["zst"]


def test_dashes_and_underscores_are_one(checkpoint: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--batch_size", 1, "--image-size", 96)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_quantized_checkpoint_becomes_int8(tmp_path: Path) -> None:
    checkpoint = save(quantized_model(), tmp_path / "q.pth", recipe=QUANTIZATION)
    result = invoke("--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    assert "INT8, opset 14" in result.stdout
    assert re.search(r"output loc .* max difference \S+, SQNR \d+\.\d dB\n", result.stdout)
    graph = onnx.load(str(checkpoint.with_suffix(".onnx")))
    assert {p.key: p.value for p in graph.metadata_props}["recipe"] == QUANTIZATION


@pytest.mark.slow
def test_a_quantized_checkpoint_without_recipe_takes_the_one_given(tmp_path: Path) -> None:
    checkpoint = save(quantized_model(), tmp_path / "q.pth")
    result = invoke("--checkpoint", checkpoint)
    assert result.exit_code == CheckpointError.exit_code
    assert "holds no recipe" in result.stderr
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QUANTIZATION)
    result = invoke("--checkpoint", checkpoint, "--recipe", recipe, "--skip-qat-convert")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("option", "recipe", "message"),
    [
        ("--recipe", "- !QuantizationModifer\n    start_epoch: 1.0", "unknown modifier"),
        ("--recipe", "- !QuantizationModifier\n    scheme: int8", "scheme is 'int8'"),
        ("--recipe", "- quantize", "'quantize' in a list of modifiers is not one"),
        ("--recipe", "- !LayerThinningModifier\n    strategy: x", "LayerThinningModifier"),
        ("--one-shot", "- quantize", "'quantize' in a list of modifiers is not one"),
        ("--one-shot", "[]", "contains no modifiers"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    option: str, recipe: str, message: str, checkpoint: Path
) -> None:
    result = invoke("--checkpoint", checkpoint, option, f"modifiers:\n  {recipe}\n")
    assert result.exit_code == RecipeError.exit_code, result.output
    assert message in result.stderr
    assert not checkpoint.with_suffix(".onnx").exists()


@pytest.mark.slow
def test_the_recipe_of_the_weights_may_have_what_only_sparseml_can_do(checkpoint: Path) -> None:
    recipe = "modifiers:\n  - !RigLPruningModifier\n    final_sparsity: 0.5\n"
    result = invoke("--checkpoint", checkpoint, "--recipe", recipe)
    assert result.exit_code == 0, result.output
    graph = onnx.load(str(checkpoint.with_suffix(".onnx")))
    assert "RigLPruningModifier" in {p.key: p.value for p in graph.metadata_props}["recipe"]


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


@pytest.mark.slow
def test_a_pruning_recipe_can_be_applied_in_one_shot(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PRUNING)
    result = invoke("--checkpoint", checkpoint, "--one-shot", recipe)
    assert result.exit_code == 0, result.output
    graph = onnx.load(str(checkpoint.with_suffix(".onnx")))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert (weights["proto_net.0.weight"] == 0).mean() == pytest.approx(0.75, abs=0.001)
    assert 0.4 < graph_sparsity(graph) < 0.75
    assert re.search(r"^one shot: \d+ layers pruned$", result.stdout, re.MULTILINE)
    assert "GMPruningModifier" in {p.key: p.value for p in graph.metadata_props}["recipe"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", "abc")


def draw(folder: Path, letters: str) -> Path:
    """Pictures whose content depends on their name only, written in the order of ``letters``."""
    folder.mkdir()
    for letter in letters:
        picture = np.random.default_rng(ord(letter)).integers(0, 255, (9, 12, 3), np.uint8)
        cv2.imwrite(str(folder / f"{letter}.png"), cv2.resize(picture, (120, 90)))
    return folder


@pytest.mark.slow
def test_quantizing_in_one_shot_takes_images(checkpoint: Path, pictures: Path) -> None:
    result = invoke(
        *("--checkpoint", checkpoint, "-o", "yolact.one_shot_int8"),
        *("--calibration-images", pictures, "--calibration-count", 2),
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""  # the progress bar is for terminals
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"INT8, opset 14, \d\.\d\d% of the convolution weights are zero", lines[2])
    assert lines[3] == "one shot: 102 ranges from 2 images"
    assert re.fullmatch(r"output loc .* max difference \S+, SQNR \d+\.\d dB", lines[5])
    metadata = ModelMetadata.from_props(
        {p.key: p.value for p in onnx.load(str(checkpoint.with_suffix(".onnx"))).metadata_props}
    )
    assert metadata.one_shot == "one shot: 102 ranges from 2 images"
    assert metadata.recipe is not None and "strategy: channel" in metadata.recipe


@pytest.mark.slow
def test_the_same_images_give_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    files = []
    for index, letters in enumerate(("abc", "cab")):
        folder = draw(tmp_path / str(index), letters)
        name = tmp_path / f"{index}.onnx"
        result = invoke(
            *("--checkpoint", checkpoint, "-o", "yolact.one_shot_int8", "--name", name),
            *("--calibration_images", folder if index else f"{folder}/*.png"),
        )
        assert result.exit_code == 0, result.output
        files.append(name.read_bytes())
    assert files[0] == files[1]


def test_quantizing_in_one_shot_without_images_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QUANTIZATION)
    result = invoke("--checkpoint", checkpoint, "-o", recipe)
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == (
        f"error: {recipe} quantizes, and the ranges of activations are found on images\n"
        "hint: give --calibration_images a folder of about a hundred that are like those the "
        "model will see\n"
    )
    assert not checkpoint.with_suffix(".onnx").exists()


def test_calibration_images_for_a_float_model_are_refused(checkpoint: Path, pictures: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--calibration_images", pictures)
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == (
        "error: --calibration_images has no use for a model that is not quantized\n"
        "hint: add --one-shot yolact.one_shot_int8, or another recipe that quantizes\n"
    )


def test_unreadable_calibration_images_are_named(checkpoint: Path, pictures: Path) -> None:
    (pictures / "b.png").write_bytes(b"")
    result = invoke(
        *("--checkpoint", checkpoint, "-o", "yolact.quantized", "--calibration_images", pictures)
    )
    assert result.exit_code == DataError.exit_code
    assert result.stderr == (
        "error: 1 of 3 calibration images cannot be read: "
        f"cannot decode image {pictures / 'b.png'}, an empty file\n"
        "hint: replace or remove these files\n"
    )
    assert not checkpoint.with_suffix(".onnx").exists()


def test_no_calibration_images_is_not_a_number_of_them(checkpoint: Path, pictures: Path) -> None:
    result = invoke("--checkpoint", checkpoint, "--calibration_count", 0)
    assert result.exit_code == ConfigError.exit_code
    assert "Invalid value for '--calibration_count': 0 is not in the range x>=1" in result.stderr


@pytest.mark.parametrize("option", ["--name", "--compress"])
def test_an_export_never_replaces_its_checkpoint(
    checkpoint: Path, tmp_path: Path, option: str
) -> None:
    link = tmp_path / ("b.onnx" if option == "--name" else "b.onnx.gz")
    link.symlink_to(checkpoint)
    before = checkpoint.read_bytes()
    arguments = ["--checkpoint", checkpoint, "--name", tmp_path / "b.onnx", "--compress", "gz"]
    result = CliRunner().invoke(export_onnx, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and "would replace a file that is read" in result.stderr
    assert checkpoint.read_bytes() == before and link.is_symlink()


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
