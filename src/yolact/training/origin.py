"""What a run begins with: whose weights, which recipe, at which step.

The start options and the checkpoint that they name decide together. The run that wrote the
checkpoint goes on exactly, with its recipe (``--resume``); or a new run begins, with the weights of
a checkpoint (``--ckpt``, or ``--resume`` with another recipe), with those of an ImageNet backbone,
or with random ones.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from yolact.checkpoint import Checkpoint, classes_of, load_checkpoint, parse_checkpoint_name
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.download.pretrained import origin_of_weights, pretrained_weights
from yolact.errors import CheckpointError
from yolact.model.weights import init_weights, load_backbone, load_weights
from yolact.model.yolact import Yolact
from yolact.restore import CLASS_LAYERS, class_layers, known_rows, restore_structure
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import Recipe, load_recipe
from yolact.sparsify.stages import forget_layers, learn_ranges, until
from yolact.sparsify.structure import recipe_names
from yolact.training.settings import StartSettings, TrainSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the start options and the checkpoint together ask for."""

    start: StartSettings
    seed: int
    """Of every random choice; that of the run that goes on."""
    checkpoint: Checkpoint | None = None
    """The file that ``start`` names."""
    exact: bool = False
    """Whether its run goes on, with optimizer and generators; otherwise a new one begins."""
    recipe: Recipe | None = None
    """Of this run."""
    earlier_recipe: Recipe | None = None
    """What the weights went through before this run, composed."""

    def knows(self, classes: Classes) -> bool:
        """Whether the checkpoint was trained on these classes."""
        return self.checkpoint is not None and _same_classes(self.checkpoint, classes)

    def begins_trained(self, classes: Classes) -> bool:
        """Whether all layers, and all rows of the class layers, have weights of the checkpoint."""
        if self.checkpoint is None or self.start.backbone is not None:
            return False
        return self.knows(classes) or None not in known_rows(classes_of(self.checkpoint), classes)

    @property
    def engine(self) -> EngineName:
        """Whose layers the run has where it quantizes."""
        return "native" if self.recipe is None else self.recipe.engine_name

    def changes_class_layers(self, classes: Classes) -> bool:
        """Whether the checkpoint's weights are taken for other classes than theirs."""
        return self.checkpoint is not None and not self.start.resume and not self.knows(classes)


def find_origin(settings: TrainSettings) -> Origin:
    """Read the recipe and the checkpoint that ``settings`` name.

    Raises:
        RecipeError: The recipe is missing or wrong.
        CheckpointError: The checkpoint cannot be read, or holds no recipe to go on with.
    """
    start, given = settings.start, None
    if settings.recipe is not None:
        given = load_recipe(
            settings.recipe, settings.recipe_args, settings.recipe_label, settings.recipe_engine
        )
    new = Origin(start=start, seed=settings.seed, recipe=given)
    if start.checkpoint is None:
        return new
    checkpoint = load_checkpoint(start.checkpoint)
    new = replace(new, checkpoint=checkpoint)
    if not start.resume:
        return replace(new, earlier_recipe=_recipe_so_far(checkpoint))
    state = checkpoint.training
    text = state.stage_recipe if state else checkpoint.recipe
    stored = _stored(text, "the recipe", settings.recipe_engine)
    if start.continue_recipe and stored is None:
        raise CheckpointError(
            f"{start.checkpoint} holds no recipe to go on with",
            hint="leave out --cont, or give a --recipe",
        )
    same = given is None or start.continue_recipe or given == stored
    if state is not None and same:
        return Origin(
            start=start,
            seed=state.seed,
            checkpoint=checkpoint,
            exact=True,
            recipe=stored,
            earlier_recipe=_stored(state.earlier_recipe),
        )
    if stored is not None and start.continue_recipe:
        return replace(new, recipe=stored)
    if state is not None:
        logger.info("the recipe is not the checkpoint's: a new run begins from its weights")
    return replace(new, earlier_recipe=_recipe_so_far(checkpoint))


def build_network(origin: Origin, config: YolactConfig, classes: Classes) -> tuple[Yolact, str]:
    """The network with the weights that a run begins with, and where they come from, in words.

    Args:
        origin: Whose weights.
        config: With the number of classes of the data.
        classes: Of the data.

    Raises:
        CheckpointError: The weights are those of another network; or the run goes on, but with
            other classes.
    """
    model = Yolact(config.model)
    init_weights(model)
    start, checkpoint = origin.start, origin.checkpoint
    if start.backbone is not None:
        load_backbone(model, load_checkpoint(start.backbone).model_state)
        return model, f"backbone {start.backbone}, the rest random"
    if checkpoint is None:
        source = origin_of_weights(config.model.backbone) if start.pretrained else None
        if source is None:
            return model, "random weights"
        load_backbone(model, pretrained_weights(config.model.backbone))
        return model, f"ImageNet backbone of {source}, the rest random"
    _check_belongs(checkpoint, config, start, classes)
    restore_structure(model, checkpoint, origin.engine)
    words = f"checkpoint {start.checkpoint}"
    if not origin.changes_class_layers(classes):
        load_weights(model, checkpoint.model_state)
        return model, words
    rows = known_rows(classes_of(checkpoint), classes)
    other = {k: v for k, v in checkpoint.model_state.items() if not k.startswith(CLASS_LAYERS)}
    load_weights(model, other | class_layers(model, checkpoint, rows))
    if checkpoint.quantized:
        learn_ranges(model, CLASS_LAYERS)
    _say_other_spellings(start.checkpoint, classes_of(checkpoint), classes, rows)
    return model, f"{words}, {_say_rows(classes_of(checkpoint), classes, rows)}"


