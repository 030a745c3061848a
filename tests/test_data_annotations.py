"""Run lengths are read and written as pycocotools writes and reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as rle

from yolact.data.annotations import decode_runs, to_rle, uncompressed_rle


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_runs_are_those_of_the_mask(height: int, width: int, share: float, seed: int) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share)
    runs = decode_runs(rle.encode(mask.view(np.uint8))["counts"].decode("ascii"))
    assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat, mask.reshape(-1, order="F"))


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="' ' does not occur in run lengths"):
        decode_runs("0 1")
    with pytest.raises(ValueError, match="the last number is cut short"):
        decode_runs("0P")


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_cocos_uncompressed_rle(mask: NDArray[np.bool_]) -> None:
    encoded = uncompressed_rle(mask)
    counts = encoded["counts"]
    assert sum(counts) == mask.size and all(count > 0 for count in counts[1:])
    decoded = rle.decode(to_rle(encoded, *mask.shape))
    np.testing.assert_array_equal(decoded, mask)
