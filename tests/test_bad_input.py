"""What a user can get wrong, on every command: two lines, a documented exit code, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from training import data_of, tiny_config
from yolact import config as config_module
from yolact.checkpoint import Checkpoint, save_checkpoint
from yolact.cli.main import command
from yolact.data.coco import CocoInstances
from yolact.data.transforms import EvalTransform
from yolact.model.weights import init_weights
from yolact.model.yolact import Yolact

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def models(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pth and model.onnx of the tiny network, and broken ones beside them."""
    folder = tmp_path_factory.mktemp("models")
    data = data_of(tiny_shapes)
    classes = CocoInstances(data.train_images, data.train_info, EvalTransform(64)).classes
    config = tiny_config().with_model(num_classes=len(classes))
    torch.manual_seed(0)
    model = Yolact(config.model)
    init_weights(model)
    checkpoint = Checkpoint(model_state=model.state_dict(), classes=classes, config=config)
    save_checkpoint(folder / "model.pth", checkpoint)
    run("export_onnx", "--checkpoint", folder / "model.pth", code=0)
    whole = (folder / "model.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    (folder / "text.pth").write_text("not a checkpoint")
    (folder / "code.pth").write_bytes(pickle.dumps({"model_state_dict": print}))
    (folder / "empty.onnx").write_bytes(b"")
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "other.pth")
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(config_module.CONFIGS, "tiny_config", tiny_config)


@pytest.fixture
def data(tiny_shapes: Path, tmp_path: Path) -> Path:
    """A copy of the sample set that a test may spoil."""
    return Path(shutil.copytree(tiny_shapes, tmp_path / "data"))


def run(name: str, *words: str | Path, code: int, error: str = "", hint: str = "") -> Result:
    """Run a command; check its exit code and, unless it is 0, its last two lines on stderr."""
    result = CliRunner().invoke(command(name), [str(word) for word in words])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    if code:
        lines = [line for line in result.stderr.splitlines() if line]
        assert [line.split(":")[0] for line in lines].count("error") == 1, result.stderr
        assert lines[-2].startswith("error: ") and error in lines[-2], lines[-2]
        assert lines[-1].startswith("hint: ") and hint in lines[-1], lines[-1]
    return result


def train_words(data: Path) -> list[str]:
    paths = data_of(data)
    return [
        *("--config", "tiny", "--device", "cpu", "--batch_size", "2", "--max_iter", "1"),
        *("--train_info", str(paths.train_info), "--train_images", str(paths.train_images)),
        *("--validation_info", str(paths.validation_info), "--num_workers", "0"),
        *("--validation_images", str(paths.validation_images)),
    ]


def first_annotation(coco: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = coco["annotations"][0]
    return record


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda coco: coco.pop("annotations"), "annotations"),
        (lambda coco: coco.pop("categories"), "categories"),
        (lambda coco: coco.update(images=[]), "image"),
        (lambda coco: first_annotation(coco).update(image_id=10**9), "1000000000"),
        (lambda coco: first_annotation(coco).update(category_id=77777), "77777"),
        (lambda coco: first_annotation(coco).update(segmentation=[[1, 2, 3, 4]]), "2 points"),
        (lambda coco: first_annotation(coco).update(bbox=[0, 0, -5, 5]), "bbox"),
        (lambda coco: coco["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
    ],
    ids=[
        *("no annotations", "no categories", "no image", "missing image", "unlisted category"),
        *("polygon of 2 points", "negative box", "absent file"),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_contradictory_annotations_stop_a_run_before_it_begins(
    data: Path, edit: Edit, error: str, part: str
) -> None:
    path = data / "annotations" / f"instances_{part}.json"
    coco = json.loads(path.read_text())
    edit(coco)
    path.write_text(json.dumps(coco))
    result = run("train", *train_words(data), code=3, error=error)
    assert "step 1" not in result.stderr
    assert not list(Path().rglob("*.pth"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x80\x03", b'{"hello": 1}'])
def test_a_file_that_is_not_coco_is_named(data: Path, content: bytes) -> None:
    path = data / "annotations" / "instances_train.json"
    path.write_bytes(content)
    run("train", *train_words(data), code=3, error=str(path))


def test_a_truncated_picture_is_named_by_training_validation_and_annotate(
    data: Path, models: Path
) -> None:
    images = data / "images"
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:400])
    run("train", *train_words(data), code=3, error=str(images))
    info = data / "annotations" / "instances_val.json"
    words: list[str | Path] = ["--validation_info", info, "--validation_images", images, "--no_bar"]
    run("validation", "--trained_model", models / "model.pth", *words, code=3, error=str(images))
    one = next(images.iterdir())
    model: list[str | Path] = ["--model_filepath", models / "model.onnx"]
    run("annotate", *model, "--source", one, code=3, error=str(one))


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("absent.pth", "not found"),
        ("truncated.pth", "truncated.pth"),
        ("text.pth", "text.pth"),
        ("code.pth", "code.pth"),
        ("other.pth", "other.pth"),
    ],
)
def test_broken_checkpoints_are_refused_by_every_command(
    data: Path, models: Path, file: str, error: str
) -> None:
    path = models / file
    run("train", *train_words(data), "--resume", path, code=4)
    run("export_onnx", "--checkpoint", path, code=4)
    info = data / "annotations" / "instances_val.json"
    words: list[str | Path] = ["--validation_info", info, "--validation_images", data / "images"]
    run("validation", "--trained_model", path, *words, code=4)
    run("benchmark", path, code=4)


