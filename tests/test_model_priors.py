"""Priors: golden parity and the laws they obey."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import GoldenSet
from yolact.config import ModelConfig
from yolact.errors import ConfigError
from yolact.model.priors import PriorCache, make_priors

GRIDS = [(69, 69), (35, 35), (18, 18), (9, 9), (5, 5)]
grids = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=5, max_size=5)


def test_priors_equal_the_reference_bit_by_bit(golden: GoldenSet) -> None:
    with np.load(golden.folder / "priors.npz") as arrays:
        cases = [key for key in arrays.files if key.startswith("priors_")]
        assert len(cases) == 4
        for case in cases:
            sizes = [(int(h), int(w)) for h, w in arrays[case.replace("priors", "convhw")]]
            base = int(case.rsplit("max", 1)[1])
            priors = make_priors(sizes, ModelConfig(prior_base_size=base))
            assert priors.dtype == torch.float32
            np.testing.assert_array_equal(priors, arrays[case], err_msg=case)


def test_a_550_px_image_has_19248_priors() -> None:
    assert make_priors(GRIDS, ModelConfig()).shape == (19248, 4)


def test_the_first_priors_lie_in_the_first_cell_of_p3_one_per_aspect_ratio() -> None:
    priors = make_priors(GRIDS, ModelConfig())[:3].double()
    sides = torch.tensor([1, 0.5, 2], dtype=torch.float64).sqrt() * 24 / 550
    centre = torch.full((3,), 0.5 / 69, dtype=torch.float64)
    torch.testing.assert_close(
        priors, torch.stack([centre, centre, sides, sides], 1), atol=1e-8, rtol=1e-6
    )


@settings(deadline=None)
@given(grids)
def test_priors_are_square_and_centred_in_every_cell_once(sizes: list[tuple[int, int]]) -> None:
    config = ModelConfig(prior_aspect_ratios=(1, 2))
    priors = make_priors(sizes, config)
    assert len(priors) == 2 * sum(rows * columns for rows, columns in sizes)
    assert bool(((priors[:, :2] > 0) & (priors[:, :2] < 1)).all())
    assert torch.equal(priors[:, 2], priors[:, 3])
    begin = 0
    for rows, columns in sizes:
        level = priors[begin : begin + 2 * rows * columns].reshape(rows, columns, 2, 4)
        cells_x = (level[..., 0] * columns).floor()
        cells_y = (level[..., 1] * rows).floor()
        assert torch.equal(cells_x, torch.arange(columns)[None, :, None].expand_as(cells_x).float())
        assert torch.equal(cells_y, torch.arange(rows)[:, None, None].expand_as(cells_y).float())
        begin += 2 * rows * columns


@settings(deadline=None)
@given(grids, st.integers(32, 1024))
def test_sides_follow_the_base_size_and_not_the_grid(
    sizes: list[tuple[int, int]], base: int
) -> None:
    once = make_priors(sizes, ModelConfig(prior_base_size=base))
    twice = make_priors(sizes, ModelConfig(prior_base_size=2 * base))
    assert torch.equal(once[:, :2], twice[:, :2])
    torch.testing.assert_close(once[:, 2:], 2 * twice[:, 2:])


def test_large_priors_are_not_clipped_to_the_image() -> None:
    assert float(make_priors(GRIDS, ModelConfig(prior_base_size=138))[:, 2].max()) > 1


def test_a_config_without_one_scale_per_level_is_refused() -> None:
    expected = "P3..P7 need one prior scale each and at least one aspect ratio"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        ModelConfig(prior_scales=(24, 48))
    with pytest.raises(ConfigError, match=re.escape(expected)):
        ModelConfig(prior_aspect_ratios=())


def test_cached_priors_are_computed_once_per_grid_and_precision() -> None:
    cache = PriorCache(ModelConfig())
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    first = cache(GRIDS, like=single)
    assert cache(list(GRIDS), like=single) is first
    assert cache(GRIDS[::-1], like=single) is not first
    assert cache(GRIDS, like=double).dtype == torch.float64


def test_half_precision_networks_keep_single_precision_priors() -> None:
    priors = PriorCache(ModelConfig())(GRIDS, like=torch.zeros(1, dtype=torch.float16))
    assert priors.dtype == torch.float32


def test_priors_first_used_in_inference_mode_can_be_trained_with_later() -> None:
    cache, anchor = PriorCache(ModelConfig()), torch.zeros(19248, 4, requires_grad=True)
    with torch.inference_mode():
        cache(GRIDS, like=torch.zeros(1))
    (anchor * cache(GRIDS, like=anchor)).sum().backward()  # type: ignore[no-untyped-call]
    assert anchor.grad is not None


def test_a_copied_cache_shares_no_memory() -> None:
    cache = PriorCache(ModelConfig())
    priors = cache(GRIDS, like=torch.zeros(1))
    twin = copy.deepcopy(cache)(GRIDS, like=torch.zeros(1))
    assert torch.equal(twin, priors)
    assert twin.data_ptr() != priors.data_ptr()
