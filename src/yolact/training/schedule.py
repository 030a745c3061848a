"""How long a run is, in steps and epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run, in optimizer steps."""

    batches_per_epoch: int
    accumulate: int
    """Batches whose gradients one step sums."""
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last one may sum fewer batches."""
        return math.ceil(self.batches_per_epoch / self.accumulate)

    @property
    def epochs(self) -> int:
        """Epochs begun by the run."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def batch_of(self, step: int) -> tuple[int, int]:
        """(epoch, batch in that epoch) that step ``step`` begins with."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.accumulate


def make_plan(
    *,
    batches_per_epoch: int,
    accumulate: int,
    max_iter: int,
    epochs: float | None,
) -> Plan:
    """The plan of a run of ``epochs`` epochs, or of ``max_iter`` steps when that is None."""
    steps = math.ceil(batches_per_epoch / accumulate)
    total = max_iter if epochs is None else max(1, round(epochs * steps))
    return Plan(batches_per_epoch=batches_per_epoch, accumulate=accumulate, total_steps=total)
