"""Applying a recipe while a model trains. The training loop owns the clock.

Bringing a recipe to where it is after some steps, as if it had taken them itself.

What a recipe does next depends on the clock, on the weights, and on what its modifiers remember:
which of them have begun or ended, when masks were last computed, where a learning-rate schedule
stands. That memory is a function of the steps so far, so it is recomputed, not stored.

Gradients of training batches, for modifiers that prune by more than magnitude.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.ao.quantization import enable_observer
from torch.optim import Optimizer

from yolact.errors import RecipeError
from yolact.model.quantized import is_quantized
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.distillation import distillation_schedule
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparseml import (
    ACDCPruningModifier,
    BasePruningModifier,
    ConstantPruningModifier,
    GradualParamModifier,
    GroupedPruningMaskCreator,
    SetParamModifier,
    SparsificationLoggingModifier,
    TopKASTPruningModifier,
    log_loggers,
    quiet_loggers,
)
from yolact.sparsify.sparseml.patch_pruning import lift_masks
from yolact.sparsify.stages import compose, last_epoch
from yolact.sparsify.structure import fit_errors, training_mode


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
        composed: The recipe to store in checkpoints: all stages.
        max_epochs: Length of the run, or None when the recipe has no EpochRangeModifier.
        controls_lr: Whether the recipe sets learning rates.
        distillation: What is to be distilled from a teacher, and when; the loop's loss does it.
        settles_at: From this epoch on, the weights have their final sparsity and bits.
        samples_gradients: Whether :meth:`start` needs gradient samples.
    """

    def __init__(self, recipe: Recipe, earlier: Recipe | None = None) -> None:
        """Read the recipe; the model comes with :meth:`start`."""
        self._recipe = recipe
        self._manager = recipe.manager()
        self._steps_per_epoch = 1
        self._steps = 0
        self.distillation = distillation_schedule(
            self._manager.iter_modifiers(), recipe.entries, recipe.label
        )
        self.composed = compose(earlier, recipe)
        self.controls_lr = bool(self._manager.learning_rate_modifiers)
        self.max_epochs: float | None = None
        if self._manager.epoch_modifiers:
            self.max_epochs = last_epoch(recipe)
        self.settles_at = self._settles_at()
        self.samples_gradients = any(facts_of(entry.name).samples for entry in recipe.entries)

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
        """Bring recipe and model to ``epoch``.

        That the recipe works for the model,
        :func:`yolact.sparsify.check.examine.require_sound` has said before.

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
        if self.samples_gradients and samples is None:
            raise RecipeError(
                f"{self._recipe.label} prunes by gradients of training batches, "
                "which there are only while training",
                hint="train with this recipe, or prune by magnitude with GMPruningModifier",
            )
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


logger = logging.getLogger(__name__)


def bring_to(
    manager: Any,
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    steps_per_epoch: int,
    samples: GradientSamples | None = None,
) -> None:
    """Initialize ``manager`` for a run that has taken ``steps`` steps.

    Args:
        manager: sparseml's manager, not yet initialized.
        model: With the weights of that moment, and quantized if it was.
        optimizer: Gets the learning rates and weight decays of the last step taken; restore a
            saved optimizer state afterwards.
        steps: Optimizer steps done; 0 begins the recipe.
        steps_per_epoch: Steps of one epoch.
        samples: For modifiers that compute gradients themselves.

    Raises:
        RecipeError: The recipe does not fit the model.
    """
    # An uninterrupted run last looked at the clock before its last step.
    clock = max(steps - 1, 0) / steps_per_epoch
    if is_quantized(model):
        _adopt_structure(manager, model, fresh=steps == 0)
    with fit_errors(), training_mode(model):
        more = {} if samples is None else {"grad_sampler": samples.for_sparseml()}
        manager.initialize(model, clock, loggers=quiet_loggers(), **more)
    for modifier in manager.iter_modifiers():
        if isinstance(modifier, SparsificationLoggingModifier):
            modifier.initialize_loggers(log_loggers(logger))
    if steps == 0:
        return
    for modifier in manager.iter_modifiers():
        if isinstance(modifier, BasePruningModifier):
            _restore_masks(modifier, model, optimizer, steps, steps_per_epoch)
        elif isinstance(modifier, SetParamModifier):
            # Its values were set once and have been trained since.
            modifier._started = modifier.start_pending(clock, steps_per_epoch)
        elif isinstance(modifier, GradualParamModifier):
            held, modifier._module_params = modifier._module_params, []
            _replay(modifier, model, optimizer, steps, steps_per_epoch)
            modifier._module_params = held
        elif not isinstance(modifier, SparsificationLoggingModifier):
            _replay(modifier, model, optimizer, steps, steps_per_epoch)


def _adopt_structure(manager: Any, model: nn.Module, *, fresh: bool) -> None:
    """Let quantization modifiers take over a model that is quantized already."""
    modifiers = manager.quantization_modifiers
    for modifier in modifiers:
        modifier._qat_enabled = True
    if not modifiers:
        _for_batch_norms(model, "freeze_bn_stats")
        return
    _for_batch_norms(model, "update_bn_stats")  # initialize() freezes them again when that is due
    if fresh:
        model.apply(enable_observer)  # ranges of earlier stages are a beginning, not the end


def _for_batch_norms(model: nn.Module, method: str) -> None:
    """Call a method of the modules that stand for batch norms in a quantized model."""
    for module in model.modules():
        if hasattr(module, method):
            getattr(module, method)()


def _replay(
    modifier: Any, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
) -> None:
    first = max(0, math.floor(modifier.start_epoch * steps_per_epoch))
    for step in range(first, steps):
        if modifier.ended:
            return
        epoch = step / steps_per_epoch
        if modifier.update_ready(epoch, steps_per_epoch):
            modifier.scheduled_update(model, optimizer, epoch, steps_per_epoch)


def _restore_masks(
    modifier: Any, model: nn.Module, optimizer: Optimizer, steps: int, steps_per_epoch: int
) -> None:
    if facts_of(type(modifier).__name__).remembers or _remembers_beginning(modifier):
        logger.warning(
            "%s keeps state that is not saved: "
            "the continued run may differ from an uninterrupted one",
            type(modifier).__name__,
        )
    modifier.check_mask_update = lambda *_, **__: None  # the schedule without its masks
    _replay(modifier, model, optimizer, steps, steps_per_epoch)
    del modifier.check_mask_update
    if not modifier.started:
        return
    masks = modifier.module_masks
    masks.enabled = True
    if isinstance(modifier, TopKASTPruningModifier) and not modifier.ended:
        _mask_by_magnitude(modifier)
        return
    if isinstance(modifier, ACDCPruningModifier) and _grows_back(modifier, steps_per_epoch):
        return  # all weights take part, those that are still zero too
    masks.set_param_masks([_mask(data, modifier.mask_creator) for data in masks.params_data])
    if modifier.ended:
        masks.pruning_end(modifier.leave_enabled)


def _mask_by_magnitude(modifier: Any) -> None:
    """Top-KAST's masks of weights and gradients, from the weights as they are now."""
    gradients = modifier._grad_module_masks
    gradients.enabled = True
    modifier.module_masks.update_param_masks(modifier.forward_sparsity)
    gradients.update_param_masks(modifier.backward_sparsity)


def _grows_back(modifier: Any, steps_per_epoch: int) -> bool:
    """Whether AC/DC is in a phase without zeros, in which momentum was reset at the beginning."""
    modifier.get_applied_sparsity_for_epoch(modifier._last_update_epoch, steps_per_epoch)
    modifier._momentum_buffer_empty = modifier._is_phase_decompression
    return bool(modifier._is_phase_decompression)


def _remembers_beginning(modifier: Any) -> bool:
    return getattr(modifier, "init_sparsity", None) == "__FROM_PARAM__"


def _mask(weight: Tensor, creator: Any) -> Tensor:
    """1 where a weight, or any weight of its block, is not zero."""
    kept = weight.ne(0).to(weight.dtype)
    if not isinstance(creator, GroupedPruningMaskCreator):
        return kept
    blocks = creator.group_tensor(kept).ne(0).to(weight.dtype)
    mask: Tensor = creator._map_mask_to_tensor(blocks, weight.shape)
    return mask


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
