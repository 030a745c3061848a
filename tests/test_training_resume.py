"""Runs that were interrupted, resumed, extended or accumulated go on exactly."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from training import (
    RECIPE,
    STEPS,
    data_of,
    differences,
    during_step,
    losses,
    make_stepper,
    names,
    resume,
    tiny_config,
    tiny_settings,
)
from yolact.checkpoint import load_checkpoint
from yolact.data.loader import make_loader
from yolact.data.workers import WorkerError
from yolact.training import loop as train_module
from yolact.training.loop import TrainResult, train
from yolact.training.settings import SaveSettings
from yolact.training.start import prepare
from yolact.training.stop import GracefulStop

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


@dataclass(frozen=True)
class Whole:
    """A run that was never interrupted, with a checkpoint of every step."""

    changes: dict[str, Any]
    out: Path
    result: TrainResult

    def at(self, step: int) -> Path:
        (path,) = (self.out / "weights").glob(f"tiny_*_{step}.pth")
        return path

    @property
    def end(self) -> Path:
        assert self.result.checkpoint is not None
        return self.result.checkpoint


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2, "epochs": 3},
    "recipe": {"recipe": RECIPE, "validation_epoch": 1},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def whole(
    request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    changes = VARIANTS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    return Whole(changes, out, train(tiny_settings(tiny_shapes, out, **changes)))


def assert_continues(whole: Whole, step: int, result: TrainResult, out: Path) -> None:
    assert result.checkpoint is not None
    assert differences(result.checkpoint, whole.end) == []
    expected = {i: values for i, values in losses(whole.out).items() if i > step}
    assert losses(out) == expected and expected


@pytest.mark.slow
def test_a_run_resumed_at_any_step_ends_bit_equal(
    whole: Whole, tiny_shapes: Path, tmp_path: Path
) -> None:
    last = max(losses(whole.out))
    assert last >= 6
    for step in range(1, last):
        out = tmp_path / str(step)
        changes = whole.changes | resume(whole.at(step))
        save = SaveSettings(folder=out / "weights", interval=1000)
        result = train(tiny_settings(tiny_shapes, out, **changes, save=save))
        assert_continues(whole, step, result, out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, STEPS])
def test_a_signal_saves_a_state_that_continues_exactly(
    whole: Whole,
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    step: int,
) -> None:
    changes = whole.changes | {"save": SaveSettings(folder=tmp_path / "weights", interval=1000)}
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        during_step(patch, step - 1, lambda: os.kill(os.getpid(), number))
        result = train(tiny_settings(tiny_shapes, tmp_path, **changes))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert result.interrupted and result.evaluation is None and result.checkpoint is not None
    epoch = (step - 1) // load_steps(result.checkpoint)
    assert result.checkpoint.name == f"tiny_{epoch}_{step}_interrupt.pth"
    assert list(result.checkpoint.parent.iterdir()) == [result.checkpoint]
    assert differences(result.checkpoint, whole.at(step)) == []
    resumed = tiny_settings(
        tiny_shapes, tmp_path / "again", **whole.changes | resume(result.checkpoint)
    )
    assert_continues(whole, step, train(resumed), tmp_path / "again")


def load_steps(path: Path) -> int:
    training = load_checkpoint(path).training
    assert training is not None
    return training.steps_per_epoch


def test_extending_a_finished_run_equals_a_longer_one(tiny_shapes: Path, tmp_path: Path) -> None:
    flat = tiny_config(gamma=1.0, warmup_until=0)
    for name, changes in {
        "long": {"epochs": 2},
        "short": {"epochs": 1},
        "extended": {"epochs": 2} | resume(tmp_path / "short" / "weights" / "tiny_0_3.pth"),
    }.items():
        train(tiny_settings(tiny_shapes, tmp_path / name, config=flat, **changes))
    long, extended = (tmp_path / n / "weights" / "tiny_1_6.pth" for n in ("long", "extended"))
    assert differences(long, extended) == []


@pytest.mark.slow
def test_batch_norms_that_are_trained_again_in_mid_epoch_go_on_exactly(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    frozen = (
        "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n"
        "- !TrainableParamsModifier {params: ['re:backbone.*'], trainable: false, "
        "params_strict: false, start_epoch: 0, end_epoch: 0.5}\n"
    )
    whole = train(tiny_settings(tiny_shapes, tmp_path, recipe=frozen))
    start = resume(tmp_path / "weights" / "tiny_0_2.pth")
    again = train(tiny_settings(tiny_shapes, tmp_path / "again", recipe=frozen, **start))
    assert whole.checkpoint and again.checkpoint
    assert differences(again.checkpoint, whole.checkpoint) == []


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tiny_shapes: Path, tmp_path: Path) -> None:
    ends = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        ends.append(
            train(
                tiny_settings(tiny_shapes, out, data=data_of(tiny_shapes, workers=workers))
            ).checkpoint
        )
    one, other = ends
    assert one and other and differences(one, other) == []
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_the_seed_changes_everything(tiny_shapes: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny_settings(tiny_shapes, tmp_path / str(seed), seed=seed, max_iter=1))
    assert losses(tmp_path / "0")[1] != losses(tmp_path / "1")[1]


def test_a_resumed_run_keeps_its_seed(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, seed=5))
    start = resume(tmp_path / "weights" / "tiny_0_2.pth")
    again = train(tiny_settings(tiny_shapes, tmp_path / "again", seed=6, **start))
    assert again.checkpoint is not None
    assert differences(again.checkpoint, tmp_path / "weights" / "tiny_1_6.pth") == []


def test_accumulated_batches_have_the_mean_gradient_of_each_alone(tiny_shapes: Path) -> None:
    run = prepare(tiny_settings(tiny_shapes, tiny_shapes.parent))
    batches = list(make_loader(run.train_data, 2, 0, seed=0))[:2]
    stepper = make_stepper(run.model.train())
    apart = []
    for batch in batches:
        stepper.gradients([batch])
        apart.append([p.grad.clone() for p in run.model.parameters() if p.grad is not None])
    stepper.gradients(batches)
    together = [p.grad for p in run.model.parameters() if p.grad is not None]
    for both, one, other in zip(together, *apart, strict=True):
        torch.testing.assert_close(both, (one + other) / 2)


def test_a_second_ctrl_c_soon_after_the_first_is_taken_for_the_same(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    during_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT), times=3)
    result = train(tiny_settings(tiny_shapes, tmp_path))
    assert result.checkpoint is not None and result.checkpoint.name == "tiny_0_2_interrupt.pth"
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_a_patient_second_ctrl_c_ends_the_run_at_once_without_saving(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact.training.stop.PATIENCE", 0.0)
    during_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT), times=2)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_settings(tiny_shapes, tmp_path))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["tiny_0_1.pth"]


def test_repeated_sigterm_never_prevents_saving(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact.training.stop.PATIENCE", 0.0)
    during_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM), times=3)
    assert train(tiny_settings(tiny_shapes, tmp_path)).interrupted


def test_a_signal_during_validation_ends_it_at_once(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("validation went on")

    monkeypatch.setattr(train_module, "evaluate", signalled)
    result = train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=1))
    assert result.interrupted and result.checkpoint is not None
    assert result.checkpoint.name == "tiny_0_3_interrupt.pth"
    assert load_checkpoint(result.checkpoint).iteration == 3


def test_a_signal_during_the_final_validation_leaves_the_finished_checkpoint(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    result = train(tiny_settings(tiny_shapes, tmp_path, validation_epoch=2))
    assert result.interrupted and result.evaluation is None and result.checkpoint is not None
    assert result.checkpoint.name == "tiny_1_6.pth"


def test_a_signal_while_saving_waits_for_it() -> None:
    with GracefulStop() as stop, stop.shielded():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_no_interrupt_stops_without_saving(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    save = SaveSettings(folder=tmp_path / "weights", interrupt=False)
    result = train(tiny_settings(tiny_shapes, tmp_path, save=save))
    assert result.interrupted and result.checkpoint is None
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.slow
def test_one_signal_ends_a_run_that_waits_for_images(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block() -> None:
        for child in active_children():
            os.kill(child.pid or 0, signal.SIGSTOP)
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()

    during_step(monkeypatch, 3, block)
    began = time.monotonic()
    data = data_of(tiny_shapes, workers=1)
    result = train(tiny_settings(tiny_shapes, tmp_path, data=data, epochs=50))
    assert result.interrupted and result.checkpoint is not None
    assert time.monotonic() - began < 10 and not active_children()


@pytest.mark.slow
def test_a_run_whose_worker_dies_ends_with_its_state_saved(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        for child in active_children():
            child.kill()

    during_step(monkeypatch, 4, kill)
    save = SaveSettings(folder=tmp_path / "weights")
    data = data_of(tiny_shapes, workers=1)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(WorkerError, match="SIGKILL"):
        train(tiny_settings(tiny_shapes, tmp_path, data=data, save=save, epochs=50))
    (saved,) = names(tmp_path / "weights")
    assert saved.endswith("_interrupt.pth") and not active_children()
    assert signal.getsignal(signal.SIGCHLD) == before, "it would raise in the middle of a step"
