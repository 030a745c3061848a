"""The modifier that logs how far a network is pruned and quantized."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from yolact.sparsify.native.modifier import RepeatedModifier, require_order

logger = logging.getLogger(__name__)

_LEAST, _MOST = 0.05, 1 - 1e-9
"""Fractions of zeros between which a parameter counts as pruned, as in sparseml."""


@dataclass(kw_only=True, eq=False)
class SparsificationLoggingModifier(RepeatedModifier):
    """Logs the fractions of parameters that are pruned and of layers that are quantized."""

    start_epoch: float = field()
    update_frequency: float = 1.0

    def __post_init__(self) -> None:
        """Check the order of its epochs."""
        require_order(self)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Log both."""
        for name, value in (
            ("QuantizedOperations", _quantized(model)),
            ("PrunedParameters", _pruned(model)),
        ):
            logger.info("SparsificationSummaries/%s/percent %s", name, value)

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Begin anew: what was logged is not logged again."""


def _pruned(model: nn.Module) -> float:
    """Fraction of the parameters, 0..1, that are neither dense nor all zeros."""
    zeros = [1 - int(p.count_nonzero()) / max(p.numel(), 1) for p in model.parameters()]
    return sum(_LEAST <= fraction <= _MOST for fraction in zeros) / max(len(zeros), 1)


def _quantized(model: nn.Module) -> float:
    """Fraction of the convolutions, 0..1, that are quantized."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    quantized = sum(hasattr(layer, "weight_fake_quant") for layer in layers)
    return quantized / max(len(layers), 1)
