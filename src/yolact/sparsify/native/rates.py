"""Modifiers of the length of a run, of learning rates and of weight decay.

A learning rate that changes is a function of the epoch, of the steps of an epoch and of nothing
else: no scheduler is stepped, so a run that resumes has it at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.sparsify.document import is_number
from yolact.sparsify.native.modifier import (
    MemorylessModifier,
    Modifier,
    first_step,
    require_length,
    require_order,
)

_KEYS = {
    "StepLR": {"gamma", "step_size"},
    "MultiStepLR": {"gamma", "milestones"},
    "ExponentialLR": {"gamma"},
    "CosineAnnealingWarmRestarts": {"lr_min", "cycle_epochs"},
}
"""What ``lr_kwargs`` has to have for each ``lr_class``."""

_MAY = {"ExponentialLR": {"step_size"}, "CosineAnnealingWarmRestarts": {"T_mult"}}
"""What it may have besides."""


@dataclass(kw_only=True, eq=False)
class EpochRangeModifier(Modifier):
    """Says how long the run is."""

    start_epoch: float = field()
    end_epoch: float = field()

    def __post_init__(self) -> None:
        """Check the order of both."""
        require_order(self)


@dataclass(kw_only=True, eq=False)
class SetLearningRateModifier(Modifier):
    """Sets the learning rate once."""

    learning_rate: float = field()
    """Above 0, at most 1."""
    param_groups: list[int] | None = None
    """Numbers of the optimizer's groups that get it; None or none for all."""
    constant_logging: bool = False
    """Without effect: the training loop logs rates itself."""

    def __post_init__(self) -> None:
        """Check the rate; an end means nothing here."""
        _require_rate("learning_rate", self.learning_rate)
        self.end_epoch = -1.0

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set it at the start."""
        if self.starts(epoch):
            _set(optimizer, "lr", self.learning_rate, self.param_groups)


@dataclass(kw_only=True, eq=False)
class SetWeightDecayModifier(Modifier):
    """Sets the weight decay once."""

    weight_decay: float = field()
    param_groups: list[int] | None = None
    """Numbers of the optimizer's groups that get it; None or none for all."""
    constant_logging: bool = False
    """Without effect."""

    def __post_init__(self) -> None:
        """Forget the end, which means nothing here."""
        self.end_epoch = -1.0

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set it at the start."""
        if self.starts(epoch):
            _set(optimizer, "weight_decay", self.weight_decay, self.param_groups)


@dataclass(kw_only=True, eq=False)
class LearningRateFunctionModifier(MemorylessModifier):
    """Takes the learning rate from one value to another."""

    lr_func: str = field()
    """``linear``, ``cosine`` or ``cyclic_linear``."""
    init_lr: float = field()
    """0..1."""
    final_lr: float = field()
    """0..1."""
    start_epoch: float = field()
    end_epoch: float = field()
    cycle_epochs: float = 1.0
    """Of ``cyclic_linear``: the epochs after which the rate goes back to ``init_lr``."""
    param_groups: list[int] | None = None
    """Numbers of the optimizer's groups that get it; None or none for all."""

    def __post_init__(self) -> None:
        """Check the fields; the rate is set in every step whatever ``update_frequency`` says."""
        if self.lr_func not in ("linear", "cosine", "cyclic_linear"):
            raise ValueError(
                f"lr_func is {self.lr_func!r}; there are linear, cosine and cyclic_linear"
            )
        for name in ("init_lr", "final_lr"):
            _require_rate(name, getattr(self, name), zero=True)
        require_length(self)
        self.update_frequency = -1.0

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set the rate of this epoch."""
        _set(optimizer, "lr", self.rate_at(epoch, steps_per_epoch), self.param_groups)

    def rate_at(self, epoch: float, steps_per_epoch: int) -> float:
        """The learning rate at ``epoch``; that of the end from there on."""
        if self.lr_func == "cyclic_linear":
            return self._cyclic(epoch, steps_per_epoch)
        start = max(self.start_epoch, 0.0)
        passed = (min(epoch, self.end_epoch) - start) / (self.end_epoch - start)
        span = self.final_lr - self.init_lr
        if self.lr_func == "linear":
            return self.init_lr + passed * span
        # In the order of sparseml's sums and products: weights shall be the same to the bit.
        height, turned = abs(span), math.pi if span >= 0 else 0.0
        lowest = min(self.init_lr, self.final_lr)
        return math.cos(passed * math.pi + turned) * height / 2 + height / 2 + lowest

    def _cyclic(self, epoch: float, steps_per_epoch: int) -> float:
        """From ``init_lr`` in a cycle's first step to ``final_lr`` in its last."""
        if epoch >= self.end_epoch:
            return self.final_lr
        start = max(self.start_epoch, 0.0)
        begin = start + math.floor((epoch - start) / self.cycle_epochs + 1e-9) * self.cycle_epochs
        steps = min(self.cycle_epochs, self.end_epoch - begin) * steps_per_epoch
        passed = max(epoch - begin, 0.0) * steps_per_epoch / max(steps - 1, 1)
        return self.init_lr + min(passed, 1.0) * (self.final_lr - self.init_lr)


