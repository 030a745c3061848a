"""Modifiers that make weights zero by their magnitude, and those that keep zeros.

What a modifier remembers is its masks. They follow from the weights, whose zeros they are, so a
run that goes on has them again. Masks are of parameters, not of layers: quantization may wrap and
replace layers meanwhile, as long as it keeps the parameters.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from yolact.sparsify.document import FROM_PARAM, is_number
from yolact.sparsify.native.masks import Pattern, pattern_of
from yolact.sparsify.native.matching import ALL, PRUNABLE, matching, parameters_of, prunable
from yolact.sparsify.native.modifier import (
    MaskingModifier,
    between,
    flat,
    require_curve,
    require_order,
)

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class PruningModifier(MaskingModifier):
    """Keeps weights zero by masks from its start to its end, or to the end of the run.

    Gradients of masked weights are zero from the step after a mask is computed: what momentum they
    have then fades, and the weights are set back after each step.
    """

    params: str | list[Any] = field()
    """Names and ``re:`` expressions of parameters, ``__ALL__`` or ``__ALL_PRUNABLE__``."""
    leave_enabled: bool = field(default=False, init=False)
    """Whether masked weights stay zero after the end."""
    holds: bool = field(default=False, init=False)
    """Whether masked weights are kept zero now."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: One has a value that cannot be.
        """
        require_order(self)
        self.names = _flat_names(self.params)
        self._weights: dict[str, nn.Parameter] = {}
        self._masks: list[Tensor] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What it prunes in the model of :meth:`attach`, by name."""
        return self._weights

    @property
    def masks(self) -> list[Tensor]:
        """1 for each of :attr:`weights` that stays and 0 for the others; none before the start."""
        return self._masks

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters; see :meth:`Modifier.attach`."""
        _require_names(self.names, self.params)
        self._weights = self.find(model)
        if not self._weights:
            raise ValueError("names no parameter of the model")

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that :attr:`params` stand for, by name.

        Raises:
            ValueError: One of its names stands for none.
        """
        if ALL in self.names:
            return {name: parameter for name, _, parameter in parameters_of(model)}
        return prunable(model) if PRUNABLE in self.names else matching(model, self.names)

    def detach(self, model: nn.Module) -> None:
        """Mask once more, and let go of the parameters."""
        self.mask()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._weights, self._masks, self.holds = [], {}, [], False

    def passed(self, epoch: float) -> None:
        """Count what is due at ``epoch`` as done; see :meth:`Modifier.passed`."""
        if self.starts(epoch):
            self.holds = True
        elif self.ends(epoch):
            self.holds = self.leave_enabled
        super().passed(epoch)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Compute the masks of ``epoch`` and apply them."""
        self._masks = self.masks_at(epoch)
        if self.starts(epoch):
            self._mask_gradients()
        self._apply()

    @abstractmethod
    def masks_at(self, epoch: float) -> list[Tensor]:
        """The mask of each weight, as the weights are now."""

    @abstractmethod
    def masks_before(self) -> list[Tensor]:
        """The masks that the last update computed, from the zeros that they made."""

    def mask(self) -> None:
        """Set masked weights to zero, if they are kept zero now."""
        if self.holds:
            self._apply()

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Find masks in the weights; see :meth:`Modifier.resume`."""
        for epoch in self.moments(steps, steps_per_epoch):
            self.passed(epoch)
        if self.holds:
            self._masks = self.masks_before()
            self._mask_gradients()
            self._apply()

    def _apply(self) -> None:
        for weight, mask in zip(self._weights.values(), self._masks, strict=True):
            weight.data.mul_(mask)

    def _mask_gradients(self) -> None:
        for index, weight in enumerate(self._weights.values()):
            frozen = not weight.requires_grad
            weight.requires_grad_(True)  # or it takes no hook, which it needs if it is trained yet
            hook: RemovableHandle = weight.register_hook(self._gradient_hook(index))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
            if frozen:
                weight.requires_grad_(False)

    def _gradient_hook(self, index: int) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient * self._masks[index] if self.holds else gradient


