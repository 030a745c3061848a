"""A model without its weights: the same layers and shapes on torch's meta device."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def weightless(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shapes only; it takes no memory to speak of."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _empty(tensor)
    return copy.deepcopy(model, memo)


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def solid(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with values: its own, or ones where it has none."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_meta:
            values = torch.ones_like(tensor, device="cpu", requires_grad=False)
            memo[id(tensor)] = nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values
    return copy.deepcopy(model, memo)
