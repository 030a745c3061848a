"""Pictures and videos in, the same with their instances drawn on out: files, or a window.

What ``sparseml.yolact.annotate`` and the modes of ``sparseml.yolact.validation`` that draw share.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from yolact.data.images import RgbImage
from yolact.data.sources import VIDEO_ENDINGS, Picture, Video, open_video
from yolact.engines.base import DetectingEngine, Engine
from yolact.errors import ConfigError, DataError, StorageError
from yolact.files import atomic_path, require_writable_file
from yolact.predict.draw import (
    Style,
    draw_caption,
    draw_instances,
    lincomb_sheet,
    prototype_sheet,
    write_image,
)
from yolact.predict.pipeline import Found, Selection, groups

SCRATCH = Path("results")
"""Where pictures of prototypes go when the annotated image itself is only shown."""
_ROOM = 1 << 16
"""Bytes; a disk with less is full, as far as videos are concerned."""
_QUIT = (ord("q"), 27)
_TITLE = "yolact"


class Annotated(NamedTuple):
    """One image with what was found in it."""

    picture: RgbImage
    """The image with its instances drawn on."""
    found: Found
    """The drawn detections, and the prototypes their masks are made of."""


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """A model and how its detections are chosen and drawn."""

    engine: Engine | DetectingEngine
    selection: Selection = field(default_factory=lambda: Selection(score_threshold=0.3))
    style: Style = field(default_factory=Style)

    def __call__(self, images: Sequence[RgbImage]) -> list[Annotated]:
        """Annotate images of any size, as many at a time as the engine takes."""
        size = self.engine.batch_size or len(images)
        return [
            self._drawn(image, found)
            for batch in groups(images, size)
            for image, found in zip(batch, self.selection.find(self.engine, batch), strict=True)
        ]

    def _drawn(self, image: RgbImage, found: Found) -> Annotated:
        masks = self.style.masks and self.selection.masks
        instances = found.instances(crop=self.selection.crop, masks=masks)
        names = self.engine.classes.names
        return Annotated(draw_instances(image, instances, names, self.style), found)


def counts(found: Found, names: Sequence[str]) -> str:
    """What was found in words: ``2 person, 1 dog``, most frequent first, or ``nothing``."""
    labels = Counter(found.detections.labels.tolist())
    return ", ".join(f"{n} {names[label]}" for label, n in labels.most_common()) or "nothing"


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with -001, -002, ... behind it the first that does not exist yet."""
    names = (name if number == 0 else f"{name}-{number:03d}" for number in count())
    return next(folder for folder in map(parent.joinpath, names) if not folder.exists())


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What becomes of annotated pictures."""

    target: Callable[[Picture], Path] | None = None
    """Where each is written; None writes none."""
    show: bool = False
    """Show each in a window until a key is pressed; q ends."""
    batch_size: int = 1
    """Pictures per call of the model; one of a fixed batch size keeps its own."""
    prototypes: bool = False
    """Also write a picture and an .npy file of the prototypes."""
    combination: bool = False
    """Also write a picture of how the best mask is combined from prototypes."""


class PictureResult(NamedTuple):
    """What became of one picture."""

    name: str
    target: Path | None
    """Where it was written, if it was."""
    found: Found


def annotate_pictures(
    annotator: Annotator, pictures: Iterable[Picture], options: PictureOptions
) -> Iterator[PictureResult]:
    """Annotate pictures one after the other, as the results are asked for.

    Raises:
        ConfigError: A picture is to be shown, and this build of OpenCV has no windows.
        DataError: A picture cannot be read.
        StorageError: A picture cannot be written.
    """
    size = annotator.engine.batch_size or options.batch_size
    for batch in groups(pictures, size):
        results = annotator([picture.image for picture in batch])
        for picture, annotated in zip(batch, results, strict=True):
            target = None if options.target is None else options.target(picture)
            if target is not None:
                write_image(target, annotated.picture)
            _explain(annotated.found, target or SCRATCH / Path(picture.name).name, options)
            yield PictureResult(picture.name, target, annotated.found)
            if options.show and not show(annotated.picture):
                close()
                return
    if options.show:
        close()


def _explain(found: Found, picture: Path, options: PictureOptions) -> None:
    """Write what was asked for about the prototypes, beside ``picture``."""
    if options.prototypes:
        write_image(_beside(picture, "prototypes.png"), prototype_sheet(found.proto))
        with atomic_path(_beside(picture, "prototypes.npy")) as temporary:
            np.save(temporary, found.proto.cpu().numpy())
    if options.combination and len(found.detections.scores):
        sheet = lincomb_sheet(found.proto, found.detections)
        write_image(_beside(picture, "lincomb.png"), sheet)


def _beside(picture: Path, what: str) -> Path:
    return picture.with_name(f"{picture.stem}_{what}")


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video is read, annotated and written or shown."""

    target: Path | None = None
    """The .mp4 file to write; None writes none."""
    show: bool = False
    """Show each frame in a window; q ends."""
    target_fps: float | None = None
    """Frames per second of the result, by leaving frames out; None keeps the video's."""
    frames_at_once: int = 1
    """Frames per call of the model."""
    show_fps: bool = False
    """Write the speed on the frames."""
    emulate_playback: bool = False
    """Keep only the frames that annotating in real time would have had time for."""
    progress: bool = True
    """Show a bar on a terminal."""


