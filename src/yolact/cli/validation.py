"""``sparseml.yolact.validation``: measure average precision, or look at what a model finds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact import __version__
from yolact.cli.base import Command, setup_logging
from yolact.cli.inputs import split_pair
from yolact.cli.options import options, options_of, read
from yolact.cli.validation_options import Options
from yolact.errors import ConfigError, DataError, TargetMissedError

if TYPE_CHECKING:
    from yolact.data.images import RgbImage
    from yolact.data.sources import Picture
    from yolact.predict.evaluate import Evaluation, EvaluationReport

log = logging.getLogger(__name__)

_EVALUATION = "an evaluation"
_DRAWING = ("--image", "--images", "--video", "--display")
_USED_BY = {
    **dict.fromkeys(("warm_up_iterations", "num_iterations"), ("--benchmark",)),
    **dict.fromkeys(("video_multiframe", "display_fps", "emulate_playback"), ("--video",)),
    **dict.fromkeys(("mask_proto_debug", "display_lincomb"), ("--image", "--images", "--display")),
    **dict.fromkeys(("display_masks", "display_bboxes"), _DRAWING),
    **dict.fromkeys(("display_text", "display_scores"), _DRAWING),
    **dict.fromkeys(("min_map", "per_class", "resume"), (_EVALUATION,)),
    **dict.fromkeys(("output_coco_json", "output_web_json"), (_EVALUATION,)),
    "json": (_EVALUATION, "--benchmark"),
}
"""Options that only some modes read -> those modes."""

_SCHEMA = 1
_KEPT_IN_MEMORY = 64
"""Images of a benchmark: reading files is not part of what is measured."""


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.validation --trained_model weights/yolact_darknet53_54.pth "
    "prints box and mask AP at IoU .50 to .95 and COCO's twelve numbers.",
)
@options(*options_of(Options))
@click.pass_context
def validation(ctx: click.Context, /, **values: Any) -> None:
    """Measure box and mask AP of a model, or run it on images and videos.

    All numbers are pycocotools', over all images of the annotation file.
    """
    setup_logging()
    given = {
        name
        for name in values
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    wanted = read(Options, values, given=frozenset(given))
    mode, run = _mode(wanted)
    defaults = {parameter.name: parameter.default for parameter in ctx.command.params}
    _refuse_unused(mode, {name for name in given if values[name] != defaults[name]})
    wanted.check()
    run(wanted)


def _mode(options: Options) -> tuple[str, Callable[[Options], None]]:
    """What was asked for, in words, and what does it."""
    modes = {
        "--image": (options.image is not None, _annotate_image),
        "--images": (options.images is not None, _annotate_folder),
        "--video": (options.video is not None, _annotate_video),
        "--display": (options.display, _display),
        "--benchmark": (options.benchmark, _benchmark),
    }
    chosen = [(name, run) for name, (asked, run) in modes.items() if asked]
    if len(chosen) > 1:
        named = " and ".join(name for name, _ in chosen)
        raise ConfigError(f"{named} exclude each other", hint="give one of them")
    return chosen[0] if chosen else (_EVALUATION, _evaluate)


def _refuse_unused(mode: str, given: set[str]) -> None:
    for name in sorted(given & _USED_BY.keys()):
        *others, last = _USED_BY[name]
        if mode not in _USED_BY[name]:
            here = f"in {mode}" if mode == _EVALUATION else f"with {mode}"
            owners = f"{', '.join(others)} or {last}" if others else last
            raise ConfigError(
                f"--{name} has no effect {here}", hint=f"it belongs to {owners}; leave it out"
            )


def _evaluate(options: Options) -> None:
    from yolact.files import require_own_places, require_writable_file
    from yolact.predict.evaluate import run_evaluation

    wanted = options.evaluation
    kept = [] if wanted.resume else [wanted.detections]
    read = [options.model, options.paths.info, wanted.detections if wanted.resume else None]
    require_own_places([*kept, *wanted.outputs, options.json], read)
    dataset = options.data(annotated=not wanted.outputs)
    if options.json is not None:
        require_writable_file(options.json)
    report = run_evaluation(options.load, dataset, wanted)
    _write_json(options, report.to_dict())
    if report.evaluation is None:
        log.warning("%s has no annotations: there is no AP to measure", options.paths.info)
        _require_all(report)
        return
    _print(report.evaluation, per_class=options.per_class)
    _require_all(report)
    _check_target(report.evaluation, options.min_map)


def _require_all(report: EvaluationReport) -> None:
    if report.bad_images:
        raise DataError(
            f"{report.bad_images} of {report.images + report.bad_images} images were skipped",
            hint="the first are named above; what was measured holds for all others",
        )


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


def _benchmark(options: Options) -> None:
    from yolact.bench.timing import measure
    from yolact.files import require_own_places, require_writable_file

    require_own_places([options.json], [options.model, options.paths.info])
    if options.json is not None:
        require_writable_file(options.json)
    engine = options.load()
    speed = measure(
        engine,
        _benchmark_images(options),
        options.selection,
        batch_size=engine.batch_size or options.batch_size,
        warm_up=options.warm_up_iterations,
        batches=options.num_iterations or None,
    )
    click.echo(f"engine {engine.name}\n{speed.table()}")
    _write_json(options, {"engine": engine.name, **speed.to_dict()})


def _benchmark_images(options: Options) -> list[RgbImage]:
    from yolact.data.sources import data_set_pictures, noise_images

    asked = options.given & {"validation_info", "validation_images", "dataset"}
    if not asked and not options.paths.info.is_file():
        log.info("no data set at %s: random images are measured", options.paths.info)
        return noise_images(8, options.seed or 0)
    pictures = data_set_pictures(options.data(annotated=False), options.order)
    return [picture.image for picture in islice(pictures, _KEPT_IN_MEMORY)]


def _write_json(options: Options, measured: dict[str, Any]) -> None:
    """Write what was measured, where ``--json`` asks for it.

    | key | value |
    |---|---|
    | ``schema`` | 1 |
    | ``version`` | of this package |
    | ``model`` | the model's file, or null where saved detections were measured |
    | ``engine`` | its name, or null likewise |

    and those of :meth:`yolact.predict.evaluate.EvaluationReport.to_dict`, or with ``--benchmark``
    those of :meth:`yolact.bench.timing.Speed.to_dict`.
    """
    from yolact.files import write_text

    if options.json is not None:
        model = None if options.model is None else str(options.model)
        content = {"schema": _SCHEMA, "version": __version__, "model": model, **measured}
        write_text(options.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _display(options: Options) -> None:
    from yolact.data.sources import data_set_pictures
    from yolact.predict.media import require_display

    require_display("--display")
    pictures = data_set_pictures(options.data(annotated=False), options.order)
    _annotate(options, pictures, None, hint="any key shows the next image, q ends")


def _annotate_image(options: Options) -> None:
    from yolact.data.images import read_rgb
    from yolact.data.sources import Picture
    from yolact.files import require_own_places
    from yolact.predict.draw import require_picture_file
    from yolact.predict.media import require_display

    source, out = split_pair(str(options.image))
    if out is None:
        require_display("--image without an output")
    else:
        require_own_places([Path(out)], [Path(source), options.model])
        require_picture_file(Path(out))
    picture = Picture(0, source, read_rgb(Path(source)))
    _annotate(options, [picture], None if out is None else lambda _: Path(out))


def _annotate_folder(options: Options) -> None:
    from yolact.data.sources import Images, Pictures, find_source
    from yolact.files import distinct_names, require_writable

    source, out = split_pair(str(options.images))
    if out is None:
        raise ConfigError(
            f"--images {options.images} names no output", hint="give two folders: IN:OUT"
        )
    found = find_source(source)
    if not isinstance(found, Images):
        raise ConfigError(
            f"--images {source} holds videos",
            hint="use --video IN:OUT for one, sparseml.yolact.annotate for all of a folder",
        )
    folder = Path(out)
    targets = [folder / f"{name}.png" for name in distinct_names(found.paths)]
    _require_harmless(targets, found.paths)
    require_writable(folder)
    pictures = Pictures(found.paths)
    _annotate(options, pictures, lambda picture: targets[picture.number])
    pictures.finish()


def _require_harmless(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Check that pictures replace none that is read, nor another in a folder that is read.

    Raises:
        ConfigError: They would.
    """
    from yolact.files import require_own_places

    require_own_places(targets, sources)
    read = {folder.resolve() for folder in {path.parent for path in sources}}
    there = [path for path in targets if path.exists()]
    if there and there[0].parent.resolve() in read:
        raise ConfigError(
            f"{len(there)} results would replace pictures in a folder that is read, "
            f"the first is {there[0]}",
            hint="give another folder: IN:OUT",
        )


