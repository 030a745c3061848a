"""How a run begins: data, network, optimizer, recipe and the step to start from.

Everything that can go wrong before the first step goes wrong here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD

from yolact.checkpoint import Checkpoint, load_checkpoint, parse_checkpoint_name
from yolact.config import OptimConfig, YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.data.loader import EpochBatches
from yolact.data.transforms import EvalTransform, TrainTransform
from yolact.distill.objective import Distillation
from yolact.distill.teacher import SELF, Teacher, check_wish, copy_as_teacher, load_teacher
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.host import resolve_device
from yolact.loss.criterion import Objective, Supervised, YolactLoss
from yolact.model.weights import init_weights, load_backbone, load_weights
from yolact.model.yolact import Yolact
from yolact.restore import restore_structure
from yolact.sparsify.check.examine import require_sound
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import Recipe, load_recipe
from yolact.sparsify.stages import until
from yolact.sparsify.structure import recipe_names
from yolact.sparsify.transfer import forget_layers, learn_ranges
from yolact.training.samples import gradient_samples
from yolact.training.schedule import Plan, make_plan
from yolact.training.settings import StartSettings, TrainSettings

logger = logging.getLogger(__name__)

CLASS_LAYERS = ("prediction_layers.0.conf_layer.", "semantic_seg_conv.")
"""Parameters whose shape depends on the number of classes."""


@dataclass
class Run:
    """A run about to begin; the trainer owns it from here on."""

    settings: TrainSettings
    config: YolactConfig
    """With the data's number of classes."""
    optim: OptimConfig
    """Scaled to the batch size and fitted to the run's length."""
    classes: Classes
    train_data: CocoInstances
    validation_data: CocoInstances | None
    model: Yolact
    optimizer: SGD
    driver: RecipeDriver | None
    objective: Objective
    """What is minimised."""
    plan: Plan
    device: torch.device
    iteration: int
    """Optimizer steps already done."""
    seed: int
    stage_recipe: str | None
    earlier_recipe: str | None
    resumed: Checkpoint | None
    """The checkpoint whose optimizer and generators are continued exactly."""
    origin: str
    """Where the weights come from, in words."""


@dataclass(frozen=True)
class _Beginning:
    """What the start options and the checkpoint together ask for."""

    checkpoint: Checkpoint | None
    exact: bool
    recipe: Recipe | None
    earlier_recipe: str | None


