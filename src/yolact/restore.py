"""A checkpoint as a network: its layers as its recipe left them, and its weights in them.

Also for other classes than those of the checkpoint: what it knows of the same ones is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from yolact.checkpoint import Checkpoint, load_checkpoint
from yolact.config import ModelConfig, YolactConfig
from yolact.data.labels import Classes, match_names
from yolact.errors import CheckpointError
from yolact.model.identify import differences, words
from yolact.model.weights import load_weights
from yolact.model.yolact import Yolact
from yolact.presets import CONFIGS
from yolact.sizes import ImageSize, size_words
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import apply_structure

log = logging.getLogger(__name__)

_SAME = 1e-6
"""Relative difference of sides below which priors are the same."""

_CONF = "prediction_layers.0.conf_layer."
CLASS_LAYERS = (_CONF, "semantic_seg_conv.")
"""Parameters whose shape depends on the number of classes."""


@dataclass(frozen=True)
class Subject:
    """A network to look at before anything is done with it."""

    name: str
    """What messages call it."""
    config: YolactConfig
    model: Yolact
    recipe: str | None = None
    """The recipes that its weights went through."""


def build_model(checkpoint: Checkpoint, config: YolactConfig | None = None) -> Yolact:
    """The network of ``checkpoint`` with its weights, in evaluation mode.

    A quantized or thinned network is first given its structure by the recipe stored beside the
    weights.

    Args:
        checkpoint: What :func:`yolact.checkpoint.load_checkpoint` returned.
        config: Overrides the configuration in the checkpoint; needed only for files without one
            whose weights do not tell; see :attr:`yolact.checkpoint.Checkpoint.recognised`.

    Raises:
        CheckpointError: The weights belong to another network, or are quantized and no recipe
            says how.
    """
    named = len(checkpoint.classes) if checkpoint.classes else checkpoint.num_classes
    if named != checkpoint.num_classes:
        raise CheckpointError(
            f"the checkpoint names {named} classes, but its weights are for "
            f"{checkpoint.num_classes}",
            hint="its classes or its weights were exchanged; take the file as training saved it",
        )
    chosen = checkpoint.config_or(config)
    model = Yolact(chosen.with_model(num_classes=checkpoint.num_classes).model)
    restore_structure(model, checkpoint)
    load_weights(model, checkpoint.model_state)
    return model.eval()


def config_for(
    checkpoint: Checkpoint,
    name: object,
    config: YolactConfig | None = None,
    image_size: ImageSize | None = None,
    prior_base_size: float | None = None,
) -> YolactConfig:
    """The configuration that the weights of ``checkpoint`` are used with.

    What weights without a configuration are taken for, and a size of input or priors that are not
    those of training, are told in one line of the log each.

    Args:
        checkpoint: Its own configuration tells what its weights learned with.
        name: What the log calls it.
        config: Takes the place of the checkpoint's.
        image_size: Of the network input; None for the configuration's.
        prior_base_size: None for that with which priors have as many pixels as in training; see
            :meth:`yolact.config.ModelConfig.for_weights`.

    Raises:
        ConfigError: No network can have this size.
        CheckpointError: The weights are of other layers than ``config`` has.
    """
    if config is not None:
        checkpoint.require_layers(config, name, more=", or leave --config out")
    chosen = _taken_for(checkpoint, name, config)
    trained = chosen.model if checkpoint.config is None else checkpoint.config.model
    model = chosen.model.for_weights(trained, image_size, prior_base_size)
    _tell_change(name, trained, model, "used")
    return replace(chosen, model=model)


def _taken_for(checkpoint: Checkpoint, name: object, config: YolactConfig | None) -> YolactConfig:
    """The configuration to use; says what it is where neither user nor checkpoint have one."""
    chosen = None if config is not None else checkpoint.recognised
    if chosen is None:
        return checkpoint.config_or(config)
    log.info(
        "%s: no configuration in it, taken for %s (%s, %s px)%s",
        *(name, f"{chosen.name}_config", words(chosen.model.backbone)),
        *(size_words(chosen.model.image_size), _doubt(checkpoint, chosen)),
    )
    return chosen


def _doubt(checkpoint: Checkpoint, chosen: YolactConfig) -> str:
    """What else weights may be of, where neither they nor the name of their file tell."""
    if f"{chosen.name}_config" not in CONFIGS:
        return ", which has no name: input size and priors are not known"
    if chosen.name.removeprefix("yolact_") in checkpoint.file:
        return ""
    others = [
        name
        for name, make in CONFIGS.items()
        if (config := make()) != chosen and not differences(chosen.model, config.model)
    ]
    return f"; if trained otherwise: --config {' or '.join(others)}" if others else ""


def config_to_train(
    checkpoint: Checkpoint | None, name: object, config: YolactConfig, prior_base_size: float | None
) -> YolactConfig:
    """The configuration of a run that begins with the weights of ``checkpoint``.

    Its priors are those that weights learn fastest with at another size of input. At a smaller one
    they keep their pixels, at a larger one their share of the image: measured, the larger of the
    two was better both times. What is chosen is told in one line of the log.

    Args:
        checkpoint: None for a run that begins without, whose priors are as ``config`` has them.
        name: What the log calls the checkpoint.
        config: Of the run, with its size of input.
        prior_base_size: Chooses the priors instead.
    """
    if checkpoint is None:
        wanted = config.model.prior_base_size if prior_base_size is None else prior_base_size
        return config.with_model(prior_base_size=wanted)
    usual = CONFIGS.get(f"{config.name}_config", lambda: config)()  # what other tools trained with
    trained = (checkpoint.config or usual).model
    model = config.model.for_weights(trained, None, prior_base_size)
    if prior_base_size is None and model.prior_scales == trained.prior_scales:
        base = min(model.prior_base_size, trained.prior_base_size)
        model = replace(model, prior_base_size=base)
    _tell_change(name, trained, model, "trained")
    return replace(config, model=model)


def _tell_change(name: object, trained: ModelConfig, model: ModelConfig, verb: str) -> None:
    """Say in one line that weights meet another size of input, or other priors, than in training.

    Args:
        name: What the line calls the weights.
        trained: What they learned with.
        model: What they meet now.
        verb: What is done to them now.
    """
    now = model.pixels_per_scale / trained.pixels_per_scale
    kept = abs(now - 1) < _SAME
    if model.input_size == trained.input_size and kept:
        return
    log.info(
        "%s: trained at %s px, now %s at %s px: priors have %s pixels (prior_base_size %g, was %g)",
        *(name, size_words(trained.image_size), verb, size_words(model.image_size)),
        "as many" if kept else f"{now:.3g} times as many",
        *(model.prior_base_size, trained.prior_base_size),
    )


def restore_structure(model: Yolact, checkpoint: Checkpoint, engine: EngineName = "native") -> None:
    """Give a network the layers that a checkpoint's weights are for, if its recipe changed them.

    Args:
        model: As built from the checkpoint's configuration; changed in place.
        checkpoint: Its recipe says what was quantized, and which channels or layers were removed.
        engine: Whose quantized layers they are to be; a run goes on with those of its own.

    Raises:
        CheckpointError: The weights are quantized and no recipe says how.
        RecipeError: The recipe does not fit the network.
    """
    if checkpoint.quantized:
        text: str | None = recipe_of_quantized(checkpoint)
    else:
        text = checkpoint.recipe if _smaller(checkpoint.model_state, model) else None
    if text:
        recipe = Recipe.of_text(text, "the stored recipe")
        apply_structure(model, recipe, checkpoint.clock, engine)


def known_rows(known: Classes, wanted: Classes) -> tuple[int | None, ...]:
    """For each class the index of the same class among others, None where there is none.

    Names are compared by :func:`yolact.data.labels.match_names`.

    >>> known_rows(Classes(("cat", "Big Dog"), (1, 2)), Classes(("big_dog", "bird"), (1, 2)))
    (1, None)
    """
    same = match_names(wanted.names, known.names)
    index = {name: place for place, name in enumerate(known.names)}
    return tuple(index[same[name]] if name in same else None for name in wanted.names)


def class_layers(
    model: Yolact, checkpoint: Checkpoint, rows: Sequence[int | None]
) -> dict[str, Tensor]:
    """State of the class layers: rows of known classes from the checkpoint, others as they are.

    The background's row, and what quantizers know of inputs, is the checkpoint's too, if it has
    one class at least.
    """
    fresh = {k: v for k, v in model.state_dict().items() if k.startswith(CLASS_LAYERS)}
    if all(row is None for row in rows):
        return fresh
    before, stored = checkpoint.num_classes, checkpoint.model_state
    behind = [0, *(None if row is None else row + 1 for row in rows)]  # behind the background
    return {
        name: _with_rows(value, stored.get(name, value), before + 1, behind)
        if name.startswith(_CONF)
        else _with_rows(value, stored.get(name, value), before, rows)
        for name, value in fresh.items()
    }


def _with_rows(fresh: Tensor, known: Tensor, count: int, rows: Sequence[int | None]) -> Tensor:
    """``fresh`` with rows of ``known``, both [priors * rows, ...]; ``known`` if it has no rows.

    Args:
        fresh: Of a layer with ``len(rows)`` rows for each prior of a cell.
        known: Of one with ``count`` rows for each.
        count: See above.
        rows: Row of ``known`` that each one gets; None keeps the fresh one.
    """
    per_row = fresh.ndim and fresh.shape[1:] == known.shape[1:] and not len(fresh) % len(rows)
    priors = len(fresh) // len(rows) if per_row else 0
    if not priors or len(known) != priors * count:
        return known if known.shape == fresh.shape else fresh
    result = fresh.clone().reshape(priors, len(rows), *fresh.shape[1:])
    taken = [(to, of) for to, of in enumerate(rows) if of is not None]
    to, of = ([pair[i] for pair in taken] for i in (0, 1))
    result[:, to] = known.reshape(priors, count, *known.shape[1:])[:, of]
    return result.reshape(fresh.shape)


def recipe_of_quantized(checkpoint: Checkpoint) -> str:
    """The recipe that gave a quantized network its structure.

    Raises:
        CheckpointError: It is not stored beside the weights.
    """
    if not checkpoint.recipe:
        raise CheckpointError(
            "the checkpoint is quantized, but holds no recipe that says how",
            hint="use the checkpoint that the training run itself wrote",
        )
    return checkpoint.recipe


def load_subject(
    path: Path, name: str, config: YolactConfig | None, image_size: ImageSize | None
) -> Subject:
    """The network of a checkpoint file, to look at.

    Args:
        path: Of the checkpoint.
        name: What the user calls it.
        config: What it must be of; None takes its own.
        image_size: Of the network input; None for the configuration's.

    Raises:
        CheckpointError: The file cannot be read, or is of another configuration.
    """
    checkpoint = load_checkpoint(path)
    chosen = _taken_for(checkpoint, name, config)
    checkpoint.require_config(chosen, name, more=", or leave --config out")
    chosen = _sized(chosen, image_size)
    return Subject(name, chosen, build_model(checkpoint, chosen), checkpoint.recipe)


def bare_subject(config: YolactConfig, image_size: ImageSize | None) -> Subject:
    """A network without weights, on the meta device: its layers and their shapes.

    ``image_size`` is that of the input; None stands for the configuration's.
    """
    config = _sized(config, image_size)
    with torch.device("meta"):
        return Subject(config.name, config, Yolact(config.model))


def _smaller(state: Mapping[str, Tensor], model: Yolact) -> bool:
    """Whether some layers or channels of the network are missing from the weights."""
    return any(
        name not in state or state[name].shape[:1] < parameter.shape[:1]
        for name, parameter in model.named_parameters()
    )


def _sized(config: YolactConfig, image_size: ImageSize | None) -> YolactConfig:
    return config if image_size is None else config.with_model(image_size=image_size)
