"""Rounding to integers as training simulates it: a grid of values, whose range is learnt meanwhile.

The arithmetic, the state-dict names and the attributes are those of torch.ao's ``FakeQuantize``
with ``MovingAverageMinMaxObserver``, to the bit: checkpoints of either load into the other, and
readers of a network ask :func:`is_fake_quantize`, which knows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

EPS: float = torch.finfo(torch.float32).eps
"""The smallest step between two values of a grid, if nothing else is said."""


class RangeObserver(nn.Module):
    """Moving averages of the smallest and largest value of a tensor, or of each of its channels.

    It learns only where gradients are recorded: results of validation would otherwise depend on
    the images before.

    Attributes:
        min_val: Smallest; [] of a tensor, [C] of channels. Before the first tensor infinite or [0].
        max_val: Largest, alike.
        eps: [1], the smallest step between two values of the grid.
    """

    _version = 3  # torch.ao's: it looks for other names in state dicts of earlier ones

    eps: Tensor
    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        *,
        ch_axis: int | None = None,
        averaging_constant: float | None = 0.01,
        eps: float = EPS,
    ) -> None:
        """Begin without a range.

        Args:
            ch_axis: The axis of channels that each have a range; None for one of all.
            averaging_constant: Weight of each new tensor, 0..1; the first counts as a whole.
                None keeps the smallest and largest of all tensors instead.
            eps: The smallest step between two values of the grid.
        """
        super().__init__()
        self.ch_axis = ch_axis
        self.averaging_constant = averaging_constant
        unseen = torch.tensor(torch.inf) if ch_axis is None else torch.empty(0)
        self.register_buffer("eps", torch.tensor([eps]))
        self.register_buffer("min_val", unseen)
        self.register_buffer("max_val", -unseen)

    def forward(self, x: Tensor) -> Tensor:
        """Learn from ``x``, of any shape, and return it."""
        if torch.is_grad_enabled() and x.numel():
            low, high = self._extremes(x.detach().to(self.min_val.dtype))
            weight = self.averaging_constant
            if not self.min_val.numel():
                self.min_val.resize_(low.shape).copy_(low)
                self.max_val.resize_(high.shape).copy_(high)
            elif weight is None:
                self.min_val.copy_(torch.min(self.min_val, low))
                self.max_val.copy_(torch.max(self.max_val, high))
            else:
                unseen = self.min_val > self.max_val
                for mean, now in ((self.min_val, low), (self.max_val, high)):
                    mean.copy_(torch.where(unseen, now, mean + weight * (now - mean)))
        return x

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.ch_axis is not None:
            return torch.aminmax(x.transpose(0, self.ch_axis).flatten(1), dim=1)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)  # as it lies in memory: aminmax would copy it
        return torch.aminmax(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}eps", self.eps)  # it was no part of old checkpoints
        if self.ch_axis is not None:
            _resize(self, ("min_val", "max_val"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The range, for ``print``."""
        return f"min_val={self.min_val}, max_val={self.max_val}"


