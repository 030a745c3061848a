"""Ranges of values to be rounded to integers, found on images that all count the same.

:class:`Extremes` keeps every value inside the range. :class:`Histogram` searches for the range that
rounding loses least in: rare extreme values are cut off where that makes all others finer. For 8
bits its ranges are to the last bit those of torch's HistogramObserver, whose search goes back to
Caffe2's norm minimization; for fewer bits torch searches as if there were 256 integers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_BINS = 2048
"""Of a histogram."""
_FINER = 16
"""Parts of a bin that are sorted into new bins when the range of a histogram grows."""
_STEP = 1e-5
"""Share of all values by which the search narrows the range."""


class Observer(Protocol):
    """Looks at tensors, one after the other."""

    def see(self, values: Tensor) -> None:
        """Take float32 values of any shape into account.

        Raises:
            ValueError: Some are not finite.
        """

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Smallest and largest value to be kept; None when none was seen."""


class Extremes:
    """The smallest and the largest value, of all or of each channel.

    Args:
        ch_axis: The axis of channels; None for one range of all.
    """

    def __init__(self, ch_axis: int | None = None) -> None:
        """See the class."""
        self._ch_axis = ch_axis
        self._range: tuple[Tensor, Tensor] | None = None

    def see(self, values: Tensor) -> None:
        """See :class:`Observer`."""
        if not values.numel():
            return
        low, high = _extremes(values, self._ch_axis)
        if self._range is not None:
            low, high = torch.minimum(low, self._range[0]), torch.maximum(high, self._range[1])
        self._range = low, high

    def range(self) -> tuple[Tensor, Tensor] | None:
        """[] or [C] each; see :class:`Observer`."""
        return self._range


class Histogram:
    """The range with the smallest sum of squared errors.

    Args:
        levels: How many integers there are.
    """

    def __init__(self, levels: int = 256) -> None:
        """See the class."""
        self._levels = levels
        self._counts = torch.empty(0)
        self._ends: tuple[Tensor, Tensor] | None = None

    def see(self, values: Tensor) -> None:
        """See :class:`Observer`."""
        if not values.numel():
            return
        low, high = _extremes(values)
        if self._ends is not None:
            low, high = torch.minimum(low, self._ends[0]), torch.maximum(high, self._ends[1])
        counts = torch.histc(values, _BINS, float(low), float(high))
        if self._ends is not None:
            counts = counts + self._spread_over(low, high)
        self._counts, self._ends = counts, (low, high)

    def range(self) -> tuple[Tensor, Tensor] | None:
        """[] each; see :class:`Observer`."""
        if self._ends is None or torch.equal(*self._ends):
            return self._ends
        low, high = self._ends
        first, last = self._best_bins()
        width = (high - low) / _BINS
        return low + width * first, low + width * (last + 1)

    def _spread_over(self, low: Tensor, high: Tensor) -> Tensor:
        """The counts so far in bins from ``low`` to ``high``, which hold the earlier range."""
        assert self._ends is not None
        before, after = self._ends
        if low == before and high == after:
            return self._counts
        if before == after:
            return torch.histc(before, _BINS, float(low), float(high)) * self._counts.sum()
        count = _BINS * _FINER
        parts = self._counts.repeat_interleave(_FINER) / _FINER
        device = parts.device
        starts = torch.linspace(float(before), float(after), count + 1, device=device)[:-1]
        edges = torch.linspace(float(low), float(high), _BINS + 1, device=device)
        middles = starts + 0.5 * ((after - before) / count)
        places = torch.bucketize(middles, edges, right=True).sub_(1).clamp_(0, _BINS - 1)
        return torch.bincount(places, weights=parts, minlength=_BINS)

    def _best_bins(self) -> tuple[int, int]:
        """First and last bin of the best range.

        From the whole range on, the end moves inwards behind which a step's share of the values
        lies in the larger number of bins, as long as the error does not grow.
        """
        counts = self._counts.cpu()
        total, below = float(counts.sum()), counts.cumsum(0).numpy()
        shares = np.full(round(1 / _STEP), _STEP)
        lower, upper = np.add.accumulate(shares), np.subtract.accumulate([1.0, *shares])[1:]
        # Where the next step on either side would lead; sums are float32.
        starts = np.searchsorted(below, (lower * total).astype(np.float32)).tolist()
        ends = (np.searchsorted(below, (upper * total).astype(np.float32), "right") - 1).tolist()
        first, last, least = 0, _BINS - 1, float("inf")
        from_left = from_right = 0
        while from_left + from_right < len(shares):
            start, end = min(starts[from_left], last), max(ends[from_right], first)
            if start - first > last - end:
                from_left, end = from_left + 1, last
            else:
                from_right, start = from_right + 1, first
            if (start, end) == (first, last):
                continue
            error = self._error(counts, start, end)
            if error > least:
                break
            first, last, least = start, end, error
        return first, last

    def _error(self, counts: Tensor, first: int, last: int) -> float:
        """Sum of squared errors when the integers are spread over these bins.

        The values of a bin are taken to be spread evenly. An integer stands for the middle of an
        interval: a bin begins in one, covers some, and ends in another.
        """
        assert self._ends is not None
        low, high = (float(end) for end in self._ends)
        width = (high - low) / _BINS
        interval = width * (last - first + 1) / self._levels
        density = counts / width
        half = torch.tensor(interval / 2)
        begin = (torch.arange(_BINS) - first) * width
        end = begin + width
        begins_in, ends_in = (
            torch.div(edge, interval, rounding_mode="floor").clamp(0, self._levels - 1)
            for edge in (begin, end)
        )
        from_middle = begin - (begins_in + 0.5) * interval
        to_middle = end - (ends_in * interval + interval / 2)
        errors = density * ((_cube(half) - _cube(from_middle)) / 3)
        errors += (ends_in - begins_in - 1) * (density * ((_cube(half) - _cube(-half)) / 3))
        errors += density * ((_cube(to_middle) - _cube(-half)) / 3)
        return float(errors.sum())


def _extremes(values: Tensor, ch_axis: int | None = None) -> tuple[Tensor, Tensor]:
    values = values.detach()
    if ch_axis is None:
        low, high = torch.aminmax(values)
    else:
        low, high = torch.aminmax(values.transpose(0, ch_axis).flatten(1), dim=1)
    if not (low.isfinite().all() and high.isfinite().all()):
        raise ValueError("not all values are finite")
    return low, high


def _cube(x: Tensor) -> Tensor:
    return x * x * x
