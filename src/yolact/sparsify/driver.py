"""Applying a recipe while a model trains. The training loop owns the clock."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.sparsify._compat import (
    BasePruningModifier,
    ConstantPruningModifier,
    LayerPruningModifier,
    lift_masks,
)
from yolact.sparsify.check.fit import check_against
from yolact.sparsify.check.refusals import SAMPLED
from yolact.sparsify.check.removal import rehearse_removal
from yolact.sparsify.distillation import distillation_schedule
from yolact.sparsify.gradients import GradientSamples
from yolact.sparsify.modifiers import build_manager
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.resume import bring_to
from yolact.sparsify.structure import rehearse
from yolact.sparsify.text.document import parse
from yolact.sparsify.text.stages import compose, last_epoch


class RecipeDriver:
    """One recipe in one training run.

    The loop calls :meth:`start` once; then, for each step ``i``, with ``i / steps_per_epoch`` as
    the epoch, :meth:`before_forward`, :meth:`before_step` when the gradients are there, and
    :meth:`after_step` (all three also when a step is skipped because its loss is not finite); and
    :meth:`finish` at the end. Everything the driver does follows from the recipe, the weights and
    that epoch, so a run started in the middle goes on exactly like one that was never stopped.

    Args:
        recipe: What to apply.
        checkpoint_recipe: The composed recipe of the stages that the starting weights went
            through before this run, if any.

    Attributes:
        text: The recipe to store in checkpoints: all stages, composed.
        max_epochs: Length of the run, or None when the recipe has no EpochRangeModifier.
        controls_lr: Whether the recipe sets learning rates.
        distillation: What is to be distilled from a teacher, and when; the loop's loss does it.
        settles_at: From this epoch on, the weights have their final sparsity and bits.
        samples_gradients: Whether :meth:`start` needs gradient samples.
    """

    def __init__(self, recipe: Recipe, checkpoint_recipe: str | None = None) -> None:
        """Read the recipe; the model comes with :meth:`start`."""
        document = parse(recipe.text, recipe.label)
        self._recipe = recipe
        self._manager = build_manager(document, recipe.label)
        self._steps_per_epoch = 1
        self._steps = 0
        self.distillation = distillation_schedule(
            self._manager.iter_modifiers(), document, recipe.label
        )
        self.text = compose(checkpoint_recipe, recipe.text)
        self.controls_lr = bool(self._manager.learning_rate_modifiers)
        self.max_epochs: float | None = None
        if self._manager.epoch_modifiers:
            self.max_epochs = last_epoch(document)
        self.settles_at = self._settles_at()
        names = [type(modifier).__name__ for modifier in self._manager.iter_modifiers()]
        self.samples_gradients = any(name in SAMPLED for name in names)

    def quantizes_by(self, epoch: float) -> bool:
        """Whether quantization has begun at ``epoch``."""
        return any(m.start_epoch <= epoch for m in self._manager.quantization_modifiers)

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epoch: float,
        steps_per_epoch: int,
        samples: GradientSamples | None = None,
    ) -> None:
        """Check the recipe against the model and bring both to ``epoch``.

        Args:
            model: With its weights. When the run resumes after quantization began, with that
                structure too (see :func:`yolact.sparsify.structure.apply_structure`).
            optimizer: Load its saved state after this call.
            epoch: Steps done / ``steps_per_epoch``; 0 begins the recipe.
            steps_per_epoch: Optimizer steps of one epoch.
            samples: Where OBS, M-FAC and RigL pruning take gradients from, if
                :attr:`samples_gradients`.

        Raises:
            RecipeError: The recipe does not fit the model, or gradients are needed and there are
                none.
        """
        check_against(self._recipe, model)
        if self.samples_gradients and samples is None:
            raise RecipeError(
                f"{self._recipe.label} prunes by gradients of training batches, "
                "which there are only while training",
                hint="train with this recipe, or prune by magnitude with GMPruningModifier",
            )
        if self.quantizes_by(math.inf):
            rehearse(model, self._recipe.text)
        if any(isinstance(m, LayerPruningModifier) for m in self._manager.iter_modifiers()):
            rehearse_removal(model, self._recipe.text)
        self._steps_per_epoch = steps_per_epoch
        self._steps = round(epoch * steps_per_epoch)
        bring_to(self._manager, model, optimizer, self._steps, steps_per_epoch, samples)

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set what the step at ``epoch`` begins with: learning rate, weight decay, quantization."""
        for modifier in self._manager.iter_modifiers():
            if not isinstance(modifier, BasePruningModifier):
                self._update(modifier, model, optimizer, epoch)

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""
        for modifier in self._masking():
            lift_masks(modifier.module_masks)
            self._update(modifier, model, optimizer, epoch)
        self._manager.optimizer_pre_step(model, optimizer, epoch, self._steps_per_epoch)

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set pruned weights back to zero after the optimizer's step."""
        self._manager.optimizer_post_step(model, optimizer, epoch, self._steps_per_epoch)
        self._steps = round(epoch * self._steps_per_epoch) + 1

    def finish(self, model: nn.Module) -> None:
        """Reach the targets of pruning that ends with the run itself, and let go of the model."""
        epoch = self._steps / self._steps_per_epoch
        for modifier in self._masking():
            if not modifier.ended and 0 <= modifier.end_epoch <= epoch:
                self._update(modifier, model, None, epoch)
        self._manager.finalize(model)

    def _update(
        self, modifier: Any, model: nn.Module, optimizer: Optimizer | None, epoch: float
    ) -> None:
        if not self._due(modifier, epoch):
            return
        # OBS and M-FAC do nothing when there is one step an epoch: to them that is a one-shot run.
        modifier.scheduled_update(model, optimizer, epoch, max(self._steps_per_epoch, 2))
        if modifier.ended and isinstance(modifier, BasePruningModifier):
            # Top-KAST would let momentum move masked weights between its end and the run's.
            modifier._allow_reintroduction = False

    def _masking(self) -> list[Any]:
        """The modifiers that prune weights by masks."""
        return [m for m in self._manager.iter_modifiers() if isinstance(m, BasePruningModifier)]

    def _due(self, modifier: Any, epoch: float) -> bool:
        if isinstance(modifier, ConstantPruningModifier) and modifier.started:
            # sparseml computes constant masks anew in every step, which takes seconds.
            return bool(modifier.end_pending(epoch, self._steps_per_epoch))
        return bool(modifier.enabled and modifier.update_ready(epoch, self._steps_per_epoch))

    def _settles_at(self) -> float:
        pruned = [m.end_epoch for m in self._manager.pruning_modifiers]
        quantized = [m.start_epoch for m in self._manager.quantization_modifiers]
        # What is due at an epoch happens in the step that begins there: the weights have it after.
        after = math.nextafter(max([0.0, *pruned, *quantized]), math.inf)
        return after if self.max_epochs is None else min(after, self.max_epochs)
