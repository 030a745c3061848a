"""Computing a batch in parts: one after the other on one device, or each on a GPU of its own.

Parts of a batch that does not fit into memory are computed so that their gradients add up to that
of the whole batch. The box, class and mask terms of a batch are divided by its positive priors, the
semantic term by its images. So the terms of a part count by its share of either, and the sum of the
parts is the loss of the whole batch, but for what batch norms make different: they normalise each
part by itself, and their running statistics move once for each part, not once for the batch. What
is distilled from a teacher is an average over the part and counts by its share of the images.

Several GPUs get as many images each as they can hold, and their losses are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import parallel_apply, replicate

from yolact.loss.criterion import BatchLosses, Objective
from yolact.types import Target

_BY_POSITIVES = ("box", "classification", "mask")


@dataclass(frozen=True)
class PartWeights:
    """By how much each image of a batch counts."""

    positives: list[int]
    """Positive priors of each image."""

    def weighted(self, losses: BatchLosses, part: slice) -> BatchLosses:
        """What the losses of ``part`` contribute to those of the batch."""
        by_images = len(self.positives[part]) / len(self.positives)
        by_positives = sum(self.positives[part]) / max(sum(self.positives), 1)
        return losses._replace(
            **{
                name: value * (by_positives if name in _BY_POSITIVES else by_images)
                for name, value in losses._asdict().items()
            }
        )


@contextmanager
def watched_priors(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the priors of every forward pass of ``model`` inside the block."""
    seen: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda _module, _inputs, outputs: seen.append(outputs.priors)
    )
    try:
        yield seen
    finally:
        hook.remove()


class Generators:
    """The random generators that a step may use, as they are now."""

    def __init__(self, device: torch.device) -> None:
        """Note the state of the CPU's generator and of the device's."""
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Let a second attempt draw the same numbers."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


class _ModelWithLoss(nn.Module):
    """Network and objective in one, so that only scalars travel between devices."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, images: Tensor, targets: Sequence[Target]) -> BatchLosses:
        return self.objective(self.model, images, targets)


def forward_loss(
    model: nn.Module,
    objective: Objective,
    images: Tensor,
    targets: Sequence[Target],
    allocation: tuple[int, ...] | None,
) -> BatchLosses:
    """Losses of one batch.

    Args:
        model: The network in training mode.
        objective: What is minimised.
        images: [B, 3, S, S] float32 RGB, 0..1, on the first device.
        targets: B of them, on the first device.
        allocation: Images for each of the GPUs 0, 1, ...; their losses are averaged, each GPU
            counting alike, as upstream does. None, or one entry, computes everything in place.
            A short last batch is given out in the same order until it is used up.
    """
    if allocation is None or len(allocation) < 2:
        return objective(model, images, targets)
    parts = split(len(images), allocation)
    devices = [torch.device("cuda", index) for index in range(len(parts))]
    replicas = replicate(_ModelWithLoss(model, objective), devices)
    inputs = [
        (
            images[part].to(device),
            [Target(*(t.to(device) for t in target)) for target in targets[part]],
        )
        for part, device in zip(parts, devices, strict=True)
    ]
    outputs: list[BatchLosses] = parallel_apply(replicas, inputs, devices=devices)
    kind: type[BatchLosses] = type(outputs[0])
    by_term = zip(*outputs, strict=True)
    return kind(*(torch.stack([t.to(devices[0]) for t in term]).mean() for term in by_term))


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
