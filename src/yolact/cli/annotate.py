"""``sparseml.yolact.annotate``: draw the detected instances on images and videos."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FOLDER, Command, setup_logging
from yolact.cli.inputs import ENGINE_NAMES, engine_name, model_path
from yolact.errors import ConfigError
from yolact.model_files import model_kinds

if TYPE_CHECKING:
    from yolact.data.labels import Classes
    from yolact.data.sources import Images, Pictures, Video
    from yolact.engines.base import DetectingEngine, Engine
    from yolact.predict.media import Annotated, Annotator

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
    from yolact.data.sources import Images, find_source
    from yolact.files import require_writable
    from yolact.predict.media import Annotator

    found = find_source(source)
    model = _load(model_filepath, engine, model_input_image_shape, num_cores, config, device)
    annotator = Annotator(engine=model, score_threshold=score_threshold, top_k=top_k)
    folder = None
    if not no_save or save_json:
        folder = free_folder(save_dir, name or f"{model.name}-annotations")
        require_writable(save_dir)  # the folder itself appears with its first file
    pictures = None if no_save else folder
    run = _Run(annotator, model.classes, folder if save_json else None)
    read = None
    if isinstance(found, Images):
        read = run.images(found, pictures)
    else:
        run.video(found, pictures, target_fps)
    run.finish()
    if folder is not None and folder.exists():
        click.echo(f"results in {folder}")
    if read is not None:
        read.finish()


class _Run:
    """One call of the command: what was seen so far, for the JSON file."""

    def __init__(self, annotator: Annotator, classes: Classes, json_folder: Path | None) -> None:
        """Start with nothing seen; None as ``json_folder`` records nothing."""
        from yolact.predict.results import CocoResults

        self.annotator, self.classes, self.json_folder = annotator, classes, json_folder
        self.records: list[dict[str, Any]] = []
        self.results = CocoResults()

    def images(self, source: Images, folder: Path | None) -> Pictures:
        """Annotate image files one by one; the result knows whether all could be read."""
        from yolact.data.sources import Pictures
        from yolact.predict.media import write_image

        pictures = Pictures(source.paths)
        for number, path, image in pictures:
            annotated = self.annotator([image])[0]
            if folder is not None:
                write_image(folder / f"result-{number}.jpg", annotated.picture)
            self._record(str(path), annotated)
            self._say(str(path), annotated)
        return pictures

    def video(self, source: Video, folder: Path | None, target_fps: float | None) -> None:
        """Annotate a video, or a camera until q or Ctrl-C."""
        from yolact.predict import media as window
        from yolact.predict.media import VideoOptions, annotate_video

        live = source.live and window.has_display()
        if source.live:
            log.info("press %s to stop", "q in the window" if live else "Ctrl-C")

        def note(number: int, annotated: Annotated) -> None:
            self._record(f"frame {number}", annotated)

        done = annotate_video(
            self.annotator,
            source,
            None if folder is None else folder / "results.mp4",
            VideoOptions(target_fps=target_fps),
            show=(lambda picture: window.show(picture, 1)) if live else None,
            on_frame=note,
        )
        window.close()
        click.echo(f"{source.path}: {done} frames")

    def finish(self) -> None:
        """Write the JSON file, if one was asked for."""
        if self.json_folder is not None:
            from yolact.predict.results import annotation_file, write_json

            content = annotation_file(self.records, self.results, self.classes)
            write_json(self.json_folder / JSON_NAME, content)

    def _say(self, name: str, annotated: Annotated) -> None:
        from yolact.predict.media import counts

        click.echo(f"{name}: {counts(annotated.found, self.classes.names)}")

    def _record(self, name: str, annotated: Annotated) -> None:
        if self.json_folder is None:
            return
        found, number = annotated.found, len(self.records) + 1
        height, width = found.size
        record = {"id": number, "file_name": name, "height": height, "width": width}
        self.records.append(record)
        self.results.add(number, found.detections, found.proto, found.size, self.classes.ids)


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with -001, -002, ... behind it the first that does not exist yet."""
    names = (name if number == 0 else f"{name}-{number:03d}" for number in count())
    return next(folder for folder in map(parent.joinpath, names) if not folder.exists())


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
        trained = chosen or load_checkpoint(path).config or YolactConfig()
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
