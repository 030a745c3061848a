"""How far an exported graph is from the PyTorch model, output by output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from yolact.errors import ExportError
from yolact.types import RawOutputs

TOLERANCE = 1e-4
"""Largest difference of any output value of a float graph."""

SQNR_SLACK = 10.0
"""A quantized graph may be this many dB further from PyTorch than quantization itself is.

A value on the edge between two quantization steps falls on either side depending on the order of
float additions, and the change travels through all later layers. Two correct runs therefore
differ about as much as quantization costs: independent noises of equal power are 3 dB apart. A
graph of integers also rounds what training does not, at about three times as many places: 5 dB. The
rest is margin. On small networks, trained or not, correct graphs stayed within -8 to +10 dB of what
quantization cost; one scale wrong by half lost 10 to 25 dB.
"""

SQNR_ENOUGH = 30.0
"""No output has to be better than this, in dB.

Rounding an output to 8 bits over its whole range leaves 35 to 45 dB, and a graph of integers rounds
additions and outputs that training does not. On the small network, trained on the sample set, 29 dB
changed the mAP of boxes by -0.3 and that of masks by +0.2, of 45 and 41.
"""


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output of the graph compared with PyTorch's."""

    name: str
    max_difference: float
    sqnr: float
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum of squares / sum of squared errors).
    inf where they are equal."""
    floor: float | None = None
    """Least acceptable ``sqnr`` for a quantized graph; None where :data:`TOLERANCE` applies."""

    @property
    def passed(self) -> bool:
        """Whether this output is close enough."""
        if self.floor is None:
            return self.max_difference <= TOLERANCE
        return self.sqnr >= self.floor


def compare(
    expected: RawOutputs, actual: RawOutputs, unquantized: RawOutputs | None = None
) -> tuple[OutputParity, ...]:
    """Compare two sets of outputs.

    Args:
        expected: PyTorch's outputs.
        actual: The exported graph's.
        unquantized: PyTorch's with simulated quantization switched off. Given for quantized
            graphs; it tells what quantization itself costs.
    """
    floors: Sequence[float | None] = [None] * len(expected)
    if unquantized is not None:
        costs = [sqnr(before, after) for before, after in zip(unquantized, expected, strict=True)]
        floors = [min(SQNR_ENOUGH, cost - SQNR_SLACK) for cost in costs]
    return tuple(
        OutputParity(name=name, max_difference=_difference(a, b), sqnr=sqnr(a, b), floor=floor)
        for name, a, b, floor in zip(RawOutputs._fields, expected, actual, floors, strict=True)
    )


def require_parity(outputs: Sequence[OutputParity], layer: str | None = None) -> None:
    """Raise ExportError, naming the worst output, unless all of them passed.

    Args:
        outputs: The comparison.
        layer: Where the difference begins, if that is known.
    """
    failed = [output for output in outputs if not output.passed]
    if not failed:
        return
    worst = max(failed, key=lambda output: (math.isnan(output.sqnr), -output.sqnr))
    limit = (
        f"at most {TOLERANCE:g} is accepted"
        if worst.floor is None
        else f"{worst.sqnr:.1f} dB, at least {worst.floor:.1f} dB is accepted"
    )
    raise ExportError(
        f"the exported graph differs from PyTorch: {worst.name} by {worst.max_difference:.3g}"
        f" ({limit}){f'; it begins at {layer}' if layer else ''}",
        hint="nothing was written; try another --opset, and check the weights for huge values",
    )


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Signal-to-noise ratio in dB of ``actual``; inf when equal, -inf for an all-zero signal."""
    signal = expected.detach().cpu().numpy().astype(np.float64)
    noise = float(np.square(signal - actual.detach().cpu().numpy()).sum())
    power = float(np.square(signal).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 else -math.inf


def _difference(expected: Tensor, actual: Tensor) -> float:
    return float((expected.detach().cpu() - actual.detach().cpu()).abs().max())
