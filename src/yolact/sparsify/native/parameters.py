"""Modifiers of single parameters: whether they are trained, and values that they get."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.sparsify.native.matching import ALL, matching
from yolact.sparsify.native.modifier import (
    Modifier,
    RepeatedModifier,
    between,
    is_true,
    require_curve,
    require_length,
    require_names,
    require_order,
)


@dataclass(kw_only=True, eq=False)
class TrainableParamsModifier(Modifier):
    """Freezes parameters, or trains frozen ones, from its start to its end."""

    params: list[str] = field()
    """Names, ``re:`` expressions or ``__ALL__``."""
    trainable: bool = field()
    params_strict: bool = True
    """Whether each of these has to match a parameter."""

    def __post_init__(self) -> None:
        """Check the fields."""
        self.params = require_names("params", self.params)
        self.trainable, self.params_strict = is_true(self.trainable), is_true(self.params_strict)
        require_order(self)
        self._parameters: list[nn.Parameter] = []
        self._before: list[bool] = []

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters; see :meth:`Modifier.attach`."""
        self._parameters = _found(model, self.params, strict=self.params_strict)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Freeze or train them at the start, and give back at the end what was."""
        if self.starts(epoch):
            self._before = [parameter.requires_grad for parameter in self._parameters]
            for parameter in self._parameters:
                _train(parameter, self.trainable)
        elif self.ends(epoch):
            for parameter, trainable in zip(self._parameters, self._before, strict=True):
                _train(parameter, trainable)


class _ValuesModifier(Modifier):
    """Gives parameters values; in between, they are trained."""

    _parameters: list[nn.Parameter]

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Remember what was done, but leave the values: they have been trained since."""
        held, self._parameters = self._parameters, []
        super().resume(model, optimizer, steps, steps_per_epoch)
        self._parameters = held


@dataclass(kw_only=True, eq=False)
class SetParamModifier(_ValuesModifier):
    """Gives parameters a value once; then they are trained on."""

    params: list[str] = field()
    """Names, ``re:`` expressions or ``__ALL__``."""
    val: Any = field()
    """Numbers, nested as the parameters' dimensions."""
    params_strict: bool = True
    """Whether each of these has to match a parameter."""
    start_epoch: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        self.params = require_names("params", self.params)
        self._parameters = []

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters; see :meth:`Modifier.attach`."""
        found = _found(model, self.params, strict=is_true(self.params_strict))
        self._parameters = _shaped(found, torch.tensor(self.val), "val")

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set the value at the start."""
        if self.starts(epoch):
            for parameter in self._parameters:
                parameter.data.copy_(parameter.data.new_tensor(self.val))


@dataclass(kw_only=True, eq=False)
class GradualParamModifier(_ValuesModifier, RepeatedModifier):
    """Takes the values of parameters from one to another."""

    params: list[str] = field()
    """Names, ``re:`` expressions or ``__ALL__``."""
    init_val: Any = field()
    """Numbers, nested as the parameters' dimensions."""
    final_val: Any = field()
    start_epoch: float = field()
    end_epoch: float = field()
    update_frequency: float = field()
    inter_func: str = "linear"
    """``linear``, ``cubic`` or ``inverse_cubic``."""
    params_strict: bool = True
    """Whether each of :attr:`params` has to match a parameter."""

    def __post_init__(self) -> None:
        """Check the fields."""
        self.params = require_names("params", self.params)
        require_curve(self.inter_func)
        require_length(self)
        self._parameters = []

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters; see :meth:`Modifier.attach`."""
        self._first, self._last = torch.tensor(self.init_val), torch.tensor(self.final_val)
        found = _found(model, self.params, strict=is_true(self.params_strict))
        for value, name in ((self._first, "init_val"), (self._last, "final_val")):
            self._parameters = _shaped(found, value, name)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Set the values of this epoch."""
        value = between(self, epoch, self._first, self._last, self.inter_func)
        for parameter in self._parameters:
            parameter.data.copy_(value)


def _train(parameter: nn.Parameter, trainable: bool) -> None:
    parameter.requires_grad_(trainable)
    if not trainable:
        parameter.grad = None  # or the optimizer would go on with it


def _shaped(parameters: list[nn.Parameter], value: Tensor, name: str) -> list[nn.Parameter]:
    for parameter in parameters:
        if parameter.shape != value.shape:
            raise ValueError(
                f"{name} has the shape {list(value.shape)}, unlike a parameter "
                f"{list(parameter.shape)}"
            )
    return parameters


def _found(model: nn.Module, patterns: list[str], *, strict: bool) -> list[nn.Parameter]:
    """The parameters that any pattern stands for, in the model's order.

    Raises:
        ValueError: A pattern stands for none, and ``strict``.
    """
    if ALL in patterns:
        return list(model.parameters())
    return list(matching(model, patterns, strict=strict).values())
