"""``sparseml.yolact.annotate``: draw the detected instances on images and videos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from yolact.cli.base import FOLDER, Command, setup_logging
from yolact.cli.inputs import ENGINE_NAMES, engine_name, model_path
from yolact.errors import ConfigError
from yolact.model_files import model_kinds

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


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.annotate --model_filepath model.onnx --source dog.jpg "
    "writes annotation-results/onnxruntime-annotations/result-0.jpg",
)
@click.option("--model_filepath", required=True, help="An .onnx or .pth file, or a zoo: stub.")
@click.option(
    "--source",
    required=True,
    help="An image, a folder of images, a quoted pattern, a video or a camera number.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    help="What runs the model.  [default: by the file's ending]",
)
@click.option(
    "--model_input_image_shape",
    type=int,
    nargs=2,
    metavar="H W",
    help="Input size: a .pth checkpoint runs at it, an .onnx file must have it.",
)
@click.option("--num_cores", type=int, help="Threads to use.  [default: all]")
@click.option(
    "--save_dir",
    type=FOLDER,
    default="annotation-results",
    show_default=True,
    help="Folder of all results.",
)
@click.option("--name", help="Folder of this run's results.  [default: {engine}-annotations]")
@click.option("--target_fps", type=float, help="Frames per second of an annotated video.")
@click.option("--no_save", is_flag=True, help="Write no pictures; print what is found.")
@click.option(
    "--score_threshold",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Only objects with a higher score.",
)
@click.option("--top_k", type=click.IntRange(1), help="At most so many objects, the best ones.")
@click.option(
    "--save_json", is_flag=True, help=f"Also write boxes, masks and names as COCO {JSON_NAME}."
)
@click.option("--config", help="Configuration of a .pth file that carries none.")
@click.option("--device", default="cpu", show_default=True, help="cpu, auto, cuda or cuda:N.")
def annotate(
    model_filepath: str,
    source: str,
    engine: str | None,
    model_input_image_shape: tuple[int, int] | None,
    num_cores: int | None,
    save_dir: Path,
    name: str | None,
    target_fps: float | None,
    no_save: bool,
    score_threshold: float,
    top_k: int | None,
    save_json: bool,
    config: str | None,
    device: str,
) -> None:
    """Draw the instances a model finds on images and videos.

    Results go to a new folder each time, SAVE_DIR/NAME, NAME-001, NAME-002 and so on:
    result-0.jpg, result-1.jpg, ... for images, results.mp4 for a video or camera.
    """
    setup_logging()
    if target_fps is not None and target_fps < SLOWEST:
        raise ConfigError(
            f"--target_fps is {target_fps:g}", hint=f"give frames per second, at least {SLOWEST}"
        )
    from yolact.data.sources import Images, Pictures, find_source
    from yolact.files import require_writable
    from yolact.predict.media import Annotator, free_folder
    from yolact.predict.pipeline import Selection
    from yolact.predict.results import DetectionFile

    found = find_source(source)
    model = _load(model_filepath, engine, model_input_image_shape, num_cores, config, device)
    selection = Selection(score_threshold=score_threshold, top_k=top_k)
    annotator = Annotator(engine=model, selection=selection)
    folder = None
    if not no_save or save_json:
        folder = free_folder(save_dir, name or f"{model.name}-annotations")
        require_writable(save_dir)  # the folder itself appears with its first file
    file = DetectionFile(model.classes) if save_json else None
    drawn = None if no_save else folder
    files = Pictures(found.paths if isinstance(found, Images) else [])
    if isinstance(found, Images):
        _annotate_pictures(annotator, files, drawn, file)
    else:
        _annotate_video(annotator, found, drawn, file, target_fps)
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


def _load(
    model: str,
    engine: str | None,
    shape: tuple[int, int] | None,
    num_cores: int | None,
    config: str | None,
    device: str,
) -> Engine | DetectingEngine:
    from yolact.checkpoint import load_checkpoint
    from yolact.config import YolactConfig, named_config
    from yolact.engines import load_detector
    from yolact.host import resolve_device

    chosen = named_config(config) if config else None
    name = (chosen or YolactConfig()).name
    path = model_path(model, Path("weights"), name, *model_kinds(engine_name(engine)))
    if shape and path.suffix == ".pth":
        trained = load_checkpoint(path).config_or(chosen)
        chosen = trained.with_model(image_size=shape[0])
    loaded = load_detector(
        path,
        engine=engine,
        device=str(resolve_device(device)),
        num_cores=num_cores,
        config=chosen,
    )
    if shape and tuple(shape) != tuple(loaded.image_size):
        height, width = loaded.image_size
        raise ConfigError(
            f"the model takes images of {height} x {width}, not {shape[0]} x {shape[1]}",
            hint="leave --model_input_image_shape out, or export the model at that size",
        )
    return loaded
