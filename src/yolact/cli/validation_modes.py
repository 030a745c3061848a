"""What ``sparseml.yolact.validation`` does in each of its modes."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from yolact.bench.timing import measure
from yolact.cli.inputs import (
    DataPaths,
    engine_name,
    model_path,
    split_pair,
    validation_paths,
)
from yolact.config import DetectConfig, YolactConfig, named_config
from yolact.data.coco import CocoInstances, evaluation_order
from yolact.data.images import RgbImage, read_rgb
from yolact.data.sources import Images, Pictures, Video, find_source
from yolact.data.transforms import EvalTransform
from yolact.engines import load_engine
from yolact.engines.base import Engine
from yolact.errors import ConfigError, TargetMissedError
from yolact.files import atomic_path, require_writable, require_writable_file
from yolact.host import resolve_device
from yolact.model_files import model_kinds
from yolact.predict import media as window
from yolact.predict.draw import Style, lincomb_sheet, prototype_sheet
from yolact.predict.evaluate import Evaluation, collect, match_classes, score
from yolact.predict.media import (
    Annotated,
    Annotator,
    VideoOptions,
    annotate_video,
    counts,
    require_picture_file,
    require_video_file,
    write_image,
)
from yolact.predict.results import CocoResults, write_json, write_viewer

log = logging.getLogger(__name__)

SCRATCH = Path("results")
"""Where pictures of prototypes go when the annotated image itself is only shown."""


@dataclass(frozen=True)
class Settings:
    """The command's options, read."""

    values: Mapping[str, Any]
    """Every option by its name."""
    given: frozenset[str]
    """Names of those on the command line."""
    config: YolactConfig
    model: Path | None
    """File of ``--trained_model``; None with ``--resume``, which needs none."""

    @classmethod
    def read(cls, values: Mapping[str, Any], given: set[str]) -> Settings:
        """Check what can be checked before a model is loaded.

        Raises:
            ConfigError: The configuration, engine or number of images is impossible.
            CheckpointError: ``--trained_model`` means no file.
        """
        engine_name(values["engine"])
        if values["max_images"] == 0 or values["max_images"] < -1:
            raise ConfigError(
                f"--max_images is {values['max_images']}", hint="use 1 or more, or -1 for all"
            )
        config, model = named_config(values["config"]), None
        if not values["resume"]:
            folder, kinds = values["save_folder"], model_kinds(values["engine"])
            model = model_path(values["trained_model"], folder, config.name, *kinds)
        return cls(values, frozenset(given), config, model)

    def __getitem__(self, name: str) -> Any:
        """The value of an option."""
        return self.values[name]

    @property
    def detect(self) -> DetectConfig:
        """Thresholds of the configuration with the suppression that was asked for."""
        return replace(
            self.config.detect,
            fast_nms=self["fast_nms"],
            cross_class_nms=self["cross_class_nms"],
        )

    @property
    def data(self) -> DataPaths:
        """Where the validation set is."""
        return validation_paths(self["dataset"], self["validation_info"], self["validation_images"])

    def load_engine(self) -> Engine:
        """Load ``--trained_model``."""
        assert self.model is not None
        wanted = self["device"] or ("auto" if self["cuda"] else "cpu")
        return load_engine(
            self.model,
            engine=self["engine"],
            device=str(resolve_device(wanted)),
            num_cores=self["num_cores"],
            config=self.config if "config" in self.given else None,
        )

    def dataset(self, *, annotated: bool = True) -> CocoInstances:
        """Open the validation set; False accepts one without ground truth."""
        transform = EvalTransform(self.config.model.image_size)
        return CocoInstances(self.data.images, self.data.info, transform, annotated=annotated)

    def order(self, image_ids: Sequence[int]) -> list[int]:
        """The images to use, in the order that was asked for."""
        ids = list(image_ids)
        if self["shuffle"]:
            random.Random(self["seed"]).shuffle(ids)
        elif not self["no_sort"]:
            ids = evaluation_order(ids)
        return ids if self["max_images"] < 0 else ids[: self["max_images"]]

    def annotator(self) -> Annotator:
        """The model with the drawing options."""
        style = Style(
            masks=self["display_masks"] and not self["boxes_only"],
            boxes=self["display_bboxes"],
            text=self["display_text"],
            scores=self["display_scores"],
        )
        return Annotator(
            engine=self.load_engine(),
            detect=self.detect,
            style=style,
            score_threshold=self["score_threshold"],
            top_k=self["top_k"],
            crop=self["crop"],
        )


