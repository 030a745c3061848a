"""``sparseml.yolact.annotate``: draw the detected instances on images and videos."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import Command, setup_logging
from yolact.cli.inputs import ENGINE_NAMES, engine_name, model_path
from yolact.cli.options import options, options_of, read
from yolact.config import YolactConfig, named_config
from yolact.errors import ConfigError
from yolact.model_files import model_kinds
from yolact.setting import setting

if TYPE_CHECKING:
    from yolact.data.sources import Pictures, Video
    from yolact.engines.base import DetectingEngine, Engine
    from yolact.predict.media import Annotator
    from yolact.predict.pipeline import Found
    from yolact.predict.results import DetectionFile

log = logging.getLogger(__name__)

SLOWEST = 0.01
"""Frames per second; video files have no notion of much less."""
JSON_NAME = "detections.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The values of all options, in the order of the help."""

    model_filepath: str = setting(help="An .onnx or .pth file, or a zoo: stub.")
    source: str = setting(
        help="An image, a folder of images, a quoted pattern, a video or a camera number."
    )
    engine: str | None = setting(
        default=None,
        choices=ENGINE_NAMES,
        help="What runs the model.  [default: by the file's ending]",
    )
    model_input_image_shape: tuple[int, int] | None = setting(
        default=None,
        metavar="H W",
        help="Input size: a .pth checkpoint runs at it, an .onnx file must have it.",
    )
    num_cores: int | None = setting(default=None, help="Threads to use.  [default: all]")
    save_dir: Path = setting(
        default=Path("annotation-results"), path="folder", help="Folder of all results."
    )
    name: str | None = setting(
        default=None, help="Folder of this run's results.  [default: {engine}-annotations]"
    )
    target_fps: float | None = setting(
        default=None, help="Frames per second of an annotated video."
    )
    no_save: bool = setting(default=False, help="Write no pictures; print what is found.")
    score_threshold: float = setting(
        default=0.3, at_least=0, at_most=1, help="Only objects with a higher score."
    )
    top_k: int | None = setting(
        default=None, at_least=1, help="At most so many objects, the best ones."
    )
    save_json: bool = setting(
        default=False, help=f"Also write boxes, masks and names as COCO {JSON_NAME}."
    )
    config: str | None = setting(
        default=None, help="Configuration of a .pth file that carries none."
    )
    device: str = setting(default="cpu", help="cpu, auto, cuda or cuda:N.")


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.annotate --model_filepath model.onnx --source dog.jpg "
    "writes annotation-results/onnxruntime-annotations/result-0.jpg",
)
@options(*options_of(Options))
def annotate(**given: Any) -> None:
    """Draw the instances a model finds on images and videos.

    Results go to a new folder each time, SAVE_DIR/NAME, NAME-001, NAME-002 and so on:
    result-0.jpg, result-1.jpg, ... for images, results.mp4 for a video or camera.
    """
    setup_logging()
    wanted = read(Options, given)
    if wanted.target_fps is not None and wanted.target_fps < SLOWEST:
        raise ConfigError(
            f"--target_fps is {wanted.target_fps:g}",
            hint=f"give frames per second, at least {SLOWEST}",
        )
    from yolact.data.sources import Images, Pictures, find_source
    from yolact.files import require_writable
    from yolact.predict.media import Annotator, free_folder
    from yolact.predict.pipeline import Selection
    from yolact.predict.results import DetectionFile

    found = find_source(wanted.source)
    model = _load(wanted)
    selection = Selection(score_threshold=wanted.score_threshold, top_k=wanted.top_k)
    annotator = Annotator(engine=model, selection=selection)
    folder = None
    if not wanted.no_save or wanted.save_json:
        folder = free_folder(wanted.save_dir, wanted.name or f"{model.name}-annotations")
        require_writable(wanted.save_dir)  # the folder itself appears with its first file
    file = DetectionFile(model.classes) if wanted.save_json else None
    drawn = None if wanted.no_save else folder
    files = Pictures(found.paths if isinstance(found, Images) else [])
    if isinstance(found, Images):
        _annotate_pictures(annotator, files, drawn, file)
    else:
        _annotate_video(annotator, found, drawn, file, wanted.target_fps)
    if folder is not None and file is not None:
        file.save(folder / JSON_NAME)
    if folder is not None and folder.exists():
        click.echo(f"results in {folder}")
    files.finish()


def _annotate_pictures(
    annotator: Annotator, pictures: Pictures, folder: Path | None, file: DetectionFile | None
) -> None:
    """Annotate images into ``folder``, record them in ``file``, and say what is found."""
    from yolact.predict.media import PictureOptions, annotate_pictures, counts

    options = PictureOptions(
        target=None if folder is None else lambda picture: folder / f"result-{picture.number}.jpg"
    )
    for name, _, found in annotate_pictures(annotator, pictures, options):
        if file is not None:
            file.add(name, found)
        click.echo(f"{name}: {counts(found, annotator.engine.classes.names)}")


def _annotate_video(
    annotator: Annotator,
    source: Video,
    folder: Path | None,
    file: DetectionFile | None,
    target_fps: float | None,
) -> None:
    """Annotate a video, or a camera until q or Ctrl-C; the same as with pictures."""
    from yolact.predict.media import VideoOptions, annotate_video, has_display

    show = source.live and has_display()
    if source.live:
        log.info("press %s to stop", "q in the window" if show else "Ctrl-C")
    options = VideoOptions(
        target=None if folder is None else folder / "results.mp4",
        target_fps=target_fps,
        show=show,
    )

    def record(number: int, found: Found) -> None:
        if file is not None:
            file.add(f"frame {number}", found)

    done = annotate_video(annotator, source, options, on_frame=record)
    click.echo(f"{source.path}: {done} frames")


def _load(wanted: Options) -> Engine | DetectingEngine:
    from yolact.checkpoint import ENDINGS, load_checkpoint
    from yolact.engines import load_detector
    from yolact.host import resolve_device

    config = named_config(wanted.config) if wanted.config else None
    name = (config or YolactConfig()).name
    kinds = model_kinds(engine_name(wanted.engine))
    path = model_path(wanted.model_filepath, Path("weights"), name, *kinds)
    shape = wanted.model_input_image_shape
    if shape and path.name.lower().endswith(ENDINGS):
        config = load_checkpoint(path).config_or(config).with_model(image_size=shape[0])
    loaded = load_detector(
        path,
        engine=wanted.engine,
        device=str(resolve_device(wanted.device)),
        num_cores=wanted.num_cores,
        config=config,
    )
    if shape and shape != loaded.image_size:
        height, width = loaded.image_size
        raise ConfigError(
            f"the model takes images of {height} x {width}, not {shape[0]} x {shape[1]}",
            hint="leave --model_input_image_shape out, or export the model at that size",
        )
    return loaded
