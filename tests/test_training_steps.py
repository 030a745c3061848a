"""Steps that are not finite, mixed precision, clipped gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training import (
    RECIPE,
    Tampered,
    differences,
    log_lines,
    losses,
    make_stepper,
    tiny_config,
    tiny_settings,
    train_with,
)
from yolact.checkpoint import load_checkpoint
from yolact.data.loader import make_loader
from yolact.errors import ConfigError
from yolact.loss.criterion import Losses
from yolact.model.weights import is_quantized
from yolact.restore import build_model
from yolact.sparsify.sparsity import layer_sparsity
from yolact.training.loop import train
from yolact.training.settings import SaveSettings
from yolact.training.split_batch import split
from yolact.training.start import prepare
from yolact.training.step import MAX_SKIPPED_IN_A_ROW, SkippedSteps
from yolact.types import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


def poisoned(*steps: int) -> Tampered:
    """An objective that sees NaN as the images of some steps (of all, when none is given)."""
    calls = count()

    def act(_: nn.Module, images: Tensor, compute: Callable[[Tensor], Losses]) -> Losses:
        bad = not steps or next(calls) in steps
        return compute(images * torch.nan if bad else images)

    return Tampered(act)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_a_step_that_is_not_finite_is_skipped_named_and_forgotten(
    tiny_shapes: Path,
    tmp_path: Path,
    package_log: pytest.LogCaptureFixture,
    recipe: str | None,
) -> None:
    bad = poisoned(1, 4, 7)  # with the recipe, the last one is quantized
    changes = {"recipe": recipe} if recipe else {"epochs": 3}
    result = train_with(bad, tiny_settings(tiny_shapes, tmp_path, **changes))
    assert result.skipped_steps == 3 and result.missed == ()
    first = make_loader(prepare(tiny_settings(tiny_shapes, tmp_path)).train_data, 2, 0, seed=0)
    ids = ", ".join(str(i) for i in list(first)[1].image_ids)
    assert f"step 1 skipped: box, classification, mask, semantic not finite; images {ids}" in (
        package_log.text
    )
    assert result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.iteration == 9
    assert all(value.isfinite().all() for value in checkpoint.model_state.values())
    logged = {line["data"]["iter"]: line["data"]["loss"] for line in log_lines(tmp_path, "train")}
    assert set(logged[2].values()) == {None}, "JSON has no NaN"
    assert None not in logged[3].values()


def test_a_skipped_step_leaves_weights_and_buffers_as_they_were(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    train_with(poisoned(1), tiny_settings(tiny_shapes, tmp_path))
    one, two = (load_checkpoint(tmp_path / f"weights/tiny_0_{i}.pth").model_state for i in (1, 2))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_the_recipe_goes_on_through_skipped_steps(tiny_shapes: Path, tmp_path: Path) -> None:
    bad = poisoned(4)  # the step that would have reached the final sparsity
    train_with(bad, tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    (path,) = (tmp_path / "weights").glob("tiny_*_6.pth")
    model = build_model(load_checkpoint(path))
    sparsity = {layer.name: layer.sparsity for layer in layer_sparsity(model)}
    assert sparsity["proto_net.0.weight"] == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_a_diverged_run_ends_with_advice(tiny_shapes: Path, tmp_path: Path) -> None:
    save = SaveSettings(folder=tmp_path / "weights")
    with pytest.raises(ConfigError, match="diverged: 100 steps in a row") as error:
        train_with(poisoned(), tiny_settings(tiny_shapes, tmp_path, epochs=100, save=save))
    assert error.value.hint is not None and "--lr" in error.value.hint
    assert max(losses(tmp_path)) == MAX_SKIPPED_IN_A_ROW - 1


def test_skipped_steps_count_in_a_row_and_in_total() -> None:
    skipped = SkippedSteps()
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        skipped.add(step, {"box": 1.0}, [step % 3])
    skipped.in_a_row = 0
    skipped.add(1000, {"box": float("inf")}, [9])
    assert (skipped.total, skipped.in_a_row) == (MAX_SKIPPED_IN_A_ROW, 1)


def test_loss_scaling_survives_a_loss_that_is_not_finite(tiny_shapes: Path) -> None:
    run = prepare(tiny_settings(tiny_shapes, tiny_shapes.parent))
    (batch, *_) = make_loader(run.train_data, 2, 0, seed=0)
    stepper = make_stepper(run.model.train())
    stepper.scaler = torch.amp.GradScaler("cpu")
    bad = Batch(batch.images * torch.nan, batch.targets, batch.image_ids)
    scale = stepper.scaler.get_scale()
    assert not stepper.apply(0, stepper.gradients([bad]), [bad])
    assert stepper.scaler.get_scale() == scale / 2
    assert stepper.apply(1, stepper.gradients([batch]), [batch])


def test_long_gradients_are_clipped_to_the_norm_asked_for(tiny_shapes: Path) -> None:
    run = prepare(tiny_settings(tiny_shapes, tiny_shapes.parent))
    (batch, *_) = make_loader(run.train_data, 2, 0, seed=0)
    stepper = make_stepper(run.model.train(), max_grad_norm=0.5)
    stepper.apply(0, stepper.gradients([batch]), [batch])
    grads = [p.grad for p in run.model.parameters() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(grads).item() == pytest.approx(0.5, rel=1e-4)


WIDER = tiny_config().with_model(image_size=96)
"""At 64 px the coarsest level is made from a single pixel, and oneDNN's bfloat16 weight gradient of
such a strided convolution reads memory that was never written (torch 2.14 on CPUs with AMX)."""


def test_half_precision_trains_on_the_cpu(tiny_shapes: Path, tmp_path: Path) -> None:
    result = train(tiny_settings(tiny_shapes, tmp_path / "half", config=WIDER, half=True))
    train(tiny_settings(tiny_shapes, tmp_path / "full", config=WIDER))
    assert result.skipped_steps == 0
    half, full = (losses(tmp_path / name)[1][1]["T"] for name in ("half", "full"))
    assert half != full and half == pytest.approx(full, rel=0.05)
    assert result.checkpoint is not None
    for value in load_checkpoint(result.checkpoint).model_state.values():
        assert value.dtype in (torch.float32, torch.int64)


def test_half_precision_is_off_once_quantization_begins(
    tiny_shapes: Path,
    tmp_path: Path,
    package_log: pytest.LogCaptureFixture,
) -> None:
    seen = []

    def watch(model: nn.Module, images: Tensor, compute: Callable[[Tensor], Losses]) -> Losses:
        seen.append((is_quantized(model), torch.is_autocast_enabled("cpu")))
        return compute(images)

    settings = tiny_settings(tiny_shapes, tmp_path, config=WIDER, recipe=RECIPE, half=True)
    train_with(Tampered(watch), settings)
    assert (True, True) not in seen and (True, False) in seen and seen[0] == (False, True)
    assert "mixed precision off" in package_log.text


# Several devices


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_a_batch_is_given_out_in_order_until_it_is_used_up(
    allocation: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, sum(allocation)))
    parts = split(count, allocation)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    for part, size in zip(parts, allocation, strict=False):
        assert 0 < len(range(count)[part]) <= size


def test_an_allocation_to_one_device_changes_nothing(tiny_shapes: Path, tmp_path: Path) -> None:
    for name, allocation in (("one", (2,)), ("none", None)):
        train(tiny_settings(tiny_shapes, tmp_path / name, batch_alloc=allocation))
    one, none = (tmp_path / name / "weights" / "tiny_1_6.pth" for name in ("one", "none"))
    assert differences(one, none) == []
