"""``sparseml.yolact.annotate``: draw the detected instances on images and videos."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import Command, setup_logging
from yolact.cli.inputs import ENGINE_NAMES, engine_name, model_path
from yolact.cli.options import options, options_of, read
from yolact.config import YolactConfig
from yolact.errors import ConfigError, DataError
from yolact.model_files import model_kinds
from yolact.presets import named_config
from yolact.setting import setting

if TYPE_CHECKING:
    from yolact.data.sources import Images, Videos
    from yolact.data.video import Video
    from yolact.engines.base import DetectingEngine, Engine
    from yolact.predict.media import Annotator, ObjectFiles
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
        help="An image, a video, a folder of either, a quoted pattern, an address such as "
        "rtsp://..., or a camera number."
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
        default=False, help=f"Also write boxes, masks, polygons and names as COCO {JSON_NAME}."
    )
    save_masks: bool = setting(default=False, help="Also write the mask of each object as PNG.")
    save_cutouts: bool = setting(
        default=False, help="Also write each object cut out, on a transparent background, as PNG."
    )
    config: str | None = setting(
        default=None, help="Configuration of a .pth file that carries none."
    )
    device: str = setting(default="cpu", help="cpu, auto, cuda or cuda:N.")

    @property
    def writes(self) -> bool:
        """Whether there will be any files."""
        return not self.no_save or self.save_json or self.save_masks or self.save_cutouts


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.annotate --model_filepath model.onnx --source dog.jpg "
    "writes annotation-results/onnxruntime-annotations/dog.jpg",
)
@options(*options_of(Options))
def annotate(**given: Any) -> None:
    """Draw the instances a model finds on images and videos.

    Results go to a new folder each time, SAVE_DIR/NAME, NAME-001, NAME-002 and so on: photo.jpg for
    an image photo.png, results.mp4 for a video, or a file for each of several.
    """
    setup_logging()
    wanted = read(Options, given)
    if wanted.target_fps is not None and wanted.target_fps < SLOWEST:
        raise ConfigError(
            f"--target_fps is {wanted.target_fps:g}",
            hint=f"give frames per second, at least {SLOWEST}",
        )
    from yolact.data.sources import Images, find_source
    from yolact.download.offline import require_online
    from yolact.files import require_writable
    from yolact.predict.media import Annotator, free_folder
    from yolact.predict.pipeline import Selection

    found = find_source(wanted.source)
    for video in () if isinstance(found, Images) else found.videos:
        if video.remote:
            require_online(video.name)
    model = _load(wanted)
    selection = Selection(score_threshold=wanted.score_threshold, top_k=wanted.top_k)
    folder = free_folder(wanted.save_dir, wanted.name or f"{model.name}-annotations")
    if wanted.writes:
        require_writable(wanted.save_dir)  # the folder itself appears with its first file
    run = _Run(Annotator(engine=model, selection=selection), wanted, folder)
    finish = run.pictures(found) if isinstance(found, Images) else run.videos(found)
    if folder.exists():
        click.echo(f"results in {folder}")
    finish()


@dataclass(frozen=True)
class _Run:
    """One call of the command."""

    annotator: Annotator
    wanted: Options
    folder: Path
    """Where results go."""

    def pictures(self, source: Images) -> Callable[[], None]:
        """Annotate images and say what is found; returns what says whether all could be read."""
        from yolact.data.sources import Pictures
        from yolact.files import distinct_names
        from yolact.predict.media import PictureOptions, annotate_pictures, counts

        pictures, names = Pictures(source.paths), distinct_names(source.paths)
        options = PictureOptions(
            target=None
            if self.wanted.no_save
            else lambda picture: self.folder / f"{names[picture.number]}.jpg"
        )
        objects, classes = self._objects(), self.annotator.engine.classes.names
        with self._detections(JSON_NAME) as file:
            for picture, _, found in annotate_pictures(self.annotator, pictures, options):
                if file is not None:
                    file.add(picture.name, found)
                objects.write(names[picture.number], picture.image, found)
                click.echo(f"{picture.name}: {counts(found, classes)}")
        return pictures.finish

    def videos(self, source: Videos) -> Callable[[], None]:
        """Annotate videos; returns what says whether all could be read."""
        from yolact.files import distinct_names

        names = distinct_names([Path(_file_name(video)) for video in source.videos])
        single, failed = len(source.videos) == 1, 0
        for video, name in zip(source.videos, names, strict=True):
            try:
                self._video(video, name, *_results(name, single=single))
            except DataError as error:
                if single:
                    raise
                log.warning("skipped: %s", error)
                failed += 1

        def finish() -> None:
            if failed:
                raise DataError(
                    f"{failed} of {len(source.videos)} videos could not be read",
                    hint="their names are listed above",
                )

        return finish

    def _video(self, video: Video, name: str, result: str, detections: str) -> None:
        """Annotate one video, or a camera until q or Ctrl-C, into files of these names."""
        from yolact.predict.media import has_display
        from yolact.predict.video import Seen, VideoOptions, annotate_video

        show = video.live and has_display()
        if video.live:
            log.info("press %s to stop", "q in the window" if show else "Ctrl-C")
        options = VideoOptions(
            target=None if self.wanted.no_save else self.folder / result,
            target_fps=self.wanted.target_fps,
            show=show,
        )
        objects = self._objects()
        with self._detections(detections) as file:

            def record(seen: Seen) -> None:
                if file is not None:
                    file.add(f"frame {seen.number}", seen.found, seen.frame.ms)
                objects.write(f"{name}_{seen.number:06d}", seen.frame.image, seen.found)

            done = annotate_video(self.annotator, video, options, on_frame=record)
        click.echo(f"{video.name}: {done} frames")

    def _objects(self) -> ObjectFiles:
        from yolact.predict.media import ObjectFiles

        return ObjectFiles(
            folder=self.folder,
            classes=self.annotator.engine.classes.names,
            masks=self.wanted.save_masks,
            cutouts=self.wanted.save_cutouts,
        )

    @contextmanager
    def _detections(self, name: str) -> Iterator[DetectionFile | None]:
        """What is found, written at the end, also at an early one by Ctrl-C."""
        from yolact.predict.results import DetectionFile

        if not self.wanted.save_json:
            yield None
            return
        file = DetectionFile(self.annotator.engine.classes)
        try:
            yield file
        except KeyboardInterrupt:
            if file.images:
                file.save(self.folder / name)
            raise
        file.save(self.folder / name)


def _results(name: str, *, single: bool) -> tuple[str, str]:
    """The annotated video of one called ``name``, and the JSON file of what is found in it."""
    return ("results.mp4", JSON_NAME) if single else (f"{name}.mp4", f"{name}.json")


def _file_name(video: Video) -> str:
    """What files of a video are named after."""
    if isinstance(video.path, Path):
        return video.path.name
    return f"camera-{video.path}" if video.camera else "stream"


def _load(wanted: Options) -> Engine | DetectingEngine:
    from yolact.engines import load_detector
    from yolact.host import resolve_device

    config = named_config(wanted.config) if wanted.config else None
    name = (config or YolactConfig()).name
    kinds = model_kinds(engine_name(wanted.engine))
    path = model_path(wanted.model_filepath, Path("weights"), name, *kinds)
    return load_detector(
        path,
        engine=wanted.engine,
        device=str(resolve_device(wanted.device)),
        num_cores=wanted.num_cores,
        config=config,
        image_size=wanted.model_input_image_shape,
    )
