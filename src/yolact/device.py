"""Which torch device a name stands for."""

from __future__ import annotations

import torch

from yolact.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; auto takes a GPU if any.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}", hint="use auto, cpu, cuda or cuda:0"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name} is not supported", hint="use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} is not available here",
            hint=f"{torch.cuda.device_count()} CUDA devices are visible; --device cpu always works",
        )
    return device
