"""Gradients of training batches, for modifiers that prune by more than magnitude."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class GradientSamples:
    """Where OBS, M-FAC and RigL pruning take gradients from, while masks are due."""

    batches: Callable[[int | None], Iterator[Any]]
    """Batch size, or None for the run's, to an endless iterator of training batches."""
    loss: Callable[[Any], Tensor]
    """The loss of one such batch, with its graph; the network is in the mode it is in."""

    def for_sparseml(self) -> dict[str, Any]:
        """What its modifiers take as ``grad_sampler``."""

        def build(options: Mapping[str, Any] | None = None, **more: Any) -> Iterator[Any]:
            return self.batches({**(options or {}), **more}.get("batch_size"))

        return {"data_loader_builder": build, "loss_function": self.loss}
