"""What modifiers of the native engine have in common: a clock, and the meaning of fields.

A modifier's fields are those of its dataclass: what a recipe may say, with the same defaults. Its
state begins with :meth:`Modifier.attach` and follows from the recipe, the weights and the steps
taken alone, so :meth:`Modifier.resume` can compute it again.

Epochs are floats: steps taken / ``steps_per_epoch``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

CURVES = ("linear", "cubic", "inverse_cubic")
"""What ``inter_func`` may be; see :func:`between`."""

_Value = TypeVar("_Value", float, Tensor)


@dataclass(kw_only=True, eq=False)
class Modifier:
    """Acts once at its start and once at its end."""

    start_epoch: float = -1.0
    """-1 for the beginning of the run."""
    end_epoch: float = -1.0
    """-1 for never."""
    started: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)

    @property
    def identifier(self) -> str:
        """What says which of several that begin and end together acts first."""
        return type(self).__name__

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find in ``model`` what this is for.

        Args:
            model: With its weights, and with the structure that it has at ``epoch``.
            epoch: Of the last step taken; 0 when none is.

        Raises:
            ValueError: The model has nothing it could be for.
        """

    def detach(self, model: nn.Module) -> None:
        """Let go of the model: what was hooked into it for training goes."""

    def starts(self, epoch: float) -> bool:
        """Whether the start is due."""
        return not self.started and not self.ended and epoch >= self.start_epoch

    def ends(self, epoch: float) -> bool:
        """Whether the end is due; it may be at the same moment as the start."""
        return self.started and not self.ended and epoch >= self.end_epoch >= 0

    def due(self, epoch: float) -> bool:
        """Whether there is something to do at ``epoch``."""
        return self.starts(epoch) or self.ends(epoch)

    def update(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Do what is due, and count it as done.

        Args:
            model: That of :meth:`attach`.
            optimizer: Of the run; None after its last step.
            epoch: Of the step that is being taken.
            steps_per_epoch: Optimizer steps of one epoch.
        """
        self.act(model, optimizer, epoch, steps_per_epoch)
        self.passed(epoch)

    def passed(self, epoch: float) -> None:
        """Count what is due at ``epoch`` as done: the start, and after it the end."""
        self.started = self.started or self.starts(epoch)
        self.ended = self.ended or self.ends(epoch)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """What :meth:`update` does, told by :meth:`starts` and :meth:`ends`."""

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Remember what it would after ``steps`` steps, at least 1.

        Args:
            model: With the weights of that moment.
            optimizer: Gets what this sets in it, as of the last step taken.
            steps: Optimizer steps done.
            steps_per_epoch: Optimizer steps of one epoch.
        """
        for epoch in self.moments(steps, steps_per_epoch):
            self.update(model, optimizer, epoch, steps_per_epoch)

    def moments(self, steps: int, steps_per_epoch: int) -> Iterator[float]:
        """Epochs of the first ``steps`` steps at which something was due.

        Each has to be counted as done (:meth:`passed`) before the next is asked for.
        """
        for step in range(first_step(self.start_epoch, steps_per_epoch), steps):
            if self.ended:
                return
            if self.due(step / steps_per_epoch):
                yield step / steps_per_epoch


@dataclass(kw_only=True, eq=False)
class RepeatedModifier(Modifier):
    """Acts at its start, at its end, and again and again between them."""

    update_frequency: float = -1.0
    """Epochs from one update to the next; -1 for every step."""
    last_update: float = field(default=-1.0, init=False)
    """Epoch of it; -1 before the first."""

    def due(self, epoch: float) -> bool:
        """Whether there is something to do at ``epoch``."""
        if super().due(epoch):
            return True
        running = self.started and not self.ended and epoch > self.start_epoch
        every_step = self.update_frequency == -1
        again = self.last_update >= 0 and epoch >= self.last_update + self.update_frequency
        return running and (every_step or again)

    def passed(self, epoch: float) -> None:
        """Count what is due at ``epoch`` as done; see :meth:`Modifier.passed`."""
        self.last_update = epoch
        super().passed(epoch)


class MemorylessModifier(RepeatedModifier):
    """Does what follows from the epoch alone: of all updates, only the last one leaves a trace."""

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Do the first update and the last; see :meth:`Modifier.resume`."""
        first, last = first_step(self.start_epoch, steps_per_epoch), steps - 1
        if self.end_epoch >= 0:
            last = min(last, max(first, first_step(self.end_epoch, steps_per_epoch)))
        for step in (first, last):
            if step <= last and self.due(step / steps_per_epoch):
                self.update(model, optimizer, step / steps_per_epoch, steps_per_epoch)


class MaskingModifier(RepeatedModifier):
    """Keeps weights zero by masks, which are computed when the gradients of a step are there."""

    def mask(self) -> None:
        """Set masked weights to zero, which others may have changed."""

    def after_optimizer(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """After the optimizer has stepped: set masked weights back to zero."""
        self.mask()


def first_step(epoch: float, steps_per_epoch: int) -> int:
    """The number, from 0, of the first step that is not before ``epoch``."""
    step = max(0, math.ceil(epoch * steps_per_epoch) - 1)  # the product may be rounded up
    while step / steps_per_epoch < epoch:
        step += 1
    return step


def between(modifier: Modifier, epoch: float, first: _Value, last: _Value, curve: str) -> _Value:
    """What a modifier takes from ``first`` at its start to ``last`` at its end, at ``epoch``.

    Args:
        modifier: It ends after it starts.
        epoch: Before the start, the value is ``first``; after the end, ``last``.
        first: A number or a tensor.
        last: The same; of the same shape.
        curve: One of :data:`CURVES`.
    """
    inside = min(max(epoch, modifier.start_epoch), modifier.end_epoch)
    passed = (inside - modifier.start_epoch) / (modifier.end_epoch - modifier.start_epoch)
    if curve != "linear":
        passed = 1 - (1 - passed) ** (3 if curve == "cubic" else 1 / 3)
    if passed <= sys.float_info.epsilon:
        return first
    if passed >= 1.0 - sys.float_info.epsilon:
        return last
    return passed * (last - first) + first


def require_curve(curve: str) -> None:
    """Refuse an ``inter_func`` that there is not.

    Raises:
        ValueError: It is none of :data:`CURVES`.
    """
    if curve not in CURVES:
        raise ValueError(f"inter_func is {curve!r}; there are {', '.join(CURVES)}")


def require_order(modifier: Modifier) -> None:
    """Refuse an end before the start; the same moment, and no end, are fine.

    Raises:
        ValueError: It ends before it starts.
    """
    if modifier.end_epoch != -1 and modifier.end_epoch < modifier.start_epoch:
        raise ValueError(_order(modifier, "before it starts"))


def require_length(modifier: Modifier) -> None:
    """Refuse what has no length: its values are between those of its start and its end.

    Raises:
        ValueError: It does not end, or not after it starts.
    """
    if modifier.end_epoch <= max(modifier.start_epoch, 0.0):
        raise ValueError(_order(modifier, "not after it starts"))


def require_names(field: str, value: Any) -> list[str]:
    """The names in a field that takes a list of them, possibly nested, or a token such as __ALL__.

    Raises:
        ValueError: It is something else.
    """
    names = list(flat(value)) if isinstance(value, list | tuple) else [_token(value)]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{field} is {value!r}; give a list of names")
    return names


def is_true(value: Any) -> bool:
    """A switch as sparseml reads it: of texts, those with an f or a 0 in them are off."""
    if isinstance(value, str):
        return bool(value) and not set("f0") & set(value.lower())
    return bool(value)


def _order(modifier: Modifier, how: str) -> str:
    return f"ends at epoch {modifier.end_epoch:g}, {how}, at {modifier.start_epoch:g}"


def _token(value: Any) -> Any:
    known = isinstance(value, str) and value.upper() in ("__ALL__", "__ALL_PRUNABLE__")
    return value.upper() if known else None


def flat(value: Any) -> Iterator[Any]:
    """What is in a list, and in the lists inside of it; of anything else, itself."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from flat(inner)
    else:
        yield value
