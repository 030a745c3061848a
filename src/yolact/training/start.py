"""How a run begins: data, network, recipe, plan, and the step to start from.

Everything that can go wrong before the first step goes wrong here. What the weights and the recipe
of the run are is found out in :mod:`yolact.training.origin`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from yolact.checkpoint import Checkpoint
from yolact.config import YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.data.loader import EpochBatches, make_loader
from yolact.distill.objective import Distillation
from yolact.distill.teacher import SELF, Teacher, check_wish, copy_as_teacher, load_teacher
from yolact.errors import ConfigError
from yolact.host import resolve_device
from yolact.loss.criterion import Objective, Supervised, YolactLoss
from yolact.model.weights import parameter_count
from yolact.model.yolact import Yolact
from yolact.optim_config import OptimConfig
from yolact.restore import config_to_train
from yolact.sizes import size_words
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.engine import GradientSamples
from yolact.sparsify.recipe import Recipe
from yolact.training.average import WeightAverage
from yolact.training.datasets import amounts, open_datasets
from yolact.training.optimizer import make_optimizer
from yolact.training.origin import (
    Origin,
    build_network,
    find_origin,
    first_step,
    forget_class_layers,
)
from yolact.training.settings import TrainSettings
from yolact.training.state import restore, restore_average
from yolact.training.step import on_device
from yolact.types import Batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run, in optimizer steps."""

    batches_per_epoch: int
    accumulate: int
    """Batches whose gradients one step sums."""
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last one may sum fewer batches."""
        return math.ceil(self.batches_per_epoch / self.accumulate)

    @property
    def epochs(self) -> int:
        """Epochs begun by the run."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def batch_of(self, step: int) -> tuple[int, int]:
        """(epoch, batch in that epoch) that step ``step`` begins with."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.accumulate


class NoRecipe:
    """The driver of a run without a recipe, so that the loop need not ask whether there is one.

    It answers as a :class:`yolact.sparsify.driver.RecipeDriver` does, and does nothing.

    Args:
        earlier: The composed recipe of the stages that the starting weights went through before
            this run, if any; checkpoints go on holding it.
    """

    recipe = None
    max_epochs = None
    controls_lr = False
    distillation = None
    settles_at = 0.0
    acts_until = 0.0
    samples_gradients = False

    def __init__(self, earlier: Recipe | None = None) -> None:
        """Keep the earlier stages."""
        self.composed = self.earlier = earlier

    def _nothing(self, *_: object, **__: object) -> None:
        """Nothing can be wrong, nothing is due, and there is nothing to report on."""

    check = start = before_forward = before_step = after_step = finish = _nothing
    sparsity = write_report = _nothing

    def quantizes_by(self, epoch: float) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run about to begin; training changes what is in it, but never what it consists of."""

    settings: TrainSettings
    config: YolactConfig
    """With the data's number of classes."""
    optim: OptimConfig
    """Scaled to the batch size and fitted to the run's length."""
    plan: Plan
    seed: int
    iteration: int
    """Optimizer steps done before it begins."""
    device: torch.device
    train_data: CocoInstances
    validation_data: CocoInstances | None
    model: Yolact
    objective: Objective
    """What is minimised."""
    optimizer: Optimizer
    average: WeightAverage
    """What is validated and saved; the weights themselves, where nothing is averaged."""
    driver: RecipeDriver | NoRecipe
    """Does what the recipe wants at each step."""
    origin: str
    """Where the weights come from, in words."""
    resumed: Checkpoint | None
    """The checkpoint whose optimizer and generators are continued exactly."""

    @property
    def without_better(self) -> int:
        """Validations since the best one, of a run that goes on."""
        state = self.resumed.training if self.resumed else None
        return state.without_better if state else 0

    @property
    def classes(self) -> Classes:
        """What there is to find, in the order of the network's outputs."""
        return self.train_data.classes


