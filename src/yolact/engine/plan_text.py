"""What a run is about to do, in words, for ``--dry-run``."""

from __future__ import annotations

from yolact.engine.start import Run
from yolact.model.parameters import parameter_count


def describe(run: Run) -> str:
    """A few lines: data, weights, length, learning rate, recipe, files."""
    settings, plan, optim = run.settings, run.plan, run.optim
    images = len(run.train_data)
    validation = len(run.validation_data) if run.validation_data else 0
    parameters = parameter_count(run.model)
    batch = f"{settings.batch_size}" + f" x {plan.accumulate}" * (plan.accumulate > 1)
    lr = "set by the recipe" if run.driver and run.driver.controls_lr else f"{optim.lr:g}"
    lines = [
        f"network     {run.config.name}, {run.config.model.image_size} px, "
        f"{parameters / 1e6:.1f} M parameters, on {run.device}",
        f"weights     {run.origin}",
        f"data        {images} images to train on, {min(validation, settings.validation_size)} to "
        f"validate on, {len(run.classes)} classes",
        f"length      {plan.total_steps} steps of batch {batch}: {plan.steps_per_epoch} steps an "
        f"epoch, {plan.epochs} epochs, beginning at step {run.iteration}",
        f"lr          {lr}, momentum {optim.momentum:g}, weight decay {optim.weight_decay:g}",
        f"recipe      {'yes, checked against the network' if run.driver else 'none'}",
        *([f"teacher     {run.distillation.origin}"] if run.distillation else []),
        f"checkpoints {settings.save.folder}, every {settings.save.interval} steps",
    ]
    return "\n".join(lines)
