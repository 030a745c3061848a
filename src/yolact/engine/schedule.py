"""When a run ends and which learning rate each of its steps uses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from yolact.config import OptimConfig


def lr_at(iteration: int, optim: OptimConfig) -> float:
    """Learning rate of step ``iteration`` (from 0): linear warm-up, then steps of ``gamma``.

    The warm-up ends at ``warmup_until`` inclusive, and lasts through a step that falls into it.
    """
    if optim.warmup_until > 0 and iteration <= optim.warmup_until:
        done = iteration / optim.warmup_until
        return (optim.lr - optim.warmup_init) * done + optim.warmup_init
    passed = sum(iteration >= step for step in optim.lr_steps)
    return optim.lr * optim.gamma**passed


def fitted(optim: OptimConfig, max_iter: int) -> OptimConfig:
    """The same schedule for a run of ``max_iter`` steps.

    The learning-rate steps stay at the same fractions of the run, and the warm-up takes at most a
    tenth of it. (Upstream leaves both alone, so that a short run is all warm-up.)
    """
    return replace(
        optim,
        max_iter=max_iter,
        # Rounded up: no step of the schedule comes before the first step of the run.
        lr_steps=tuple(math.ceil(Fraction(s * max_iter, optim.max_iter)) for s in optim.lr_steps),
        warmup_until=min(optim.warmup_until, max_iter // 10),
    )


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