def evaluate(settings: Settings) -> None:
    """Measure average precision and print it.

    Raises:
        TargetMissedError: ``--min_map`` was not reached; everything is written all the same.
    """
    saved = settings["ap_data_file"].with_suffix(".json")
    masks = not settings["boxes_only"]
    dumps = settings["output_coco_json"] or settings["output_web_json"]
    dataset = settings.dataset(annotated=not dumps)
    if settings["resume"]:
        results = CocoResults.load(saved)
    else:
        results = _collect(settings, dataset, saved)
    _write_results(settings, dataset, results)
    if not dataset.coco.anns:
        log.warning("%s has no annotations: there is no AP to measure", settings.data.info)
        return
    evaluation = score(dataset, results, masks=masks)
    _print(evaluation, per_class=settings["per_class"])
    _check_target(evaluation, settings["min_map"])


def _collect(settings: Settings, dataset: CocoInstances, saved: Path) -> CocoResults:
    engine = settings.load_engine()
    match_classes(engine.classes, dataset.classes)
    for path in (saved, *_output_files(settings)):
        require_writable_file(path)
    results = collect(
        engine,
        dataset,
        detect=settings.detect,
        batch_size=settings["batch_size"],
        image_ids=settings.order(dataset.image_ids),
        progress=not settings["no_bar"],
        score_threshold=settings["score_threshold"],
        top_k=settings["top_k"] if "top_k" in settings.given else None,
        crop=settings["crop"],
        masks=not settings["boxes_only"],
    )
    results.save(saved)
    log.info("detections saved to %s", saved)
    return results


def _output_files(settings: Settings) -> list[Path]:
    files: list[Path] = []
    if settings["output_coco_json"]:
        files += [settings["bbox_det_file"], settings["mask_det_file"]]
    if settings["output_web_json"]:
        files.append(_viewer_file(settings))
    return files


def _viewer_file(settings: Settings) -> Path:
    path: Path = settings["web_det_path"] / f"{settings.config.name}.json"
    return path


def _write_results(settings: Settings, dataset: CocoInstances, results: CocoResults) -> None:
    if settings["output_coco_json"]:
        write_json(settings["bbox_det_file"], results.bbox)
        log.info("boxes written to %s", settings["bbox_det_file"])
        if not settings["boxes_only"]:
            write_json(settings["mask_det_file"], results.segm)
            log.info("masks written to %s", settings["mask_det_file"])
    if settings["output_web_json"]:
        path = _viewer_file(settings)
        write_viewer(path, results, dataset.classes, {"name": settings.config.name})
        log.info("viewer file written to %s", path)


def _print(evaluation: Evaluation, *, per_class: bool) -> None:
    click.echo(f"\n{evaluation.table()}\n")
    for name, measured in (("box", evaluation.box_ap), ("mask", evaluation.mask_ap)):
        if measured is not None:
            click.echo(f"{name} ({evaluation.images} images)\n{measured.summary}\n")
    if per_class:
        click.echo(f"{evaluation.per_class_table()}\n")


def _check_target(evaluation: Evaluation, target: float | None) -> None:
    name, reached = (
        ("mask", evaluation.mask["all"]) if evaluation.mask else ("box", evaluation.box["all"])
    )
    if target is not None and reached < target:
        raise TargetMissedError(
            f"{name} AP is {reached:.2f} %, below --min_map {target:g}",
            hint="train longer, or lower the target",
        )