@dataclass(kw_only=True, eq=False)
class ConstantPruningModifier(PruningModifier):
    """Keeps zero what is zero at its start."""

    def __post_init__(self) -> None:
        """Check the fields; see :class:`PruningModifier`."""
        super().__post_init__()
        self.update_frequency = -1.0  # recipes may give one, which says nothing

    def due(self, epoch: float) -> bool:
        """Whether it starts or ends at ``epoch``."""
        return self.starts(epoch) or self.ends(epoch)

    def masks_at(self, epoch: float) -> list[Tensor]:
        """See :meth:`PruningModifier.masks_at`."""
        return self.masks_before()

    def masks_before(self) -> list[Tensor]:
        """See :meth:`PruningModifier.masks_before`."""
        return [Pattern().mask_of(weight.detach()) for weight in self._weights.values()]


@dataclass(kw_only=True, eq=False)
class MagnitudePruning(PruningModifier):
    """Sets the smallest weights to zero, as many as a schedule says."""

    start_epoch: float = field()
    end_epoch: float = field()
    update_frequency: float = field()
    leave_enabled: bool = True
    mask_type: str | list[int] = "unstructured"
    """``unstructured``, ``block4``, ``N:M`` or a block such as [1, 4]."""
    global_sparsity: bool = field(default=False, init=False)
    """Whether a sparsity is that of all weights together, not of each parameter."""

    def __post_init__(self) -> None:
        """Check the fields; see :class:`PruningModifier`."""
        super().__post_init__()
        self._pattern = Pattern()

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters; see :meth:`Modifier.attach`."""
        self._pattern = pattern_of(self.mask_type)
        super().attach(model, epoch)

    @abstractmethod
    def levels(self, epoch: float) -> list[float]:
        """The sparsity of each of :attr:`weights` after an update at ``epoch``."""

    def masks_at(self, epoch: float) -> list[Tensor]:
        """See :meth:`PruningModifier.masks_at`."""
        scores = [weight.detach().abs() for weight in self._weights.values()]
        return self._pattern.masks(scores, self.levels(epoch), together=self.global_sparsity)

    def masks_before(self) -> list[Tensor]:
        """See :meth:`PruningModifier.masks_before`."""
        levels = self.levels(self.last_update)
        return [
            self._pattern.mask_of(weight.detach()) if level > 0 else torch.ones_like(weight.data)
            for weight, level in zip(self._weights.values(), levels, strict=True)
        ]


@dataclass(kw_only=True, eq=False)
class MagnitudePruningModifier(MagnitudePruning):
    """Takes the sparsity of each parameter from one value to another."""

    init_sparsity: float | str = field()
    """0..1 at the start, or ``__FROM_PARAM__`` for what each parameter has."""
    final_sparsity: float | dict[float, list[str]] = field()
    """Above 0 and below 1, at the end; or several, each with the names that have it."""
    inter_func: str = "cubic"
    """``linear``, ``cubic`` or ``inverse_cubic``."""

    def __post_init__(self) -> None:
        """Check the fields; see :class:`PruningModifier`."""
        final = self.final_sparsity
        several = isinstance(final, dict)
        if several and self.params:
            raise ValueError(f"final_sparsity names parameters, but so does params {self.params!r}")
        if isinstance(self.mask_type, list) and all(side == 1 for side in self.mask_type[2:]):
            self.mask_type = self.mask_type[:2]
        super().__post_init__()
        if not several and not self.names:
            self.names = [PRUNABLE]
        require_curve(self.inter_func)
        first: Any = self.init_sparsity
        if first != FROM_PARAM and not (is_number(first) and 0 <= first <= 1):
            raise ValueError(f"init_sparsity is {self.init_sparsity!r}; give a number, 0 to 1")
        for value in final if isinstance(final, dict) else [final]:
            if not (is_number(value) and 0 < value < 1):
                raise ValueError(
                    f"final_sparsity is {value!r}; give a number between 0 and 1, such as 0.9"
                )
        self._first: list[float] = []
        self._last: list[float] = []

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Find the parameters and the sparsities of each; see :meth:`Modifier.attach`."""
        super().attach(model, epoch)
        if self.init_sparsity != FROM_PARAM:
            self._first = [float(self.init_sparsity)] * len(self._weights)
        elif any(weight.is_meta for weight in self._weights.values()):
            raise ValueError(f"init_sparsity {FROM_PARAM} needs weights")
        else:
            self._first = [_sparsity(weight) for weight in self._weights.values()]

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See :meth:`PruningModifier.find`; of several final sparsities, the first counts."""
        if not isinstance(self.final_sparsity, dict):
            found = super().find(model)
            self._last = [float(self.final_sparsity)] * len(found)
            return found
        found, self._last = {}, []
        for final, names in self.final_sparsity.items():
            more = matching(model, names)
            self._last += [float(final)] * len(more.keys() - found.keys())
            found |= {name: weight for name, weight in more.items() if name not in found}
        return found

    def levels(self, epoch: float) -> list[float]:
        """See :meth:`MagnitudePruning.levels`."""
        return [self._between(epoch, *ends) for ends in zip(self._first, self._last, strict=True)]

    def resume(
        self, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
    ) -> None:
        """Find masks in the weights; see :meth:`Modifier.resume`.

        With ``__FROM_PARAM__`` the first sparsity of a parameter is one from which it would have
        the zeros that it has now: rounded zeros tell it but roughly.
        """
        super().resume(model, optimizer, steps, steps_per_epoch)
        if self.init_sparsity != FROM_PARAM:
            return
        logger.warning(
            "%s keeps state that is not saved: "
            "the continued run may differ from an uninterrupted one",
            type(self).__name__,
        )
        passed = self._between(self.last_update, 0.0, 1.0) if self.started else 0.0
        if passed < 1:
            self._first = [
                min(max((now - passed * last) / (1 - passed), 0.0), 1.0)
                for now, last in zip(self._first, self._last, strict=True)
            ]

    def _between(self, epoch: float, first: float, last: float) -> float:
        return between(self, epoch, first, last, self.inter_func)


@dataclass(kw_only=True, eq=False)
class GlobalMagnitudePruningModifier(MagnitudePruningModifier):
    """Takes the sparsity of all its parameters together from one value to another."""

    global_sparsity: bool = field(default=True, init=False)


@dataclass(kw_only=True, eq=False)
class GMPruningModifier(MagnitudePruningModifier):
    """Takes the sparsity of each parameter, or of all together, from one value to another."""

    global_sparsity: bool = False
    phased: bool = False
    """Has to be False."""
    score_type: str = "magnitude"
    """Has to be ``magnitude``."""

    def __post_init__(self) -> None:
        """Check the fields; see :class:`PruningModifier`."""
        super().__post_init__()
        if self.phased:
            raise ValueError("phased pruning is that of ACDCPruningModifier")
        if self.score_type != "magnitude":
            raise ValueError(
                f"score_type is {self.score_type!r}; other modifiers prune by other scores"
            )


def course(
    modifier: MagnitudePruning, model: nn.Module, epochs: Sequence[float]
) -> tuple[list[str], list[list[float]]]:
    """How sparse a modifier makes what it prunes, without computing masks.

    Args:
        modifier: Newly built.
        model: Whose parameters need no values.
        epochs: Rising, from 0.

    Returns:
        Names of the parameters in the model, and for each epoch the sparsity of each.

    Raises:
        ValueError: The modifier does not fit the model, or has to see weights.
    """
    modifier.attach(model, 0.0)
    current, levels = [0.0] * len(modifier.weights), []
    for epoch in epochs:
        if modifier.due(epoch):
            current = modifier.levels(epoch)
            modifier.passed(epoch)
        levels.append(current)
    return list(modifier.weights), levels


def _sparsity(weight: Tensor) -> float:
    return float((weight == 0).sum().float() / float(weight.numel()))


def _flat_names(params: Any) -> list[Any]:
    if not isinstance(params, str | list | tuple | None):
        raise _no_names(params)
    return [params.upper()] if isinstance(params, str) else list(flat(params))


def _require_names(names: Sequence[Any], params: Any) -> None:
    token = isinstance(params, str)
    if not all(name in (ALL, PRUNABLE) if token else isinstance(name, str) for name in names):
        raise _no_names(params)


def _no_names(params: Any) -> ValueError:
    return ValueError(f"params is {params!r}; give a list of names, {ALL} or {PRUNABLE}")
