"""Computing a batch in parts, so that their gradients add up to that of the whole batch.

The box, class and mask terms of a batch are divided by its positive priors, the semantic term by
its images. So the terms of a part count by its share of either, and the sum of the parts is the
loss of the whole batch, but for what batch norms make different: they normalise each part by
itself, and their running statistics move once for each part, not once for the batch. What is
distilled from a teacher is an average over the part and counts by its share of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolact.engine.distill import Distillation
from yolact.engine.parallel import BatchLosses, Criterion
from yolact.loss.criterion import YolactLoss
from yolact.types import Target

_BY_POSITIVES = ("box", "classification", "mask")


@dataclass(frozen=True)
class PartWeights:
    """By how much each image of a batch counts."""

    positives: list[int]
    """Positive priors of each image."""

    @classmethod
    def of(cls, loss: YolactLoss, priors: Tensor, targets: Sequence[Target]) -> PartWeights:
        """Count the positives of a batch, with the priors that the network has for it."""
        return cls(loss.count_positives(priors, targets))

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


def task_loss(criterion: Criterion) -> YolactLoss:
    """The loss of the task, without what a teacher adds."""
    return criterion.criterion if isinstance(criterion, Distillation) else criterion


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
