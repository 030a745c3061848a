"""Which prior learns which object (SSD sec. 2.2, https://arxiv.org/abs/1512.02325; YOLACT sec. 4).

A prior is positive when its best IoU reaches ``positive_iou``, or when it is the best prior of an
object, so that none goes unlearned. It is background below ``negative_iou``, else neutral: it
takes no part in any term. So is a non-positive prior inside a crowd region.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
from torch import Tensor

from yolact.config import LossConfig
from yolact.ops.boxes import center_to_corner, intersection_over_first, iou
from yolact.types import Target

NEUTRAL = -1
BACKGROUND = 0

MIN_SIDE = 1e-4
"""Relative side below which a box is no object: 0.05 px at 550. The logarithm of its size and the
inverse of its area, which the box and mask terms contain, would dwarf the rest of the batch."""


class Objects(NamedTuple):
    """What there is to learn in one image: its target without crowds and boxes without area."""

    boxes: Tensor
    """[n, 4] relative corner form."""
    labels: Tensor
    """[n] int64, 0-based class index."""
    masks: Tensor
    """[n, S, S] in {0, 1}."""
    crowds: Tensor
    """[m, 4] boxes of the crowd regions."""


class Matches(NamedTuple):
    """The role of every prior of one image."""

    classes: Tensor
    """[N] int64: ``NEUTRAL``, ``BACKGROUND`` or 1 + class index."""
    objects: Tensor
    """[N] int64, row of the matched object; meaningful for positives only."""


def learnable(target: Target, device: torch.device) -> Objects:
    """Sort the annotations of one image into objects and crowds; ``target`` is left as it is."""
    boxes, labels, masks, crowd = (field.to(device, non_blocking=True) for field in target)
    has_area = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)  # NaN has none
    keep = ~crowd & has_area
    return Objects(boxes[keep], labels[keep], masks[keep], boxes[crowd])


def match(objects: Objects, priors: Tensor, config: LossConfig) -> Matches:
    """Give every prior of one image its role.

    Args:
        objects: Of n objects and m crowd regions; either may be 0.
        priors: [N, 4] relative centre form.
        config: The three IoU thresholds.

    Returns:
        Roles of the N priors.
    """
    corners = center_to_corner(priors)
    if len(objects.boxes):
        classes, rows = _match_objects(objects, corners, config)
    else:
        classes = torch.full((len(priors),), BACKGROUND, device=priors.device)
        rows = torch.zeros_like(classes)
    if len(objects.crowds):
        inside = intersection_over_first(corners, objects.crowds).amax(dim=1)
        classes[(classes <= BACKGROUND) & (inside > config.crowd_iou)] = NEUTRAL
    return Matches(classes, rows)


def _match_objects(objects: Objects, corners: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    overlaps = iou(objects.boxes, corners)
    best, rows = overlaps.max(dim=0)
    claimed = best_priors(overlaps)
    rows[list(claimed.values())] = torch.tensor(list(claimed), device=rows.device)
    best[list(claimed.values())] = torch.inf  # positive whatever its overlap
    classes = objects.labels[rows] + 1
    classes[best < config.positive_iou] = NEUTRAL
    classes[best < config.negative_iou] = BACKGROUND
    return classes, rows


def best_priors(overlaps: Tensor) -> dict[int, int]:
    """A prior of its own for every object, the largest overlaps choosing first.

    Ties go to the lower object, then to the lower prior.

    Args:
        overlaps: [n, N] IoU of objects and priors.

    Returns:
        Object -> prior, in the order of choice; without the last objects when n > N.
    """
    free = overlaps.clone()
    overlap, prior = free.max(dim=1)
    wishes = [
        (-value, row, choice)
        for row, (value, choice) in enumerate(zip(overlap.tolist(), prior.tolist(), strict=True))
    ]
    heapq.heapify(wishes)
    claimed: dict[int, int] = {}
    taken: set[int] = set()
    while wishes and len(taken) < overlaps.shape[1]:
        _, row, choice = heapq.heappop(wishes)
        if choice in taken:  # someone with a larger overlap was first: queue again, next best
            value, index = free[row].max(dim=0)
            heapq.heappush(wishes, (-value.item(), row, int(index)))
            continue
        claimed[row] = choice
        taken.add(choice)
        free[:, choice] = -1
    return claimed
