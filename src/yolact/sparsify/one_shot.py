"""Pruning without training: all of a recipe's masks at once."""

from __future__ import annotations

import math

import torch
from torch import nn

from yolact.errors import ConfigError
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import Recipe


def prune_at_once(model: nn.Module, recipe: Recipe, checkpoint_recipe: str | None = None) -> str:
    """Set the weights that ``recipe`` prunes to zero, in place, without training in between.

    Accuracy suffers, as nothing can recover: this is for looking at sizes and speeds, or for low
    sparsities.

    Args:
        model: With trained weights.
        recipe: Its epochs are gone through without a step.
        checkpoint_recipe: What the weights went through before.

    Returns:
        The composed recipe.

    Raises:
        ConfigError: The recipe quantizes, which needs images to find the ranges of activations.
        RecipeError: The recipe does not fit the model.
    """
    driver = RecipeDriver(recipe, checkpoint_recipe)
    if driver.quantizes_by(math.inf):
        raise ConfigError(
            f"{recipe.label} quantizes, which cannot be done in one shot",
            hint="train it with sparseml.yolact.train --recipe, then export the checkpoint",
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driver.start(model, optimizer, epoch=0, steps_per_epoch=1)
    for epoch in range(math.ceil(driver.settles_at) + 1):
        driver.before_step(model, optimizer, epoch)
        driver.after_step(model, optimizer, epoch)
    driver.finish(model)
    return driver.text
