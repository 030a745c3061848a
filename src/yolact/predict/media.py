"""Images and videos in, pictures of their instances out; shared by two commands.

A window on the screen, where there is one.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
from tqdm import tqdm

from yolact.config import DetectConfig
from yolact.data.images import RgbImage
from yolact.data.sources import VIDEO_ENDINGS, Video, open_video
from yolact.engines.base import DetectingEngine, Engine
from yolact.errors import ConfigError, DataError, StorageError
from yolact.files import atomic_path, require_writable_file
from yolact.predict.draw import Style, draw_caption, draw_instances
from yolact.predict.pipeline import Found, Stopwatch, find
from yolact.predict.postprocess import above, first

log = logging.getLogger(__name__)


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
    detect: DetectConfig = field(default_factory=DetectConfig)
    style: Style = field(default_factory=Style)
    score_threshold: float = 0.3
    """Above 0, only detections with a higher score."""
    top_k: int | None = None
    """At most so many detections per image, the best ones."""
    crop: bool = True
    """Cut masks at their boxes."""
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __call__(self, images: Sequence[RgbImage]) -> list[Annotated]:
        """Annotate images of any size, as many at a time as the engine takes."""
        size = self.engine.batch_size or len(images)
        return [
            annotated
            for start in range(0, len(images), size)
            for annotated in self._batch(images[start : start + size])
        ]

    def _batch(self, images: Sequence[RgbImage]) -> Iterator[Annotated]:
        found = find(self.engine, images, self.detect, watch=self.watch)
        for image, whole in zip(images, found, strict=True):
            detections = above(whole.detections, self.score_threshold)
            if self.top_k is not None:
                detections = first(detections, self.top_k)
            chosen = whole._replace(detections=detections)
            with self.watch("postprocess"):
                instances = chosen.instances(crop=self.crop, masks=self.style.masks)
            with self.watch("draw"):
                names = self.engine.classes.names
                picture = draw_instances(image, instances, names, self.style)
            yield Annotated(picture, chosen)


def counts(found: Found, names: Sequence[str]) -> str:
    """What was found in words: ``2 person, 1 dog``, most frequent first, or ``nothing``."""
    labels = Counter(found.detections.labels.tolist())
    return ", ".join(f"{n} {names[label]}" for label, n in labels.most_common()) or "nothing"


def require_picture_file(path: Path) -> None:
    """Check that :func:`write_image` can write to ``path``; makes its folder.

    Raises:
        StorageError: It cannot.
    """
    if not cv2.haveImageWriter(str(path)):
        raise _no_picture(path)
    require_writable_file(path)


def _no_picture(path: Path) -> StorageError:
    return StorageError(
        f"cannot write an image as {path.name}", hint="use a name that ends in .png or .jpg"
    )


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


def write_image(path: Path, image: RgbImage) -> None:
    """Write RGB pixels as the file type of ``path``'s ending, in one step.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise _no_picture(path) from error
    if not encoded:
        raise _no_picture(path)
    with atomic_path(path) as temporary:  # imwrite would keep a full disk to itself
        temporary.write_bytes(data.tobytes())


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video is read, annotated and written."""

    target_fps: float | None = None
    """Frames per second of the result, by leaving frames out; None keeps the video's."""
    frames_at_once: int = 1
    """Frames per call of the model."""
    show_fps: bool = False
    """Write the speed on the frames."""
    emulate_playback: bool = False
    """Keep only the frames that annotating in real time would have had time for."""


def annotate_video(
    annotator: Annotator,
    video: Video,
    out: Path | None,
    options: VideoOptions,
    *,
    show: Callable[[RgbImage], bool] | None = None,
    on_frame: Callable[[int, Annotated], None] | None = None,
    progress: bool = True,
) -> int:
    """Annotate a video or camera frame by frame.

    Ctrl-C and ``show`` returning False end it early; what was written so far is kept. Ctrl-C is
    passed on unless the source is a camera, which has no other end.

    Args:
        annotator: Model and style.
        video: The source.
        out: An .mp4 file to write, or None.
        options: Speed and sampling.
        show: Gets every frame; False stops.
        on_frame: Gets the frame's number in the result and what was found.
        progress: Show a bar on a terminal.

    Returns:
        Number of frames annotated.

    Raises:
        DataError: The video cannot be opened.
        StorageError: ``out`` cannot be written.
    """
    done, interrupted = 0, False
    with open_video(video) as reader:
        step = max(1.0, reader.fps / options.target_fps) if options.target_fps else 1.0
        total = math.ceil(reader.frames / step) if reader.frames else None
        bar = tqdm(total=total, unit="frame", disable=None if progress else True)
        with bar, _writer(out, reader.fps / step) as write:
            try:
                for annotated in _frames(annotator, every(reader, step), options, reader.fps):
                    if on_frame is not None:
                        on_frame(done, annotated)
                    write(annotated.picture)
                    done += 1
                    bar.update()
                    if show is not None and not show(annotated.picture):
                        break
            except KeyboardInterrupt:
                interrupted = True
            if not done and not interrupted:
                raise DataError(
                    f"video {video.path} has no frames", hint="the file may be empty or damaged"
                )
    if interrupted and not video.live:
        raise KeyboardInterrupt
    return done


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


_ROOM = 1 << 16
"""Bytes; a disk with less is full, as far as videos are concerned."""


_QUIT = (ord("q"), 27)
_TITLE = "yolact"


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