def prepare(settings: TrainSettings) -> Run:
    """Check everything and build what the training loop needs.

    Raises:
        YolactError: Anything the user can fix, before any long work.
    """
    device = resolve_device(settings.device)
    _check_allocation(settings, device)
    origin = find_origin(settings)
    settings = replace(settings, config=_fitted_config(settings, origin))
    train_data, validation_data = open_datasets(settings, origin.seed)
    classes = train_data.classes
    config = settings.config.with_model(num_classes=len(classes))
    torch.manual_seed(origin.seed)
    model, words = build_network(origin, config, classes)
    origin = forget_class_layers(origin, model, classes)
    model.to(device).to(memory_format=torch.channels_last)  # 10-20 % faster on CPUs
    average = WeightAverage(model, config.optim.ema_decay)
    restore_average(origin, average)
    driver = _driver(origin)
    plan, optim = _plan(settings, len(train_data), driver)
    objective = _objective(settings, origin, driver, model, classes)
    run = Run(
        settings=settings,
        config=config,
        optim=optim,
        plan=plan,
        seed=origin.seed,
        iteration=first_step(origin, plan.steps_per_epoch),
        device=device,
        train_data=train_data,
        validation_data=validation_data,
        model=model,
        objective=objective,
        optimizer=make_optimizer(config.optim, model, objective),
        average=average,
        driver=driver,
        origin=words,
        resumed=origin.checkpoint if origin.exact else None,
    )
    _check_something_left(run)
    driver.check(model, settings.epochs or plan.total_steps / plan.steps_per_epoch)
    _start_recipe(run)
    restore(origin, run.config, model, run.objective, run.optimizer)
    return run


def _fitted_config(settings: TrainSettings, origin: Origin) -> YolactConfig:
    """The configuration, with the priors that the weights are to meet."""
    start = settings.start
    whole = origin.checkpoint if start.backbone is None else None
    return config_to_train(whole, start.checkpoint, settings.config, start.prior_base_size)


def make_plan(
    *,
    batches_per_epoch: int,
    accumulate: int,
    max_iter: int,
    epochs: float | None,
) -> Plan:
    """The plan of a run of ``epochs`` epochs, or of ``max_iter`` steps when that is None."""
    steps = math.ceil(batches_per_epoch / accumulate)
    total = max_iter if epochs is None else max(1, round(epochs * steps))
    return Plan(batches_per_epoch=batches_per_epoch, accumulate=accumulate, total_steps=total)


def describe(run: Run) -> str:
    """A few lines: data, weights, length, learning rate, recipe, files."""
    settings, plan, optim, teacher = run.settings, run.plan, run.optim, run.objective.teacher_name
    parameters = parameter_count(run.model)
    batch = f"{settings.batch_size}" + f" x {plan.accumulate}" * (plan.accumulate > 1)
    lr = "set by the recipe" if run.driver.controls_lr else f"{optim.lr:g}"
    recipe = run.driver.recipe
    lines = [
        f"network     {run.config.name}, {size_words(run.config.model.image_size)} px, "
        f"{parameters / 1e6:.1f} M parameters, on {run.device}",
        f"weights     {run.origin}",
        f"data        {amounts(run.train_data, run.validation_data, settings.validation_size)}",
        f"length      {plan.total_steps} steps of batch {batch}: {plan.steps_per_epoch} steps an "
        f"epoch, {plan.epochs} epochs, beginning at step {run.iteration}",
        f"lr          {lr}, {_optimizer_words(run)}",
        "recipe      "
        + (f"yes, checked against the network; {recipe.engine_name} runs it" if recipe else "none"),
        *([f"teacher     {teacher}"] if teacher else []),
        f"checkpoints {settings.save.folder}, every {settings.save.interval} steps",
        *([f"patience    {_patience_words(run)}"] if settings.patience is not None else []),
    ]
    return "\n".join(lines)


def _optimizer_words(run: Run) -> str:
    """What moves weights besides the rate; settings that others do not have, only if they hold."""
    optim = run.optim
    words = {
        "cosine": optim.schedule == "cosine" and not run.driver.controls_lr,
        f"backbone x {optim.backbone_lr:g}": optim.backbone_lr != 1,
        f"momentum {optim.momentum:g}": optim.optimizer == "sgd",
        "AdamW": optim.optimizer == "adamw",
        f"weight decay {optim.weight_decay:g}": True,
        f"weights averaged by {optim.ema_decay}": optim.ema_decay is not None,
    }
    return ", ".join(word for word, said in words.items() if said)


def _patience_words(run: Run) -> str:
    begins = run.driver.acts_until
    after = f", counted from epoch {begins:g} on, when the recipe is done" if begins else ""
    return f"{run.settings.patience} validations without a better mask mAP{after}"


def _check_allocation(settings: TrainSettings, device: torch.device) -> None:
    parts = settings.batch_alloc
    if parts is None:
        return
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if len(parts) > max(gpus, 1):
        raise ConfigError(
            f"--batch_alloc names {len(parts)} GPUs, but {gpus} are visible",
            hint="give one number per GPU, or leave the option out",
        )


