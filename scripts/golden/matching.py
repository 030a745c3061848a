"""Which ground truth each prior learns, and how close each such decision was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from golden.reference import Reference

TIE = 1e-6
"""Overlaps closer than this count as equal: float32 may order them either way."""
MARGIN = 2e-6
"""Smallest distance that an overlap may have from a threshold."""


@dataclass(frozen=True)
class Matched:
    """The priors' parts in one image."""

    arrays: dict[str, Any]
    ties: NDArray[np.int32]
    """Priors whose part hangs on the order of equal overlaps."""
    positives: int
    neutral: int
    margin: float
    """How near an overlap comes to the threshold that decides on it."""


def match(reference: Reference, rows: NDArray[np.float32], crowds: int, priors: Tensor) -> Matched:
    """Run the original's matching on one image.

    Args:
        reference: The original.
        rows: [k, 5] relative corners and class index; the last ``crowds`` rows are crowds.
        crowds: How many of the rows.
        priors: [n, 4] centre form.
    """
    truths = torch.from_numpy(rows[: len(rows) - crowds])
    crowd = torch.from_numpy(rows[len(rows) - crowds :, :4]) if crowds else None
    cfg, count = reference.cfg, len(priors)
    loc = torch.zeros(1, count, 4)
    conf, index = (torch.zeros(1, count, dtype=torch.long) for _ in range(2))
    reference.boxes.match(
        *(cfg.positive_iou_threshold, cfg.negative_iou_threshold),
        *(truths[:, :4], priors, truths[:, 4].long(), crowd, loc, conf, index, 0, loc[0]),
    )
    positive = (conf[0] > 0).nonzero()[:, 0]
    corners = reference.boxes.point_form(priors).double()
    overlaps = reference.boxes.jaccard(truths[:, :4].double(), corners)
    ties = tied(overlaps.numpy())
    best = overlaps.max(0).values
    distances = [
        (best - cfg.positive_iou_threshold).abs(),
        (best - cfg.negative_iou_threshold).abs(),
    ]
    if crowd is not None:
        covered = reference.boxes.jaccard(corners, crowd.double(), iscrowd=True).max(1).values
        distances.append((covered - cfg.crowd_iou_threshold).abs())
    margin = float(torch.stack(distances).min())
    assert margin > MARGIN, f"an overlap is {margin} from its threshold: choose other inputs"
    arrays = {
        "conf_t": conf[0].to(torch.int8),
        "idx_t": index[0].to(torch.int16),
        "pos_index": positive.int(),
        "pos_loc_t": loc[0, positive],
    }
    return Matched(arrays, ties, len(positive), int((conf[0] < 0).sum()), margin)


def tied(overlaps: NDArray[np.float64]) -> NDArray[np.int32]:
    """Priors that objects could claim instead of one another, or that are equally near to two.

    Objects claim their best prior one after the other, the best overlap first. Where several
    priors are as good, any may be taken, and each of those may then be missing for a later object.
    """
    left = overlaps.copy()
    involved: set[int] = set()
    for _ in range(len(overlaps)):
        row = int(np.argmax(left.max(axis=1)))
        near = np.flatnonzero(left[row] > left[row].max() - TIE)
        if len(near) > 1:
            involved.update(near.tolist())
        left[:, near[0]] = -1
        left[row] = -1
    if len(overlaps) > 1:
        first, second = np.sort(overlaps, axis=0)[:-3:-1]
        involved.update(np.flatnonzero((first >= 0.4) & (first - second < TIE)).tolist())
    return np.array(sorted(involved), np.int32)
