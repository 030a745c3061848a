"""Bringing a manager to where it is after some steps, as if it had taken them itself.

What a recipe does next depends on the clock, on the weights, and on what its modifiers remember:
which of them have begun or ended, when masks were last computed, where a learning-rate schedule
stands. That memory is a function of the steps so far, so it is recomputed, not stored.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import FROM_PARAM
from yolact.sparsify.native.quantization import adopt
from yolact.sparsify.sparseml import (
    ACDCPruningModifier,
    BasePruningModifier,
    GradualParamModifier,
    GroupedPruningMaskCreator,
    ScheduledModifierManager,
    SetParamModifier,
    SparsificationLoggingModifier,
    TopKASTPruningModifier,
)

logger = logging.getLogger(__name__)


def adopt_structure(manager: ScheduledModifierManager, model: nn.Module, *, fresh: bool) -> None:
    """Let quantization modifiers take over a model that is quantized already.

    Args:
        manager: Not yet initialized.
        model: Quantized by this run before it was interrupted, or by an earlier one.
        fresh: The recipe begins: ranges of earlier stages are a beginning, not the end.
    """
    modifiers = manager.quantization_modifiers
    for modifier in modifiers:
        modifier._qat_enabled = True
    # initialize() freezes batch norms again when that is due
    adopt(model, quantizes=bool(modifiers), fresh=fresh)


def replay(
    manager: ScheduledModifierManager,
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    steps_per_epoch: int,
) -> None:
    """Let every modifier remember what it would after ``steps`` steps.

    Args:
        manager: Initialized for that moment.
        model: With the weights of that moment, and quantized if it was.
        optimizer: Gets the learning rates and weight decays of the last step taken.
        steps: Optimizer steps done, at least 1.
        steps_per_epoch: Steps of one epoch.
    """
    for modifier in manager.iter_modifiers():
        if isinstance(modifier, BasePruningModifier):
            _restore_masks(modifier, model, optimizer, steps, steps_per_epoch)
        elif isinstance(modifier, SetParamModifier):
            # Its values were set once and have been trained since.
            last = (steps - 1) / steps_per_epoch
            modifier._started = modifier.start_pending(last, steps_per_epoch)
        elif isinstance(modifier, GradualParamModifier):
            held, modifier._module_params = modifier._module_params, []
            _replay(modifier, model, optimizer, steps, steps_per_epoch)
            modifier._module_params = held
        elif not isinstance(modifier, SparsificationLoggingModifier):
            _replay(modifier, model, optimizer, steps, steps_per_epoch)


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
    from_param = getattr(modifier, "init_sparsity", None) == FROM_PARAM
    if facts_of(type(modifier).__name__).remembers or from_param:
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


def _mask(weight: Tensor, creator: Any) -> Tensor:
    """1 where a weight, or any weight of its block, is not zero."""
    kept = weight.ne(0).to(weight.dtype)
    if not isinstance(creator, GroupedPruningMaskCreator):
        return kept
    blocks = creator.group_tensor(kept).ne(0).to(weight.dtype)
    mask: Tensor = creator._map_mask_to_tensor(blocks, weight.shape)
    return mask
