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
from yolact import presets
from yolact.checkpoint import Checkpoint, save_checkpoint
from yolact.cli import command
from yolact.data.coco import CocoInstances
from yolact.data.transforms import EvalTransform
from yolact.engines.torch import TorchEngine
from yolact.errors import StorageError
from yolact.model.weights import init_weights
from yolact.model.yolact import Yolact
from yolact.training.logs import JsonLines

Edit = Callable[[dict[str, Any]], object]
Words = list[str | Path]


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
    monkeypatch.setitem(presets.CONFIGS, "tiny_config", tiny_config)


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


def gone(image: dict[str, Any]) -> dict[str, Any]:
    return {**image, "file_name": "gone.jpg"}


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
        (lambda coco: coco.update(images=[gone(image) for image in coco["images"]]), "gone.jpg"),
        (lambda coco: coco["images"][0].update(width=1), "annotations say 1 x "),
    ],
    ids=[
        *("no annotations", "no categories", "no image", "missing image", "unlisted category"),
        *("polygon of 2 points", "negative box", "absent files", "other size"),
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
    result = run("train", *train_words(data), "--strict", code=3, error=error)
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
    words: Words = ["--validation_info", info, "--validation_images", images, "--no_bar"]
    run("validation", "--trained_model", models / "model.pth", *words, code=3, error=str(images))
    one = next(images.iterdir())
    model: Words = ["--model_filepath", models / "model.onnx"]
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
    words: Words = ["--validation_info", info, "--validation_images", data / "images"]
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


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, old = tmp_path / "model.pth", tmp_path / "model.onnx"
    shutil.copy(models / "model.pth", checkpoint)
    old.write_text("from an earlier export")

    monkeypatch.setattr(os, "replace", full)
    run("export_onnx", "--checkpoint", checkpoint, code=8, error="space")
    assert old.read_text() == "from an earlier export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.pth"]


@pytest.mark.parametrize(
    ("name", "words", "code", "error"),
    [
        ("export_onnx", ["--image-shape", "3", "64", "5000"], 2, "64 x 5000"),
        ("export_onnx", ["--image_size", "64", "10"], 2, "64 x 10"),
        ("export_onnx", ["--image_size", "wide"], 2, "'wide'"),
        ("export_onnx", ["--prior_base_size", "0"], 2, "--prior_base_size"),
        ("export_onnx", ["--prior_base_size", "0.75"], 2, "--prior_base_size"),
        ("export_onnx", ["--prior_base_size", "1e30"], 2, "--prior_base_size"),
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
    model: Words = ["--model_filepath", models / "model.onnx"]
    for source in ("no.jpg", "*.png", "film.mp4", "folder"):
        run("annotate", *model, "--source", source, code=3, error=source)


# Exact words, and what must not be lost


def told(result: Result) -> tuple[str, str]:
    """The error and the hint, without their marks."""
    lines = [line for line in result.stderr.splitlines() if line]
    return lines[-2].removeprefix("error: "), lines[-1].removeprefix("hint: ")


def spoil(data: Path, part: str, edit: Edit) -> Path:
    """Change one of the annotation files."""
    path = data / "annotations" / f"instances_{part}.json"
    coco = json.loads(path.read_text())
    edit(coco)
    path.write_text(json.dumps(coco))
    return path


@pytest.mark.parametrize(
    ("edit", "error", "hint"),
    [
        (
            lambda coco: first_annotation(coco).update(image_id=[1]),
            "annotation 5000001 in {} has image_id [1], which is not listed",
            "add the image to the list of images, or remove the annotation",
        ),
        (
            lambda coco: first_annotation(coco).update(category_id="cat"),
            "annotation 5000001 in {} has category_id 'cat', which is not listed",
            "add the category to the list of categories, or correct category_id",
        ),
        (
            lambda coco: first_annotation(coco).update(area="large"),
            "annotation 5000001 in {} has an impossible area: 'large'",
            "area is in pixels",
        ),
        (
            lambda coco: first_annotation(coco).update(segmentation=[[1, 2, 3, 4, None, 6]]),
            "annotation 5000001 in {} has a mask that cannot be read: "
            "a malformed polygon: [1, 2, 3, 4, None, 6]",
            "give [[x, y, x, y, ...], ...], three points or more a polygon, or RLE: {size, counts}",
        ),
        (
            lambda coco: coco["images"][0].update(height=-3),
            "image 500001 in {} has no valid height: -3",
            "give height and width in pixels, at least 1",
        ),
        (
            lambda coco: coco.pop("images"),
            "{} is not a COCO file: it has no list of images, its keys are 'info', 'annotations', "
            "'categories'",
            "give a COCO instances file: images, annotations and categories in one JSON object",
        ),
    ],
)
def test_entries_that_make_no_sense_are_named(
    data: Path, models: Path, edit: Edit, error: str, hint: str
) -> None:
    path = spoil(data, "val", edit)
    words: Words = ["--trained_model", models / "model.pth", "--dataset", data, "--strict"]
    assert told(run("validation", *words, code=3)) == (error.format(path), hint)


def test_json_nested_too_deeply_is_no_coco_file(data: Path) -> None:
    path = data / "annotations" / "instances_train.json"
    path.write_text("[" * 100_000)
    run("train", *train_words(data), code=3, error=f"{path} is not JSON: ")


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("train", "give annotations of the objects to learn"),
        ("val", "without any, use --validation_epoch -1"),
    ],
)
def test_data_without_objects_is_no_data_to_train_on(data: Path, part: str, hint: str) -> None:
    path = spoil(data, part, lambda coco: coco.update(annotations=[]))
    error = f"{path} has no objects, only images or crowds"
    assert told(run("train", *train_words(data), code=3)) == (error, hint)


