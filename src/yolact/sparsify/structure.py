"""The structure that a recipe gives a model: fewer channels or layers; fused, quantized ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from yolact.errors import RecipeError
from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import is_quant_wrapper
from yolact.sparsify.catalog import EngineName, facts_of
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.stages import last_stage_begins

_STRUCTURAL = ("thinning", "quantization")

_SIDE = 64
"""Of the image that is tried, in pixels."""


def apply_structure(
    model: nn.Module, recipe: Recipe, epoch: float = math.inf, engine: EngineName = "native"
) -> None:
    """Give ``model`` the layers that its recipe has created by ``epoch``.

    Afterwards the weights of a checkpoint written at that epoch fit the model. Modifiers that do
    not change layers are not asked: the recipe need not be one that the engine can run.

    Args:
        model: As built from its configuration; changed in place. A model that is quantized
            already stays as it is.
        recipe: The one stored in the checkpoint, with all earlier stages.
        epoch: Of the last step taken, in the recipe's last stage; inf for its end.
        engine: Whose quantized layers they are to be; a run goes on with those of its own.

    Raises:
        RecipeError: The recipe is malformed or does not fit the model.
    """
    structural = [e for e in recipe.entries if facts_of(e.name).kind in _STRUCTURAL]
    if not structural:
        return
    manager = replace(recipe.of(structural), engine=engine).manager()
    with fit_errors(), training_mode(model):
        manager.restructure(model, epoch + last_stage_begins(recipe))


def rehearse(model: nn.Module, recipe: Recipe) -> None:
    """Do to a copy what the recipe does epochs from now, if it quantizes or removes layers.

    Raises:
        RecipeError: The recipe's quantization does not fit the model, or the model does not run
            without the layers, because others need their shapes.
    """
    removes = any(facts_of(entry.name).removes_layers for entry in recipe.entries)
    if not removes and all(facts_of(e.name).kind != "quantization" for e in recipe.entries):
        return
    trial = copy.deepcopy(model)
    apply_structure(trial, recipe)
    if removes:
        with removal_errors(model):
            _run(trial)


def recipe_names(model: nn.Module) -> dict[str, str]:
    """Parameter name in the model to its name in recipes, which know nothing of wrappers.

    Wrappers are those of quantized layers, and those of layers that were fused but not quantized.
    """
    inside = {}
    for name, module in model.named_modules():
        if is_quant_wrapper(module):
            inside[f"{name}.module."] = f"{name}."
        elif is_fused(module):
            inside[f"{name}.0."] = f"{name}."
    innermost_first = sorted(inside, key=len, reverse=True)
    names = {}
    for name, _ in model.named_parameters():
        names[name] = name
        for prefix in innermost_first:
            if names[name].startswith(prefix):
                names[name] = inside[prefix] + names[name].removeprefix(prefix)
    return names


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside: fusing in evaluation mode would fold batch norms away for good."""
    was_training = model.training
    if not was_training:
        model.train()
    try:
        yield
    finally:
        if not was_training:
            model.eval()


@contextmanager
def fit_errors() -> Iterator[None]:
    """Turn what an engine raises when a recipe does not fit a model into a RecipeError."""
    try:
        yield
    except (
        *(ValueError, TypeError, RuntimeError, AttributeError, LookupError),
        *(ArithmeticError, AssertionError),
    ) as error:
        raise RecipeError(
            f"the recipe does not fit the model: {error}",
            hint="use the recipe made for this --config",
        ) from error


@contextmanager
def removal_errors(model: nn.Module) -> Iterator[None]:
    """Turn what a network without some of its layers raises into a RecipeError.

    ``model`` still has them; the hint names a block of it that can go.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        blocks = removable_blocks(model)
        raise RecipeError(
            f"LayerPruningModifier: the network does not run without these layers: {error}",
            hint=f"remove whole residual blocks, for instance {blocks[-1]}"
            if blocks
            else "no block of this network has an output of its input's shape",
        ) from error


def removable_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks of several convolutions whose output has the shape of their input.

    Residual blocks are such, unless they change the width or the resolution. A network runs without
    any of them.
    """
    found, model = [], copy.deepcopy(model)

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and [output.shape] == [x.shape for x in inputs]:
                found.append(name)

        return hook

    for name, module in model.named_modules():
        if sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1:
            module.register_forward_hook(look(name))
    _run(model)
    return found


@torch.no_grad()
def _run(model: nn.Module) -> None:
    model.eval()(torch.zeros(1, 3, _SIDE, _SIDE, device=next(model.parameters()).device))
