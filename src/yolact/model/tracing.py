"""What must come out as a constant when the network is traced for export."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def intended_constants() -> Iterator[None]:
    """Silence the tracer where it warns that a value becomes a constant, which is the intent.

    An exported graph has one image size, and with it one set of grids and priors.
    """
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def grid_size(x: Tensor) -> tuple[int, int]:
    """(height, width) of ``x`` [B, C, H, W] as plain integers, also in a trace."""
    with intended_constants():
        return int(x.shape[2]), int(x.shape[3])