class FakeQuantize(nn.Module):
    """Replaces values by the nearest ones of a grid; gradients pass where the grid reaches.

    Attributes:
        scale: [1] or [C], the step between two values of the grid.
        zero_point: [1] or [C], the integer that stands for 0.
        quant_min: The smallest integer.
        quant_max: The largest integer.
        dtype: ``torch.qint8`` or ``torch.quint8``.
        qscheme: Whether zero is in the middle of the grid, and whether channels have one each.
        ch_axis: Of the channels, or -1.
        activation_post_process: Learns the range that the grid spans.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor
    scale: Tensor
    zero_point: Tensor
    activation_post_process: RangeObserver

    def __init__(
        self,
        observer: RangeObserver,
        *,
        quant_min: int = -128,
        quant_max: int = 127,
        symmetric: bool = False,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        """Begin with steps of 1, rounding and learning.

        Args:
            observer: Decides whether there is one grid, or one for each channel.
            quant_min: The smallest integer.
            quant_max: The largest integer.
            symmetric: Whether 0 stands for 0.
            dtype: What the integers are to be stored as.
        """
        super().__init__()
        self.quant_min, self.quant_max, self.dtype = quant_min, quant_max, dtype
        self.is_per_channel = observer.ch_axis is not None
        self.ch_axis = -1 if observer.ch_axis is None else observer.ch_axis
        self._symmetric = symmetric
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("scale", torch.tensor([1.0]))
        self.register_buffer("zero_point", torch.tensor([0], dtype=torch.int32))
        self.activation_post_process = observer
        self._rounds = self._observes = True  # the flags again: reading a tensor waits for the GPU

    @property
    def qscheme(self) -> torch.qscheme:
        """As torch names it."""
        if self.is_per_channel:
            return torch.per_channel_symmetric if self._symmetric else torch.per_channel_affine
        return torch.per_tensor_symmetric if self._symmetric else torch.per_tensor_affine

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the range of what comes, or keep it."""
        self.observer_enabled.fill_(enabled)
        self._observes = enabled

    def disable_observer(self) -> None:
        """Keep the range."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let values through."""
        self.fake_quant_enabled.fill_(enabled)
        self._rounds = enabled

    def disable_fake_quant(self) -> None:
        """Let values through."""
        self.enable_fake_quant(False)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Let the grid reach from ``low`` to ``high``, [] or [C] each, 0 included."""
        seen = self.activation_post_process
        for own, new in ((seen.min_val, low), (seen.max_val, high)):
            own.resize_(new.shape).copy_(new)
        self._span()

    def forward(self, x: Tensor) -> Tensor:
        """``x``, of any shape, on the grid."""
        if self._observes:
            self.activation_post_process(x)
            self._span()
        if not self._rounds or x.is_meta:  # torch rounds no tensors without values
            return x
        limits = (self.quant_min, self.quant_max)
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero_point, self.ch_axis, *limits
            )
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *limits)

    @torch.no_grad()
    def _span(self) -> None:
        """Let the grid reach from the smallest value to the largest, 0 included."""
        seen = self.activation_post_process
        if not seen.min_val.numel():
            return
        low, high = seen.min_val.clamp(max=0), seen.max_val.clamp(min=0)
        steps = float(self.quant_max - self.quant_min)
        if self._symmetric:
            scale = torch.max(torch.max(-low, high) / (steps / 2), seen.eps)
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
        else:
            scale = torch.max((high - low) / steps, seen.eps)
            zero_point = self.quant_min - torch.round(low / scale).to(torch.int32)
            zero_point = zero_point.clamp(self.quant_min, self.quant_max)
        if not self.is_per_channel:
            unseen = seen.min_val > seen.max_val
            scale, zero_point = scale.where(~unseen, 1.0), zero_point.where(~unseen, 0)
        for own, new in ((self.scale, scale), (self.zero_point, zero_point)):
            own.resize_(new.shape).copy_(new)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _resize(self, ("scale", "zero_point"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not self.observer_enabled.is_meta:
            self._rounds = bool(self.fake_quant_enabled)
            self._observes = bool(self.observer_enabled)

    def extra_repr(self) -> str:
        """The grid, for ``print``."""
        return (
            f"{self.quant_min}..{self.quant_max}, {self.qscheme}, scale={self.scale}, "
            f"zero_point={self.zero_point}"
        )


def is_fake_quantize(module: object) -> TypeGuard[FakeQuantize]:
    """Whether ``module`` rounds: one of this file or of torch.ao, told by its buffers."""
    return isinstance(module, nn.Module) and "fake_quant_enabled" in module._buffers


def fake_quantizers(model: nn.Module) -> Iterator[FakeQuantize]:
    """All modules of ``model`` that round, of this file or of torch.ao."""
    return (module for module in model.modules() if is_fake_quantize(module))


def _resize(
    module: nn.Module, names: tuple[str, ...], state_dict: dict[str, Any], prefix: str
) -> None:
    """Make room for what is about to be loaded: channels have no ranges before they are learnt."""
    for name in names:
        if f"{prefix}{name}" in state_dict:
            module.get_buffer(name).resize_(state_dict[f"{prefix}{name}"].shape)
