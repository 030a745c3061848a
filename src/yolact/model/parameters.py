"""How large a network is."""

from __future__ import annotations

from torch import nn


def parameter_count(model: nn.Module) -> int:
    """Numbers that training can change, those that are zero included.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
