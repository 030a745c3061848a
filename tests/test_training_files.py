"""What a run keeps on disk, and what it writes down."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import (
    RECIPE,
    log_lines,
    names,
    resume,
    tiny_settings,
)
from yolact.checkpoint import Checkpoint, load_checkpoint
from yolact.errors import ConfigError, StorageError
from yolact.model_files import find_checkpoint
from yolact.predict.evaluate import Evaluation
from yolact.predict.results import AveragePrecision
from yolact.training import logs
from yolact.training import loop as train_module
from yolact.training.logs import TrainLog
from yolact.training.loop import train
from yolact.training.retention import CheckpointKeeper
from yolact.training.settings import LogSettings, SaveSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


def keeper(folder: Path, **changes: Any) -> CheckpointKeeper:
    return CheckpointKeeper("tiny", SaveSettings(folder=folder, **changes))


def small(iteration: int) -> Checkpoint:
    return Checkpoint(model_state={"a": torch.zeros(1)}, epoch=0, iteration=iteration)


def test_keep_latest_removes_the_previous_one_but_not_the_milestones(tmp_path: Path) -> None:
    keep = keeper(tmp_path, keep_latest=True, keep_latest_interval=4)
    for iteration in (2, 4, 6, 8, 10):
        keep.save(small(iteration))
    assert names(tmp_path) == ["tiny_0_10.pth", "tiny_0_4.pth", "tiny_0_8.pth"]


def test_an_interval_of_zero_keeps_no_milestone(tmp_path: Path) -> None:
    keep = keeper(tmp_path, keep_latest=True, keep_latest_interval=0)
    for iteration in (2, 4):
        keep.save(small(iteration))
    assert names(tmp_path) == ["tiny_0_4.pth"]


def test_keep_latest_leaves_other_runs_alone(tmp_path: Path) -> None:
    keeper(tmp_path).save(small(1))
    keep = keeper(tmp_path, keep_latest=True)
    for iteration in (2, 2, 3):
        keep.save(small(iteration))
    assert names(tmp_path) == ["tiny_0_1.pth", "tiny_0_3.pth"]


def test_a_file_of_an_earlier_run_gets_another_name(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        run = keeper(tmp_path)
        for _ in range(2):  # a run replaces what it wrote itself
            run.save_best(small(iteration))
            run.save(small(7))
    assert names(tmp_path) == [
        *("tiny_0_7.pth", "tiny_0_7_earlier1.pth", "tiny_0_7_earlier2.pth"),
        *("tiny_best.pth", "tiny_best_earlier1.pth", "tiny_best_earlier2.pth"),
    ]
    best = ("tiny_best_earlier1.pth", "tiny_best_earlier2.pth", "tiny_best.pth")
    assert [load_checkpoint(tmp_path / name).iteration for name in best] == [1, 2, 3]
    assert find_checkpoint(tmp_path, "latest", "tiny") == tmp_path / "tiny_0_7.pth"


def test_a_run_that_continues_replaces_its_own_files(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    first.save_best(small(1))
    begin = first.save(small(4))
    first.save(small(8))
    first.save_interrupt(small(9))
    again = CheckpointKeeper("tiny", SaveSettings(folder=tmp_path), continues=begin)
    again.save_best(small(8), own=True)
    again.save(small(8))
    again.save_interrupt(small(10))
    assert names(tmp_path) == [
        *("tiny_0_10_interrupt.pth", "tiny_0_4.pth", "tiny_0_8.pth", "tiny_best.pth")
    ]


@pytest.mark.parametrize("folder", ["same", "another"])
def test_a_run_that_continues_keeps_the_files_of_other_runs(tmp_path: Path, folder: str) -> None:
    other = keeper(tmp_path)
    files = [other.save(small(8)), other.save_best(small(8)), other.save_interrupt(small(9))]
    for path in files:
        path.with_suffix(".report.json").write_text(path.name)
        os.utime(path, (1, 1))
    begin = keeper(tmp_path if folder == "same" else tmp_path / "another").save(small(4))
    if folder == "another":
        os.utime(begin, (0, 0))
    run = CheckpointKeeper("tiny", SaveSettings(folder=tmp_path), continues=begin)
    for _ in range(2):
        run.save(small(8))
        run.save_best(small(8))
        run.save_interrupt(small(5))
    for path in files:
        kept = path.with_name(f"{path.stem}_earlier1.pth")
        assert kept.stat().st_mtime == 1
        assert kept.with_suffix(".report.json").read_text() == path.name
    assert find_checkpoint(tmp_path, "interrupt", "tiny").name == "tiny_0_5_interrupt.pth"


@pytest.mark.parametrize("later", ["tiny_0_8.pth", "tiny_0_12.pth"])
def test_latest_says_when_another_run_was_the_last_to_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, later: str
) -> None:
    for name in ("tiny_0_8.pth", "tiny_0_12.pth"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 2 if name == later else 1))
    assert find_checkpoint(tmp_path, "latest", "tiny").name == "tiny_0_12.pth"
    assert ("tiny_0_8.pth was written later" in caplog.text) == (later == "tiny_0_8.pth")


def test_the_previous_one_stays_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = keeper(tmp_path, keep_latest=True)
    keep.save(small(1))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="no space left to write .*tiny_0_2.pth"):
        keep.save(small(2))
    assert names(tmp_path) == ["tiny_0_1.pth"]


def test_a_new_interrupt_replaces_older_ones_of_the_same_config(tmp_path: Path) -> None:
    other = CheckpointKeeper("tiny_2", SaveSettings(folder=tmp_path))
    other.save_interrupt(small(1))
    keep = keeper(tmp_path)
    for iteration in (2, 3):
        keep.save_interrupt(small(iteration))
    assert names(tmp_path) == ["tiny_0_3_interrupt.pth", "tiny_2_0_1_interrupt.pth"]


def test_checkpoints_come_at_their_interval_and_at_the_end(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    save = SaveSettings(folder=tmp_path / "weights", interval=4)
    train(tiny_settings(tiny_shapes, tmp_path, save=save))
    assert names(tmp_path / "weights") == ["tiny_1_4.pth", "tiny_1_6.pth"]


def evaluation(mask_map: float) -> Evaluation:
    table: dict[str | int, float] = {"all": mask_map, 50: mask_map}
    precision = AveragePrecision(table=table, stats={}, per_class={}, summary="")
    return Evaluation(precision, precision, 1)


def scores(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the validations to come have these mask mAPs."""
    coming = iter(values)
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: evaluation(next(coming)))


