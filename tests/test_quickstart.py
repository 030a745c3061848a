"""The quickstart goes on where it stopped, and does nothing twice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from conftest import ROOT

INTERRUPTED = 130
TOTAL = 60
"""Steps of every run."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("quickstart")


class Commands:
    """Stands in for the commands: writes the files that they write, and stops where it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[str] = []
        self.stop_at: str | None = None
        self.leave: str | None = None
        """Name of a checkpoint that an interrupted training run leaves behind."""
        self.refuse: dict[str, int] = {}
        """Exit codes of training runs, by what :attr:`calls` says of them."""

    def call(self, name: str, *arguments: object, **_: object) -> str:
        words = [str(argument) for argument in arguments]
        options = dict(zip(words, words[1:], strict=False))
        label = f"{name} {self._label(name, words, options)}".strip()
        self.calls.append(label)
        if label == self.stop_at:
            if self.leave:
                self._write(Path(options["--save_folder"]) / self.leave, "half")
            raise SystemExit(INTERRUPTED)
        return str(getattr(self, f"_{name}")(words, options) or "")

    def validate(self, folder: Path, *arguments: object) -> tuple[float, float]:
        self.call("validation", "--name", folder.name)
        return 20.0, 30.0

    def _label(self, name: str, words: list[str], options: dict[str, str]) -> str:
        if name == "train":
            return Path(options["--save_folder"]).name
        return Path(options.get("--name", words[0])).stem if name != "download" else ""

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _download(self, words: list[str], options: dict[str, str]) -> None:
        (self.folder / "data" / "images").mkdir(parents=True, exist_ok=True)

    def _train(self, words: list[str], options: dict[str, str]) -> str:
        start = Path(options.get("--resume", "random"))
        self.calls[-1] += f" from {start.name}"
        if self.calls[-1] in self.refuse:
            raise SystemExit(self.refuse[self.calls[-1]])
        steps = options.get("--max_iter", str(TOTAL))
        path = Path(options["--save_folder"]) / f"yolact_darknet_small_1_{steps}.pth"
        self._write(path, f"{path} from {start.read_text() if start.exists() else None}")
        return f"checkpoint: {path}\n"

    def _export_onnx(self, words: list[str], options: dict[str, str]) -> None:
        self._write(Path(options["--name"]), "onnx of " + Path(options["--checkpoint"]).read_text())

    def _benchmark(self, words: list[str], options: dict[str, str]) -> None:
        result = {"benchmark_result": {"items_per_sec": 5.0}, "size_on_disk_compressed": 9}
        self._write(Path(options["-x"]), json.dumps(result))

    def _validation(self, words: list[str], options: dict[str, str]) -> None:
        pass

    def _annotate(self, words: list[str], options: dict[str, str]) -> None:
        folder = self.folder / "annotated"
        folder.mkdir(exist_ok=True)
        for number in range(8):
            cv2.imwrite(str(folder / f"result-{number}.jpg"), np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def commands(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path)
    monkeypatch.setattr(script, "call", made.call)
    monkeypatch.setattr(script, "validate", made.validate)
    return made


def run(script: ModuleType, commands: Commands, steps: int | None = None) -> tuple[Any, list[str]]:
    """Its rows, or the exit code of the command that stopped it; and the commands it used."""
    commands.calls.clear()
    try:
        rows = script.Quickstart(commands.folder, steps).run()
    except SystemExit as end:
        rows = end.code
    return rows, [label for label in commands.calls if label != "download"]


STAGES = 3 + 3 + 9 + 3 + 1
"""Commands of a whole run after the download."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop_at",
    ["train base", "train pruned", "export_onnx pruned", "benchmark base", "validation pruned"],
)
def test_what_was_done_before_a_ctrl_c_is_not_done_again(
    script: ModuleType, commands: Commands, stop_at: str
) -> None:
    commands.stop_at = stop_at
    code, before = run(script, commands)
    assert code == INTERRUPTED and before[-1] == stop_at
    commands.stop_at = None
    rows, after = run(script, commands)
    assert len(rows) == 3 and len(before) - 1 + len(after) == STAGES
    assert run(script, commands) == (rows, []), "a third time nothing is left to do"


@pytest.mark.slow
@pytest.mark.parametrize("left", ["1_30_interrupt", "0_20"])
@pytest.mark.parametrize("stage", ["base", "pruned"])
def test_training_goes_on_from_what_an_interrupted_or_killed_run_left(
    script: ModuleType, commands: Commands, stage: str, left: str
) -> None:
    commands.stop_at, commands.leave = f"train {stage}", f"yolact_darknet_small_{left}.pth"
    run(script, commands)
    commands.stop_at = commands.leave = None
    rows, after = run(script, commands)
    assert after[0] == f"train {stage} from yolact_darknet_small_{left}.pth"
    assert len(rows) == 3 and f"train {stage} from" not in " ".join(after[1:])


def run_again(
    script: ModuleType, commands: Commands, name: str, *, exit_code: int
) -> tuple[Any, list[str]]:
    """Stopped while it trained and left ``name``, from which training ends with ``exit_code``."""
    commands.stop_at, commands.leave = "train base", name
    commands.refuse = {f"train base from {name}": exit_code}
    run(script, commands)
    commands.stop_at = commands.leave = None
    return run(script, commands)


def test_a_file_that_was_written_by_half_is_passed_over(
    script: ModuleType, commands: Commands
) -> None:
    name = "yolact_darknet_small_1_30.pth"
    rows, after = run_again(script, commands, name, exit_code=4)
    assert after[:2] == [f"train base from {name}", "train base from random"] and len(rows) == 3


def test_a_run_killed_right_after_its_last_step_is_finished(
    script: ModuleType, commands: Commands
) -> None:
    name = "yolact_darknet_small_1_60.pth"
    rows, after = run_again(script, commands, name, exit_code=2)
    assert after[:2] == [f"train base from {name}", f"train pruned from {name}"] and len(rows) == 3


@pytest.mark.slow
def test_another_number_of_steps_is_another_run(script: ModuleType, commands: Commands) -> None:
    run(script, commands, 40)
    rows, after = run(script, commands, 30)
    measured_once = STAGES - 6
    assert after[0] == "train base from random"
    assert len(rows) == 3 and len(after) == measured_once
    assert after[1] == "train pruned from yolact_darknet_small_1_30.pth"


@pytest.mark.slow
def test_a_result_that_was_removed_is_made_again(script: ModuleType, commands: Commands) -> None:
    run(script, commands)
    (commands.folder / "pruned.onnx").unlink()
    assert run(script, commands)[1] == ["export_onnx pruned"]
    for path in (commands.folder / "pruned").glob("*.pth"):
        path.unlink()
    name = "yolact_darknet_small_1_60.pth"
    assert run(script, commands)[1] == [f"train pruned from {name}"]
