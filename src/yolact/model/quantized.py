"""How a fake-quantized network shows: by its modules, and by the names of its weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.ao.quantization import FakeQuantizeBase


def is_quantized(model: nn.Module) -> bool:
    """Whether any module of ``model`` simulates quantization."""
    return any(isinstance(module, FakeQuantizeBase) for module in model.modules())


def is_quantized_state(names: Iterable[str]) -> bool:
    """Whether state-dict names are those of a fake-quantized network."""
    return any(name.endswith(".zero_point") for name in names)
