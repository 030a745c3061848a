"""The driver of a training run without a recipe, so that the loop need not ask whether it has one.

It stands in for :class:`yolact.sparsify.driver.RecipeDriver`, and its file loads no sparseml:
importing that takes seconds, which runs without a recipe are spared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from yolact.sparsify.recipe import Recipe


class NoRecipe:
    """Answers for a run that follows no recipe, and does nothing.

    Args:
        earlier: The composed recipe of the stages that the starting weights went through before
            this run, if any; checkpoints go on holding it.
    """

    recipe = None
    max_epochs = None
    controls_lr = False
    distillation = None
    settles_at = 0.0
    samples_gradients = False

    def __init__(self, earlier: Recipe | None = None) -> None:
        """Keep the earlier stages."""
        self.composed = self.earlier = earlier

    def check(self, model: nn.Module, epochs: float) -> None:
        """Nothing can be wrong."""

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epoch: float,
        steps_per_epoch: int,
        samples: object = None,
    ) -> None:
        """There is no manager to initialize."""

    def before_forward(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Nothing is due."""

    def before_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Nothing is due."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, epoch: float) -> None:
        """Nothing is due."""

    def finish(self, model: nn.Module) -> None:
        """There is no manager to finalize."""

    def quantizes_by(self, epoch: float) -> bool:
        """Never."""
        return False

    def sparsity(self, model: nn.Module) -> None:
        """Of no interest."""

    def write_report(
        self, model: nn.Module, checkpoint: Path, image_size: int | None = None
    ) -> None:
        """There are no targets to report on."""
