"""Steps that do not fit into memory are taken in parts; quantization tells what it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from onnx_models import freeze_batch_norm
from training import (
    RECIPE,
    Tampered,
    differences,
    log_lines,
    losses,
    make_stepper,
    names,
    resume,
    tiny_settings,
    train_with,
)
from yolact.checkpoint import load_checkpoint
from yolact.data.loader import make_loader
from yolact.errors import ConfigError
from yolact.loss.criterion import Losses
from yolact.model.weights import is_quantized
from yolact.training.loop import train
from yolact.training.memory import (
    STEPS,
    MemoryRecord,
    PeakMemory,
    QuantizationMemory,
    is_out_of_memory,
)
from yolact.training.settings import SaveSettings
from yolact.training.split_batch import PartWeights
from yolact.training.start import prepare
from yolact.training.step import ImageTooLargeError, Stepper
from yolact.types import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 999 bytes. Error code 12 (Cannot allocate memory)"
)


class Limited(Tampered):
    """An objective for which memory holds only so many images at a time.

    Attributes:
        tried: The sizes that were tried.
    """

    def __init__(
        self,
        images: int,
        error: Exception = CUDA,
        when: Callable[[nn.Module], bool] = lambda _: True,
    ) -> None:
        self.tried: list[int] = []

        def limited(model: nn.Module, batch: Tensor, compute: Callable[[Tensor], Losses]) -> Losses:
            self.tried.append(len(batch))
            result = compute(batch)  # also moves statistics and ranges
            if when(model) and len(batch) > images:
                torch.rand(3)
                raise error
            return result

        super().__init__(limited)


@pytest.fixture(scope="module")
def five(tiny_shapes: Path) -> tuple[Any, Batch]:
    """A network whose batch norms stand still, and a batch of five images, one without objects."""
    run = prepare(tiny_settings(tiny_shapes, tiny_shapes.parent))
    (batch, *_) = make_loader(run.train_data, 5, 0, seed=0)
    target = batch.targets[2]
    batch.targets[2] = type(target)(*(field[:0] for field in target))
    model = run.model.train()
    freeze_batch_norm(model)
    return model, batch


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(
    five: tuple[Any, Batch], images: int, error: Exception
) -> None:
    model, batch = five
    whole = make_stepper(model).gradients([batch, batch])
    wanted = gradients_of(model)
    limited = Limited(images, error)
    stepper = make_stepper(model, limited)
    assert stepper.gradients([batch, batch]) == pytest.approx(whole, rel=1e-4)
    for name, value in gradients_of(model).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    assert stepper.parts == {1: 8, 2: 4, 3: 2}[images]
    first = {1: [5, 3, 2, 1], 2: [5, 3, 2], 3: [5, 3, 2]}[images]
    assert limited.tried[: len(first)] == first


def test_later_steps_keep_the_parts_and_one_warning_says_so(
    five: tuple[Any, Batch], package_log: Any
) -> None:
    model, batch = five
    limited = Limited(3)
    stepper = make_stepper(model, limited)
    for _ in range(3):
        stepper.gradients([batch])
    assert limited.tried == [5, 3, 2, 3, 2, 3, 2]
    assert [record.getMessage() for record in package_log.records] == [
        "out of memory on cpu: the step is taken again, and from now on every batch is "
        "computed in 2 parts, each with its own batch norm statistics"
    ]


def test_one_image_that_does_not_fit_is_an_error_and_leaves_the_model_as_it_was(
    five: tuple[Any, Batch],
) -> None:
    model, batch = five
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with pytest.raises(ImageTooLargeError) as error:
        make_stepper(model, Limited(0)).gradients([batch])
    freeze_batch_norm(model)
    assert str(error.value) == (
        "out of memory: the training step of one image of 64 x 64 pixels does not fit into the "
        "memory of cpu"
    )
    assert error.value.hint == "give a smaller --image_size, or use a device with more memory"
    assert error.value.exit_code == ConfigError.exit_code
    assert gradients_of(model) == {} and torch.equal(torch.get_rng_state(), generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_other_errors_are_not_taken_for_a_lack_of_memory(five: tuple[Any, Batch]) -> None:
    limited = Limited(2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        make_stepper(five[0], limited).gradients([five[1]])
    assert limited.tried == [5]


@pytest.mark.slow
def test_an_attempt_that_failed_leaves_no_trace(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails in its second step ends as one that had the parts from there on."""
    failing = Limited(1, when=lambda _: len(failing.tried) > 1)
    one = train_with(failing, tiny_settings(tiny_shapes, tmp_path / "one"))
    parted, take = Limited(2), Stepper.gradients

    def in_parts(self: Stepper, batches: Sequence[Batch]) -> dict[str, float]:
        self.parts = 2 if parted.tried else 1
        return take(self, batches)

    monkeypatch.setattr(Stepper, "gradients", in_parts)
    other = train_with(parted, tiny_settings(tiny_shapes, tmp_path / "other"))
    assert (failing.tried[:5], parted.tried[:3]) == ([2, 2, 1, 1, 1], [2, 1, 1])
    assert one.checkpoint and other.checkpoint
    assert differences(one.checkpoint, other.checkpoint) == []
    assert losses(tmp_path / "one") == losses(tmp_path / "other")


