"""Evaluation: what a model finds on a data set, how good that is, and how long it took."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from yolact.data.coco import CocoInstances
from yolact.data.images import RgbImage
from yolact.data.labels import Classes, few_names, match_names, note_differences, unknown_names
from yolact.data.sources import ImageOrder
from yolact.data.workers import Reader
from yolact.engines.base import DetectingEngine, Engine
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.files import require_writable_file
from yolact.predict.pipeline import Selection, Stopwatch, groups
from yolact.predict.results import (
    UNDEFINED,
    AveragePrecision,
    CocoResults,
    average_precision,
    with_ids,
    write_json,
    write_viewer,
)
from yolact.predict.text import one_line
from yolact.tables import columns

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What an evaluation looks at, and which files it writes."""

    selection: Selection
    """Which detections count; without masks only boxes are measured."""
    detections: Path
    """JSON file that keeps the detections."""
    resume: bool = False
    """Run no model, but measure those."""
    order: ImageOrder = field(default_factory=ImageOrder)
    batch_size: int = 1
    progress: bool = True
    """Show a bar on a terminal."""
    bbox_file: Path | None = None
    """COCO result file of the boxes; None writes none."""
    mask_file: Path | None = None
    """The same of the masks."""
    viewer_file: Path | None = None
    """File for upstream's web viewer; None writes none."""
    viewer_title: str = ""
    """Name of the configuration that it shows."""

    @property
    def outputs(self) -> list[Path]:
        """Every result file that is asked for."""
        files = (self.bbox_file, self.mask_file, self.viewer_file)
        return [path for path in files if path is not None]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """An evaluation, and what it took."""

    evaluation: Evaluation | None
    """None for a data set without ground truth."""
    images: int
    """Images looked at."""
    bad_images: int = 0
    """Images of the data set that were to be looked at, but are damaged or of another size."""
    engine: str | None = None
    """Name of what ran the model; None where saved detections were measured."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of all images together, by stage: preprocess, network, detect, and encode for masks."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null stands for what there was no ground truth for.

        | key | value |
        |---|---|
        | ``engine`` | name, or null where saved detections were measured |
        | ``images`` | number of images looked at |
        | ``bad_images`` | number of images that were skipped |
        | ``box``, ``mask`` | a measure of each (see below), or null where it was not asked for |
        | ``seconds`` | stage -> time of all images together |

        A measure has ``ap``, percent by IoU threshold (``all``, ``50`` to ``95``), ``coco``, the
        twelve numbers of COCO by name, 0..1, and ``per_class``, name -> ``ap`` and ``ap50`` in
        percent of each class that has ground truth.
        """
        found = self.evaluation
        return {
            "engine": self.engine,
            "images": self.images,
            "bad_images": self.bad_images,
            "box": None if found is None else _measure(found.box_ap),
            "mask": None if found is None or found.mask_ap is None else _measure(found.mask_ap),
            "seconds": dict(self.seconds),
        }


def run_evaluation(
    load: Callable[[], Engine], dataset: CocoInstances, options: EvaluationOptions
) -> EvaluationReport:
    """Measure a model on a data set and write the files that are asked for.

    Args:
        load: Loads the model; not called to measure saved detections.
        dataset: With or without ground truth.
        options: What to look at and to write.

    Raises:
        CheckpointError: The data set has classes that the model does not know.
        DataError: An image, or the file of saved detections, cannot be read.
        StorageError: A file cannot be written.
    """
    watch, engine, bad = Stopwatch(), None, dataset.bad_images
    if options.resume:
        results = CocoResults.load(options.detections)
    else:
        engine = load()
        _match(engine.classes, dataset)
        if dataset.contents.remarkable:
            log.info("%s: %s", dataset.info, dataset.contents)
        for path in (options.detections, *options.outputs):
            require_writable_file(path)
        ids = options.order.of(dataset.image_ids)
        results = collect(
            engine,
            dataset,
            options.selection,
            batch_size=options.batch_size,
            image_ids=ids,
            progress=options.progress,
            watch=watch,
        )
        bad += len(ids) - len(results.image_ids)
        results.save(options.detections)
        log.info("detections saved to %s", options.detections)
    _write_results(results, dataset, options)
    evaluation = None
    if dataset.coco.anns:
        evaluation = score(dataset, results, masks=options.selection.masks)
    return EvaluationReport(
        evaluation=evaluation,
        images=len(results.image_ids),
        bad_images=bad,
        engine=None if engine is None else engine.name,
        seconds={stage: sum(times) for stage, times in watch.seconds.items()},
    )


