"""Masks of the native engine: the smallest weights go, exactly those that sparseml would take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipe_engines import needs_sparseml
from yolact.sparsify.native.masks import pattern_of

MASK_TYPES = (
    *("unstructured", "block4", "2:4", "1:4", "3:4", "2:8", "tensorrt"),
    *([1, 4], [1, 1], [2, 2], [4, 1], [1, -1], [-1, 1], [-1, 4]),
)
SHAPES = ((8, 4, 3, 3), (16, 8, 1, 1), (8, 16), (4, 7, 3, 3), (5, 6), (12,), (1,), (2, 4, 2))
EXACT = (0.0, 1.0, 0.5, 0.25, 0.75, 1e-6, 1 - 1e-9)

sparsities = st.one_of(st.sampled_from(EXACT), st.floats(0, 1))


@st.composite
def scores(draw: st.DrawFn) -> Tensor:
    """A tensor of one of SHAPES with few, many or only equal values."""
    noise = torch.randn(
        draw(st.sampled_from(SHAPES)),
        generator=torch.Generator().manual_seed(draw(st.integers(0, 10_000))),
    ).abs()
    kinds = {
        "different": noise,
        "coarse": (noise * 2).round(),
        "half zero": noise * (noise > 0.7),
        "zero": noise * 0,
        "equal": noise * 0 + 1.5,
    }
    dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.float16)))
    values = kinds[draw(st.sampled_from(list(kinds)))].to(dtype)
    last = draw(st.booleans()) and values.dim() == 4
    return values.to(memory_format=torch.channels_last) if last else values


@needs_sparseml
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MASK_TYPES), st.lists(scores(), min_size=1, max_size=3), st.data())
def test_masks_are_those_of_sparseml(
    mask_type: str | Sequence[int], tensors: list[Tensor], data: st.DataObject
) -> None:
    from yolact.sparsify.sparseml import get_mask_creator_default

    together = data.draw(st.booleans())
    levels = [data.draw(sparsities)] * len(tensors)
    if not together and data.draw(st.booleans()):
        levels = [data.draw(sparsities) for _ in tensors]
    kind = mask_type if isinstance(mask_type, str) else list(mask_type)
    try:
        wanted = get_mask_creator_default(kind).create_sparsity_masks(
            tensors, list(levels), global_sparsity=together
        )
    except (ValueError, IndexError, RuntimeError):
        with pytest.raises(ValueError):
            pattern_of(mask_type).masks(tensors, levels, together=together)
        return
    found = pattern_of(mask_type).masks(tensors, levels, together=together)
    for score, mine, theirs in zip(tensors, found, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (score.shape, score.dtype)
        assert torch.equal(mine, theirs.to(mine.dtype))


@settings(max_examples=40, deadline=None)
@given(scores(), sparsities)
def test_an_unstructured_mask_takes_exactly_as_many_weights_as_asked(
    score: Tensor, sparsity: float
) -> None:
    (mask,) = pattern_of("unstructured").masks([score], [sparsity])
    assert int(mask.eq(0).sum()) == round(score.numel() * sparsity)
    if 0 < mask.sum() < mask.numel():
        assert score[mask == 0].max() <= score[mask == 1].min()


@pytest.mark.parametrize("mask_type", ["unstructured", "block4", "2:4", [1, 4], [2, 2], [1, -1]])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_mask_follows_from_the_weights_it_was_applied_to(
    mask_type: str | list[int], memory_format: torch.memory_format
) -> None:
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = weight.to(memory_format=memory_format)
    pattern = pattern_of(mask_type)
    (mask,) = pattern.masks([weight.abs()], [0.5])
    assert torch.equal(pattern.mask_of(weight * mask), mask)


def test_the_last_of_equal_weights_go() -> None:
    score = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0])
    (mask,) = pattern_of("unstructured").masks([score], [0.4])
    assert mask.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("mask_type", "shape"),
    [([1, 4], (8, 6)), ([3, 1], (8, 6)), ([1, 4], (8,)), ("2:4", (8,)), ("2:4", (3, 3))],
)
def test_groups_that_do_not_divide_a_weight_are_an_error(
    mask_type: str | list[int], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        pattern_of(mask_type).masks([torch.ones(shape)], [0.5])


@pytest.mark.parametrize(
    "mask_type", ["filter", "2:", "", [1], [1, 4, 1], [0, 4], [1, -2], [1.5, 4]]
)
def test_what_is_no_mask_type_is_an_error(mask_type: str | list[int]) -> None:
    with pytest.raises(ValueError):
        pattern_of(mask_type)


def test_a_sparsity_that_is_not_that_of_the_ratio_is_an_error() -> None:
    with pytest.raises(ValueError, match="0.5 sparse, not 0.6"):
        pattern_of("2:4").masks([torch.ones(4, 4)], [0.6])
