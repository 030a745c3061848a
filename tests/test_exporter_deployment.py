"""The deployment folder: whole or not at all, and enough without anything of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_models import CLASSES, SIDE, small_model
from yolact.data.images import read_rgb
from yolact.data.labels import Classes
from yolact.engines import load_detector
from yolact.engines.onnx_file import OUTPUT_MEANINGS
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import StorageError
from yolact.exporter import deployed_run
from yolact.exporter.deployment import FILES, label_line, require_deployable, write_deployment
from yolact.exporter.export import export
from yolact.exporter.options import ExportOptions
from yolact.exporter.trace import generated_picture
from yolact.predict.detect import above
from yolact.predict.pipeline import Selection

ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("yolact", "torch", "sparseml", "onnx", "PIL", "scipy"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path("run.py", run_name="__main__")
"""
"""Runs the script where only onnxruntime, OpenCV and numpy can be imported."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deploy") / "small.onnx"
    export(small_model(), CLASSES, path, recipe="pruning_modifiers: []")
    return write_deployment(path)


def run_alone(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.mark.slow
def test_the_folder_holds_all_it_takes(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder.name == "deployment"
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == list(CLASSES.names)
    assert (folder / "model.onnx").read_bytes() == (folder.parent / "small.onnx").read_bytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["deployment", "small.onnx"]


def test_the_configuration_says_how_to_use_the_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["classes"][2] == {"index": 2, "id": 90, "name": "鳥"}
    assert config["input"]["shape"] == ["batch", 3, SIDE, SIDE]
    assert (config["input"]["color_order"], config["input"]["scale"]) == ("RGB", 1 / 255)
    assert [(o["name"], o["shape"], o["type"]) for o in config["outputs"]][0] == (
        *("loc", ["batch", 582, 4], "float32"),
    )
    assert all(o["meaning"] == OUTPUT_MEANINGS[o["name"]] for o in config["outputs"])
    assert config["detection"]["nms"] == "fast" and config["detection"]["nms_iou"] == 0.5
    assert config["recipe"] == "pruning_modifiers: []"
    assert config["tools"]["opset"] == 14 and config["tools"]["sparseml-yolact"]


def test_the_sample_is_an_input_and_what_it_gives(folder: Path) -> None:
    sample = np.load(folder / "sample.npz", allow_pickle=False)
    graph = onnx.load(str(folder / "model.onnx")).graph
    assert sorted(sample) == sorted(["input", *(output.name for output in graph.output)])
    outputs = run_graph(folder / "model.onnx", torch.from_numpy(sample["input"]))
    for name, expected in outputs.items():
        np.testing.assert_allclose(sample[name], expected, atol=1e-6)


def test_the_script_finds_what_we_find_and_needs_nothing_of_ours(
    folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), cv2.cvtColor(generated_picture(150, 200), cv2.COLOR_RGB2BGR))
    result = run_alone(folder, picture, tmp_path / "result.png")
    assert result.returncode == 0, result.stderr
    engine = OrtEngine(folder / "model.onnx")
    found = Selection().find(engine, [read_rgb(picture)])[0]
    found = found._replace(detections=above(found.detections, 0.3))
    instances = found.instances()
    lines = result.stdout.splitlines()
    assert len(lines) == len(instances.scores) > 10
    for index, line in enumerate(lines):
        *name, score, x1, y1, x2, y2, area, _ = line.split(" ")
        assert " ".join(name) == CLASSES.names[instances.labels[index]]
        assert float(score) == pytest.approx(float(instances.scores[index]), abs=1e-4)
        box = [int(x1), int(y1), int(x2), int(y2)]
        np.testing.assert_allclose(box, instances.boxes[index].numpy(), atol=1)
        assert int(area) == pytest.approx(int(instances.masks[index].sum()), abs=2)
    assert read_rgb(tmp_path / "result.png").shape == (150, 200, 3)


def ended(*arguments: object) -> tuple[object, str]:
    """How the script ends with these arguments: its exit code or last words."""
    with pytest.raises(SystemExit) as caught:
        deployed_run.main([str(argument) for argument in arguments])
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 2), (["a.png"], 2), (["a.png", "b.png", "c.png"], 2), (["-h"], 0), (["--help"], 0)],
)
def test_the_script_says_how_it_is_called(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*words)[0] == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("usage: python run.py PICTURE RESULT")


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("no.png", "r.png", "there is no file {}/no.png"),
        ("empty.png", "r.png", "{}/empty.png is damaged, or no picture"),
        ("text.png", "r.png", "{}/text.png is damaged, or no picture"),
        ("cut.png", "r.png", "{}/cut.png is damaged, or no picture"),
        ("folder", "r.png", "s a directory"),
        ("good.png", "no/r.png", "cannot write {}/no/r.png: there is no folder {}/no"),
        ("good.png", "folder", "cannot write {}/folder: it is a folder"),
        ("good.png", "good.png", "{}/good.png is the picture itself"),
        ("good.png", "r", "cannot write {}/r: end it in .png or .jpg"),
        ("good.png", "r.txt", "cannot write {}/r.txt: end it in .png or .jpg"),
        ("good.png", "r.png", "there is no file"),  # beside this script there is no config.json
    ],
)
def test_the_script_says_in_one_line_what_it_cannot_do(
    source: str, target: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    cv2.imwrite(str(tmp_path / "good.png"), generated_picture(8, 8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    code, said = ended(tmp_path / source, tmp_path / target)
    assert isinstance(code, str) and said.startswith("error: ")  # text: printed, exit code 1
    assert words.format(*[tmp_path] * 2) in said and "\n" not in said
    assert not (tmp_path / "r.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["onnxruntime", "cv2"])
def test_the_script_names_the_package_that_is_missing(folder: Path, missing: str) -> None:
    without = ALONE.replace('("yolact",', f'("{missing}", "yolact",')
    command = [sys.executable, "-c", without, "a.png", "b.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {missing} is not there; pip install onnxruntime opencv")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["model.onnx", "labels.txt"])
def test_the_script_names_what_is_wrong_with_its_folder(
    folder: Path, damage: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), generated_picture(60, 80))
    (copy / damage).write_bytes(b"?")
    done = run_alone(copy, picture, tmp_path / "r.png")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and damage in line


ODD = (
    "a\nb",
    "\r\n",
    "back\\slash",
    "\\n",
    'quo"te',
    "tab\t",
    "\u2028x\x85y",
    "鳥",
    "🦊",
    "",
    " ",
    "\x0b",
)


@pytest.mark.parametrize("name", ODD)
def test_a_class_name_is_one_line_and_read_back(name: str) -> None:
    line = label_line(name)
    assert len(f"{line}.".splitlines()) == 1
    assert deployed_run.read_label(line) == name
    assert name not in ("鳥", "🦊", "", " ", 'quo"te') or line == name


@settings(max_examples=30)
@given(st.text(max_size=12))
def test_any_class_name_is_one_line_and_read_back(name: str) -> None:
    line = label_line(name)
    assert len(f"{line}.".splitlines()) == 1 and deployed_run.read_label(line) == name


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("traffic light", "traffic light"),
        ("Café Señor", "Cafe Senor"),
        ("Größe", "class 7"),
        ("螺母", "class 7"),
        ("a\nb", "a b"),
        ("", "class 7"),
    ],
)
def test_names_are_drawn_in_letters_that_opencv_has(name: str, drawn: str) -> None:
    assert deployed_run.drawable(name, 7) == drawn


def test_the_priors_are_a_file_of_numbers(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text("utf-8"))["priors"]
    kind = np.dtype(described["type"]).newbyteorder("<")
    assert (described["file"], described["byte_order"]) == ("priors.bin", "little")
    priors = np.fromfile(folder / described["file"], kind).reshape(described["shape"])
    np.testing.assert_array_equal(priors, np.load(folder / "sample.npz")["priors"])


@pytest.mark.slow
def test_the_script_finds_what_we_find_at_an_input_of_two_sides(tmp_path: Path) -> None:
    names = ("line\nbreak", "Größe", "plain")
    path = tmp_path / "m.onnx"
    options = ExportOptions(image_size=(64, 128))
    export(small_model(), Classes(names, (1, 2, 3)), path, options)
    folder = write_deployment(path)
    assert (folder / "labels.txt").read_text("utf-8") == "line\\nbreak\nGröße\nplain\n"
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), cv2.cvtColor(generated_picture(150, 200), cv2.COLOR_RGB2BGR))
    done = run_alone(folder, picture, tmp_path / "result.png")
    assert done.returncode == 0, done.stderr
    detector = load_detector(folder / "model.onnx")
    (found,) = Selection(score_threshold=0.3).find(detector, [read_rgb(picture)])
    instances = found.instances()
    lines = done.stdout.splitlines()
    assert len(lines) == len(instances.scores) > 3
    for line, label, area in zip(
        lines, instances.labels, instances.masks.sum((1, 2)).tolist(), strict=True
    ):
        assert line.startswith(label_line(names[label]))
        assert int(line.split()[-2]) == pytest.approx(area, abs=2)


@pytest.mark.slow
def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(small_model(), CLASSES, path)
    old = tmp_path / "deployment"
    old.mkdir()
    (old / "config.json").write_text("")  # as SparseML's exporter left it
    assert write_deployment(path) == old
    assert sorted(p.name for p in old.iterdir()) == sorted(FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deployment", "m.onnx"]


def test_what_no_export_has_written_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError) as caught:
        require_deployable(tmp_path / "m.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'deployment'} holds thesis.tex, which no export has written"
    )
    assert caught.value.hint == "move it away, or choose another --save-dir"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "deployment").write_text("")
    with pytest.raises(StorageError) as caught:
        require_deployable(tmp_path / "m.onnx")
    assert str(caught.value) == (
        f"cannot write the folder {tmp_path / 'deployment'}: a file of that name is in the way"
    )


def test_a_folder_that_fails_half_way_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    export(small_model(), CLASSES, path)
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment" / "labels.txt").write_text("yesterday's")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(StorageError, match="no space left to write"):
        write_deployment(path)
    assert [p.name for p in (tmp_path / "deployment").iterdir()] == ["labels.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deployment", "m.onnx"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_put_in_place_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    export(small_model(), CLASSES, path)
    write_deployment(path)
    before = (tmp_path / "deployment" / "config.json").stat().st_ino
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source.name == "new":
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StorageError, match="no permission to write"):
        write_deployment(path)
    assert (tmp_path / "deployment" / "config.json").stat().st_ino == before


@pytest.mark.slow
def test_exporting_again_does_not_change_a_folder_made_before(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(small_model(), CLASSES, path)
    model = write_deployment(path) / "model.onnx"
    before = model.read_bytes()
    export(small_model(), CLASSES, path, ExportOptions(opset=17))
    assert model.read_bytes() == before != path.read_bytes()