def benchmark(settings: Settings) -> None:
    """Print median times per stage and the throughput."""
    engine = settings.load_engine()
    images = _benchmark_images(settings)
    size = engine.batch_size or settings["batch_size"]
    warm_up = settings["warm_up_iterations"]
    counted = settings["num_iterations"] or max(1, len(images) // size)
    endless = cycle(images)
    batches = ([next(endless) for _ in range(size)] for _ in range(warm_up + counted))
    speed = measure(
        engine,
        batches,
        settings.detect,
        warm_up=warm_up,
        score_threshold=settings["score_threshold"],
        top_k=settings["top_k"],
        crop=settings["crop"],
        masks=not settings["boxes_only"],
    )
    click.echo(f"engine {engine.name}\n{speed.table()}")


_KEPT_IN_MEMORY = 64


def _benchmark_images(settings: Settings) -> list[RgbImage]:
    """Decoded images, so that reading files is not part of what is measured."""
    asked = settings.given & {"validation_info", "validation_images", "dataset"}
    if not asked and not settings.data.info.is_file():
        log.info("no data set at %s: random images are measured", settings.data.info)
        noise = np.random.default_rng(settings["seed"] or 0)
        return [noise.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(8)]
    dataset = settings.dataset(annotated=False)
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    ids = settings.order(dataset.image_ids)[:_KEPT_IN_MEMORY]
    return [dataset.image(index_of[image_id]) for image_id in ids]


def display_dataset(settings: Settings) -> None:
    """Show annotated images of the data set one by one, until the last or q."""
    window.require_display("--display")
    dataset = settings.dataset(annotated=False)
    annotator = settings.annotator()
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    log.info("any key shows the next image, q ends")
    for image_id in settings.order(dataset.image_ids):
        annotated = annotator([dataset.image(index_of[image_id])])[0]
        _explain(settings, annotated, SCRATCH / f"{image_id}")
        click.echo(f"{image_id}: {counts(annotated.found, annotator.engine.classes.names)}")
        if not window.show(annotated.picture):
            break
    window.close()


def annotate_image(settings: Settings) -> None:
    """Annotate one image; write it, or show it where no output is named."""
    source, out = split_pair(settings["image"])
    if out is None:
        window.require_display("--image without an output")
    else:
        require_picture_file(Path(out))
    image = read_rgb(Path(source))
    annotator = settings.annotator()
    annotated = annotator([image])[0]
    found = counts(annotated.found, annotator.engine.classes.names)
    if out is None:
        _explain(settings, annotated, SCRATCH / Path(source).stem)
        click.echo(f"{source}: {found}")
        window.show(annotated.picture)
        window.close()
        return
    write_image(Path(out), annotated.picture)
    _explain(settings, annotated, Path(out).with_suffix(""))
    click.echo(f"{source} -> {out}: {found}")


def annotate_folder(settings: Settings) -> None:
    """Annotate every image of a folder into another, as .png files of the same names."""
    source, out = split_pair(settings["images"])
    if out is None:
        raise ConfigError(
            f"--images {settings['images']} names no output", hint="give two folders: IN:OUT"
        )
    images = find_source(source)
    if not isinstance(images, Images):
        raise ConfigError(f"--images {source} is a video", hint="use --video IN:OUT")
    require_writable(Path(out))
    annotator = settings.annotator()
    size = annotator.engine.batch_size or settings["batch_size"]
    pictures = Pictures(images.paths)
    for batch in _groups(pictures, size):
        results = annotator([picture.image for picture in batch])
        for picture, annotated in zip(batch, results, strict=True):
            target = Path(out) / f"{picture.path.stem}.png"
            write_image(target, annotated.picture)
            _explain(settings, annotated, target.with_suffix(""))
            found = counts(annotated.found, annotator.engine.classes.names)
            click.echo(f"{picture.path} -> {target}: {found}")
    pictures.finish()


def annotate_movie(settings: Settings) -> None:
    """Annotate a video or camera; write it, or show it where no output is named."""
    source, out = split_pair(settings["video"])
    if out is None:
        window.require_display("--video without an output")
    else:
        require_video_file(Path(out))
    video = Video(int(source)) if source.isdigit() else Video(Path(source))
    done = annotate_video(
        settings.annotator(),
        video,
        None if out is None else Path(out),
        VideoOptions(
            frames_at_once=settings["video_multiframe"],
            show_fps=settings["display_fps"],
            emulate_playback=settings["emulate_playback"],
        ),
        show=(lambda picture: window.show(picture, 1)) if out is None else None,
        progress=not settings["no_bar"],
    )
    window.close()
    click.echo(f"{source}{'' if out is None else f' -> {out}'}: {done} frames")


def _explain(settings: Settings, annotated: Annotated, stem: Path) -> None:
    """Write the pictures of prototypes that were asked for, named after ``stem``."""
    found = annotated.found
    if settings["mask_proto_debug"]:
        write_image(stem.with_name(f"{stem.name}_prototypes.png"), prototype_sheet(found.proto))
        with atomic_path(stem.with_name(f"{stem.name}_prototypes.npy")) as temporary:
            np.save(temporary, found.proto.cpu().numpy())
    if settings["display_lincomb"] and len(found.detections.scores):
        sheet = lincomb_sheet(found.proto, found.detections)
        write_image(stem.with_name(f"{stem.name}_lincomb.png"), sheet)


_T = TypeVar("_T")


def _groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
