"""A recipe in a training run: sparseml's manager, asked at the right moments.

The training loop owns the clock and asks :class:`RecipeDriver`, which holds the recipe's
``ScheduledModifierManager``. Its life, from top to bottom of the class: it is made with the driver,
initialized in :meth:`~RecipeDriver.start`, asked in :meth:`~RecipeDriver.before_forward`,
:meth:`~RecipeDriver.before_step` and :meth:`~RecipeDriver.after_step` of every step, and finalized
in :meth:`~RecipeDriver.finish`. A run without a recipe has a
:class:`yolact.training.start.NoRecipe` instead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.model.weights import is_quantized
from yolact.sizes import ImageSize
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.check.examine import PlannedRun, require_sound
from yolact.sparsify.check.forecast import count_macs
from yolact.sparsify.distillation import distillation_schedule
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.replay import adopt_structure, replay
from yolact.sparsify.report import ModelReport, report, save_report
from yolact.sparsify.sparseml import (
    BasePruningModifier,
    ConstantPruningModifier,
    LayerPruningModifier,
    ScheduledModifierManager,
    SparsificationLoggingModifier,
    lift_masks,
    log_loggers,
    quiet_loggers,
)
from yolact.sparsify.sparsity import overall_sparsity
from yolact.sparsify.stages import compose, last_epoch
from yolact.sparsify.structure import fit_errors, training_mode

logger = logging.getLogger(__name__)


class RecipeDriver:
    """One recipe in one training run.

    The loop calls :meth:`start` once; then, for each step ``i``, with ``i / steps_per_epoch`` as
    the epoch, :meth:`before_forward`, :meth:`before_step` when the gradients are there, and
    :meth:`after_step` (all three also when a step is skipped because its loss is not finite); and
    :meth:`finish` at the end. Everything the driver does follows from the recipe, the weights and
    that epoch, so a run started in the middle goes on exactly like one that was never stopped.

    Args:
        recipe: What to apply.
        earlier: The composed recipe of the stages that the starting weights went through
            before this run, if any.

    Attributes:
        manager: sparseml's ``ScheduledModifierManager`` of the recipe.
        recipe: The recipe of this run.
        earlier: That of the stages before.
        composed: Both as stages of one.
        max_epochs: Length of the run, or None when the recipe has no EpochRangeModifier.
        controls_lr: Whether the recipe sets learning rates.
        distillation: What is to be distilled from a teacher, and when; the objective does it.
        settles_at: From this epoch on, the weights have their final sparsity and bits.
        samples_gradients: Whether :meth:`start` needs gradient samples.
    """

    def __init__(self, recipe: Recipe, earlier: Recipe | None = None) -> None:
        """Make the manager; the model comes with :meth:`start`."""
        self.manager: ScheduledModifierManager = recipe.manager()
        self.recipe = recipe
        self.earlier = earlier
        self.composed = compose(earlier, recipe)
        self.max_epochs = last_epoch(recipe) if self.manager.epoch_modifiers else None
        self.controls_lr = bool(self.manager.learning_rate_modifiers)
        self.distillation = distillation_schedule(
            self.manager.iter_modifiers(), recipe.entries, recipe.label
        )
        self.settles_at = self._settles_at()
        self.samples_gradients = any(facts_of(entry.name).samples for entry in recipe.entries)
        self._steps_per_epoch = 1
        self._steps = 0

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epoch: float,
        steps_per_epoch: int,
        samples: GradientSamples | None = None,
    ) -> None:
        """Initialize the manager; bring it and the model to ``epoch``.

        That the recipe works for the model, :meth:`check` has said before.

        Args:
            model: With its weights. When the run resumes after quantization began, with that
                structure too (see :func:`yolact.sparsify.structure.apply_structure`).
            optimizer: Gets the learning rates and weight decays of the last step taken; load its
                saved state after this call.
            epoch: Steps done / ``steps_per_epoch``; 0 begins the recipe.
            steps_per_epoch: Optimizer steps of one epoch.
            samples: Where OBS, M-FAC and RigL pruning take gradients from, if
                :attr:`samples_gradients`.

        Raises:
            RecipeError: The recipe does not fit the model, or gradients are needed and there are
                none.
        """
        if self.samples_gradients and samples is None:
            raise RecipeError(
                f"{self.recipe.label} prunes by gradients of training batches, "
                "which there are only while training",
                hint="train with this recipe, or prune by magnitude with GMPruningModifier",
            )
        self._steps_per_epoch = steps_per_epoch
        self._steps = round(epoch * steps_per_epoch)
        # An uninterrupted run last looked at the clock before its last step.
        clock = max(self._steps - 1, 0) / steps_per_epoch
        if is_quantized(model):
            adopt_structure(self.manager, model, fresh=self._steps == 0)
        more = {} if samples is None else {"grad_sampler": samples.for_sparseml()}
        with fit_errors(), training_mode(model):
            self.manager.initialize(model, clock, loggers=quiet_loggers(), **more)
        for modifier in self.manager.iter_modifiers():
            if isinstance(modifier, SparsificationLoggingModifier):
                modifier.initialize_loggers(log_loggers(logger))
        if self._steps > 0:
            replay(self.manager, model, optimizer, self._steps, steps_per_epoch)

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set what the step at ``epoch`` begins with: learning rate, weight decay, quantization.

        ``manager.update`` would compute masks at this moment too, before there are gradients.
        """
        for modifier in self.manager.iter_modifiers():
            if not isinstance(modifier, BasePruningModifier):
                self._update(modifier, model, optimizer, epoch)

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""
        for modifier in self._masking():
            lift_masks(modifier.module_masks)
            self._update(modifier, model, optimizer, epoch)
        self.manager.optimizer_pre_step(model, optimizer, epoch, self._steps_per_epoch)

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set pruned weights back to zero after the optimizer's step."""
        self.manager.optimizer_post_step(model, optimizer, epoch, self._steps_per_epoch)
        self._steps = round(epoch * self._steps_per_epoch) + 1

    def finish(self, model: nn.Module) -> None:
        """Reach the targets of pruning that ends with the run itself, and let go of the model."""
        epoch = self._steps / self._steps_per_epoch
        for modifier in self._masking():
            if not modifier.ended and 0 <= modifier.end_epoch <= epoch:
                self._update(modifier, model, None, epoch)
        self.manager.finalize(model)

    def check(self, model: nn.Module, epochs: float) -> None:
        """Look for everything that is wrong with the recipe before any of it happens.

        Args:
            model: What the run begins with.
            epochs: Length of the run, for recipes that set none.

        Raises:
            RecipeError: It will not work; what is probably not meant is a warning in the log.
        """
        # Whether there is a teacher for what it distils, the run itself asks.
        for problem in require_sound(self.recipe, model, PlannedRun(epochs, teacher=True)):
            logger.warning("%s: %s; %s", self.recipe.label, problem, problem.hint)

    def quantizes_by(self, epoch: float) -> bool:
        """Whether quantization has begun at ``epoch``."""
        return any(m.start_epoch <= epoch for m in self.manager.quantization_modifiers)

    def sparsity(self, model: nn.Module) -> float:
        """Fraction of zeros in all convolution weights of ``model``, 0..1."""
        return overall_sparsity(model)

    def write_report(
        self, model: nn.Module, checkpoint: Path, image_size: ImageSize | None = None
    ) -> ModelReport:
        """Write beside a checkpoint how far its weights follow the recipe.

        Args:
            model: With these weights.
            checkpoint: Its file.
            image_size: Of the network input for which operations are counted. Leave it out
                before :meth:`finish`: while the recipe runs, its hooks are in the model.
        """
        macs = None if image_size is None else count_macs(model, image_size)
        result = report(model, self.composed, macs=macs)
        save_report(result, checkpoint)
        return result

    def _update(
        self, modifier: Any, model: nn.Module, optimizer: Optimizer | None, epoch: float
    ) -> None:
        """Ask one modifier, if something of it is due."""
        if not self._due(modifier, epoch):
            return
        # OBS and M-FAC do nothing when there is one step an epoch: to them that is a one-shot run.
        modifier.scheduled_update(model, optimizer, epoch, max(self._steps_per_epoch, 2))
        if modifier.ended and isinstance(modifier, BasePruningModifier):
            # Top-KAST would let momentum move masked weights between its end and the run's.
            modifier._allow_reintroduction = False
        if isinstance(modifier, LayerPruningModifier) and optimizer is not None:
            _forget_removed(optimizer, model)

    def _masking(self) -> list[Any]:
        """The modifiers that prune weights by masks."""
        return [m for m in self.manager.iter_modifiers() if isinstance(m, BasePruningModifier)]

    def _due(self, modifier: Any, epoch: float) -> bool:
        if isinstance(modifier, ConstantPruningModifier) and modifier.started:
            # sparseml computes constant masks anew in every step, which takes seconds.
            return bool(modifier.end_pending(epoch, self._steps_per_epoch))
        return bool(modifier.enabled and modifier.update_ready(epoch, self._steps_per_epoch))

    def _settles_at(self) -> float:
        pruned = [m.end_epoch for m in self.manager.pruning_modifiers]
        quantized = [m.start_epoch for m in self.manager.quantization_modifiers]
        # What is due at an epoch happens in the step that begins there: the weights have it after.
        after = math.nextafter(max([0.0, *pruned, *quantized]), math.inf)
        return after if self.max_epochs is None else min(after, self.max_epochs)


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


def _forget_removed(optimizer: Optimizer, model: nn.Module) -> None:
    """Take what the model no longer has out of the optimizer: a run that resumes has none of it."""
    network, *_ = optimizer.param_groups  # others are of the objective
    there = set(model.parameters())
    for parameter in set(network["params"]) - there:
        optimizer.state.pop(parameter, None)
    network["params"] = [parameter for parameter in network["params"] if parameter in there]