def test_all_broken_images_are_counted_at_once(data: Path) -> None:
    images = data / "images"
    (images / "train_000001.jpg").write_bytes(b"")
    (images / "train_000004.jpg").write_text("<html>404</html>")
    (images / "train_000005.jpg").write_bytes((images / "train_000005.jpg").read_bytes()[:-300])
    info = data / "annotations" / "instances_train.json"
    error, hint = told(run("train", *train_words(data), code=3))
    assert error.startswith(f"{info}: 3 of 7 images cannot be used (first: cannot decode image ")
    for text in ("train_000001.jpg, an empty file;", "000004.jpg, an HTML page;", "000005.jpg is"):
        assert text in error
    assert hint.endswith("or leave them out with --on_bad_image skip")
    run("train", *train_words(data), "--on_bad_image", "skip", "--dry-run", code=0)
    (images / "train_000001.jpg").unlink()
    (images / "train_000001.jpg").mkdir()
    skip = run("train", *train_words(data), "--on_bad_image", "skip", "--dry-run", code=0)
    assert f"{info}: 1 of 7 images are not in {images}, left out" in skip.stderr
    assert f"{info}: 2 of 6 images cannot be used, left out" in skip.stderr
    assert "4 images to train on" in skip.stdout


def test_one_broken_image_does_not_stop_a_folder(data: Path, models: Path) -> None:
    images = data / "images"
    broken = images / "train_000002.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    told_twice = ("1 of 10 images could not be read", "their names are listed above")
    words: Words = ["--trained_model", models / "model.pth", "--images", f"{images}:out"]
    result = run("validation", *words, code=3)
    assert told(result) == told_twice
    assert f"skipped: image {broken} is truncated or damaged" in result.stderr
    assert len(list(Path("out").iterdir())) == 9
    words = [
        "--model_filepath",
        models / "model.pth",
        "--source",
        images,
        "--save_dir",
        "drawn",
    ]
    assert told(run("annotate", *words, code=3)) == told_twice
    assert len(list(Path("drawn").rglob("*.jpg"))) == 9


def changed(models: Path, **values: Any) -> Path:
    """The tiny checkpoint with other contents, in the working folder."""
    content = torch.load(models / "model.pth", weights_only=True)
    torch.save(content | values, "changed.pth")
    return Path("changed.pth")


def test_weights_that_diverged_are_refused(data: Path, models: Path) -> None:
    state = torch.load(models / "model.pth", weights_only=True)["model_state_dict"]
    state["proto_net.0.weight"][0, 0] = float("nan")
    path = changed(models, model_state_dict=state)
    expected = (
        "the weights cannot be used: 1 hold NaN or infinity (proto_net.0.weight)",
        "the training that wrote them diverged: take an earlier checkpoint",
    )
    assert told(run("export_onnx", "--checkpoint", path, code=4)) == expected
    assert told(run("train", *train_words(data), "--ckpt", path, code=4)) == expected