@pytest.mark.parametrize("file", ["absent.onnx", "truncated.onnx", "empty.onnx"])
def test_broken_onnx_files_are_refused_by_every_command(
    data: Path, models: Path, file: str
) -> None:
    path, image = models / file, next((data / "images").iterdir())
    run("benchmark", path, code=4, error=file)
    run("annotate", "--model_filepath", path, "--source", image, code=4, error=file)


def test_a_checkpoint_of_other_classes_is_told_from_the_data(data: Path, models: Path) -> None:
    for part in ("train", "val"):
        path = data / "annotations" / f"instances_{part}.json"
        coco = json.loads(path.read_text())
        for category in coco["categories"]:
            category["name"] += " of mine"
        path.write_text(json.dumps(coco))
    words = train_words(data)
    run("train", *words, "--resume", models / "model.pth", code=4, error="classes", hint="--ckpt")


def test_recipes_that_do_not_fit_stop_a_run_before_it_begins(data: Path) -> None:
    recipe = Path("recipe.yaml")
    good = (
        "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n"
        "- !ConstantPruningModifier {params: [%s], %s: 0}\n"
    )
    words = [word for word in train_words(data) if word not in ("--max_iter", "1")]
    for text, error in (
        ("", "empty"),
        ("modifiers: []", "no modifiers"),
        (good % ("fpn.lat_layers.9.weight", "start_epoch"), "lat_layers.9"),
        (good % ("fpn.lat_layers.0.weight", "start_epok"), "start_epok"),
        ("modifiers:\n- !GMPruningModifer {params: []}", "GMPruningModifer"),
        ("modifiers: [", "recipe.yaml"),
    ):
        recipe.write_text(text)
        run("train", *words, "--recipe", recipe, code=5, error=error)
    assert not list(Path().rglob("*.pth"))


def test_a_full_disk_costs_nothing_that_was_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, old = tmp_path / "model.pth", tmp_path / "model.onnx"
    shutil.copy(models / "model.pth", checkpoint)
    old.write_text("from an earlier export")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    run("export_onnx", "--checkpoint", checkpoint, code=8, error="space")
    assert old.read_text() == "from an earlier export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.pth"]


@pytest.mark.parametrize(
    ("name", "words", "code", "error"),
    [
        ("export_onnx", ["--image-shape", "3", "64", "96"], 2, "3 64 96"),
        ("export_onnx", ["--image-shape", "1", "64", "64"], 2, "1 64 64"),
        ("export_onnx", ["--opset", "3"], 2, "opset"),
        ("export_onnx", ["--batch-size", "0"], 2, "batch"),
        ("export_onnx", ["--name", "model.txt"], 2, ".txt"),
        ("export_onnx", ["--config", "nothing"], 2, "nothing"),
        ("export_onnx", ["--recipe", "nothing.yaml"], 5, "nothing.yaml"),
        ("export_onnx", ["--image", "nothing.jpg"], 3, "nothing.jpg"),
        ("export_onnx", ["--no_such_option"], 2, "--no_such_option"),
    ],
)
def test_export_refuses_what_it_cannot_do(
    models: Path, tmp_path: Path, name: str, words: list[str], code: int, error: str
) -> None:
    shutil.copy(models / "model.pth", tmp_path / "model.pth")
    run(name, "--checkpoint", tmp_path / "model.pth", *words, code=code, error=error)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--input_shapes", "[1,3,9,9]"], 2, "9"),
        (["--input_shapes", "nonsense"], 2, "nonsense"),
        (["--time", "-1"], 2, "time must be above 0"),
        (["--num_cores", "0"], 2, "0"),
        (["--engine", "tensorrt"], 2, "tensorrt"),
        (["--scenario", "chaos"], 2, "chaos"),
    ],
)
def test_benchmark_refuses_what_it_cannot_do(
    models: Path, words: list[str], code: int, error: str
) -> None:
    run("benchmark", models / "model.onnx", *words, code=code, error=error)


def test_annotate_names_a_source_that_is_none(models: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("no film")
    (tmp_path / "folder").mkdir()
    model: list[str | Path] = ["--model_filepath", models / "model.onnx"]
    for source in ("no.jpg", "*.png", "film.mp4", "folder"):
        run("annotate", *model, "--source", source, code=3, error=source)