def _driver(origin: Origin) -> RecipeDriver | NoRecipe:
    if origin.recipe is None:
        return NoRecipe(origin.earlier_recipe)
    return RecipeDriver(origin.recipe, origin.earlier_recipe)


def _plan(
    settings: TrainSettings, images: int, driver: RecipeDriver | NoRecipe
) -> tuple[Plan, OptimConfig]:
    optim = settings.config.optim
    effective = settings.batch_size * settings.accumulate
    if settings.autoscale and effective != 8:
        optim = optim.autoscaled(effective)
    epochs = settings.epochs
    if driver.max_epochs:
        if epochs is not None or settings.max_iter is not None:
            raise ConfigError(
                "the recipe sets the length of the run itself "
                f"({driver.max_epochs:g} epochs), so --epochs and --max_iter cannot",
                hint="change it with --recipe_args num_epochs=...",
            )
        epochs = driver.max_epochs
    plan = make_plan(
        batches_per_epoch=len(EpochBatches(images, settings.batch_size)),
        accumulate=settings.accumulate,
        max_iter=settings.max_iter or optim.max_iter,
        epochs=epochs,
    )
    length_given = epochs is not None or settings.max_iter is not None
    return plan, optim.fitted(plan.total_steps) if length_given else optim


def _objective(
    settings: TrainSettings,
    origin: Origin,
    driver: RecipeDriver | NoRecipe,
    model: Yolact,
    classes: Classes,
) -> Objective:
    criterion = YolactLoss(settings.config.loss)
    schedule, wish = driver.distillation, settings.distill_teacher
    if not check_wish(wish, distils=bool(schedule), continued=origin.exact) or not schedule:
        return Supervised(criterion)
    if schedule.layers and settings.batch_alloc is not None and len(settings.batch_alloc) > 1:
        raise ConfigError(
            "!PerLayerDistillationModifier compares layers on one device, "
            f"but --batch_alloc names {len(settings.batch_alloc)}",
            hint="leave --batch_alloc out, or use !DistillationModifier",
        )
    teacher = _teacher(str(wish), settings.config, origin, model, classes)
    return Distillation(criterion, teacher, schedule, model)


def _teacher(
    wish: str, config: YolactConfig, origin: Origin, model: Yolact, classes: Classes
) -> Teacher:
    if wish != SELF:
        return load_teacher(Path(wish), config, classes)
    if not origin.begins_trained(classes):
        raise ConfigError(
            "--distill_teacher self, but layers of the network begin untrained",
            hint="begin with --ckpt, or give the checkpoint of a trained network",
        )
    return copy_as_teacher(model)


def _check_something_left(run: Run) -> None:
    if run.iteration >= run.plan.total_steps:
        raise ConfigError(
            f"nothing left to train: step {run.iteration} of {run.plan.total_steps} is reached",
            hint="give a larger --epochs or --max_iter, or start a new run with --ckpt",
        )
    patience, epochs = run.settings.patience, run.plan.total_steps / run.plan.steps_per_epoch
    if patience is None:
        return
    if run.without_better >= patience:
        raise ConfigError(
            f"nothing left to train: {run.without_better} validations were without a better "
            f"mask mAP, and --patience is {patience}",
            hint="give a larger --patience, or start a new run with --ckpt",
        )
    if run.driver.acts_until >= epochs:
        raise ConfigError(
            f"--patience {patience} cannot end this run early: "
            f"its recipe acts until its end, epoch {epochs:g}",
            hint="leave it out, or give a recipe whose modifiers end before the run does",
        )


def _start_recipe(run: Run) -> None:
    """Bring recipe and network to the step that the run begins with."""
    samples = _gradient_samples(run) if run.driver.samples_gradients else None
    steps = run.plan.steps_per_epoch
    run.driver.start(run.model, run.optimizer, run.iteration / steps, steps, samples)


def _gradient_samples(run: Run) -> GradientSamples:
    """Batches of the run's own data and their loss, in float32 and in this process."""
    criterion = YolactLoss(run.config.loss)

    def batches(size: int | None) -> Iterator[Batch]:
        loader = make_loader(run.train_data, size or run.settings.batch_size, 0, run.seed)
        for epoch in count():
            loader.batch_sampler.set_position(epoch)
            yield from loader

    def loss(batch: Batch) -> Tensor:
        images, targets = on_device(batch, run.device)
        return criterion(run.model(images), targets).total

    return GradientSamples(batches, loss)
