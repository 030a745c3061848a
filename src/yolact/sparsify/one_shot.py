"""Recipes without training: all masks at once, and the ranges of INT8 from a few images.

Quantizers that learn in training follow ranges by a moving average that gives each batch a weight
of 0.01: right for thousands of training steps, far off after a hundred images. Here every image
counts the same. Activations go into histograms, and the range of each is the one that loses least
when values are rounded to it: rare extreme values are cut off where that makes all others finer.
Weights are few and exactly known: they keep their full range.

On the small network, trained on the sample set, with 100 images, noise against the float model in
dB (higher is better) for boxes, mask coefficients and prototypes: histograms 33.9, 33.7, 29.0;
smallest and largest value 33.2, 33.3, 28.5; the middle 99.9 % 26.4, 27.0, 24.4; moving averages
12.2, 16.2, 27.6. Ranges per channel for the weights add about 1 dB. Correcting biases by the mean
errors of their layers took 3 to 10 dB away, and is not done.

Two things are done whatever the recipe says. Weights of depthwise convolutions have a range per
channel: their channels have nothing in common, and may differ by factors of a hundred. What a ReLU
or ReLU6 cuts off is cut off before its input gets a range. On YOLACT with EfficientNet-Lite0 the
first brought 4 dB, in a network with one range per tensor everywhere, and the second 10 dB.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from yolact.errors import CheckpointError, ConfigError, TargetMissedError
from yolact.model.fake_quantize import FakeQuantize, RangeObserver, fake_quantizers
from yolact.model.quantized_layers import coarse_depthwise, is_quant_wrapper
from yolact.model.weights import is_quantized, parameter_count
from yolact.sparsify.calibration import Extremes, Histogram, Observer
from yolact.sparsify.catalog import Kind, facts_of
from yolact.sparsify.check.examine import require_sound
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparsity import (
    convolutions,
    sparsity_targets,
    targets_by_parameter,
)
from yolact.sparsify.stages import compose
from yolact.sparsify.structure import apply_structure

logger = logging.getLogger(__name__)


class Inputs(Sized, Protocol):
    """Network inputs, a known number of them; read anew each time they are iterated."""

    def __iter__(self) -> Iterator[Tensor]:
        """[B, 3, H, W] each."""


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """What was done to a model."""

    recipe: Recipe
    """All stages composed, to be stored with the model."""
    parameters: tuple[int, int]
    """Before and after; fewer where channels were removed."""
    pruned: int
    """Layers that the recipe has a sparsity for."""
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
    checkpoint_recipe: Recipe | None = None,
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
    pruning = _only(recipe, "pruning", "constant", "thinning")
    quantization = _only(recipe, "quantization")
    for problem in require_sound(recipe, model, None):
        logger.warning("%s: %s; %s", recipe.label, problem, problem.hint)
    _require_images_if(bool(quantization.entries), images, recipe.label)
    parameters = parameter_count(model)
    if pruning.entries:
        _prune(model, pruning)
    targets = sparsity_targets(model, recipe)
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
            apply_structure(model, quantization)
        separate_depthwise_channels(model)
        calibrated = calibrate(model, images)
    return OneShot(
        recipe=compose(checkpoint_recipe, recipe),
        parameters=(parameters, parameter_count(model)),
        pruned=len(targets_by_parameter(list(convolutions(model)), recipe.entries, math.inf)),
        calibrated=calibrated,
        images=0 if images is None else len(images),
    )


def separate_depthwise_channels(model: nn.Module) -> None:
    """Let the weights of each depthwise convolution have a range per channel, in place.

    Args:
        model: With the structure of its quantization; new quantizers have no range yet.
    """
    for module, coarse in coarse_depthwise(model):
        fine = FakeQuantize(
            RangeObserver(ch_axis=0),
            quant_min=coarse.quant_min,
            quant_max=coarse.quant_max,
            symmetric=coarse.qscheme == torch.per_tensor_symmetric,
            dtype=coarse.dtype,
        )
        module.weight_fake_quant = fine.to(coarse.scale.device)


@torch.no_grad()
def calibrate(model: nn.Module, images: Inputs) -> int:
    """Set the range of every fake quantizer that ``images`` reach.

    Only scales, zero points and what observers have seen change: weights, batch norms and their
    statistics stay as they are. Afterwards the model is in the mode it was in, quantizes, and its
    observers are off.

    Args:
        model: With the structure of its quantization (see
            :func:`yolact.sparsify.structure.apply_structure`). What ranges it had is forgotten.
        images: Like those the model will see. In another order, histograms that widen at other
            moments can change a range by some percent, and results by less than 1 dB of noise.

    Returns:
        How many quantizers got a range; those of layers that inference skips do not.

    Raises:
        CheckpointError: Weights or activations are not finite.
    """
    names = {module: name for name, module in model.named_modules()}
    weights = {q for q in fake_quantizers(model) if names[q].endswith("weight_fake_quant")}
    observers = {q: _observer(q, weights=q in weights) for q in fake_quantizers(model)}
    training = model.training
    model.eval()
    with _watched(observers, names, once=weights, limits=_limits(model)):
        for image in tqdm(images, desc="calibrating", unit="image", disable=None):
            model(image)
    model.train(training)
    found = {quantizer: observer.range() for quantizer, observer in observers.items()}
    seen = {quantizer: ends for quantizer, ends in found.items() if ends is not None}
    for quantizer, ends in seen.items():
        quantizer.set_range(*ends)
    return len(seen)


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


def _only(recipe: Recipe, *kinds: Kind) -> Recipe:
    """The recipe with nothing but modifiers of these kinds."""
    return recipe.of(entry for entry in recipe.entries if facts_of(entry.name).kind in kinds)


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
    fields = [entry.fields for entry in recipe.entries]
    ends = [f.get(name, 0.0) for f in fields for name in ("start_epoch", "end_epoch")]
    return sorted({0, *(math.ceil(max(float(end), 0.0)) for end in ends)})


def _observer(quantizer: FakeQuantize, *, weights: bool) -> Observer:
    if quantizer.is_per_channel:
        return Extremes(quantizer.ch_axis)
    return Extremes() if weights else Histogram(quantizer.quant_max - quantizer.quant_min + 1)


def _limits(model: nn.Module) -> dict[nn.Module, tuple[float, float]]:
    """What activation functions limit values to, by the quantizers of their inputs."""
    found: dict[nn.Module, tuple[float, float]] = {}
    for wrapper in filter(is_quant_wrapper, model.modules()):
        match wrapper.module:
            case nn.Hardtanh() as limit:  # a ReLU6 is one
                ends = limit.min_val, limit.max_val
            case nn.ReLU():
                ends = 0.0, math.inf
            case _:
                continue
        found[wrapper.quant.activation_post_process] = ends
    return found


@contextmanager
def _watched(
    observers: Mapping[FakeQuantize, Observer],
    names: Mapping[nn.Module, str],
    once: Collection[FakeQuantize],
    limits: Mapping[nn.Module, tuple[float, float]],
) -> Iterator[None]:
    """Let observers see what quantizers are fed, while these let it through unchanged.

    Args:
        observers: By quantizer.
        names: Of the quantizers, for errors.
        once: Those that are fed the same each time.
        limits: By quantizer, what nothing beyond matters of.
    """
    hooks = []
    for quantizer, observer in observers.items():
        quantizer.disable_observer()
        quantizer.disable_fake_quant()
        ends = limits.get(quantizer)
        feed = _feeding(observer, names[quantizer], once=quantizer in once, limits=ends)
        hooks.append(quantizer.register_forward_pre_hook(feed))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer in observers:
            quantizer.enable_fake_quant()


def _feeding(
    observer: Observer, name: str, *, once: bool, limits: tuple[float, float] | None
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def feed(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if once and observer.range() is not None:
            return
        try:
            observer.see(inputs[0] if limits is None else inputs[0].clamp(*limits))
        except ValueError as error:
            raise CheckpointError(
                f"values that are not finite arrive at {name}: no range can hold them",
                hint="the weights are damaged, or training diverged; use an earlier checkpoint",
            ) from error

    return feed
