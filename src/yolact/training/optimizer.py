"""The optimizer of a run: groups of parameters whose rates follow those of the first group.

Schedules and modifiers of recipes write learning rates and weight decays into all groups alike, or
into one by its number. So the first group is the one they write to, and stands for the network; the
second, if there is one, is the objective's own. Groups behind them are of the network too, such as
its backbone, and take what the first group has, times their factors, right before every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from yolact.loss.criterion import Objective
from yolact.optim_config import OptimConfig
from yolact.sparsify.native.thinning import LR_FACTOR

_DECAY_FACTOR = "decay_factor"
"""Of the first group's weight decay, in groups that follow it."""


def make_optimizer(optim: OptimConfig, model: nn.Module, objective: Objective) -> Optimizer:
    """An optimizer of the parameters of a network and of its objective.

    As published, those of the network are one group. Another learning rate for the backbone makes
    a second one of it; with AdamW, biases and batch norms are groups of their own.
    """
    first, *others = _groups(optim, model)
    optimizer: Optimizer
    if optim.optimizer == "adamw":
        optimizer = AdamW([first], lr=optim.lr, weight_decay=optim.weight_decay)
    else:
        optimizer = SGD(
            [first], lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
    if objective.own_parameters:
        optimizer.add_param_group({"params": objective.own_parameters})
    for group in others:
        optimizer.add_param_group(group)
    if others:
        optimizer.register_step_pre_hook(_follow)
    return optimizer


def load_state(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    before: OptimConfig,
    model: nn.Module,
    objective: Objective,
) -> None:
    """Give an optimizer what another one has learned about the same parameters.

    Args:
        optimizer: Of the same kind; its groups may be others.
        state: ``Optimizer.state_dict()`` of the other one.
        before: The settings that the other one was made with.
        model: Of both.
        objective: Of both.

    Raises:
        ValueError: The state is of other parameters.
        KeyError: It is no state of an optimizer.
    """
    other = make_optimizer(before, model, objective)
    other.load_state_dict(dict(state))
    optimizer.state.update(other.state)
    for group, known in zip(_leading(optimizer), _leading(other), strict=True):
        group.update({key: value for key, value in known.items() if key != "params"})


def _groups(optim: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Groups of the network's parameters; the first has both factors 1."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, 1.0): []}
    for name, parameter in model.named_parameters():
        rate = optim.backbone_lr if name.startswith("backbone.") else 1.0
        decay = 0.0 if optim.optimizer == "adamw" and parameter.ndim <= 1 else 1.0
        groups.setdefault((rate, decay), []).append(parameter)
    first, *others = groups.items()
    following = [
        {"params": parameters, LR_FACTOR: rate, _DECAY_FACTOR: decay}
        for (rate, decay), parameters in others
    ]
    return [{"params": first[1]}, *following]


def _leading(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups that follow no other."""
    return [group for group in optimizer.param_groups if LR_FACTOR not in group]


def _follow(optimizer: Optimizer, *_: object) -> None:
    """Set what groups take from the first one."""
    first, *others = optimizer.param_groups
    for group in others:
        if LR_FACTOR in group:
            group["lr"] = first["lr"] * group[LR_FACTOR]
            group["weight_decay"] = first["weight_decay"] * group[_DECAY_FACTOR]