def forget_class_layers(origin: Origin, model: Yolact, classes: Classes) -> Origin:
    """The same origin, whose earlier recipe never pruned class layers if they change."""
    if origin.earlier_recipe is None or not origin.changes_class_layers(classes):
        return origin
    names = list(recipe_names(model).values())
    return replace(origin, earlier_recipe=forget_layers(origin.earlier_recipe, names, CLASS_LAYERS))


def first_step(origin: Origin, steps_per_epoch: int) -> int:
    """Optimizer steps that count as done when the run begins, with epochs as it will have them.

    Raises:
        CheckpointError: The step is to be read from a file name that has none.
    """
    start, checkpoint = origin.start, origin.checkpoint
    if checkpoint is None:
        return max(start.start_iter, 0)
    if origin.exact:
        return _resumed_step(checkpoint, steps_per_epoch)
    if start.start_iter == -1:
        return _step_in_name(start.checkpoint)
    if start.start_iter == 0 and (start.use_checkpoint_epoch or start.continue_recipe):
        return (checkpoint.epoch or 0) * steps_per_epoch
    return start.start_iter


def _stored(
    text: str | None,
    label: str = "the checkpoint's recipe",
    engine: EngineName | None = None,
) -> Recipe | None:
    """A recipe that a checkpoint holds."""
    if not text:
        return None
    return Recipe.of_text(text, label, engine)


def _recipe_so_far(checkpoint: Checkpoint) -> Recipe | None:
    """What the weights went through, when their run was stopped before its recipe's end too."""
    state, steps = checkpoint.training, checkpoint.iteration
    recipe = _stored(checkpoint.recipe)
    if recipe is None or state is None or state.stage_recipe is None or steps is None:
        return recipe
    return until(recipe, steps, state.steps_per_epoch)


def _say_rows(known: Classes, classes: Classes, rows: Sequence[int | None]) -> str:
    """What becomes of the class layers, in a line."""
    pairs = list(zip(classes.names, rows, strict=True))
    kept = [name for name, row in pairs if row is not None]
    if not kept:
        return "class layers new: other classes"
    new = [name for name, row in pairs if row is None]
    left = [name for i, name in enumerate(known.names) if i not in rows]
    more = [
        f"{len(names)} {what} ({_first(names)})"
        for names, what in ((new, "new"), (left, "left out"))
        if names
    ]
    return ", ".join(
        [f"class layers: {len(kept)} of {len(rows)} classes kept ({_first(kept)})", *more]
    )


def _say_other_spellings(
    path: object, known: Classes, classes: Classes, rows: Sequence[int | None]
) -> None:
    pairs = [(n, known.names[r]) for n, r in zip(classes.names, rows, strict=True) if r is not None]
    other = [f"{theirs!r} for {name!r}" for name, theirs in pairs if name != theirs]
    if other:
        logger.warning(
            "%s: %d of %d class names are written otherwise than in the data, "
            "taken as the same (first: %s)",
            *(path, len(other), len(known), ", ".join(other[:3])),
        )


def _check_belongs(
    checkpoint: Checkpoint, config: YolactConfig, start: StartSettings, classes: Classes
) -> None:
    checkpoint.require_config(config, start.checkpoint)
    if start.resume and not _same_classes(checkpoint, classes):
        raise CheckpointError(
            f"{start.checkpoint} was trained on other classes ({_class_list(checkpoint)}) "
            f"than the data has ({_first(classes.names)})",
            hint="--ckpt instead of --resume begins a new run: all weights are taken, in the "
            "class layers those of the classes that both have",
        )


def _same_classes(checkpoint: Checkpoint, classes: Classes) -> bool:
    known = classes_of(checkpoint)
    unnamed = checkpoint.classes is None and not set(known.names) & set(classes.names)
    return known.names == classes.names or (unnamed and len(known) == len(classes))


def _class_list(checkpoint: Checkpoint) -> str:
    if checkpoint.classes is None:
        return f"{checkpoint.num_classes} of them"
    return _first(checkpoint.classes.names)


def _first(names: Collection[str]) -> str:
    """The first few names."""
    return ", ".join([*names][:5]) + ", ..." * (len(names) > 5)


def _resumed_step(checkpoint: Checkpoint, steps_per_epoch: int) -> int:
    before = checkpoint.training and checkpoint.training.steps_per_epoch
    if before == steps_per_epoch:
        return checkpoint.iteration or 0
    logger.warning(
        "epochs now have %d steps instead of %d: continuing at the same epoch, not step",
        *(steps_per_epoch, before),
    )
    return round(checkpoint.position * steps_per_epoch)


def _step_in_name(path: Path | None) -> int:
    named = path and parse_checkpoint_name(path)
    if not named:
        raise CheckpointError(
            f"the name of {path} does not end in _<epoch>_<iter>.pth",
            hint="give the step with --start_iter",
        )
    return named[2]