def _annotate(
    options: Options,
    pictures: Iterable[Picture],
    target: Callable[[Picture], Path] | None,
    *,
    hint: str = "",
) -> None:
    """Draw on pictures, and say what is found; show those that have no target."""
    from yolact.predict.media import PictureOptions, annotate_pictures, counts

    annotator = options.annotator()
    if hint:
        log.info(hint)
    wanted = PictureOptions(
        target=target,
        show=target is None,
        batch_size=1 if target is None else options.batch_size,
        prototypes=options.mask_proto_debug,
        combination=options.display_lincomb,
    )
    for picture, written, found in annotate_pictures(annotator, pictures, wanted):
        where = picture.name if written is None else f"{picture.name} -> {written}"
        click.echo(f"{where}: {counts(found, annotator.engine.classes.names)}")


def _annotate_video(options: Options) -> None:
    from yolact.data.video import find_video
    from yolact.download.offline import require_online
    from yolact.files import require_own_places
    from yolact.predict.media import require_display
    from yolact.predict.video import VideoOptions, annotate_video, require_video_file

    source, out = split_pair(str(options.video))
    if out is None:
        require_display("--video without an output")
    else:
        require_own_places([Path(out)], [Path(source), options.model])
        require_video_file(Path(out))
    video = find_video(source)
    if video.remote:
        require_online(video.name)
    wanted = VideoOptions(
        target=None if out is None else Path(out),
        show=out is None,
        frames_at_once=options.video_multiframe,
        show_fps=options.display_fps,
        emulate_playback=options.emulate_playback,
        progress=not options.no_bar,
    )
    done = annotate_video(options.annotator(), video, wanted)
    click.echo(f"{video.name}{'' if out is None else f' -> {out}'}: {done} frames")