def prepare(settings: TrainSettings) -> Run:
    """Check everything and build what the training loop needs.

    Raises:
        YolactError: Anything the user can fix, before any long work.
    """
    device = resolve_device(settings.device)
    _check_allocation(settings, device)
    begin = _beginning(settings)
    seed = settings.seed
    if begin.exact and begin.checkpoint and begin.checkpoint.training:
        seed = begin.checkpoint.training.seed
    train_data, validation_data = _datasets(settings, seed)
    config = settings.config.with_model(num_classes=len(train_data.classes))
    torch.manual_seed(seed)
    model, origin = _model(config, settings.start, begin, train_data.classes)
    if _class_layers_begin_anew(settings.start, begin, train_data.classes):
        begin = replace(begin, earlier_recipe=_without_class_layers(begin.earlier_recipe, model))
    model.to(device).to(memory_format=torch.channels_last)  # 10-20 % faster on CPUs
    optimizer = SGD(
        model.parameters(),
        lr=config.optim.lr,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    driver = RecipeDriver(begin.recipe, begin.earlier_recipe) if begin.recipe else None
    plan, optim = _plan(settings, len(train_data), driver)
    run = Run(
        settings=settings,
        config=config,
        optim=optim,
        classes=train_data.classes,
        train_data=train_data,
        validation_data=validation_data,
        model=model,
        optimizer=optimizer,
        driver=driver,
        objective=_objective(settings, config, train_data.classes, begin, model, driver),
        plan=plan,
        device=device,
        iteration=_first_step(settings.start, begin, plan),
        seed=seed,
        stage_recipe=begin.recipe.text if begin.recipe else None,
        earlier_recipe=begin.earlier_recipe,
        resumed=begin.checkpoint if begin.exact else None,
        origin=origin,
    )
    _check_something_left(run)
    if run.objective.own_parameters:
        optimizer.add_param_group({"params": run.objective.own_parameters})
    _check_recipe(run, begin.recipe)
    _start_recipe(run)
    _restore(run)
    return run


def _objective(
    settings: TrainSettings,
    config: YolactConfig,
    classes: Classes,
    begin: _Beginning,
    model: Yolact,
    driver: RecipeDriver | None,
) -> Objective:
    criterion = YolactLoss(config.loss)
    schedule = driver.distillation if driver is not None else None
    wish = settings.distill_teacher
    if not check_wish(wish, distils=bool(schedule), continued=begin.exact) or schedule is None:
        return Supervised(criterion)
    if schedule.layers and settings.batch_alloc is not None and len(settings.batch_alloc) > 1:
        raise ConfigError(
            "!PerLayerDistillationModifier compares layers on one device, "
            f"but --batch_alloc names {len(settings.batch_alloc)}",
            hint="leave --batch_alloc out, or use !DistillationModifier",
        )
    teacher = _teacher(settings, config, classes, begin, model)
    return Distillation(criterion, teacher, schedule, model)


def _teacher(
    settings: TrainSettings,
    config: YolactConfig,
    classes: Classes,
    begin: _Beginning,
    model: Yolact,
) -> Teacher:
    if settings.distill_teacher != SELF:
        return load_teacher(Path(str(settings.distill_teacher)), config, classes)
    checkpoint = begin.checkpoint
    known = checkpoint is not None and settings.start.backbone is None
    if checkpoint is None or not known or not _same_classes(checkpoint, classes):
        raise ConfigError(
            "--distill_teacher self, but layers of the network begin untrained",
            hint="begin with --ckpt, or give the checkpoint of a trained network",
        )
    return copy_as_teacher(model)


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


def _beginning(settings: TrainSettings) -> _Beginning:
    start = settings.start
    given = None
    if settings.recipe is not None:
        given = load_recipe(settings.recipe, settings.recipe_args, settings.recipe_label)
    if start.checkpoint is None:
        return _Beginning(None, False, given, None)
    checkpoint = load_checkpoint(start.checkpoint)
    if not start.resume:
        return _Beginning(checkpoint, False, given, _recipe_so_far(checkpoint))
    state = checkpoint.training
    stored = state.stage_recipe if state else checkpoint.recipe
    if start.continue_recipe and not stored:
        raise CheckpointError(
            f"{start.checkpoint} holds no recipe to go on with",
            hint="leave out --cont, or give a --recipe",
        )
    same = given is None or start.continue_recipe or given.text == stored
    if state is not None and same:
        recipe = load_recipe(stored) if stored else None
        return _Beginning(checkpoint, True, recipe, state.earlier_recipe)
    if stored and start.continue_recipe:
        return _Beginning(checkpoint, False, load_recipe(stored), None)
    if state is not None:
        logger.info("the recipe is not the checkpoint's: a new run begins from its weights")
    return _Beginning(checkpoint, False, given, _recipe_so_far(checkpoint))


def _recipe_so_far(checkpoint: Checkpoint) -> str | None:
    """What the weights went through, when their run was stopped before its recipe's end too."""
    state, steps = checkpoint.training, checkpoint.iteration
    if checkpoint.recipe is None or state is None or state.stage_recipe is None or steps is None:
        return checkpoint.recipe
    return until(checkpoint.recipe, steps, state.steps_per_epoch)


def _datasets(settings: TrainSettings, seed: int) -> tuple[CocoInstances, CocoInstances | None]:
    data, size = settings.data, settings.config.model.image_size
    train = CocoInstances(
        data.train_images,
        data.train_info,
        TrainTransform(size, settings.config.augment),
        seed=seed,
    )
    _require_objects(train, data.train_info, "give annotations of the objects to learn")
    if settings.validation_epoch <= 0:
        return train, None
    validation = CocoInstances(data.validation_images, data.validation_info, EvalTransform(size))
    _require_objects(validation, data.validation_info, "without any, use --validation_epoch -1")
    if set(validation.classes.names) != set(train.classes.names):
        raise ConfigError(
            "training and validation annotations list different categories",
            hint="use one categories list in both files, or --validation_epoch -1",
        )
    return train, validation


def _require_objects(data: CocoInstances, info: Path, hint: str) -> None:
    if not data.num_objects:
        raise DataError(f"{info} has no objects, only images or crowds", hint=hint)


def _apply_changes(run: Run) -> None:
    """Name the settings that are not those the run began with, and let SGD have the new ones."""
    before = run.resumed.config if run.resumed else None
    if before is None:
        return
    changes = [
        f"{key} {getattr(new, key)} instead of {getattr(old, key)}"
        for part in ("model", "loss", "augment", "optim")
        for old, new in [(getattr(before, part), getattr(run.config, part))]
        for key in vars(old)
        if getattr(old, key) != getattr(new, key)
    ]
    if changes:
        logger.warning("the run goes on with other settings: %s", ", ".join(changes))
    for key in ("momentum", "weight_decay"):
        value = getattr(run.config.optim, key)
        if value != getattr(before.optim, key):
            for group in run.optimizer.param_groups:
                group[key] = value


def _model(
    config: YolactConfig, start: StartSettings, begin: _Beginning, classes: Classes
) -> tuple[Yolact, str]:
    model = Yolact(config.model)
    init_weights(model)
    if start.backbone is not None:
        load_backbone(model, load_checkpoint(start.backbone).model_state)
        return model, f"backbone {start.backbone}, the rest random"
    if begin.checkpoint is None:
        return model, "random weights"
    checkpoint = begin.checkpoint
    _check_belongs(checkpoint, config, start, classes)
    state: Mapping[str, Tensor] = checkpoint.model_state
    origin = f"checkpoint {start.checkpoint}"
    restore_structure(model, checkpoint)
    anew = _class_layers_begin_anew(start, begin, classes)
    if anew:
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(CLASS_LAYERS)}
        kept = {k: v for k, v in state.items() if not k.startswith(CLASS_LAYERS)}
        state = {**kept, **fresh}
        origin += ", class layers new: other classes"
    load_weights(model, state)
    if anew:
        learn_ranges(model, CLASS_LAYERS)
    return model, origin