def test_the_best_checkpoint_is_that_of_the_highest_mask_map(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 1.0, 3.0, 2.0)
    result = train(tiny_settings(tiny_shapes, tmp_path, epochs=3, validation_epoch=1))
    best = tmp_path / "weights" / "tiny_best.pth"
    assert result.best_checkpoint == best
    checkpoint = load_checkpoint(best)
    assert (checkpoint.iteration, checkpoint.best_map) == (6, 3.0)
    assert result.evaluation is not None and result.evaluation.mask["all"] == 2.0


def test_a_resumed_run_does_not_replace_a_better_best(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 3.0)
    train(tiny_settings(tiny_shapes, tmp_path, epochs=1, validation_epoch=1))
    scores(monkeypatch, 2.0)
    start = resume(tmp_path / "weights" / "tiny_0_3.pth")
    result = train(tiny_settings(tiny_shapes, tmp_path, epochs=2, validation_epoch=1, **start))
    assert result.best_checkpoint is not None
    assert load_checkpoint(result.best_checkpoint).iteration == 3


@pytest.mark.slow
def test_only_weights_with_their_final_sparsity_and_bits_can_be_the_best(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 9.0, 8.0, 1.0)
    result = train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE, validation_epoch=1))
    assert result.best_checkpoint is not None
    checkpoint = load_checkpoint(result.best_checkpoint)
    assert checkpoint.iteration == 9 and checkpoint.quantized


def test_without_validation_there_is_no_best(tiny_shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny_best.pth").write_bytes(b"of an earlier run")
    result = train(tiny_settings(tiny_shapes, tmp_path))
    assert result.best_checkpoint is None and result.evaluation is None


def test_validation_looks_at_as_many_images_as_asked_for(tiny_shapes: Path, tmp_path: Path) -> None:
    result = train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2, validation_size=2))
    assert result.evaluation is not None and result.evaluation.images == 2


@pytest.mark.slow
@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2]), (2, [1, 2]), (5, [2])])
def test_validation_comes_after_every_nth_epoch_and_at_the_end(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    epochs: list[int],
) -> None:
    scores(monkeypatch, *[0.0] * 9)
    train(tiny_settings(tiny_shapes, tmp_path, epochs=3, validation_epoch=every))
    assert [line["data"]["epoch"] for line in log_lines(tmp_path, "val")] == epochs


