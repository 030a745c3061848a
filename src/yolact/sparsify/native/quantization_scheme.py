"""How inputs, weights and outputs of layers are rounded, as recipes write it.

Names, defaults and meaning are those of sparseml's ``QuantizationScheme``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from typing_extensions import Self

from yolact.model.fake_quantize import EPS, FakeQuantize, RangeObserver
from yolact.sparsify.document import is_number

_NOTHING = (None, "null", "None")
"""What stands for not rounding at all."""

_OBSERVER = (
    "averaging_constant",
    "eps",
    "reduce_range",
    "quant_min",
    "quant_max",
    "ch_axis",
    "observer",
)
"""What ``kwargs`` may have."""

_MIN_MAX = "minmaxobserver"
"""The one ``observer`` that sparseml has a name for: the range of all tensors, not their mean."""


@dataclass(frozen=True, kw_only=True)
class QuantizationArgs:
    """How one tensor of a layer is rounded."""

    num_bits: int = 8
    """1 to 8."""
    symmetric: bool = False
    """Whether 0 is in the middle of the range."""
    strategy: str = "tensor"
    """``tensor`` or ``channel``: one range, or one for each output channel."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Finer settings of the range and how it is learnt; see :meth:`quantizer`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One cannot be; says which.
        """
        if not _is_whole(self.num_bits) or not 1 <= self.num_bits <= 8:
            raise ValueError(f"num_bits is {self.num_bits!r}: give 1 to 8")
        if self.symmetric not in (True, False):
            raise ValueError(f"symmetric is {self.symmetric!r}: give true or false")
        if self.strategy not in ("tensor", "channel"):
            raise ValueError(f"strategy is {self.strategy!r}: give tensor or channel")
        if not isinstance(self.kwargs, Mapping) or not set(self.kwargs) <= set(_OBSERVER):
            raise ValueError(f"kwargs is {self.kwargs!r}: it may have {', '.join(_OBSERVER)}")
        for name in ("averaging_constant", "eps"):
            value = self.kwargs.get(name, EPS)
            if not is_number(value) or not value > 0:
                raise ValueError(f"{name} is {value!r}: give a number above 0")
        observer = self.kwargs.get("observer", _MIN_MAX)
        if observer != _MIN_MAX:
            raise ValueError(f"observer is {observer!r}: give {_MIN_MAX}, or leave it out")
        axis = self.kwargs.get("ch_axis", 0)
        if not _is_whole(axis) or axis < 0 or (axis and self.strategy == "tensor"):
            raise ValueError(f"ch_axis is {axis!r}: it is for strategy channel, 0 or more")

    @classmethod
    def load(cls, value: Any) -> Self | None:
        """From a recipe; None does not round.

        Raises:
            ValueError: It has unknown keys or impossible values.
        """
        if value in _NOTHING or isinstance(value, cls):
            return value if isinstance(value, cls) else None
        found = cls(**_known(value, cls))
        found.limits()
        return found

    def limits(self, *, signed: bool = True) -> tuple[int, int]:
        """The smallest and the largest integer.

        Raises:
            ValueError: There is no such range of 8 bits around 0.
        """
        bits, least = int(self.num_bits), -128 if signed else 0
        lowest = -(2 ** (bits - 1)) if signed else 0
        own = (lowest, lowest + 2**bits - 1) if bits != 8 else (None, None)
        low, high = self.kwargs.get("quant_min", own[0]), self.kwargs.get("quant_max", own[1])
        if low is None or high is None:
            low, high = least, least + 255
        if not (_is_whole(low) and _is_whole(high) and least <= low <= 0 <= high <= least + 255):
            raise ValueError(f"integers from {low!r} to {high!r} are no range of 8 bits around 0")
        if self.kwargs.get("reduce_range"):
            low, high = low // 2, high // 2
        if low == high:
            raise ValueError(f"integers from {low} to {high} are no range of 8 bits around 0")
        return int(low), int(high)

    def quantizer(self, *, signed: bool = True) -> FakeQuantize:
        """A new one.

        Args:
            signed: Whether integers begin at -128 or at 0, unless ``kwargs`` or fewer bits say
                otherwise: ``quant_min``, ``quant_max`` and ``reduce_range``, which halves both.
        """
        low, high = self.limits(signed=signed)
        whole = self.kwargs.get("observer") == _MIN_MAX
        observer = RangeObserver(
            ch_axis=int(self.kwargs.get("ch_axis", 0)) if self.strategy == "channel" else None,
            averaging_constant=None if whole else self.kwargs.get("averaging_constant", 0.01),
            eps=self.kwargs.get("eps", EPS),
        )
        return FakeQuantize(
            observer,
            quant_min=low,
            quant_max=high,
            symmetric=bool(self.symmetric),
            dtype=torch.qint8 if signed else torch.quint8,
        )


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """How a layer is rounded; None leaves that part of it as it is."""

    input_activations: QuantizationArgs | None = field(default_factory=QuantizationArgs)
    weights: QuantizationArgs | None = field(
        default_factory=lambda: QuantizationArgs(symmetric=True)
    )
    output_activations: QuantizationArgs | None = None
    target_hardware: str | None = None
    """``tensorrt`` keeps layers from being fused."""

    @classmethod
    def load(cls, value: Any, default: QuantizationScheme | None = None) -> QuantizationScheme:
        """From a recipe.

        Args:
            value: Parts by name, one of the names ``default``, ``deepsparse`` and ``tensorrt``, or
                None, which is the default.
            default: What these two stand for, if not for a scheme with its own defaults.

        Raises:
            ValueError: The name or a part is unknown, or a value cannot be.
        """
        if value is None or value == "default":
            return default or cls()
        if value == "deepsparse":
            return cls(target_hardware=value)
        if value == "tensorrt":
            symmetric = QuantizationArgs(symmetric=True)
            return cls(input_activations=symmetric, weights=symmetric, target_hardware=value)
        if isinstance(value, str):
            raise ValueError(f"scheme is {value!r}: give default, deepsparse, tensorrt or parts")
        parts = _known(value, cls)
        hardware = parts.pop("target_hardware", None)
        if hardware is not None and not isinstance(hardware, str):
            raise ValueError(f"target_hardware is {hardware!r}: give a name")
        return cls(
            **{name: QuantizationArgs.load(part) for name, part in parts.items()},
            target_hardware=None if hardware in _NOTHING else hardware,
        )


def _known(value: Any, kind: type) -> dict[str, Any]:
    """The entries of a mapping, if they are all fields of ``kind``."""
    names = [f.name for f in fields(kind)]
    if not isinstance(value, Mapping) or not set(value) <= set(names):
        raise ValueError(f"{value!r} is no {kind.__name__}: give some of {', '.join(names)}")
    return dict(value)


def _is_whole(value: Any) -> bool:
    return is_number(value) and float(value).is_integer()
