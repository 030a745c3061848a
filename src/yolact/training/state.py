"""What of a run a checkpoint holds so that it goes on exactly, and giving that back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from yolact.checkpoint import Checkpoint, TrainingState
from yolact.config import YolactConfig
from yolact.errors import CheckpointError
from yolact.loss.criterion import Objective
from yolact.sizes import size_words
from yolact.sparsify.recipe import Recipe
from yolact.training.average import WeightAverage
from yolact.training.optimizer import load_state
from yolact.training.origin import Origin

if TYPE_CHECKING:
    from yolact.training.start import Run


logger = logging.getLogger(__name__)


def snapshot(
    run: Run,
    iteration: int,
    scaler: torch.amp.GradScaler,
    best_map: float | None,
    without_better: int,
) -> Checkpoint:
    """A checkpoint of a run; its tensors are the run's own, so write it before the next step.

    Args:
        run: With its weights.
        iteration: Optimizer steps done.
        scaler: Of losses in mixed precision.
        best_map: Best mask mAP so far.
        without_better: Validations since then.
    """
    rng = {"cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(run.device)
    training = TrainingState(
        optimizer=run.optimizer.state_dict(),
        scaler=scaler.state_dict() if scaler.is_enabled() else None,
        rng=rng,
        steps_per_epoch=run.plan.steps_per_epoch,
        batch_size=run.settings.batch_size,
        accumulate=run.settings.accumulate,
        seed=run.seed,
        stage_recipe=_text(run.driver.recipe),
        earlier_recipe=_text(run.driver.earlier),
        distillation=run.objective.state(),
        average=run.average.state(),
        without_better=without_better,
    )
    return Checkpoint(
        model_state=run.average.weights(),
        epoch=max(iteration - 1, 0) // run.plan.steps_per_epoch,
        iteration=iteration,
        recipe=_text(run.driver.composed),
        classes=run.classes,
        config=run.config,
        training=training,
        best_map=best_map,
    )


def checkpoint_size(run: Run) -> int:
    """Bytes of the weights, their average and the optimizer's, of which one mostly consists."""
    optim = run.config.optim
    times = 2 + (optim.optimizer == "adamw") + (optim.ema_decay is not None)
    return times * sum(p.numel() * p.element_size() for p in run.model.parameters())


def restore_average(origin: Origin, average: WeightAverage) -> None:
    """Give the network of a run that goes on the weights that it trained, not their average.

    Args:
        origin: Where the run begins; nothing happens when it is a new one.
        average: Of the network, with the weights of the checkpoint; it may average nothing.

    Raises:
        CheckpointError: The weights are of another network.
    """
    state = origin.checkpoint.training if origin.checkpoint and origin.exact else None
    if state is not None and state.average is not None:
        with _says_how_to_go_on(origin):
            average.load_state(state.average)


def restore(
    origin: Origin,
    config: YolactConfig,
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
) -> None:
    """Give a run that goes on its optimizer, its generators and what else it trained.

    Settings that are not those the run began with are named in the log, and the optimizer gets
    the new ones. Nothing happens when a new run begins.

    Args:
        origin: Where it begins.
        config: Of the run, as it goes on.
        model: The network, with the structure that it had.
        objective: Gets what it had learned.
        optimizer: Holds the parameters of the network and the objective, on their device.

    Raises:
        CheckpointError: What the checkpoint holds is of another network or optimizer.
    """
    checkpoint = origin.checkpoint
    state = checkpoint.training if checkpoint and origin.exact else None
    if checkpoint is None or state is None:
        return
    before = checkpoint.config or config
    if before.optim.optimizer != config.optim.optimizer:
        raise CheckpointError(
            f"the run of {origin.start.checkpoint} goes on with {before.optim.optimizer}, "
            f"not {config.optim.optimizer}",
            hint=f"add --optimizer {before.optim.optimizer}, or begin a new run with --ckpt",
        )
    with _says_how_to_go_on(origin):
        objective.load_state(state.distillation)
        load_state(optimizer, state.optimizer, before.optim, model, objective)
        torch.set_rng_state(state.rng["cpu"])
        device = optimizer.param_groups[0]["params"][0].device
        if device.type == "cuda" and "cuda" in state.rng:
            torch.cuda.set_rng_state(state.rng["cuda"], device)
    _apply_changes(before, config, optimizer)


@contextmanager
def _says_how_to_go_on(origin: Origin) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{origin.start.checkpoint} does not say how to go on: {error}",
            hint="--ckpt instead of --resume begins a new run from its weights",
        ) from error


def _apply_changes(before: YolactConfig, now: YolactConfig, optimizer: Optimizer) -> None:
    """Name the settings that are not those the run began with; the optimizer has the new ones."""
    changes = [
        f"{key} {_words(key, getattr(new, key))} instead of {_words(key, getattr(old, key))}"
        for part in ("model", "loss", "augment", "optim")
        for old, new in [(getattr(before, part), getattr(now, part))]
        for key in vars(old)
        if getattr(old, key) != getattr(new, key)
    ]
    if changes:
        logger.warning("the run goes on with other settings: %s", ", ".join(changes))
    for key in ("momentum", "weight_decay"):
        value = getattr(now.optim, key)
        if value != getattr(before.optim, key):
            for group in optimizer.param_groups:
                if key in group:
                    group[key] = value


def _words(key: str, value: Any) -> str:
    """The value of a setting, as other lines of the log write it."""
    if key == "image_size":
        return size_words(value)
    return f"{value:g}" if key == "prior_base_size" else str(value)


def _text(recipe: Recipe | None) -> str | None:
    """As a checkpoint stores it."""
    return None if recipe is None else recipe.text
