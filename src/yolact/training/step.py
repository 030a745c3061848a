"""One optimizer step: forward, loss, backward; and when memory ends or the loss is not finite."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.errors import ConfigError, TargetMissedError
from yolact.loss.criterion import BatchLosses, Objective
from yolact.training.memory import is_out_of_memory
from yolact.training.split_batch import Generators, PartWeights, forward_loss, split, watched_priors
from yolact.types import Batch, Target

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 100


RUINED = 1e6
"""How many times its smallest value the loss can be before no training comes back from it."""
STEADY = 10
"""Steps whose median counts as the loss: one batch in a thousand is far from the others."""


class ImageTooLargeError(ConfigError):
    """The training step of a single image does not fit into memory."""


class DivergedError(TargetMissedError):
    """Training leads nowhere: the loss grew beyond measure, or is not finite any more."""


@dataclass
class SkippedSteps:
    """Steps that were not taken because loss or gradient was not finite."""

    total: int = 0
    in_a_row: int = 0
    most: int = MAX_SKIPPED_IN_A_ROW
    """In a row, before the run ends."""

    def add(self, iteration: int, losses: dict[str, float], image_ids: Sequence[int]) -> None:
        """Count one and name its images.

        Raises:
            DivergedError: The last ``most`` steps were all skipped.
        """
        self.total += 1
        self.in_a_row += 1
        bad = [name for name, value in losses.items() if not torch.isfinite(torch.tensor(value))]
        logger.warning(
            "step %d skipped: %s not finite; images %s",
            iteration,
            ", ".join(bad) or "the gradient is",
            ", ".join(map(str, image_ids)),
        )
        if self.in_a_row >= self.most:
            raise DivergedError(
                f"training has diverged: {self.in_a_row} steps in a row had no finite loss",
                hint=_ADVICE,
            )


_ADVICE = "lower the learning rate (--lr, or in the recipe), or give --clip_grad 10"


@dataclass
class LossGrowth:
    """The loss now against the smallest it has been; both are medians of a few steps.

    What a loss is at the beginning, when quantization begins or when weights are pruned is far
    below a million times that, which a learning rate that is far too high reaches in a few steps.
    """

    smallest: float = math.inf
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=STEADY))

    def add(self, total: float) -> None:
        """Take in the loss of another step.

        Raises:
            DivergedError: It has been ruined for several steps.
        """
        self.recent.append(total)
        if len(self.recent) == STEADY:
            self.check()
        # Before there are enough, a single value counts: the first is that of untouched weights.
        full = len(self.recent) == STEADY
        self.smallest = min(self.smallest, self._median() if full else total)

    @property
    def ruined(self) -> bool:
        """Whether the last step's loss alone is beyond measure: weights not worth keeping."""
        return bool(self.recent) and self.recent[-1] > self._limit

    def check(self) -> None:
        """Look at the last steps, however few.

        Raises:
            DivergedError: Most of them were beyond measure.
        """
        if self.recent and self._median() > self._limit:
            raise DivergedError(
                f"training has diverged: the loss is {self._median():.3g}, "
                f"it was {self.smallest:.3g}",
                hint=_ADVICE,
            )

    @property
    def _limit(self) -> float:
        return RUINED * max(self.smallest, 1.0)  # below 1, a loss can shrink to almost nothing

    def _median(self) -> float:
        return statistics.median_low(self.recent)


