"""Faults of sparseml's modifiers, put right; :mod:`yolact.sparsify.sparseml` imports this.

What each piece corrects, in pruning:

* :class:`_NMMasks`: the N:M masks of convolutions come with their dimensions in another order than
  the weights, which raises an error, or masks other weights where the sizes happen to agree.
* :class:`_BlockMasks`: a side of -1 keeps the size of the first parameter it meets, and blocks with
  both sides above 1 become rows of as many weights.
* :func:`_interpolate`: after the end of its window, which a step need not meet, ``inverse_cubic``
  is the root of a negative number.
* :func:`_create_hooks` with :func:`lift_masks`: Top-KAST uncovers masked weights in a backward
  hook, which in-place activations refuse and which a shared layer runs once for each use.
* :func:`_trainable`: gradients of frozen parameters take no hooks, which these need when they are
  trained again; and are not sampled.
* :func:`_contiguous_scorer`: M-FAC views parameters as vectors, which channels-last ones are not.
* :func:`_movement_step`: movement scores become NaN at the first gradient that overflows.
* :class:`_GradSampler`: samples of gradients erase the gradients of the step, draw a progress bar
  and take the outputs of evaluation mode, in which there is no loss of the semantic branch.

* ``_reset_momentum_buffer``: AC/DC knows SGD's momentum only, not the means that AdamW keeps.

In schedules:

* :func:`_finalize_layers`: a LayerPruningModifier whose epoch a run does not reach removes its
  layers when the run ends.
* :func:`_linear`, :func:`_cosine`, :func:`_cyclic_linear`: the last step of a schedule goes past
  its end, down to negative learning rates; a last cycle that is shorter does the same.
* :func:`_lr_info`, :func:`_setup_scheduler`: a step size below one step divides by zero; restarts
  after 1.0 epochs instead of 1 are refused in the middle of training; and restarts go back to the
  learning rate of the first scheduler in the recipe.
* :func:`_begin`: a LearningRateModifier that starts at -1, which is to say at once, never restarts
  and reaches its milestones an epoch late.
* :func:`_update_gradual`: GradualParamModifier ignores its ``inter_func``.

In quantization:

* :func:`_enable_legacy`: observers and batch norms of a submodule that quantization replaces, a
  single layer, are not stopped when their epoch comes.
* :func:`_freeze_statistics`, :func:`_update_statistics`: a batch norm that is not fused is wrapped
  twice when it is quantized, and freezing reaches the wrapper only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import Any

import torch
from sparseml.pytorch.sparsification.modifier import ScheduledUpdateModifier
from sparseml.pytorch.sparsification.pruning import (
    LayerPruningModifier,
    mask_creator,
    modifier_pruning_acdc,
    modifier_pruning_base,
    modifier_pruning_mfac,
    modifier_pruning_obs,
    modifier_pruning_rigl,
)
from sparseml.pytorch.sparsification.pruning.mask_params import ModuleParamPruningMask
from sparseml.pytorch.sparsification.pruning.modifier_pruning_movement import (
    MovementPruningParamsScorer,
)
from sparseml.pytorch.sparsification.quantization import helpers
from sparseml.pytorch.sparsification.quantization.legacy_modifier_quantization import (
    QuantizationModifier as LegacyQuantizationModifier,
)
from sparseml.pytorch.sparsification.training.modifier_lr import (
    LearningRateFunctionModifier,
    LearningRateModifier,
)
from sparseml.pytorch.sparsification.training.modifier_params import GradualParamModifier
from sparseml.pytorch.utils import GradSampler
from sparseml.utils import interpolate
from torch import Tensor, nn

from yolact.sparsify.native.acdc import reset_momentum


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


@contextmanager
def _trainable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that TrainableParamsModifier froze take part in gradients inside."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _create_hooks(self: Any) -> None:
    reintroduces, self._allow_reintroduction = self._allow_reintroduction, False
    try:
        with _trainable(self._params):
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
        with _trainable(parameters):
            for number, batch in enumerate(islice(self._batches, num_grads), 1):
                module.zero_grad()
                self._loss_fn(batch).backward()
                yield number
        module.training = False
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


_linear_beyond: Callable[..., float] = LearningRateFunctionModifier._linear
_cosine_beyond: Callable[..., float] = LearningRateFunctionModifier._cosine
_lr_info_as_given: Callable[..., tuple[str, dict[str, Any]]]
_lr_info_as_given = LearningRateModifier.corrected_lr_info
_lr_modifier_as_given: Callable[..., None] = LearningRateModifier.__init__
_setup_as_given: Callable[..., bool] = LearningRateModifier._check_setup_lr_scheduler


def _linear(self: Any, epoch: float, steps_per_epoch: int) -> float:
    return _linear_beyond(self, min(epoch, self.end_epoch), steps_per_epoch)


def _cosine(self: Any, epoch: float, steps_per_epoch: int) -> float:
    return _cosine_beyond(self, min(epoch, self.end_epoch), steps_per_epoch)


def _cyclic_linear(self: Any, epoch: float, steps_per_epoch: int) -> float:
    """From ``init_lr`` in a cycle's first step to ``final_lr`` in its last and after the end."""
    if epoch >= self.end_epoch:
        return float(self.final_lr)
    start = max(self.start_epoch, 0.0)
    cycle = math.floor((epoch - start) / self.cycle_epochs + 1e-9)
    begin = start + cycle * self.cycle_epochs
    length = min(self.cycle_epochs, self.end_epoch - begin) * steps_per_epoch
    passed = max(epoch - begin, 0.0) * steps_per_epoch / max(length - 1, 1)
    return float(self.init_lr + min(passed, 1.0) * (self.final_lr - self.init_lr))


