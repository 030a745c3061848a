"""Runs that end when validation gets no better: when, how, and after which recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training import differences, log_lines, resume, tiny_settings
from yolact.checkpoint import load_checkpoint
from yolact.errors import ConfigError
from yolact.training import loop as train_module
from yolact.training.loop import train
from yolact.training.start import describe, prepare

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

Script = Callable[..., Iterator[float]]
LENGTH = "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 9}\n"
PRUNE = (
    "- !GMPruningModifier {params: [proto_net.0.weight], init_sparsity: 0.2, final_sparsity: 0.5,"
    " start_epoch: 0, end_epoch: 2, update_frequency: 0.5}\n"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Says what the mask mAP of each validation will be, and returns what is left of that."""

    def say(*values: float) -> Iterator[float]:
        left = iter(values)

        def evaluate(*_: Any, **__: Any) -> Any:
            mask = {"all": next(left)}
            return SimpleNamespace(box=mask, mask=mask, table=lambda: "")

        monkeypatch.setattr(train_module, "evaluate", evaluate)
        return left

    return say


def patient(data: Path, out: Path, **changes: Any) -> Any:
    """Epochs of one step, with a validation after each."""
    usual = {"batch_size": 4, "validation_epoch": 1, "patience": 2}
    return tiny_settings(data, out, **usual | changes)


def test_a_run_ends_after_that_many_validations_without_a_better_one(
    tiny_shapes: Path, tmp_path: Path, script: Script, package_log: pytest.LogCaptureFixture
) -> None:
    left = script(3.0, 2.0, 4.0, 4.0, 3.9, -1.0)
    result = train(patient(tiny_shapes, tmp_path, epochs=9))
    assert list(left) == [-1.0], "the last weights are not validated twice"
    assert result.checkpoint is not None and result.checkpoint.name == "tiny_4_5.pth"
    assert not result.interrupted and result.evaluation is not None
    assert result.evaluation.mask["all"] == 3.9
    assert result.best_checkpoint is not None
    best = load_checkpoint(result.best_checkpoint)
    assert (best.iteration, best.best_map) == (3, 4.0)
    assert [line["data"]["iter"] for line in log_lines(tmp_path, "val")][-1] == 5
    assert "no better mask mAP in 2 validations: the run ends at step 5 of 9" in package_log.text


def test_a_resumed_run_remembers_how_long_it_has_waited(
    tiny_shapes: Path, tmp_path: Path, script: Script
) -> None:
    script(3.0, 2.0, 1.0)
    whole = train(patient(tiny_shapes, tmp_path, epochs=9))
    script(1.0)
    start = resume(tmp_path / "weights" / "tiny_1_2.pth")
    result = train(patient(tiny_shapes, tmp_path / "again", epochs=9, **start))
    assert whole.checkpoint and result.checkpoint
    assert differences(result.checkpoint, whole.checkpoint) == []
    last = resume(whole.checkpoint)
    with pytest.raises(ConfigError, match="2 validations were without a better") as error:
        prepare(patient(tiny_shapes, tmp_path, epochs=9, **last))
    assert error.value.hint is not None and "larger --patience" in error.value.hint
    prepare(patient(tiny_shapes, tmp_path, epochs=9, patience=3, **last))


def test_a_recipe_has_done_its_work_before_patience_counts(
    tiny_shapes: Path, tmp_path: Path, script: Script
) -> None:
    left = script(5.0, 4.0, 3.0, 2.0, 1.0, 0.0)
    settings = patient(tiny_shapes, tmp_path, recipe=LENGTH + PRUNE, recipe_engine="native")
    assert "counted from epoch 2 on, when the recipe is done" in describe(prepare(settings))
    result = train(settings)
    assert result.missed == () and result.checkpoint is not None
    assert len(list(left)) == 1, "the third validation is the first of weights that are pruned"
    assert load_checkpoint(result.checkpoint).iteration == 5


@pytest.mark.parametrize(
    "rest",
    [
        PRUNE.replace("end_epoch: 2", "end_epoch: 9"),
        "- !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 9, lr_func: cosine,"
        " init_lr: 0.01, final_lr: 0.0}\n",
        "- !LearningRateModifier {start_epoch: 0, lr_class: StepLR, init_lr: 0.01,"
        " lr_kwargs: {gamma: 0.5, step_size: 1.0}}\n",
        "- !QuantizationModifier {start_epoch: 1, freeze_bn_stats_epoch: 9}\n",
        "- !TrainableParamsModifier {params: [proto_net.0.weight], trainable: false,"
        " start_epoch: 0, end_epoch: 9}\n",
    ],
)
def test_a_recipe_that_acts_until_the_end_is_not_cut(
    tiny_shapes: Path, tmp_path: Path, recipe_engine: Any, rest: str
) -> None:
    with pytest.raises(ConfigError, match="its recipe acts until its end, epoch 9") as error:
        prepare(patient(tiny_shapes, tmp_path, recipe=LENGTH + rest))
    assert error.value.hint


@pytest.mark.parametrize("change", [{"patience": 0}, {"validation_epoch": -1}])
def test_patience_without_a_meaning_is_refused(
    tiny_shapes: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="--patience"):
        patient(tiny_shapes, tmp_path, **change)
