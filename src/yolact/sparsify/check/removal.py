"""Layers that a recipe takes out of the network: does it still run without them?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from yolact.errors import RecipeError
from yolact.sparsify.structure import apply_structure

_SIDE = 64
"""Of the image that is tried, in pixels."""


def rehearse_removal(model: nn.Module, recipe_text: str) -> None:
    """Run a copy of ``model`` without the layers that the recipe removes.

    Raises:
        RecipeError: It does not run, because other layers need the shapes of those.
    """
    with torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(model)
        apply_structure(trial, recipe_text)
    image = torch.zeros(1, 3, _SIDE, _SIDE, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            trial.eval()(image)
    except (RuntimeError, ValueError, TypeError) as error:
        raise RecipeError(
            f"LayerPruningModifier: the network does not run without these layers: {error}",
            hint="remove whole residual blocks, for instance backbone.layers.3.8",
        ) from error