def _write_results(
    results: CocoResults, dataset: CocoInstances, options: EvaluationOptions
) -> None:
    known = dataset.original_ids, dataset.original_category_ids
    if options.bbox_file is not None:
        write_json(options.bbox_file, with_ids(results.bbox, *known))
        log.info("boxes written to %s", options.bbox_file)
    if options.mask_file is not None and options.selection.masks:
        write_json(options.mask_file, with_ids(results.segm, *known))
        log.info("masks written to %s", options.mask_file)
    if options.viewer_file is not None:
        title = {"name": options.viewer_title}
        write_viewer(options.viewer_file, results, dataset.classes, title)
        log.info("viewer file written to %s", options.viewer_file)


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes and masks; everything is pycocotools' number."""

    box_ap: AveragePrecision
    mask_ap: AveragePrecision | None
    """None when only boxes were asked for."""
    images: int
    """Images looked at."""

    @property
    def box(self) -> dict[str | int, float]:
        """Box AP in percent: ``all``, 50, 55 ... 95."""
        return self.box_ap.table

    @property
    def mask(self) -> dict[str | int, float]:
        """Mask AP in percent: ``all``, 50, 55 ... 95; empty when only boxes were asked for."""
        return self.mask_ap.table if self.mask_ap else {}

    def table(self) -> str:
        """The table of the reference: a row for boxes and one for masks, in percent."""
        rows = [("box", self.box)] + ([("mask", self.mask)] if self.mask_ap else [])
        names = [f".{key} " if isinstance(key, int) else f"{key} " for key in self.box]
        cells = [["", *names], *([kind, *map(_cell, row.values())] for kind, row in rows)]
        text = columns(cells, ">" * len(cells[0]), between=" | ", edges=(" ", " |"), narrowest=5)
        head, *lines = text.splitlines()
        rule = "-------+" * len(cells[0])
        return "\n".join([head, rule, *lines, rule])

    def per_class_table(self) -> str:
        """AP and AP at .50 of every class with ground truth, in percent."""
        rows = [("class", "box AP    .50", "mask AP   .50")]
        for name, box in self.box_ap.per_class.items():
            mask = self.mask_ap.per_class[name] if self.mask_ap else (UNDEFINED, UNDEFINED)
            b, b50, m, m50 = map(_cell, (*box, *mask))
            rows.append((one_line(name), f"{b:>6} {b50:>6}", f"{m:>7} {m50:>5}"))
        return columns(rows, "<<<", between=" | ", edges=(" ", ""))


