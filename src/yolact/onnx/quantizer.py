"""How a tensor of activations is quantized: one scale and one zero point, in uint8."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVELS = 255
"""Steps between the smallest and the largest uint8."""


@dataclass(frozen=True)
class Quantizer:
    """x is stored as round(x / scale) + zero, limited to 0..255."""

    scale: float
    """Above 0; a float32 number."""
    zero: int
    """Stands for 0.0; 0..255."""

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantizer | None:
        """The finest one that holds ``low``, ``high`` and 0; None when no step is left for it."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / LEVELS))
        if not math.isfinite(scale) or scale < np.finfo(np.float32).tiny:
            return None
        return cls(scale, min(LEVELS, max(0, round(-low / scale))))

    @property
    def low(self) -> float:
        """The smallest number it holds."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """The largest number it holds."""
        return (LEVELS - self.zero) * self.scale
