"""Faults of sparseml's pruning, put right; :mod:`yolact.sparsify.sparseml` imports this.

What each piece corrects:

* :class:`_NMMasks`: the N:M masks of convolutions come with their dimensions in another order than
  the weights, which raises an error, or masks other weights where the sizes happen to agree.
* :class:`_BlockMasks`: a side of -1 keeps the size of the first parameter it meets, and blocks with
  both sides above 1 become rows of as many weights.
* :func:`_interpolate`: after the end of its window, which a step need not meet, ``inverse_cubic``
  is the root of a negative number.
* :func:`_create_hooks` with :func:`lift_masks`: Top-KAST uncovers masked weights in a backward
  hook, which in-place activations refuse and which a shared layer runs once for each use.
* :func:`_contiguous_scorer`: M-FAC views parameters as vectors, which channels-last ones are not.
* :func:`_movement_step`: movement scores become NaN at the first gradient that overflows.
* :class:`_GradSampler`: samples of gradients erase the gradients of the step, draw a progress bar
  and take the outputs of evaluation mode, in which there is no loss of the semantic branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from sparseml.pytorch.sparsification.pruning import (
    mask_creator,
    modifier_pruning_base,
    modifier_pruning_mfac,
    modifier_pruning_obs,
    modifier_pruning_rigl,
)
from sparseml.pytorch.sparsification.pruning.mask_params import ModuleParamPruningMask
from sparseml.pytorch.sparsification.pruning.modifier_pruning_movement import (
    MovementPruningParamsScorer,
)
from sparseml.pytorch.utils import GradSampler
from sparseml.utils import interpolate
from torch import Tensor, nn


class _NMMasks(mask_creator.NMPruningMaskCreator):  # type: ignore[misc]
    def create_sparsity_masks(
        self, tensors: list[Tensor], target: Any, global_sparsity: bool = False
    ) -> list[Tensor]:
        masks = super().create_sparsity_masks(tensors, target, global_sparsity)
        if not any(target if isinstance(target, list) else [target]):
            return list(masks)  # all ones, as the weights are
        return [mask.permute(0, 3, 1, 2) if mask.ndim == 4 else mask for mask in masks]


class _BlockMasks(mask_creator.BlockMaskCreator):  # type: ignore[misc]
    def group_tensor(self, tensor: Tensor) -> Tensor:
        rows, columns = self._sides(tensor.shape)
        out, into, *rest = tensor.shape
        tiles = tensor.reshape(out // rows, rows, into // columns, columns, *rest)
        return tiles.mean((1, 3))

    def _map_mask_to_tensor(
        self, grouped_mask: Tensor, original_tensor_shape: torch.Size, tensor_idx: Any = None
    ) -> Tensor:
        rows, columns = self._sides(original_tensor_shape)
        return grouped_mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)

    def _sides(self, shape: torch.Size) -> tuple[int, int]:
        rows, columns = self._block_shape[:2]
        return shape[0] if rows == -1 else rows, shape[1] if columns == -1 else columns


def _interpolate(x_cur: float, x0: float, x1: float, *values: Any, **more: Any) -> Any:
    return interpolate(min(max(x_cur, x0), x1), x0, x1, *values, **more)


_hooks_as_given: Callable[..., None] = ModuleParamPruningMask._create_hooks
_scorer_as_given: Callable[..., Any] = modifier_pruning_mfac.MFACPruningModifier._get_scorer
_movement_as_given: Callable[..., None] = MovementPruningParamsScorer.pre_optim_step_update


def _create_hooks(self: Any) -> None:
    reintroduces, self._allow_reintroduction = self._allow_reintroduction, False
    try:
        _hooks_as_given(self)
    finally:
        self._allow_reintroduction = reintroduces


def lift_masks(masks: Any) -> None:
    """Give masked weights their values back, if these masks are for the forward pass only."""
    if not masks.allow_reintroduction:
        return
    for index, weight in enumerate(masks.params_data):
        if masks._mask_applied[index]:
            weight.add_(masks._params_unmasked[index])
            masks._mask_applied[index] = False


def _contiguous_scorer(self: Any, params: list[nn.Parameter]) -> Any:
    for parameter in params:
        parameter.data = parameter.data.contiguous()
    return _scorer_as_given(self, params)


def _movement_step(self: Any, masks: list[Tensor]) -> None:
    gradients = [parameter.grad for parameter in self._params if parameter.grad is not None]
    if all(gradient.isfinite().all() for gradient in gradients):
        _movement_as_given(self, masks)


class _GradSampler(GradSampler):  # type: ignore[misc]
    """Gradients of batches; the loss function takes a batch.

    The network runs as sparseml wants it, with fixed batch norms, but returns all it is trained on.
    """

    def __init__(self, data_loader: Iterable[Any], loss_fn: Callable[[Any], Tensor]) -> None:
        super().__init__(data_loader, loss_fn)
        self._batches = iter(data_loader)

    def iter_module_backwards(
        self, module: nn.Module, num_grads: int, progress_bar: bool = True
    ) -> Iterator[int]:
        parameters = list(module.parameters())
        kept = [parameter.grad for parameter in parameters]
        module.training = True  # of the network itself, not of the layers in it
        for number, batch in enumerate(islice(self._batches, num_grads), 1):
            module.zero_grad()
            self._loss_fn(batch).backward()
            yield number
        module.training = False
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


mask_creator.NMPruningMaskCreator = _NMMasks
mask_creator.BlockMaskCreator = _BlockMasks
modifier_pruning_base.interpolate = _interpolate
ModuleParamPruningMask._create_hooks = _create_hooks
modifier_pruning_mfac.MFACPruningModifier._get_scorer = _contiguous_scorer
MovementPruningParamsScorer.pre_optim_step_update = _movement_step
modifier_pruning_obs.GradSampler = _GradSampler
modifier_pruning_mfac.GradSampler = _GradSampler
modifier_pruning_rigl.GradSampler = _GradSampler
