"""What a network is, whatever trained it: fake-quantized or not, and how large."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.ao.quantization import FakeQuantizeBase

from yolact.errors import ConfigError


def is_quantized(model: nn.Module) -> bool:
    """Whether any module of ``model`` simulates quantization."""
    return any(isinstance(module, FakeQuantizeBase) for module in model.modules())


def require_quantized(model: nn.Module, option: str) -> None:
    """Refuse an option that is about integers.

    Raises:
        ConfigError: ``model`` has none; names the ``option``.
    """
    if not is_quantized(model):
        raise ConfigError(
            f"{option} has no use for a model that is not quantized",
            hint="add --one-shot yolact.one_shot_int8, or another recipe that quantizes",
        )


def is_quantized_state(names: Iterable[str]) -> bool:
    """Whether state-dict names are those of a fake-quantized network."""
    return any(name.endswith(".zero_point") for name in names)


def parameter_count(model: nn.Module) -> int:
    """Numbers that training can change, those that are zero included.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
