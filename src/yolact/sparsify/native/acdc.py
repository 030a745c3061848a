"""Training sparse and dense in turn: https://arxiv.org/abs/2106.12379."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from yolact.sparsify.native.pruning import MagnitudePruning


@dataclass(kw_only=True, eq=False)
class ACDCPruningModifier(MagnitudePruning):
    """Masks the smallest weights in every second phase; in the others, they may grow again.

    The first phase is dense, and from one phase before the end on, all is sparse.
    """

    compression_sparsity: float = field()
    """0..1, of the sparse phases."""
    global_sparsity: bool = True
    momentum_buffer_reset: bool = True
    """Whether momentum, with AdamW the mean of gradients, starts from zero in a dense phase."""

    def __post_init__(self) -> None:
        """Check the fields; see :class:`yolact.sparsify.native.pruning.PruningModifier`."""
        super().__post_init__()
        for name in ("start_epoch", "end_epoch", "update_frequency"):
            value = getattr(self, name)
            if not float(value).is_integer():
                raise ValueError(f"{name} is {value!r}; phases are whole epochs")
        if self.end_epoch < self.start_epoch:
            raise ValueError("end_epoch is missing: the last phase needs one")
        self._grows = False

    def levels(self, epoch: float) -> list[float]:
        """See :meth:`yolact.sparsify.native.pruning.MagnitudePruning.levels`."""
        level = 0.0 if self._dense(epoch) else float(self.compression_sparsity)
        return [level] * len(self.weights)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Compute the masks of ``epoch`` and apply them."""
        was_sparse = self.started and not self._dense(self.last_update)
        self._grows = was_sparse and self._dense(epoch)
        super().act(model, optimizer, epoch, steps_per_epoch)

    def after_optimizer(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Set masked weights back to zero; in the first step of a dense phase, momentum too."""
        super().after_optimizer(model, optimizer, epoch)
        if self._grows and self.momentum_buffer_reset:
            reset_momentum(optimizer)
        self._grows = False

    def _dense(self, epoch: float) -> bool:
        if epoch >= self.end_epoch - self.update_frequency:
            return False
        return math.floor((epoch - self.start_epoch) / self.update_frequency) % 2 == 0


def reset_momentum(optimizer: Optimizer) -> None:
    """Forget in which direction weights have moved: SGD's momentum, AdamW's mean of gradients."""
    for state in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg"):
            if state.get(name) is not None:
                state[name].zero_()