def test_classes_that_are_not_the_weights_are_refused(models: Path) -> None:
    path = changed(models, classes={"names": ["cat"], "ids": [1]})
    assert told(run("export_onnx", "--checkpoint", path, code=4)) == (
        "the checkpoint names 1 classes, but its weights are for 6",
        "its classes or its weights were exchanged; take the file as training saved it",
    )


@pytest.mark.parametrize(
    ("content", "reason", "hint"),
    [
        (
            b"<html>404 Not Found</html>",
            "it is a web page, as a failed download leaves one",
            "give a file of PyTorch or safetensors (.pth, .pt, .ckpt, .safetensors, .pth.tar) "
            "with weights",
        ),
        (b"", "it is empty", "the file may be truncated; copy or download it again"),
    ],
)
def test_files_of_other_kinds_are_told_from_damaged_ones(
    content: bytes, reason: str, hint: str
) -> None:
    Path("model.pth").write_bytes(content)
    expected = (f"model.pth cannot be read as a checkpoint: {reason}", hint)
    assert told(run("export_onnx", "--checkpoint", "model.pth", code=4)) == expected
    assert told(run("benchmark", "model.pth", code=4)) == expected


def test_an_optimizer_that_does_not_fit_is_no_run_to_continue(data: Path, models: Path) -> None:
    words = train_words(data)
    run("train", *words, "--save_folder", "w", "--validation_epoch", "-1", code=0)
    content = torch.load("w/tiny_0_1.pth", weights_only=True)
    content["training"]["optimizer"]["param_groups"] = []
    torch.save(content, "broken.pth")
    words[words.index("--max_iter") + 1] = "2"
    error, hint = told(run("train", *words, "--resume", "broken.pth", code=4))
    assert error.startswith("broken.pth does not say how to go on: ")
    assert hint == "--ckpt instead of --resume begins a new run from its weights"


GOOD = "- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}"


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        (
            f"training_modifiers:\n{GOOD}\npruning_modifers:\n"
            "- !ConstantPruningModifier {params: [fpn.lat_layers.0.weight]}",
            "pruning_modifers holds modifiers, but is no list of them",
            "list them with dashes under a key that contains the word modifiers, "
            "like pruning_modifiers",
        ),
        (
            "n: .inf\nmodifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: eval(n)}",
            "EpochRangeModifier: end_epoch is inf",
            "give a number up to 100000",
        ),
        (
            "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: eval(9**9**9)}",
            "cannot compute eval(9**9**9): Numerical result out of range",
            "numbers, variables, + - * / // % **, abs min max round int float are understood",
        ),
        (
            f"x: &a [*a]\nmodifiers:\n{GOOD}",
            "has an alias inside its own anchor",
            "write the value out there",
        ),
        (
            f"modifiers:\n{GOOD}\n- !ConstantPruningModifier {{params: [3]}}",
            "ConstantPruningModifier: [3] are not all names of parameters",
            "give names such as proto_net.0.weight, or re: and a regular expression",
        ),
    ],
)
def test_recipes_are_refused_in_these_words(data: Path, text: str, error: str, hint: str) -> None:
    Path("recipe.yaml").write_text(text)
    words = [word for word in train_words(data) if word not in ("--max_iter", "1")]
    result = run("train", *words, "--recipe", "recipe.yaml", code=5)
    colon = "" if error.startswith("has ") else ":"
    assert told(result) == (f"recipe.yaml{colon} {error}", hint)


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (["--seed", "-1"], 2, "'--seed': -1 is not in the range", "see train --help"),
        (["--num_workers", "9999"], 2, "'--num_workers': 9999 is not in", "see train --help"),
        (["--lr", "nan"], 2, "'--learning_rate': nan is not a finite number", "see train --help"),
        (["--image_size", "99999"], 2, "image size 99999 is too large", "use at most 4096"),
        (["--device", "meta"], 2, "device meta is not supported", "use auto, cpu, cuda"),
        (["--device", "cuda:99"], 2, "device cuda:99 is not available here", "--device cpu"),
        (["--recipe", ""], 5, "recipe not found:", "check the path, or use one of"),
        (["--resume", ""], 4, "checkpoint not found: .", "check the path"),
    ],
)
def test_train_refuses_what_it_cannot_do(
    data: Path, words: list[str], code: int, error: str, hint: str
) -> None:
    run("train", *train_words(data), *words, code=code, error=error, hint=hint)