def annotate_video(
    annotator: Annotator,
    video: Video,
    options: VideoOptions,
    *,
    on_frame: Callable[[int, Found], None] | None = None,
) -> int:
    """Annotate a video or camera frame by frame.

    Ctrl-C, and q in the window, end it early; what was written so far is kept. Ctrl-C is passed on
    unless the source is a camera, which has no other end.

    Args:
        annotator: Model and style.
        video: The source.
        options: Where to, speed and sampling.
        on_frame: Gets the frame's number in the result and what was found.

    Returns:
        Number of frames annotated.

    Raises:
        ConfigError: It is to be shown, and this build of OpenCV has no windows.
        DataError: The video cannot be opened.
        StorageError: The target cannot be written.
    """
    done, interrupted = 0, False
    with open_video(video) as reader:
        step = max(1.0, reader.fps / options.target_fps) if options.target_fps else 1.0
        total = math.ceil(reader.frames / step) if reader.frames else None
        bar = tqdm(total=total, unit="frame", disable=None if options.progress else True)
        with bar, _writer(options.target, reader.fps / step) as write:
            try:
                for annotated in _frames(annotator, every(reader, step), options, reader.fps):
                    if on_frame is not None:
                        on_frame(done, annotated.found)
                    write(annotated.picture)
                    done += 1
                    bar.update()
                    if options.show and not show(annotated.picture, 1):
                        break
            except KeyboardInterrupt:
                interrupted = True
            if not done and not interrupted:
                raise DataError(
                    f"video {video.path} has no frames", hint="the file may be empty or damaged"
                )
    if options.show:
        close()
    if interrupted and not video.live:
        raise KeyboardInterrupt
    return done


def require_video_file(path: Path) -> None:
    """Check that :func:`annotate_video` can write to ``path``; makes its folder.

    Raises:
        StorageError: It cannot.
    """
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise _no_video(path)
    require_writable_file(path)


def _no_video(path: Path) -> StorageError:
    return StorageError(f"cannot write a video as {path.name}", hint="use a name that ends in .mp4")


def every(frames: Iterable[RgbImage], step: float) -> Iterator[RgbImage]:
    """Each ``step``-th frame, evenly spread when ``step`` is no integer."""
    due = 0.0
    for index, frame in enumerate(frames):
        if index >= due:
            due += step
            yield frame


def _frames(
    annotator: Annotator, frames: Iterator[RgbImage], options: VideoOptions, fps: float
) -> Iterator[Annotated]:
    pace = 0.0  # seconds per frame, smoothed
    while batch := list(islice(frames, options.frames_at_once)):
        start = time.perf_counter()
        annotated = annotator(batch)
        seconds = (time.perf_counter() - start) / len(batch)
        pace = seconds if pace == 0 else 0.9 * pace + 0.1 * seconds
        caption = f"{1 / pace:.1f} fps"
        shown = [
            a._replace(picture=draw_caption(a.picture, caption)) if options.show_fps else a
            for a in annotated
        ]
        if options.emulate_playback:
            # In real time the frames that pass while one is computed are never seen: the last
            # picture stays on the screen instead, so the result keeps its length.
            late = max(0, math.ceil(pace * len(batch) * fps) - len(batch))
            missed = len(list(islice(frames, late)))
            shown += [shown[-1]] * missed
        yield from shown


@contextmanager
def _writer(out: Path | None, fps: float) -> Iterator[Callable[[RgbImage], None]]:
    """A function that appends frames to ``out``; the file appears when the block ends."""
    if out is None:
        yield lambda frame: None
        return
    with atomic_path(out) as temporary:
        sink: cv2.VideoWriter | None = None

        def write(frame: RgbImage) -> None:
            nonlocal sink
            if sink is None:  # the first frame knows the size better than the file's header
                height, width = frame.shape[:2]
                code = cv2.VideoWriter.fourcc(*"mp4v")
                sink = cv2.VideoWriter(str(temporary), code, fps, (width, height))
                if not sink.isOpened():
                    _require_room(out)
                    raise _no_video(out)
            sink.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

        try:
            yield write
        finally:
            if sink is not None:
                sink.release()
        if sink is None:
            raise KeyboardInterrupt  # before the first frame: there is nothing to keep
        if not cv2.VideoCapture(str(temporary)).isOpened():  # OpenCV tells no write error
            _require_room(out)
            raise _no_video(out)


def _require_room(out: Path) -> None:
    if shutil.disk_usage(out.parent).free < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def has_display() -> bool:
    """Whether this process can open a window.

    Asked before OpenCV is: without a display its window library ends the whole process.
    """
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def require_display(option: str) -> None:
    """Check that a window can be opened, before long work starts.

    Raises:
        ConfigError: There is no display; the hint says what to do instead of ``option``.
    """
    if not has_display():
        raise ConfigError(
            f"{option} needs a display, and this machine shows none",
            hint="write pictures instead: --image IN:OUT, --images IN:OUT, --video IN:OUT, "
            "or sparseml.yolact.annotate",
        )


def show(image: RgbImage, wait_ms: int = 0) -> bool:
    """Show a picture; False when the user asked to stop (q or Esc).

    Args:
        image: RGB.
        wait_ms: How long to wait for a key; 0 waits for one.

    Raises:
        ConfigError: This build of OpenCV has no windows.
    """
    try:
        cv2.imshow(_TITLE, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return (cv2.waitKey(wait_ms) & 0xFF) not in _QUIT
    except cv2.error as error:
        raise ConfigError(
            "this build of OpenCV cannot open windows",
            hint="pip install opencv-python (not opencv-python-headless)",
        ) from error


def close() -> None:
    """Close the window, if one is open."""
    if has_display():
        cv2.destroyAllWindows()
