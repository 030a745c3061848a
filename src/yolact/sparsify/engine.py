"""What a recipe engine is: who turns the entries of a recipe into changes of a training run.

There are two. :mod:`yolact.sparsify.native` is this package's own and runs everywhere;
:mod:`yolact.sparsify.sparseml` is sparseml's ScheduledModifierManager and modifiers, where sparseml
can be imported. Everything above them knows only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry


class Modifier(Protocol):
    """One modifier: the fields of its recipe entry as attributes, defaults filled in.

    The name of its class is the one that recipes use.
    """

    start_epoch: float
    """-1 for the beginning of the run."""
    end_epoch: float
    """-1 for never."""


@dataclass(frozen=True)
class GradientSamples:
    """Where OBS, M-FAC and RigL pruning take gradients from, while masks are due."""

    batches: Callable[[int | None], Iterator[Any]]
    """Batch size, or None for the run's, to an endless iterator of training batches."""
    loss: Callable[[Any], Tensor]
    """The loss of one such batch, with its graph; the network is in the mode it is in."""


class Manager(Protocol):
    """All modifiers of a recipe in one run.

    :meth:`start` comes first; then for every step :meth:`before_forward`, :meth:`before_step`
    and :meth:`after_step`; at last :meth:`finish`. Epochs are steps taken / ``steps_per_epoch``.
    """

    @property
    def modifiers(self) -> Sequence[Any]:
        """Each a :class:`Modifier`, in the order in which they act."""

    def restructure(self, model: nn.Module, epoch: float) -> None:
        """Give ``model`` the channels, layers and quantizers that it has by ``epoch``.

        Only modifiers that change the structure act; the others may be for another model.
        """

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int,
        steps_per_epoch: int,
        samples: GradientSamples | None,
    ) -> None:
        """Bring modifiers, ``model`` and ``optimizer`` to where they are after ``steps`` steps."""

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Do what a step begins with: learning rate, weight decay, structure, quantization."""

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set masked weights back to zero after the optimizer's step."""

    def finish(self, model: nn.Module, epoch: float) -> None:
        """Do what ends with the run, at ``epoch``, and let go of the model."""


class Engine(Protocol):
    """Makes modifiers and managers of them."""

    name: EngineName

    def fields(self) -> Mapping[str, frozenset[str]]:
        """Names of the modifiers there are, with the fields of each."""

    def build(self, entry: Entry) -> Any:
        """The :class:`Modifier` of a recipe's entry.

        Raises:
            TypeError: A field is missing.
            ValueError: A field has a value that cannot be.
        """

    def manager(self, stages: Mapping[str, Sequence[Any]]) -> Manager:
        """A manager of modifiers that :meth:`build` made, by the stage of the recipe."""

    def sparsities(
        self, modifier: Any, model: nn.Module, epochs: Sequence[float], steps_per_epoch: int
    ) -> tuple[list[str], list[list[float]]]:
        """The course of a pruning modifier, without computing masks.

        Args:
            modifier: Newly built.
            model: Without values, on the meta device; it may be changed.
            epochs: Rising, from 0.
            steps_per_epoch: Of a run.

        Returns:
            Names of the parameters in the model, and for each epoch the sparsity of each.
        """
