"""Which operators of a model an engine runs in integers, and which in floating point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Operators:
    """Counts by the engine's own names of what it runs, after its optimizations.

    Steps that only convert between numbers, hold or rearrange them for the hardware do not count.
    """

    engine: str
    integer: Mapping[str, int]
    floating: Mapping[str, int]

    def lines(self) -> list[str]:
        """Two lines for people.

        >>> Operators("onnxruntime", {"QLinearConv": 55}, {"Tanh": 1}).lines()
        ['onnxruntime runs in int8: 55 QLinearConv', 'onnxruntime runs in float: 1 Tanh']
        """
        return [
            f"{self.engine} runs in {name}: {_listed(counts)}"
            for name, counts in (("int8", self.integer), ("float", self.floating))
        ]


@runtime_checkable
class ReportsOperators(Protocol):
    """An engine that can say what it runs how."""

    def operators(self) -> Operators:
        """After the engine's optimizations, on this CPU."""


def _listed(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in most_first) or "nothing"
