"""A convolution and what follows it as one module, before it is quantized or where it is not.

Class names and order are those of torch.ao's fused modules, since recipes name classes. What
becomes of them when they are quantized has the same names, in
:mod:`yolact.model.quantized_layers`.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import nn


class ConvBn2d(nn.Sequential):
    """Convolution, batch norm."""


class ConvBnReLU2d(nn.Sequential):
    """Convolution, batch norm, ReLU."""


class ConvReLU2d(nn.Sequential):
    """Convolution, ReLU."""


_NAMES = frozenset({"ConvBn2d", "ConvBnReLU2d", "ConvReLU2d"})


def is_fused(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether ``module`` is one of these, or of torch.ao's; quantized ones are not."""
    return type(module).__name__ in _NAMES and not isinstance(module, nn.Conv2d)
