"""Recipes without training: all masks at once, and ranges of INT8 from a few images."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from yolact.errors import ConfigError, RecipeError, TargetMissedError
from yolact.model.parameters import parameter_count
from yolact.model.quantized import is_quantized
from yolact.sparsify.calibration import Inputs, calibrate
from yolact.sparsify.check.fit import check_against
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.modifiers import build_manager
from yolact.sparsify.proof.sparsity import (
    convolutions,
    overall_sparsity,
    shared_targets,
    sparsity_targets,
    wishes_by_layer,
)
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import apply_structure
from yolact.sparsify.text.document import dump, entries, parse
from yolact.sparsify.text.stages import compose

_AT_ONCE = (
    "ChannelThinningModifier",
    "ConstantPruningModifier",
    "GMPruningModifier",
    "GlobalMagnitudePruningModifier",
    "MagnitudePruningModifier",
)
"""Pruning that goes by the weights alone; all other kinds watch how gradients change them."""


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """What was done to a model."""

    recipe: str
    """All stages composed, to be stored with the model."""
    parameters: tuple[int, int]
    """Before and after; fewer where channels were removed."""
    pruned: int
    """Layers that the recipe has a sparsity for."""
    sparsity: float
    """Share of zeros among the convolution weights, 0..1."""
    calibrated: int
    """Quantizers whose range was found."""
    images: int
    """How many images they were found on."""

    def __str__(self) -> str:
        """One line, for instance ``one shot: 21 layers pruned; 142 ranges from 100 images``."""
        parts = []
        before, after = self.parameters
        if after < before:
            parts.append(f"{after / 1e6:.1f} M of {before / 1e6:.1f} M parameters left")
        if self.pruned:
            parts.append(f"{self.pruned} layers pruned")
        if self.calibrated:
            parts.append(f"{self.calibrated} ranges from {self.images} images")
        return f"one shot: {'; '.join(parts) or 'nothing changed'}"


def apply_at_once(
    model: nn.Module,
    recipe: Recipe,
    images: Inputs | None = None,
    checkpoint_recipe: str | None = None,
) -> OneShot:
    """Prune and quantize ``model`` as the end of ``recipe`` has it, in place, without training.

    Its epochs, learning rates and teachers do not matter. Pruning costs accuracy that nothing
    recovers: it is for looking at sizes and speeds, and for low sparsities. INT8 alone loses
    little.

    Args:
        model: With trained weights.
        recipe: Pruning, quantization, or both.
        images: What ranges are found on; needed when the recipe quantizes, and only then.
        checkpoint_recipe: What the weights went through before.

    Raises:
        ConfigError: Images are missing, or of no use.
        RecipeError: The recipe does not fit the model, or cannot do without training.
        TargetMissedError: A layer is less sparse than the recipe asks.
    """
    manager = build_manager(parse(recipe.text, recipe.label), recipe.label)
    pruning = {type(modifier).__name__ for modifier in manager.pruning_modifiers}
    quantizing = {type(modifier).__name__ for modifier in manager.quantization_modifiers}
    _require_no_training(recipe, pruning)
    _require_images_if(bool(quantizing), images, recipe.label)
    check_against(recipe, model)
    parameters = parameter_count(model)
    if pruning:
        _prune(model, Recipe(_only(recipe, pruning), recipe.label))
    targets = [*sparsity_targets(model, recipe.text), *shared_targets(model, recipe.text)]
    missed = [t.missed for t in targets if t.missed and t.actual < t.wanted]
    if missed:
        raise TargetMissedError(
            f"{recipe.label} in one shot: {'; '.join(missed)}",
            hint="nothing was written; see whether two modifiers of the recipe work against "
            "each other",
        )
    calibrated = 0
    if images is not None:
        if not is_quantized(model):
            apply_structure(model, _only(recipe, quantizing))
        calibrated = calibrate(model, images)
    return OneShot(
        recipe=compose(checkpoint_recipe, recipe.text),
        parameters=(parameters, parameter_count(model)),
        pruned=len(wishes_by_layer(list(convolutions(model)), recipe.text, math.inf)),
        sparsity=overall_sparsity(model),
        calibrated=calibrated,
        images=0 if images is None else len(images),
    )


def _require_no_training(recipe: Recipe, pruning: Collection[str]) -> None:
    for name in sorted(pruning):
        if name not in _AT_ONCE:
            raise RecipeError(
                f"{recipe.label}: !{name} learns from training what to prune, and there is none "
                "in one shot",
                hint="use !GMPruningModifier, or train with sparseml.yolact.train --recipe",
            )


def _require_images_if(quantizes: bool, images: Inputs | None, label: str) -> None:
    if quantizes and images is None:
        raise ConfigError(
            f"{label} quantizes, and the ranges of activations are found on images",
            hint="give --calibration_images a folder of about a hundred that are like those "
            "the model will see",
        )
    if images is not None and not quantizes:
        raise ConfigError(
            f"{label} does not quantize, so calibration images have no use",
            hint="leave --calibration_images out, or take a recipe with a QuantizationModifier",
        )


def _only(recipe: Recipe, names: Collection[str]) -> str:
    """The recipe with nothing but modifiers of these names."""
    found = entries(parse(recipe.text, recipe.label))
    return dump({"modifiers": [entry for entry in found if entry.name in names]})


def _prune(model: nn.Module, recipe: Recipe) -> None:
    """Go to the epochs at which modifiers begin and end, without a step in between."""
    driver = RecipeDriver(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driver.start(model, optimizer, epoch=0, steps_per_epoch=1)
    for epoch in _turning_points(recipe):
        driver.before_forward(model, optimizer, epoch)
        driver.before_step(model, optimizer, epoch)
        driver.after_step(model, optimizer, epoch)
    driver.finish(model)


def _turning_points(recipe: Recipe) -> list[int]:
    """Whole epochs by which each modifier has begun and ended."""
    fields = [entry.fields for entry in entries(parse(recipe.text, recipe.label))]
    ends = [f.get(name, 0.0) for f in fields for name in ("start_epoch", "end_epoch")]
    return sorted({0, *(math.ceil(max(float(end), 0.0)) for end in ends)})