def evaluate(
    engine: Engine | DetectingEngine,
    dataset: CocoInstances,
    selection: Selection | None = None,
    *,
    batch_size: int = 1,
    image_ids: Sequence[int] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on a data set. See :func:`collect` for the arguments and errors."""
    results = collect(
        engine, dataset, selection, batch_size=batch_size, image_ids=image_ids, progress=progress
    )
    return score(dataset, results)


def score(dataset: CocoInstances, results: CocoResults, *, masks: bool = True) -> Evaluation:
    """Average precision of collected results, over exactly the images they come from.

    Args:
        dataset: Ground truth.
        results: Of :func:`collect`.
        masks: False measures boxes only.
    """
    ids = results.image_ids
    box = average_precision(dataset.coco, results.bbox, "bbox", ids)
    mask = average_precision(dataset.coco, results.segm, "segm", ids) if masks else None
    return Evaluation(box, mask, len(ids))


def collect(
    engine: Engine | DetectingEngine,
    dataset: CocoInstances,
    selection: Selection | None = None,
    *,
    batch_size: int = 1,
    image_ids: Sequence[int] | None = None,
    progress: bool = True,
    watch: Stopwatch | None = None,
) -> CocoResults:
    """Run a model over a data set and keep its detections as COCO result entries.

    Images that cannot be read are left out, with a notice, where the data set skips such images.
    Masks are encoded at the image's size right after each image, so memory stays flat.

    Args:
        engine: Its classes are matched with the data set's by name.
        dataset: Images are read from it as they are; its transform is not used.
        selection: Which detections count; None takes all.
        batch_size: Images per call; an engine of a fixed batch size keeps its own.
        image_ids: Which images, in this order; None means all.
        progress: Show a bar on a terminal.
        watch: Gets the stages of :meth:`Selection.find` and ``encode``.

    Raises:
        CheckpointError: The data set has classes that the model does not know.
        ConfigError: An image id is not in the data set.
        DataError: An image cannot be read, and the data set does not skip such images; or none can.
    """
    ids = list(dataset.image_ids if image_ids is None else image_ids)
    categories = dict(
        enumerate(match_classes(engine.classes, dataset.classes, dataset.contents.of_category))
    )
    known = {label: category for label, category in categories.items() if category is not None}
    selection = replace(selection or Selection(), labels=frozenset(known))
    watch, results = watch or Stopwatch(), CocoResults()
    bar = tqdm(total=len(ids), unit="img", disable=None if progress else True)
    with bar:
        for names, images in _batches(dataset, ids, engine.batch_size or batch_size):
            found = selection.find(engine, images, watch=watch) if images else []
            with watch("encode"):
                for image_id, (kept, proto, size) in zip(names, found, strict=True):
                    seen = proto if selection.masks else None
                    results.add(image_id, kept, seen, size, known, crop=selection.crop)
            bar.update(len(names))
    if ids and not results.image_ids:
        raise DataError("no image of the data set can be read", hint="check the folder of images")
    return results


def match_classes(
    model: Classes, dataset: Classes, used: Collection[int] | None = None
) -> list[int | None]:
    """The data set's category id of every class of the model, by name; None where it has none.

    A model file without names fits a data set of as many classes, in the order of their ids.

    Args:
        model: The model's classes.
        dataset: The data set's.
        used: Ids of the categories that have objects; see :func:`unknown_names`.

    Raises:
        CheckpointError: The data set has objects of classes that the model does not know.
    """
    if model == Classes.numbered(len(model)) and len(model) == len(dataset):
        return list(dataset.ids)
    if model.names == dataset.names:  # also when two classes share a name
        return list(dataset.ids)
    missing = unknown_names(model.names, dataset, used)
    if missing:
        raise CheckpointError(
            f"the model knows {len(model)} classes ({few_names(model.names)}), but not "
            f"{len(missing)} of the data set's {len(dataset)}: {few_names(missing, model.names)}",
            hint="this is a checkpoint of other classes; "
            "use the annotation file it was trained with, or train on this one",
        )
    same = match_names(dataset.names, model.names)
    pairs = zip(dataset.names, dataset.ids, strict=True)
    id_of = {same[name]: number for name, number in pairs if name in same}
    return [id_of.get(name) for name in model.names]


def _match(model: Classes, dataset: CocoInstances) -> None:
    """Match classes, and say in the log where their names differ."""
    match_classes(model, dataset.classes, dataset.contents.of_category)
    if model != Classes.numbered(len(model)):
        note_differences(dataset.info, dataset.classes, model.names)


def _batches(
    dataset: CocoInstances, image_ids: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[RgbImage]]]:
    """(ids, images) per batch; the next batch is decoded while the caller works on this one."""
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    unknown = [image_id for image_id in image_ids if image_id not in index_of]
    if unknown:
        raise ConfigError(f"no image {unknown[0]} in the data set", hint="check the image ids")

    def read(batch: list[int]) -> tuple[list[int], list[RgbImage]]:
        images = {}
        for image_id in batch:
            try:
                images[image_id] = dataset.image(index_of[image_id])
            except DataError as error:
                if not dataset.skips:
                    raise
                log.warning("skipped: %s", error)
        return list(images), list(images.values())

    batches = list(groups(image_ids, batch_size))
    reader = Reader()
    coming = [reader.submit(read, batch) for batch in batches[:1]]
    for following in [*batches[1:], None][: len(batches)]:
        names, images = coming.pop()()
        if following is not None:
            coming.append(reader.submit(read, following))
        yield names, images


def _cell(percent: float) -> str:
    if percent == UNDEFINED:
        return "-"
    return f"{percent:.2f}" if round(percent, 2) < 100 else f"{percent:.1f}"


def _measure(measured: AveragePrecision) -> dict[str, Any]:
    return {
        "ap": {str(threshold): _defined(value) for threshold, value in measured.table.items()},
        "coco": {name: _defined(value) for name, value in measured.stats.items()},
        "per_class": {
            name: {"ap": _defined(ap), "ap50": _defined(ap50)}
            for name, (ap, ap50) in measured.per_class.items()
        },
    }


def _defined(value: float) -> float | None:
    return None if value == UNDEFINED else value
