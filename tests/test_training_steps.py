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
from yolact.errors import TargetMissedError
from yolact.loss.criterion import Losses
from yolact.model.fake_quantize import FakeQuantize, RangeObserver
from yolact.model.quantized_layers import ConvBn2d
from yolact.model.weights import is_quantized
from yolact.restore import build_model
from yolact.sparsify.sparsity import layer_sparsity
from yolact.training.loop import train
from yolact.training.settings import SaveSettings
from yolact.training.split_batch import split
from yolact.training.start import prepare
from yolact.training.step import (
    MAX_SKIPPED_IN_A_ROW,
    DivergedError,
    LossGrowth,
    SkippedSteps,
    hold_batch_norms,
)
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
    with pytest.raises(TargetMissedError, match="diverged: 100 steps in a row") as error:
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


def step_that_ends(totals: list[float]) -> int | None:
    """At which loss a run ends; None at none of them."""
    growth = LossGrowth()
    for step, total in enumerate(totals):
        try:
            growth.add(total)
        except DivergedError:
            return step
    return None


@pytest.mark.parametrize(
    ("totals", "least", "most"),
    [
        ([30.0] + [30 * 10.0**i for i in range(1, 30)], 9, 14),
        ([90.0, 2e3] + [1e12] * 30, 9, 10),
        ([8.0] * 500 + [1e9] * 20, 505, 510),
        ([1e-5] * 50 + [1e7] * 20, 54, 60),
    ],
)
def test_a_loss_that_grows_a_million_fold_ends_the_run(
    totals: list[float], least: int, most: int
) -> None:
    ended = step_that_ends(totals)
    assert ended is not None and least <= ended <= most


@pytest.mark.parametrize(
    "totals",
    [
        [120.0, 80, 40, 20] + [5.0] * 200,
        [5.0, 5e8, 5, 5, 1e9] * 50,
        [1e-4] * 100 + [300.0] * 100,
        [3.0] * 50 + [2e6] * 50,
        [1e5] * 20 + [2.0] * 20 + [1e6] * 30,
        [0.0] * 50 + [900.0] * 50,
    ],
)
def test_spikes_and_jumps_do_not_end_a_run(totals: list[float]) -> None:
    assert step_that_ends(totals) is None


def test_a_run_of_few_steps_is_judged_at_its_end() -> None:
    growth = LossGrowth()
    for total in (20.0, 1e9, 1e10, 1e12):
        growth.add(total)
    assert growth.ruined
    with pytest.raises(DivergedError, match=r"it was 20"):
        growth.check()


def exploding() -> Tampered:
    """An objective whose loss is a hundred times larger with every step from the third."""
    calls = count()

    def act(model: nn.Module, images: Tensor, compute: Callable[[Tensor], Losses]) -> Losses:
        factor = 100.0 ** max(next(calls) - 2, 0)
        return Losses(*(factor * (term * 0 + term.detach()) for term in compute(images)))

    return Tampered(act)


def test_ruined_weights_replace_no_others(tiny_shapes: Path, tmp_path: Path) -> None:
    save = SaveSettings(folder=tmp_path / "weights", interval=2, keep_latest=True)
    with pytest.raises(TargetMissedError, match="diverged") as error:
        train_with(exploding(), tiny_settings(tiny_shapes, tmp_path, epochs=20, save=save))
    assert error.value.hint is not None and "--lr" in error.value.hint
    (kept,) = (tmp_path / "weights").iterdir()
    assert kept.name in ("tiny_1_4.pth", "tiny_1_6.pth"), "written before the loss was ruined"


def normed() -> nn.Sequential:
    """Two convolutions, each with its batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


def fused() -> nn.Sequential:
    """The same, prepared for quantization-aware training: batch norms inside the convolutions."""
    pairs = [(nn.Conv2d(inputs, 4, 1), nn.BatchNorm2d(4)) for inputs in (3, 4)]
    layers = [ConvBn2d(conv, norm, FakeQuantize(RangeObserver())) for conv, norm in pairs]
    return nn.Sequential(*layers)


def moved(model: nn.Module, *, every: bool) -> list[bool]:
    """Whether a forward pass in training changes the statistics of each batch norm."""
    means = [buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    before = [mean.clone() for mean in means]
    model.train()
    hold_batch_norms(model, every=every)
    model(torch.rand(2, 3, 4, 4) + 5)
    return [not torch.equal(one, other) for one, other in zip(before, means, strict=True)]


@pytest.mark.parametrize("build", [normed, fused])
def test_batch_norms_keep_their_statistics_where_they_are_frozen(
    build: Callable[[], nn.Sequential],
) -> None:
    model = build()
    assert moved(model, every=False) == [True, True]
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    first.requires_grad_(False)
    assert moved(model, every=False) == [False, True]
    first.requires_grad_(True)
    assert moved(model, every=False) == [True, True]
    assert moved(model, every=True) == [False, False]
    assert not any(
        parameter.requires_grad
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    )


FREEZE = """
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
- !TrainableParamsModifier {params: ["re:backbone.*"], trainable: False, start_epoch: 1}
- !QuantizationModifier {start_epoch: 2}
"""


def statistics_of(folder: Path, iteration: int) -> dict[str, Tensor]:
    """Running statistics of the backbone in the checkpoint of a step, in its order."""
    (path,) = (folder / "weights").glob(f"tiny_*_{iteration}.pth")
    state = load_checkpoint(path).model_state
    return {
        str(number): value
        for number, (name, value) in enumerate(
            (name, value)
            for name, value in state.items()
            if "backbone" in name and name.endswith(("running_mean", "running_var"))
        )
    }


@pytest.mark.slow
def test_layers_that_a_recipe_freezes_keep_their_statistics(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, recipe=FREEZE))
    free, frozen, float_end, quantized = (statistics_of(tmp_path, i) for i in (2, 4, 6, 9))
    assert any(not torch.equal(free[name], frozen[name]) for name in free)
    for name in frozen:
        assert torch.equal(frozen[name], float_end[name])
        assert torch.equal(frozen[name], quantized[name])


def test_freeze_bn_leaves_all_batch_norms_as_they_are(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, freeze_bn=True))
    first, last = (load_checkpoint(tmp_path / f"weights/tiny_{name}.pth") for name in FIRST_LAST)
    norms = [name.removesuffix("running_mean") for name in first.model_state if "mean" in name]
    changed = {
        name
        for name, value in first.model_state.items()
        if not torch.equal(value, last.model_state[name])
    }
    assert changed and not any(name.startswith(tuple(norms)) for name in changed)


FIRST_LAST = ("0_1", "1_6")


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
