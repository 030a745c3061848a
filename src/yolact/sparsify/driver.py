"""A recipe in a training run: an engine's manager, asked at the right moments.

The training loop owns the clock and asks :class:`RecipeDriver`, which holds the recipe's manager.
A run without a recipe has a :class:`yolact.training.start.NoRecipe` instead.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.sizes import ImageSize
from yolact.sparsify.catalog import Kind, facts_of
from yolact.sparsify.check.examine import PlannedRun, require_sound
from yolact.sparsify.check.forecast import count_macs
from yolact.sparsify.distillation import distillation_schedule
from yolact.sparsify.engine import GradientSamples, Manager
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.report import ModelReport, report, save_report
from yolact.sparsify.sparsity import overall_sparsity
from yolact.sparsify.stages import compose, last_epoch
from yolact.sparsify.structure import fit_errors, training_mode

logger = logging.getLogger(__name__)

_LATER = ("disable_quantization_observer_epoch", "freeze_bn_stats_epoch")
"""Fields of modifiers that say when they do something else."""


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
        manager: Of the recipe, by its engine.
        recipe: The recipe of this run.
        earlier: That of the stages before.
        composed: Both as stages of one.
        max_epochs: Length of the run, or None when the recipe has no EpochRangeModifier.
        controls_lr: Whether the recipe sets learning rates.
        distillation: What is to be distilled from a teacher, and when; the objective does it.
        settles_at: From this epoch on, the weights have their final sparsity and bits.
        acts_until: From this epoch on, the recipe has nothing left to do; inf when there is no such
            epoch. That the run ends with it does not count.
        samples_gradients: Whether :meth:`start` needs gradient samples.
    """

    def __init__(self, recipe: Recipe, earlier: Recipe | None = None) -> None:
        """Make the manager; the model comes with :meth:`start`."""
        self.manager: Manager = recipe.manager()
        self.recipe = recipe
        self.earlier = earlier
        self.composed = compose(earlier, recipe)
        self.max_epochs = last_epoch(recipe) if self._of_kind("length") else None
        self.controls_lr = bool(self._of_kind("lr"))
        self.distillation = distillation_schedule(
            self.manager.modifiers, recipe.entries, recipe.label
        )
        self.settles_at = self._settles_at()
        self.acts_until = self._acts_until()
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
        """Bring the recipe and the model to ``epoch``.

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
        with fit_errors(), training_mode(model):
            self.manager.start(model, optimizer, self._steps, steps_per_epoch, samples)

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set what the step at ``epoch`` begins with: learning rate, weight decay, quantization."""
        self.manager.before_forward(model, optimizer, epoch)

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Compute due masks; the gradients are there, the optimizer has not stepped."""
        self.manager.before_step(model, optimizer, epoch)

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set pruned weights back to zero after the optimizer's step."""
        self.manager.after_step(model, optimizer, epoch)
        self._steps = round(epoch * self._steps_per_epoch) + 1

    def finish(self, model: nn.Module) -> None:
        """Reach the targets of pruning that ends with the run itself, and let go of the model."""
        self.manager.finish(model, self._steps / self._steps_per_epoch)

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
        return any(m.start_epoch <= epoch for m in self._of_kind("quantization"))

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

    def _of_kind(self, *kinds: Kind) -> list[Any]:
        return [m for m in self.manager.modifiers if facts_of(type(m).__name__).kind in kinds]

    def _settles_at(self) -> float:
        pruned = [m.end_epoch for m in self._of_kind("pruning", "constant", "thinning")]
        quantized = [m.start_epoch for m in self._of_kind("quantization")]
        # What is due at an epoch happens in the step that begins there: the weights have it after.
        after = math.nextafter(max([0.0, *pruned, *quantized]), math.inf)
        return after if self.max_epochs is None else min(after, self.max_epochs)

    def _acts_until(self) -> float:
        ends = [self.settles_at]
        for modifier in self.manager.modifiers:
            facts = facts_of(type(modifier).__name__)
            if facts.kind == "length":
                continue
            endless = facts.kind == "lr" and not facts.momentary and modifier.end_epoch < 0
            ends += [math.inf if endless else max(modifier.start_epoch, modifier.end_epoch)]
            ends += [float(getattr(modifier, name, None) or 0.0) for name in _LATER]
        return max(ends)
