"""The experiment with one's own photos stays within its time, and does nothing twice."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import ROOT

FIXED, EACH = 6.0, 2.0
"""CPU seconds of a training run, and of each of its steps."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("photos")


class Commands:
    """Stands in for the commands, whose CPU time it counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.seconds = 0.0
        self.fail_at: str | None = None
        self.keeps_best = False

    def call(self, name: str, *arguments: object, **_: object) -> str:
        words = [str(argument) for argument in arguments]
        options = dict(zip(words, words[1:], strict=False))
        if name == self.fail_at:
            raise SystemExit(3)
        self.calls.append((name, options))
        if name == "export_onnx":
            Path(options["--name"]).write_text(f"from {options['--checkpoint']}")
            return ""
        self.seconds += FIXED + EACH * int(options.get("--max_iter", 7))
        path = Path(options["--save_folder"]) / f"net_1_{options.get('--max_iter', 7)}.pth"
        path.parent.mkdir(parents=True)
        path.write_text(" ".join(words))
        best = path.with_name("net_best.pth")
        best.write_text("best")
        return f"checkpoint: {path}\n" + f"best checkpoint: {best}\n" * self.keeps_best

    def measure(self, folder: Path, *arguments: object, **_: object) -> Any:
        options = dict(zip(map(str, arguments), map(str, arguments[1:]), strict=False))
        if self.fail_at == "validation":
            raise SystemExit(3)
        self.calls.append(("validation", options))
        ap = {"all": 40.0 if options["--trained_model"].endswith(".pth") else 30.0, "50": 80.0}
        return {"mask": {"ap": ap}, "box": {"ap": ap}}

    def names(self) -> list[str]:
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names


@pytest.fixture
def commands(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(script, "call", made.call)
    monkeypatch.setattr(script, "measure", made.measure)
    monkeypatch.setattr(script, "cpu_seconds", lambda: made.seconds)
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """18 photos with an object each."""
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in range(18)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1} for i in range(18)],
        "categories": [{"id": 1, "name": "fig"}],
    }
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "all.json").write_text(json.dumps(data))
    return tmp_path


@pytest.fixture
def run(script: ModuleType, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: str) -> tuple[list[dict[str, Any]], str]:
        folder = photos / "out"
        program = ["photos.py", str(photos), "--folder", str(folder), "--seeds", "0", "1", *words]
        monkeypatch.setattr(sys, "argv", program)
        script.main()
        rows = json.loads((folder / "results.json").read_text())["results"]
        return rows, (folder / "results.md").read_text()

    return run


def test_photos_are_held_out_by_a_rule_and_none_is_in_both_parts(
    script: ModuleType, photos: Path, tmp_path: Path
) -> None:
    info = photos / "coco" / "all.json"
    for count in (1, 5, 9, 17):
        parts = script.split(info, photos / "images", count, tmp_path / "split")
        train, held_out = (json.loads(p.read_text()) for p in (parts.train, parts.held_out))
        ids = [[image["id"] for image in part["images"]] for part in (train, held_out)]
        assert sorted(ids[0] + ids[1]) == list(range(18)) and len(ids[1]) == count
        assert [one["image_id"] for one in train["annotations"]] == ids[0]
        if count == 5:
            assert ids[1] == [1, 5, 9, 12, 16]
    for count in (0, 18):
        with pytest.raises(SystemExit, match=f"cannot hold out {count} of 18 photos"):
            script.split(info, photos / "images", count, tmp_path / "split")


def test_as_many_steps_are_trained_as_fit_into_the_time(commands: Commands, run: Any) -> None:
    rows, table = run("--cpu_minutes", "10")
    assert [row["seed"] for row in rows] == [0, 1]
    assert 9 < rows[0]["cpu_minutes"] <= 10
    assert rows[0]["steps"] == rows[1]["steps"]
    trained = [options for name, options in commands.calls if name == "train"]
    assert [options.get("--seed") for options in trained] == [None, None, "0", "1"]
    assert "40.0 (40.0, 40.0) | 80.0 (80.0, 80.0)" in table and "over" not in table
    with pytest.raises(SystemExit, match="not one step fits"):
        run("--cpu_minutes", "0.1", "--variant", "other=--lr 0.1")


def test_what_was_measured_is_not_done_again_unless_it_would_be_different(
    commands: Commands, run: Any
) -> None:
    first = run("--variant", "plain=")
    assert commands.names() == ["train", "train"] + ["train", "validation"] * 2
    assert run("--variant", "plain=") == first
    assert commands.names() == []
    rows, _ = run("--variant", "plain=", "--variant", "fast=--lr 0.1")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        *(("plain", 0), ("fast", 0), ("plain", 1), ("fast", 1))
    ]
    assert commands.names() == ["train", "train"] + ["train", "validation"] * 2
    run("--variant", "plain=", "--", "--batch_size", "2")
    assert commands.names() == ["train", "train"] + ["train", "validation"] * 2


def test_a_failed_measurement_costs_no_second_training(commands: Commands, run: Any) -> None:
    commands.fail_at = "validation"
    with pytest.raises(SystemExit):
        run()
    assert commands.names() == ["train"] * 3
    commands.fail_at = None
    run()
    assert commands.names() == ["validation", "train", "validation"]


@pytest.mark.parametrize(
    "words", [["--variant", "a b=", "--variant", "a_b="], ["--variant", "x"], ["--stage", "x=y"]]
)
def test_names_that_cannot_be_told_apart_are_refused(run: Any, words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code == 2


def test_a_stage_goes_on_from_the_run_before_and_is_compared_with_it(
    commands: Commands, run: Any
) -> None:
    stages = (
        *("--stage", "INT8=export_onnx --one-shot one --calibration_images {calibration}"),
        *("--stage", "QAT=train --recipe two"),
        *("--stage", "both=train --recipe three export_onnx --one-shot four"),
    )
    commands.fail_at = "export_onnx"
    with pytest.raises(SystemExit):
        run(*stages)
    assert commands.names() == ["train", "train", "train", "validation"]
    commands.fail_at = None
    rows, table = run(*stages)
    calls = [call for call in commands.calls if call[0] != "validation"]
    base = rows[0]["file"]
    assert [name for name, _ in calls[:5]] == [
        *("export_onnx", "train", "export_onnx", "train", "export_onnx")
    ]
    assert calls[0][1]["--checkpoint"] == calls[1][1]["--ckpt"] == calls[3][1]["--ckpt"] == base
    assert calls[4][1]["--checkpoint"].startswith(calls[3][1]["--save_folder"])
    linked = Path(calls[0][1]["--calibration_images"])
    assert len(list(linked.iterdir())) == 13 and linked.joinpath("0_0.jpg").is_symlink()
    assert [row["stage"] for row in rows[:4]] == ["float", "INT8", "QAT", "both"]
    assert table.count("| 0.750 |") == 3


def test_where_training_validates_its_best_checkpoint_is_measured(
    commands: Commands, run: Any
) -> None:
    commands.keeps_best = True
    rows, _ = run("--", "--validation_epoch", "1")
    assert {Path(row["file"]).name for row in rows} == {"net_best.pth"}