IN_THE_WAY = "a file or folder of that name is in the way"


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["--ap_data_file", "taken"], f"cannot write taken.json: {IN_THE_WAY}", "another name"),
        (["--ap_data_file", "file/a"], f"cannot write file: {IN_THE_WAY}", "another name"),
        (["--image", "a.jpg:a.xyz"], "cannot write an image as a.xyz", ".png or .jpg"),
        (["--image", "a.jpg:taken.jpg"], f"cannot write taken.jpg: {IN_THE_WAY}", "another"),
        (["--images", ".:file"], f"cannot write file: {IN_THE_WAY}", "another name"),
        (["--video", "a.mp4:a.txt"], "cannot write a video as a.txt", "ends in .mp4"),
    ],
)
def test_outputs_are_checked_before_the_model_runs(
    data: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    error: str,
    hint: str,
) -> None:
    def called(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(TorchEngine, "__call__", called)
    for name in ("taken.json", "taken.jpg"):
        Path(name).mkdir()
    Path("file").write_text("of yesterday")
    shutil.copy(data / "images" / "val_000000.jpg", "a.jpg")
    model: Words = ["--trained_model", models / "model.pth", "--no_bar"]
    where = [] if words[0].startswith(("--im", "--vi")) else ["--dataset", str(data)]
    run("validation", *model, *where, *words, code=8, error=error, hint=hint)
    assert Path("file").read_text() == "of yesterday"


def test_an_export_does_not_begin_where_a_folder_is_in_the_way(models: Path) -> None:
    Path("model.onnx").mkdir()
    words: Words = ["--checkpoint", models / "model.pth", "--name", "model.onnx"]
    error = f"cannot write model.onnx: {IN_THE_WAY}"
    assert told(run("export_onnx", *words, code=8)) == (error, "choose another name")


def full(*_: Any, **__: Any) -> None:
    """A call that meets a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_results_of_before_survive_a_full_disk(
    data: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ap.json").write_text("of yesterday")
    monkeypatch.setattr(os, "replace", full)
    words: Words = ["--trained_model", models / "model.pth", "--dataset", data, "--no_bar"]
    result = run("validation", *words, "--ap_data_file", "ap.pkl", code=8)
    expected = ("no space left to write ap.json", "free some space or choose another disk")
    assert told(result) == expected
    assert Path("ap.json").read_text() == "of yesterday"
    words = ["--trained_model", models / "model.pth", "--no_bar"]
    shutil.copy(data / "images" / "val_000000.jpg", "a.jpg")
    result = run("validation", *words, "--image", "a.jpg:b.jpg", code=8)
    assert told(result) == ("no space left to write b.jpg", expected[1])
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_room_for_one_checkpoint_is_needed_before_the_first_step(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error, hint = told(run("train", *train_words(data), "--save_folder", "w", code=8))
    assert error.startswith("w has 0.0 MB free, one checkpoint takes ")
    assert hint == "free some space or choose another disk"


def test_a_log_that_cannot_be_written_does_not_cost_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = JsonLines.write, iter(range(9))

    def filling(self: JsonLines, record: Any) -> None:
        if next(calls) == 1:
            raise StorageError("no space left to write the log", hint="free some space")
        write(self, record)

    monkeypatch.setattr(JsonLines, "write", filling)
    words = train_words(data)
    words[words.index("--max_iter") + 1] = "3"
    run("train", *words, "--save_folder", "w", code=8, error="no space left to write the log")
    assert [path.name for path in Path("w").iterdir()] == ["tiny_0_2_interrupt.pth"]


def test_the_sample_set_is_found_by_its_folder(data: Path, models: Path) -> None:
    words: Words = ["--trained_model", models / "model.pth", "--dataset", data, "--no_bar"]
    assert "mask (3 images)" in run("validation", *words, code=0).stdout
