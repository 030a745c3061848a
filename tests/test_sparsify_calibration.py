"""Ranges found on images: those of torch's observers, to the last bit, for 8 bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from yolact.model.fake_quantize import FakeQuantize, RangeObserver
from yolact.sparsify.calibration import Extremes, Histogram, Observer

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda z: z,
    "rectified": torch.relu,
    "heavy": lambda z: z**3,
    "one-sided": lambda z: -z.exp(),
    "shifted": lambda z: 0.01 * z + 3,
    "constant": lambda z: torch.full_like(z, 1.5),
    "zero": torch.zeros_like,
}


def tensors(kind: str) -> list[Tensor]:
    """What a quantizer sees: sizes differ, and ranges grow, stay, and are left unused."""
    generator = torch.Generator().manual_seed(0)
    return [
        factor * DRAWS[kind](torch.randn(count, generator=generator))
        for count, factor in ((300, 1.0), (1, 1.0), (4000, 1.1), (50, 0.1), (1000, 3.0))
    ]


def seen(observer: Observer, them: list[Tensor]) -> Observer:
    for tensor in them:
        observer.see(tensor)
    return observer


def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    quantizer = FakeQuantize(RangeObserver())
    quantizer.set_range(low, high)
    return quantizer.scale, quantizer.zero_point


@pytest.mark.parametrize("kind", DRAWS)
def test_histograms_give_the_ranges_that_torch_gives(kind: str) -> None:
    torch_quantization: Any = pytest.importorskip("torch.ao.quantization")
    theirs = torch_quantization.HistogramObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_affine, quant_min=-128, quant_max=127
    )
    for tensor in tensors(kind):
        theirs(tensor)
    ends = seen(Histogram(), tensors(kind)).range()
    assert ends is not None
    for own, wanted in zip(grid(*ends), theirs.calculate_qparams(), strict=True):
        assert torch.equal(own, wanted.to(own.dtype))


def test_extremes_are_those_of_all_tensors_and_channels() -> None:
    them = [torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    together = torch.stack(them)
    ends = seen(Extremes(), them).range()
    assert ends == (together.min(), together.max())
    for axis in range(3):
        found = seen(Extremes(axis), them).range()
        others = [dim for dim in range(4) if dim != axis + 1]
        assert found is not None
        assert torch.equal(found[0], together.amin(others))
        assert torch.equal(found[1], together.amax(others))


@pytest.mark.parametrize("observer", [Extremes(), Extremes(0), Histogram()])
def test_nothing_seen_is_no_range(observer: Observer) -> None:
    observer.see(torch.empty(2, 0))
    assert observer.range() is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("observer", [Extremes(), Extremes(0), Histogram()])
def test_values_that_are_not_finite_are_refused(observer: Observer, number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        observer.see(torch.tensor([[1.0, number], [2.0, 3.0]]))


@pytest.mark.parametrize("bits", [4, 6])
def test_with_fewer_bits_a_narrower_range_loses_less(bits: int) -> None:
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    levels = 2**bits
    errors = []
    for search in (256, levels):
        ends = seen(Histogram(search), [x]).range()
        assert ends is not None
        low, high = (float(end) for end in ends)
        scale = (high - low) / (levels - 1)
        zero = min(max(round(-low / scale), 0), levels - 1)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels - 1)
        errors.append(float((rounded - x).square().mean()))
    assert errors[1] < errors[0]


def test_searching_takes_no_time_to_speak_of() -> None:
    """Steps of the search that lead nowhere are most: 100,000 of them at the worst."""
    observer = seen(Histogram(), [torch.cat([torch.zeros(10**6), torch.tensor([1.0])])])
    before = time.perf_counter()
    observer.range()
    assert time.perf_counter() - before < 1
