"""Faults of sparseml's schedules, put right; :mod:`yolact.sparsify.sparseml` imports this.

What each piece corrects:

* :func:`_linear`, :func:`_cosine`, :func:`_cyclic_linear`: the last step of a schedule goes past
  its end, down to negative learning rates; a last cycle that is shorter does the same.
* :func:`_lr_info`, :func:`_setup_scheduler`: a step size below one step divides by zero; restarts
  after 1.0 epochs instead of 1 are refused in the middle of training; and restarts go back to the
  learning rate of the first scheduler in the recipe.
* :func:`_update_gradual`: GradualParamModifier ignores its ``inter_func``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sparseml.pytorch.sparsification.modifier import ScheduledUpdateModifier
from sparseml.pytorch.sparsification.training.modifier_lr import (
    LearningRateFunctionModifier,
    LearningRateModifier,
)
from sparseml.pytorch.sparsification.training.modifier_params import GradualParamModifier
from sparseml.utils import interpolate

_linear_beyond: Callable[..., float] = LearningRateFunctionModifier._linear
_cosine_beyond: Callable[..., float] = LearningRateFunctionModifier._cosine
_lr_info_as_given: Callable[..., tuple[str, dict[str, Any]]]
_lr_info_as_given = LearningRateModifier.corrected_lr_info
_setup_as_given: Callable[..., bool] = LearningRateModifier._check_setup_lr_scheduler


def _linear(self: Any, epoch: float, steps_per_epoch: int) -> float:
    return _linear_beyond(self, min(epoch, self.end_epoch), steps_per_epoch)


def _cosine(self: Any, epoch: float, steps_per_epoch: int) -> float:
    return _cosine_beyond(self, min(epoch, self.end_epoch), steps_per_epoch)


def _cyclic_linear(self: Any, epoch: float, steps_per_epoch: int) -> float:
    """From ``init_lr`` in a cycle's first step to ``final_lr`` in its last and after the end."""
    if epoch >= self.end_epoch:
        return float(self.final_lr)
    start = max(self.start_epoch, 0.0)
    cycle = math.floor((epoch - start) / self.cycle_epochs + 1e-9)
    begin = start + cycle * self.cycle_epochs
    length = min(self.cycle_epochs, self.end_epoch - begin) * steps_per_epoch
    passed = max(epoch - begin, 0.0) * steps_per_epoch / max(length - 1, 1)
    return float(self.init_lr + min(passed, 1.0) * (self.final_lr - self.init_lr))


def _lr_info(self: Any, *arguments: Any) -> tuple[str, dict[str, Any]]:
    name, options = _lr_info_as_given(self, *arguments)
    if name == "StepLR":
        options["step_size"] = max(options["step_size"], 1)
    if name == "CosineAnnealingWarmRestarts" and float(options["T_0"]).is_integer():
        options["T_0"] = int(options["T_0"])
    return name, options


def _setup_scheduler(self: Any, optimizer: Any, *arguments: Any) -> bool:
    if self._lr_scheduler is None:
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
    return _setup_as_given(self, optimizer, *arguments)


def _update_gradual(
    self: Any, module: Any, optimizer: Any, epoch: float, steps_per_epoch: int
) -> None:
    ScheduledUpdateModifier.update(self, module, optimizer, epoch, steps_per_epoch)
    first, last = self._init_val_tens, self._final_val_tens
    value = interpolate(
        min(epoch, self.end_epoch), self.start_epoch, self.end_epoch, first, last, self.inter_func
    )
    for parameter in self._module_params:
        parameter.data.copy_(value)


LearningRateFunctionModifier._linear = _linear
LearningRateFunctionModifier._cosine = _cosine
LearningRateFunctionModifier._cyclic_linear = _cyclic_linear
LearningRateModifier.corrected_lr_info = _lr_info
LearningRateModifier._check_setup_lr_scheduler = _setup_scheduler
GradualParamModifier.update = _update_gradual