@pytest.mark.slow
def test_a_run_goes_on_when_memory_ends_with_quantization(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    limited = Limited(1, when=is_quantized)
    result = train_with(limited, tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    assert limited.tried == [2] * 6 + [2] + [1] * 6
    assert result.missed == () and result.skipped_steps == 0
    assert result.checkpoint is not None
    state = load_checkpoint(result.checkpoint).model_state
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.slow
def test_a_run_that_cannot_go_on_saves_what_it_has(tiny_shapes: Path, tmp_path: Path) -> None:
    limited = Limited(0, when=is_quantized)
    save = SaveSettings(folder=tmp_path / "weights")
    with pytest.raises(ImageTooLargeError):
        train_with(limited, tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE, save=save))
    saved = tmp_path / "weights" / "tiny_1_6.pth"
    assert names(tmp_path / "weights") == [saved.name], "the step changed the network already"
    whole = train(tiny_settings(tiny_shapes, tmp_path / "whole", recipe=RECIPE))
    again = train(tiny_settings(tiny_shapes, tmp_path / "again", recipe=RECIPE, **resume(saved)))
    assert whole.checkpoint and again.checkpoint
    assert differences(whole.checkpoint, again.checkpoint) == []


@pytest.mark.slow
def test_a_step_that_is_too_large_later_on_leaves_a_checkpoint_to_continue(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    limited = Limited(0, when=lambda _: len(losses(tmp_path)) == 4)
    save = SaveSettings(folder=tmp_path / "weights")
    with pytest.raises(ImageTooLargeError):
        train_with(limited, tiny_settings(tiny_shapes, tmp_path, save=save))
    saved = tmp_path / "weights" / "tiny_1_4_interrupt.pth"
    assert names(tmp_path / "weights") == [saved.name]
    whole = train(tiny_settings(tiny_shapes, tmp_path / "whole"))
    again = train(tiny_settings(tiny_shapes, tmp_path / "again", **resume(saved)))
    assert whole.checkpoint and again.checkpoint
    assert differences(whole.checkpoint, again.checkpoint) == []


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_the_weights_of_parts_add_up_to_one(positives: list[int], size: int) -> None:
    weights = PartWeights(positives)
    slices = [slice(i, i + size) for i in range(0, len(positives), size)]
    ones = Losses(*torch.ones(4))
    total = Losses(*torch.stack([torch.stack(weights.weighted(ones, s)) for s in slices]).sum(0))
    assert float(total.semantic) == pytest.approx(1)
    assert float(total.box) == pytest.approx(1 if any(positives) else 0)


# What quantization takes


PEAKS = """
import time
import torch
from yolact.training.memory import PeakMemory
peak = PeakMemory(torch.device("cpu"))
peak.reset()
print(peak.bytes())
torch.ones(2**26)  # 256 MiB
print(peak.bytes())
for _ in range(20):  # the kernel may take a moment to count what was given back
    peak.reset()
    time.sleep(0.05)
    print(peak.bytes())
"""
"""In a process of its own: what other tests left running here allocates, too."""


@pytest.mark.slow
def test_a_peak_is_at_least_what_was_touched_and_forgets_what_was_before() -> None:
    result = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    low, high, *after = map(int, result.stdout.split())
    assert high - low > 200 * 2**20
    if Path("/proc/self/clear_refs").exists():
        assert any(again - low < 100 * 2**20 for again in after)


@pytest.mark.slow
def test_a_run_tells_once_what_quantization_takes(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    (line,) = [text for text in package_log.messages if text.startswith("peak memory")]
    (record,) = (entry["data"] for entry in log_lines(tmp_path, "memory"))
    assert record["iter"] == 9 and record["device"] == "cpu"
    assert record["before"] > 50e6 and record["quantized"] > 50e6
    assert (
        line
        == MemoryRecord(
            iteration=9, device="cpu", before=record["before"], quantized=record["quantized"]
        ).line()
    )


def test_runs_without_quantization_tell_nothing(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=2))
    assert "peak memory" not in package_log.text and log_lines(tmp_path, "memory") == []


def test_the_comparison_is_of_the_steps_around_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([9, 1, 2, 3, 7, 8, 6])
    monkeypatch.setattr(PeakMemory, "bytes", lambda _: next(peaks))
    memory = QuantizationMemory(torch.device("cpu"))
    assert memory.record(0) is None
    ended = []
    for step in range(12):
        memory.begin()
        ended.append(memory.end(quantized=step >= 4))
    assert [step for step, end in enumerate(ended) if end] == [3 + STEPS] and memory.done
    assert memory.record(7) == MemoryRecord(iteration=7, device="cpu", before=3, quantized=8)


def test_a_run_that_begins_with_quantization_has_nothing_to_compare_with() -> None:
    record = MemoryRecord(iteration=1, device="cuda:0", before=None, quantized=2 * 10**9)
    assert record.line() == (
        "peak memory of a step on cuda:0: 2.00 GB with quantization-aware training"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [(CUDA, True), (CPU, True), (MemoryError(), True), (ValueError("CUDA out of memory"), False)],
)
def test_a_lack_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