def _lr_info(self: Any, *arguments: Any) -> tuple[str, dict[str, Any]]:
    name, options = _lr_info_as_given(self, *arguments)
    if name == "StepLR":
        options["step_size"] = max(options["step_size"], 1)
    if name == "CosineAnnealingWarmRestarts" and float(options["T_0"]).is_integer():
        options["T_0"] = int(options["T_0"])
    return name, options


def _setup_scheduler(self: Any, optimizer: Any, *arguments: Any) -> bool:
    if self._lr_scheduler is None:
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
    return _setup_as_given(self, optimizer, *arguments)


@wraps(_lr_modifier_as_given)
def _begin(self: Any, *, start_epoch: float, **fields: Any) -> None:
    _lr_modifier_as_given(self, start_epoch=max(start_epoch, 0.0), **fields)


def _update_gradual(
    self: Any, module: Any, optimizer: Any, epoch: float, steps_per_epoch: int
) -> None:
    ScheduledUpdateModifier.update(self, module, optimizer, epoch, steps_per_epoch)
    first, last = self._init_val_tens, self._final_val_tens
    value = interpolate(
        min(epoch, self.end_epoch), self.start_epoch, self.end_epoch, first, last, self.inter_func
    )
    for parameter in self._module_params:
        parameter.data.copy_(value)


_finalize_as_given: Callable[..., None] = LayerPruningModifier.finalize


def _finalize_layers(self: Any, *arguments: Any, **more: Any) -> None:
    self._layers_replaced = True  # nothing is left to do
    _finalize_as_given(self, *arguments, **more)


_enable_as_given = LegacyQuantizationModifier._enable_module_qat


def _enable_legacy(self: Any, module: nn.Module) -> None:
    _enable_as_given(self, module)
    self._modules_to_quantize = [
        part._replace(module=module.get_submodule(part.name or ""))
        for part in self._modules_to_quantize
    ]


def _freeze_statistics(self: Any) -> Any:
    self.freeze_bn = True
    self.bn.eval()
    return self


def _update_statistics(self: Any) -> Any:
    self.freeze_bn = False
    self.bn.train()
    return self


mask_creator.NMPruningMaskCreator = _NMMasks
mask_creator.BlockMaskCreator = _BlockMasks
modifier_pruning_base.interpolate = _interpolate
ModuleParamPruningMask._create_hooks = _create_hooks
modifier_pruning_mfac.MFACPruningModifier._get_scorer = _contiguous_scorer
MovementPruningParamsScorer.pre_optim_step_update = _movement_step
modifier_pruning_acdc.ACDCPruningModifier._reset_momentum_buffer = staticmethod(reset_momentum)
modifier_pruning_obs.GradSampler = _GradSampler
modifier_pruning_mfac.GradSampler = _GradSampler
modifier_pruning_rigl.GradSampler = _GradSampler
LearningRateFunctionModifier._linear = _linear
LearningRateFunctionModifier._cosine = _cosine
LearningRateFunctionModifier._cyclic_linear = _cyclic_linear
LearningRateModifier.corrected_lr_info = _lr_info
LearningRateModifier._check_setup_lr_scheduler = _setup_scheduler
LearningRateModifier.__init__ = _begin
GradualParamModifier.update = _update_gradual
LayerPruningModifier.finalize = _finalize_layers
LegacyQuantizationModifier._enable_module_qat = _enable_legacy
helpers._BNWrapper.freeze_bn_stats = _freeze_statistics
helpers._BNWrapper.update_bn_stats = _update_statistics