class Stepper:
    """Takes optimizer steps over groups of batches.

    Args:
        model: The network in training mode.
        objective: What is minimised.
        optimizer: Already holds the network's parameters.
        device: Where the batches go.
        half: Mixed precision: float16 with loss scaling on CUDA, bfloat16 on the CPU.
        max_grad_norm: Longer gradients are scaled down to this L2 norm; None leaves them.
        allocation: Images per GPU, or None for one device.
        most_skipped: Steps in a row without a finite loss that end the run.

    Attributes:
        parts: In how many parts every batch is computed; doubled when memory does not suffice.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        device: torch.device,
        *,
        half: bool = False,
        max_grad_norm: float | None = None,
        allocation: tuple[int, ...] | None = None,
        most_skipped: int = MAX_SKIPPED_IN_A_ROW,
    ) -> None:
        """Nothing skipped yet."""
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.device = device
        self.half = half
        self.max_grad_norm = max_grad_norm
        self.allocation = allocation
        self.parts = 1
        self.scaler = torch.amp.GradScaler(enabled=half and device.type == "cuda")
        self.skipped = SkippedSteps(most=most_skipped)
        self.growth = LossGrowth()
        self._buffers: dict[str, Tensor] = {}

    def gradients(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Leave the mean gradient over ``batches`` in the parameters; return the mean losses.

        When memory does not suffice, the step is taken again with every batch in two parts, then
        in four, and so on (see :mod:`yolact.training.split_batch`); later steps keep the parts.

        Raises:
            ImageTooLargeError: Not even one image fits; the model is as before the step.
        """
        self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        generators = Generators(self.device)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulated(batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # whose frames hold the tensors in the way
            self.optimizer.zero_grad(set_to_none=True)
            self._restore_buffers()
            generators.restore()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._split_further(batches, failure)

    def apply(self, iteration: int, losses: dict[str, float], batches: Sequence[Batch]) -> bool:
        """Step the optimizer unless loss or gradient is not finite; say whether it did.

        Raises:
            DivergedError: Most of the last steps had a loss beyond measure, or none at all.
        """
        if self._finite(losses):
            self.growth.add(sum(losses.values()))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.skipped.in_a_row = 0
            return True
        if self.scaler.is_enabled():  # a first overflow is how the scale finds its level
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._restore_buffers()
        ids = [image_id for batch in batches for image_id in batch.image_ids]
        self.skipped.add(iteration, losses, ids)
        return False

    def full_precision(self) -> None:
        """Leave mixed precision for good: fake quantization needs float32."""
        if self.half:
            logger.info("mixed precision off: quantization-aware training is due")
        self.half = False
        self.scaler = torch.amp.GradScaler(enabled=False)

    def _accumulated(self, batches: Sequence[Batch]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in batches:
            images, targets = on_device(batch, self.device)
            for losses in self._of_batch(images, targets):
                self.scaler.scale(losses.total / len(batches)).backward()  # type: ignore[no-untyped-call]
                for name, value in losses._asdict().items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
        return sums

    def _of_batch(self, images: Tensor, targets: Sequence[Target]) -> Iterator[BatchLosses]:
        """Losses that add up to those of the batch, one after the other."""
        size = math.ceil(len(targets) / self.parts)
        slices = split(len(targets), [size] * self.parts)
        if len(slices) == 1:
            yield self._losses(images, targets)
            return
        weights: PartWeights | None = None
        for part in slices:
            with watched_priors(self.model) as priors:
                losses = self._losses(images[part], targets[part])
            if weights is None:
                criterion = self.objective.criterion
                weights = PartWeights(criterion.count_positives(priors[0], targets))
            yield weights.weighted(losses, part)

    def _losses(self, images: Tensor, targets: Sequence[Target]) -> BatchLosses:
        with self._autocast():
            return forward_loss(self.model, self.objective, images, targets, self.allocation)

    def _split_further(self, batches: Sequence[Batch], error: BaseException) -> None:
        """Halve the parts, or say that there is nothing left to halve."""
        if self.parts >= max(len(batch.targets) for batch in batches):
            side = batches[0].images.shape[-1]
            raise ImageTooLargeError(
                f"out of memory: the training step of one image of {side} x {side} pixels does "
                f"not fit into the memory of {self.device}",
                hint="give a smaller --image_size, or use a device with more memory",
            ) from error
        self.parts *= 2
        logger.warning(
            "out of memory on %s: the step is taken again, and from now on every batch is "
            "computed in %d parts, each with its own batch norm statistics",
            *(self.device, self.parts),
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.half:
            return nullcontext()
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype)

    def _finite(self, losses: dict[str, float]) -> bool:
        """Whether losses and gradient are; a finite gradient is clipped on the way."""
        self.scaler.unscale_(self.optimizer)
        if not torch.isfinite(torch.tensor(list(losses.values()))).all():
            return False
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm: Tensor = torch.nn.utils.get_total_norm(
            [p.grad for p in parameters if p.grad is not None]
        )
        if not torch.isfinite(norm):
            return False
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return True

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        """Forget what a lost step told batch norms and observers: NaN would stay in them."""
        for name, buffer in self.model.named_buffers():
            if name in self._buffers:
                before = self._buffers[name]
                buffer.resize_(before.shape).copy_(before)


def hold_batch_norms(model: nn.Module, *, every: bool) -> None:
    """Let batch norms whose parameters are frozen normalise by the statistics that they have.

    ``model.train()`` undoes that.

    Args:
        model: Also one whose batch norms are inside fused or wrapped layers.
        every: Freeze the scale and bias of every batch norm first.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            parameters = list(module.parameters(recurse=False))
            for parameter in parameters if every else ():
                parameter.requires_grad_(False)
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()


def most_skipped(steps: int) -> int:
    """In a row: half of a short run, but more than loss scaling takes to find its level."""
    return min(MAX_SKIPPED_IN_A_ROW, max(20, steps // 2))


def on_device(batch: Batch, device: torch.device) -> tuple[Tensor, list[Target]]:
    """Images (channels last) and targets of a batch where the network is."""
    images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    targets = [
        Target(*(tensor.to(device, non_blocking=True) for tensor in target))
        for target in batch.targets
    ]
    return images, targets
