"""The data of a run: what is trained on, what is validated on, and whether both belong together."""

from __future__ import annotations

import logging
from pathlib import Path

from yolact.data.coco import CocoInstances
from yolact.data.labels import few_names, note_differences, unknown_names
from yolact.data.mixing import MixingTransform
from yolact.data.transforms import EvalTransform
from yolact.errors import ConfigError, DataError
from yolact.training.settings import TrainSettings

log = logging.getLogger(__name__)


def open_datasets(settings: TrainSettings, seed: int) -> tuple[CocoInstances, CocoInstances | None]:
    """Open what is trained on and what is validated on; None where there are no validations.

    Args:
        settings: Where both are.
        seed: Of the random transforms.

    Raises:
        DataError: One of them cannot be used, or has no objects.
        ConfigError: Objects to validate on are of a class that there is nothing of to learn from.
    """
    data, size = settings.data, settings.config.model.image_size
    train = CocoInstances(
        data.train_images,
        data.train_info,
        MixingTransform(size, settings.config.augment),
        seed=seed,
        on_bad_image=data.on_bad_image,
        strict=data.strict,
    )
    _require_objects(train, data.train_info, "give annotations of the objects to learn")
    _note_classes_without_objects(train)
    if settings.validation_epoch <= 0:
        return train, None
    validation = CocoInstances(
        data.validation_images,
        data.validation_info,
        EvalTransform(size),
        on_bad_image=data.on_bad_image,
        strict=data.strict,
    )
    _require_objects(validation, data.validation_info, "without any, use --validation_epoch -1")
    _match(train, validation)
    return train, validation


def amounts(train: CocoInstances, validation: CocoInstances | None, most: int) -> str:
    """How much there is to train on and to validate on, in one line.

    Args:
        train: What is trained on.
        validation: What is validated on, if anything.
        most: So many images are validated on.
    """
    there = train.contents
    bare = f" ({there.bare} without objects)" if there.bare else ""
    crowds = f"; {there.objects} objects and {there.crowds} crowds" if there.crowds else ""
    validated = min(len(validation), most) if validation else 0
    return (
        f"{there.images} images to train on{bare}, {validated} to validate on, "
        f"{len(train.classes)} classes{crowds}"
    )


def _require_objects(data: CocoInstances, info: Path, hint: str) -> None:
    if data.contents.objects:
        return
    if data.contents.crowds:
        raise DataError(
            f"{info} has {data.contents.crowds} objects, all of them crowds (iscrowd 1), which are "
            "not learnt",
            hint="iscrowd is 1 only where many objects are marked as one; set it to 0",
        )
    raise DataError(f"{info} has no objects, only images or crowds", hint=hint)


def _note_classes_without_objects(data: CocoInstances) -> None:
    pairs = zip(data.classes.names, data.classes.ids, strict=True)
    empty = [name for name, number in pairs if number not in data.contents.of_category]
    if empty:
        log.warning(
            "%s: %d of %d categories have no object, kept as classes (first: %s)",
            *(data.info, len(empty), len(data.classes), few_names(empty, most=3)),
        )


def _match(train: CocoInstances, validation: CocoInstances) -> None:
    """Say where the names of both sides differ, and refuse what cannot be matched."""
    known = train.classes.names
    unknown = unknown_names(known, validation.classes, validation.contents.of_category)
    if unknown:
        raise ConfigError(
            f"{validation.info} has objects of categories that {train.info} does not list: "
            f"{few_names(unknown, known)}; it lists {few_names(known)}",
            hint="call a class the same in both files, or use --validation_epoch -1",
        )
    note_differences(validation.info, validation.classes, known)