@dataclass(kw_only=True, eq=False)
class LearningRateModifier(MemorylessModifier):
    """Lowers the learning rate as one of torch's schedulers does, counted in epochs."""

    lr_class: str = field()
    """``StepLR``, ``MultiStepLR``, ``ExponentialLR`` or ``CosineAnnealingWarmRestarts``."""
    lr_kwargs: dict[str, Any] = field()
    """``gamma`` with ``step_size`` (epochs), ``milestones`` (epochs of the run) or neither (each
    epoch); of restarts ``lr_min``, ``cycle_epochs`` (whole) and, for longer ones later,
    ``T_mult``."""
    init_lr: float = field()
    """Above 0, at most 1."""
    start_epoch: float = field()
    constant_logging: bool = False
    """Without effect."""

    def __post_init__(self) -> None:
        """Check the fields; the rate is set in every step whatever ``update_frequency`` says."""
        if not isinstance(self.lr_class, str) or self.lr_class not in _KEYS:
            raise ValueError(f"lr_class is {self.lr_class!r}; there are {', '.join(_KEYS)}")
        _require_rate("init_lr", self.init_lr)
        require_order(self)
        self.start_epoch = max(self.start_epoch, 0.0)
        for problem in self._problems():
            raise ValueError(f"lr_kwargs {self.lr_kwargs}: {problem}")
        self.update_frequency = -1.0

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set the rate of this epoch, of all groups."""
        _set(optimizer, "lr", self.rate_at(epoch, steps_per_epoch), None)

    def rate_at(self, epoch: float, steps_per_epoch: int) -> float:
        """The learning rate of the step at ``epoch``, which is not before the start."""
        step, first = round(epoch * steps_per_epoch), first_step(self.start_epoch, steps_per_epoch)
        if 0 <= self.end_epoch and abs(epoch - self.end_epoch) <= sys.float_info.epsilon:
            step -= 1  # the end itself changes nothing
        if step < max(first, 1):
            return self.init_lr
        if self.lr_class == "CosineAnnealingWarmRestarts":
            return self._restarting(step / steps_per_epoch - self.start_epoch)
        if 0 <= self.end_epoch < epoch:
            step = max(step - 1, round(self.end_epoch * steps_per_epoch))
        falls = self._falls(max(step - first, 0), steps_per_epoch)
        return float(self.init_lr * self.lr_kwargs["gamma"] ** falls)

    def _falls(self, steps: int, steps_per_epoch: int) -> int:
        """How often the rate has been multiplied by gamma after some steps."""
        if self.lr_class == "MultiStepLR":
            epochs = [epoch - self.start_epoch for epoch in self.lr_kwargs["milestones"]]
            return sum(round(epoch * steps_per_epoch) <= steps for epoch in epochs)
        size = 1.0 if self.lr_class == "ExponentialLR" else self.lr_kwargs["step_size"]
        return steps // max(round(size * steps_per_epoch), 1)

    def _restarting(self, passed: float) -> float:
        """The rate some epochs after the start, as torch's scheduler has it."""
        lowest, first = self.lr_kwargs["lr_min"], int(self.lr_kwargs["cycle_epochs"])
        longer = self.lr_kwargs.get("T_mult", 1)
        length: float = first
        if passed >= first and longer == 1:
            passed %= first
        elif passed >= first:
            cycle = int(math.log(passed / first * (longer - 1) + 1, longer))
            passed -= first * (longer**cycle - 1) / (longer - 1)
            length = first * longer**cycle
        height = (1 + math.cos(math.pi * passed / length)) / 2
        return float(lowest + (self.init_lr - lowest) * height)

    def _problems(self) -> Iterable[str]:
        """What is wrong with ``lr_kwargs``."""
        given: Any = self.lr_kwargs
        needed = _KEYS[self.lr_class]
        if not isinstance(given, dict):
            yield f"give a mapping with {', '.join(sorted(needed))}"
            return
        if missing := sorted(needed - given.keys()):
            yield f"{self.lr_class} needs {', '.join(missing)}"
            return
        if unknown := [key for key in given if key not in needed | _MAY.get(self.lr_class, set())]:
            yield f"{self.lr_class} has no {unknown[0]!r}"
        for name in sorted(needed & {"gamma", "step_size", "lr_min"}):
            if not is_number(given[name]) or not 0 <= given[name] < math.inf:
                yield f"{name} has to be a number from 0 on"
        for name in sorted({"cycle_epochs", "T_mult"} & given.keys()):
            value = given[name]
            if not is_number(value) or value < 1 or not float(value).is_integer():
                yield f"{name} has to be a whole number, at least 1"
        if "milestones" in needed:
            yield from self._misplaced(given["milestones"])

    def _misplaced(self, milestones: Any) -> Iterable[str]:
        end = self.end_epoch if self.end_epoch >= 0 else math.inf
        if not isinstance(milestones, list) or not all(map(is_number, milestones)):
            yield "milestones have to be a list of epochs"
        elif not all(self.start_epoch < milestone < end for milestone in milestones):
            before = f" and before {end:g}" if end < math.inf else ""
            yield f"milestones have to be after epoch {self.start_epoch:g}{before}"


def _require_rate(name: str, value: Any, *, zero: bool = False) -> None:
    if not is_number(value) or not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name} is {value!r}; give a number {'from' if zero else 'above'} 0 to 1")


def _set(optimizer: Optimizer | None, name: str, value: float, groups: list[int] | None) -> None:
    """Set an option of an optimizer's groups, of all when none is named."""
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        if not groups or number in groups:
            group[name] = value