@pytest.mark.slow
def test_the_log_has_the_lines_of_the_reference(tiny_shapes: Path, tmp_path: Path) -> None:
    for _ in range(2):
        log = LogSettings(folder=tmp_path / "logs", gpu=True)
        train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2, log=log))
    (first, second) = log_lines(tmp_path, "session")
    assert (first["session"], second["session"]) == (0, 1)
    assert first["data"]["batch_size"] == 2 and first["data"]["config"]["name"] == "tiny"
    steps = log_lines(tmp_path, "train")
    assert [line["session"] for line in steps] == [0] * 6 + [1] * 6
    step = steps[0]
    assert set(step) == {"type", "session", "data", "time"}
    assert set(step["data"]) == {"loss", "epoch", "iter", "lr", "elapsed", "gpu"}
    loss = step["data"]["loss"]
    assert set(loss) == {"B", "C", "M", "S", "T"}
    assert loss["T"] == pytest.approx(sum(loss[key] for key in "BCMS"), abs=1e-4)
    (validation, _) = log_lines(tmp_path, "val")
    assert set(validation["data"]) == {"elapsed", "epoch", "iter", "box", "mask"}
    for kind in ("box", "mask"):
        assert set(validation["data"][kind]) == {"all", *map(str, range(50, 100, 5))}


def test_a_log_that_a_crash_cut_short_is_continued_on_a_new_line(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "tiny.log"
    log.write_text('{"type": "session", "session": 4, "data": {}}\n{"type": "train", "sess')
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=1))
    lines = log.read_text().splitlines()
    assert lines[1] == '{"type": "train", "sess'
    assert [json.loads(line)["session"] for line in lines[2:]] == [5, 5]


def test_tensorboard_has_losses_learning_rate_and_map(tiny_shapes: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2))
    (events,) = (tmp_path / "logs" / "tensorboard" / "tiny").iterdir()
    seen = event_accumulator.EventAccumulator(str(events)).Reload()
    tags = set(seen.Tags()["scalars"])
    assert {"loss/total", "loss/mask", "lr", "val/box_all", "val/mask_50"} <= tags
    assert [point.step for point in seen.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]


def test_without_a_log_folder_only_checkpoints_are_written(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, log=LogSettings(folder=None)))
    assert names(tmp_path) == ["weights"]


@pytest.mark.slow
def test_lines_take_the_place_of_the_bar_where_there_is_no_terminal(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=20))
    (first, second) = [text for text in package_log.messages if text.startswith("epoch ")]
    assert first.startswith("epoch 3 step 10/20 lr 0.0")
    for word in ("box", "classification", "mask", "semantic", "total"):
        assert f" {word} " in second


@pytest.mark.slow
def test_sparsity_is_shown_and_logged_while_a_recipe_prunes(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package_log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(train_module, "SPARSITY_EVERY", 1)
    monkeypatch.setattr(train_module, "LINE_EVERY", 1)
    train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    shown = [
        float(text.split(" sparsity ")[1]) for text in package_log.messages if " sparsity " in text
    ]
    assert len(shown) == 9 and shown == sorted(shown) and 0.2 < shown[-1] < 0.75


@pytest.mark.slow
def test_wandb_gets_losses_and_map_only_when_asked(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []
    run = SimpleNamespace(
        log=lambda values, step: sent.append((step, values)), finish=lambda: ended.append(True)
    )
    wandb = SimpleNamespace(init=lambda project, config: run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2))
    assert not sent
    log = LogSettings(folder=None, wandb=True)
    train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2, log=log))
    assert [step for step, _ in sent] == [1, 2, 3, 4, 5, 6, 6] and ended
    assert {"loss/box", "loss/mask", "lr"} <= sent[0][1].keys()
    assert sent[-1][1].keys() == {"val/box", "val/mask"}


def test_a_service_that_does_not_answer_holds_no_run_up(
    monkeypatch: pytest.MonkeyPatch, package_log: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()
    run = SimpleNamespace(finish=lambda: never.wait(60))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project, config: run))
    monkeypatch.setattr(logs, "PATIENCE", 0.05)
    with TrainLog(LogSettings(folder=None, wandb=True), "tiny", {}):
        pass
    assert "wandb sync" in package_log.text
    never.set()


def test_all_logs_are_closed_when_one_cannot_be() -> None:
    closed: list[str] = []

    def fail() -> None:
        raise StorageError("the disk is full")

    log = TrainLog(LogSettings(folder=None), "tiny", {})
    log.sinks = [SimpleNamespace(close=act) for act in (lambda: closed.append("a"), fail)]
    log.sinks.append(SimpleNamespace(close=lambda: closed.append("b")))
    with pytest.raises(StorageError, match="full"), log:
        pass
    assert sorted(closed) == ["a", "b"]


def test_wandb_is_named_when_it_is_absent(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="--wandb needs the wandb package") as error:
        train(tiny_settings(tiny_shapes, tmp_path, log=LogSettings(folder=None, wandb=True)))
    assert error.value.hint == "pip install 'sparseml-yolact[wandb]'"


def test_the_plan_is_logged_before_the_first_step(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=1))
    assert "weights     random weights" in package_log.text
    assert "data        7 images to train on, 0 to validate on, 6 classes" in package_log.text