def _class_layers_begin_anew(start: StartSettings, begin: _Beginning, classes: Classes) -> bool:
    checkpoint = begin.checkpoint
    return checkpoint is not None and not start.resume and not _same_classes(checkpoint, classes)


def _without_class_layers(recipe: str | None, model: Yolact) -> str | None:
    if recipe is None:
        return None
    return forget_layers(recipe, list(recipe_names(model).values()), CLASS_LAYERS)


def _check_belongs(
    checkpoint: Checkpoint, config: YolactConfig, start: StartSettings, classes: Classes
) -> None:
    stored = checkpoint.config
    if stored is not None and stored.name != config.name:
        raise CheckpointError(
            f"{start.checkpoint} is of {stored.name}_config, not {config.name}_config",
            hint=f"add --config {stored.name}_config",
        )
    if start.resume and not _same_classes(checkpoint, classes):
        raise CheckpointError(
            f"{start.checkpoint} was trained on other classes ({_class_list(checkpoint)}) "
            f"than the data has ({_first(classes)})",
            hint="--ckpt instead of --resume takes all weights but those of the class layers",
        )


def _same_classes(checkpoint: Checkpoint, classes: Classes) -> bool:
    if checkpoint.classes is not None:
        return checkpoint.classes.names == classes.names
    return checkpoint.num_classes == len(classes)


def _class_list(checkpoint: Checkpoint) -> str:
    if checkpoint.classes is None:
        return f"{checkpoint.num_classes} of them"
    return _first(checkpoint.classes)


def _first(classes: Classes) -> str:
    """The first few names."""
    return ", ".join(classes.names[:5]) + ", ..." * (len(classes) > 5)


def _plan(
    settings: TrainSettings, images: int, driver: RecipeDriver | None
) -> tuple[Plan, OptimConfig]:
    optim = settings.config.optim
    effective = settings.batch_size * settings.accumulate
    if settings.autoscale and effective != 8:
        optim = optim.autoscaled(effective)
    epochs = settings.epochs
    if driver is not None and driver.max_epochs:
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


def _first_step(start: StartSettings, begin: _Beginning, plan: Plan) -> int:
    checkpoint = begin.checkpoint
    if checkpoint is None:
        return max(start.start_iter, 0)
    if begin.exact:
        return _resumed_step(checkpoint, plan)
    if start.start_iter == -1:
        return _step_in_name(start.checkpoint)
    if start.start_iter == 0 and (start.use_checkpoint_epoch or start.continue_recipe):
        return (checkpoint.epoch or 0) * plan.steps_per_epoch
    return start.start_iter


def _resumed_step(checkpoint: Checkpoint, plan: Plan) -> int:
    before = checkpoint.training and checkpoint.training.steps_per_epoch
    if before == plan.steps_per_epoch:
        return checkpoint.iteration or 0
    logger.warning(
        "epochs now have %d steps instead of %d: continuing at the same epoch, not step",
        *(plan.steps_per_epoch, before),
    )
    return round(checkpoint.position * plan.steps_per_epoch)


def _step_in_name(path: Path | None) -> int:
    named = path and parse_checkpoint_name(path)
    if not named:
        raise CheckpointError(
            f"the name of {path} does not end in _<epoch>_<iter>.pth",
            hint="give the step with --start_iter",
        )
    return named[2]


def _check_something_left(run: Run) -> None:
    if run.iteration >= run.plan.total_steps:
        raise ConfigError(
            f"nothing left to train: step {run.iteration} of {run.plan.total_steps} is reached",
            hint="give a larger --epochs or --max_iter, or start a new run with --ckpt",
        )


def _check_recipe(run: Run, recipe: Recipe | None) -> None:
    if recipe is None:
        return
    epochs = run.settings.epochs or run.plan.total_steps / run.plan.steps_per_epoch
    for problem in require_sound(recipe, run.model, epochs):
        logger.warning("%s: %s; %s", recipe.label, problem, problem.hint)


def _start_recipe(run: Run) -> None:
    if run.driver is None:
        return
    samples = None
    if run.driver.samples_gradients:
        criterion = YolactLoss(run.config.loss)
        size, seed = run.settings.batch_size, run.seed
        samples = gradient_samples(run.model, criterion, run.train_data, batch_size=size, seed=seed)
    steps = run.plan.steps_per_epoch
    run.driver.start(run.model, run.optimizer, run.iteration / steps, steps, samples)


def _restore(run: Run) -> None:
    state = run.resumed.training if run.resumed else None
    if state is None:
        return
    try:
        run.objective.load_state(state.distillation)
        run.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng["cpu"])
        if run.device.type == "cuda" and "cuda" in state.rng:
            torch.cuda.set_rng_state(state.rng["cuda"], run.device)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{run.settings.start.checkpoint} does not say how to go on: {error}",
            hint="--ckpt instead of --resume begins a new run from its weights",
        ) from error
    _apply_changes(run)
