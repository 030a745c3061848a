"""Splitting one batch over several GPUs, by as many images as each can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import parallel_apply, replicate

from yolact.engine.distill import Distillation
from yolact.loss.criterion import Losses, YolactLoss
from yolact.loss.distillation import DistilledLosses
from yolact.types import Target

Criterion = YolactLoss | Distillation
"""The loss of a run: the task's alone, or with what a teacher answers."""
BatchLosses = Losses | DistilledLosses
"""What each returns."""


class _ModelWithLoss(nn.Module):
    """Network and loss in one, so that only scalars travel between devices."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, images: Tensor, targets: Sequence[Target]) -> BatchLosses:
        return _in_place(self.model, self.criterion, images, targets)


def forward_loss(
    model: nn.Module,
    criterion: Criterion,
    images: Tensor,
    targets: Sequence[Target],
    allocation: tuple[int, ...] | None,
) -> BatchLosses:
    """Losses of one batch.

    Args:
        model: The network in training mode.
        criterion: Its loss.
        images: [B, 3, S, S] float32 RGB, 0..1, on the first device.
        targets: B of them, on the first device.
        allocation: Images for each of the GPUs 0, 1, ...; their losses are averaged, each GPU
            counting alike, as upstream does. None, or one entry, computes everything in place.
            A short last batch is given out in the same order until it is used up.
    """
    if allocation is None or len(allocation) < 2:
        return _in_place(model, criterion, images, targets)
    parts = split(len(images), allocation)
    devices = [torch.device("cuda", index) for index in range(len(parts))]
    replicas = replicate(_ModelWithLoss(model, criterion), devices)
    inputs = [
        (
            images[part].to(device),
            [Target(*(t.to(device) for t in target)) for target in targets[part]],
        )
        for part, device in zip(parts, devices, strict=True)
    ]
    outputs = parallel_apply(replicas, inputs, devices=devices)
    kind: type[BatchLosses] = type(outputs[0])
    by_term = zip(*outputs, strict=True)
    return kind(*(torch.stack([t.to(devices[0]) for t in term]).mean() for term in by_term))


def _in_place(
    model: nn.Module, criterion: Criterion, images: Tensor, targets: Sequence[Target]
) -> BatchLosses:
    losses: BatchLosses
    if isinstance(criterion, Distillation):
        losses = criterion(model, images, targets)
    else:
        losses = criterion(model(images), targets)
    return losses


def split(count: int, allocation: Sequence[int]) -> list[slice]:
    """Consecutive, non-empty slices of ``count`` images, as large as ``allocation`` says.

    >>> split(5, (2, 2, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    slices, first = [], 0
    for size in allocation:
        last = min(first + size, count)
        if last > first:
            slices.append(slice(first, last))
        first = last
    return slices
