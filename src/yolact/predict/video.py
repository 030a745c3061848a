"""Videos in, the same with their instances drawn on out: a file of the same length, or a window."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from yolact.data.images import RgbImage, silence_opencv
from yolact.data.video import (
    VIDEO_ENDINGS,
    Frame,
    Video,
    VideoReader,
    open_video,
)
from yolact.download.offline import require_online
from yolact.errors import DataError, StorageError
from yolact.files import atomic_path, require_writable_file, storage_errors, unicode_path
from yolact.predict import media
from yolact.predict.draw import draw_caption
from yolact.predict.media import Annotated, Annotator
from yolact.predict.pipeline import Found

log = logging.getLogger(__name__)

_ROOM = 1 << 16
"""Bytes; a disk with less is full, as far as videos are concerned."""

_SIDES = (2, 8191)
"""Pixels that the sides of MPEG-4 frames have at least and at most."""


class Seen(NamedTuple):
    """One frame and what was found in it."""

    number: int
    """Among the annotated frames, from 0."""
    frame: Frame
    found: Found


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video is read, annotated and written or shown."""

    target: Path | None = None
    """The video file to write; None writes none."""
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
    on_frame: Callable[[Seen], None] | None = None,
) -> int:
    """Annotate a video, camera or stream frame by frame.

    The result is as long as the source: where frames come at an uneven pace, each stays until the
    next one is due. Ctrl-C, and q in the window, end it early; what was written so far is kept.
    Ctrl-C is passed on unless the source is live, which has no other end.

    Args:
        annotator: Model and style.
        video: The source.
        options: Where to, speed and sampling.
        on_frame: Gets every annotated frame.

    Returns:
        Number of frames annotated.

    Raises:
        ConfigError: It is to be shown, and this build of OpenCV has no windows.
        DataError: The video cannot be opened, has no frames, or is larger than a target can be.
        DownloadError: It is an address, and the user forbids the network.
        StorageError: The target cannot be written.
    """
    if video.remote:
        require_online(video.name)
    done, interrupted, stopped = 0, False, False
    with open_video(video) as reader:
        rate = min(reader.fps, options.target_fps or reader.fps)
        total = math.ceil(reader.frames * rate / reader.fps) if reader.frames else None
        bar = tqdm(total=total, unit="frame", disable=None if options.progress else True)
        with bar, _writer(options.target, rate) as writer:
            try:
                for frame, annotated in _frames(annotator, reader, options, rate):
                    if on_frame is not None:
                        on_frame(Seen(done, frame, annotated.found))
                    if writer is not None:
                        writer.write(annotated.picture, frame.ms)
                    done += 1
                    bar.update()
                    if options.show and not media.show(annotated.picture, 1):
                        stopped = True
                        break
            except KeyboardInterrupt:
                interrupted = True
            if not done and not interrupted:
                raise _no_frames(video, reader)
        if writer is not None:
            writer.say_what_was_left_out(video.name)
        if not interrupted and not stopped:
            _say_how_it_ended(video, reader)
    if options.show:
        media.close()
    if interrupted and not video.live:
        raise KeyboardInterrupt
    return done


def _no_frames(video: Video, reader: VideoReader) -> DataError:
    if video.live:
        return DataError(f"no frame came from {video.name}", hint="look whether a player gets one")
    return DataError(
        f"video {video.name} has no frames that OpenCV can decode (codec {reader.codec!r})",
        hint="it may be damaged; of an unknown codec, ffmpeg -i IN -c:v libx264 OUT.mp4 makes a "
        "usual one",
    )


def _say_how_it_ended(video: Video, reader: VideoReader) -> None:
    if reader.missing:
        log.warning(
            "%s: %d of %d frames could not be read (damaged or cut out), the others were annotated",
            *(video.name, reader.missing, reader.frames),
        )
    elif video.live and reader.frames is None:
        log.warning("%s: ended after %d frames", video.name, reader.done)


def require_video_file(path: Path) -> None:
    """Check that :func:`annotate_video` can write to ``path``; makes its folder.

    Raises:
        StorageError: It cannot, or OpenCV writes no video of that ending.
    """
    require_writable_file(path)
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise _no_video(path)
    with storage_errors(path), tempfile.TemporaryDirectory() as folder:
        trial = _Writer(Path(folder) / f"trial{path.suffix}", path, 10.0)
        trial.write(np.zeros((64, 64, 3), np.uint8), 0.0)
        trial.close()


def _no_video(path: Path) -> StorageError:
    return StorageError(f"cannot write a video as {path.name}", hint="use a name that ends in .mp4")


def sampled(frames: Iterable[Frame], fps: float, rate: float) -> Iterator[Frame]:
    """Frames as often as ``rate`` per second and evenly spread.

    Args:
        frames: At most ``fps`` per second.
        fps: Of the source.
        rate: All frames are kept when it is not below ``fps``.
    """
    if rate >= fps:
        yield from frames
        return
    due = 0
    for frame in frames:
        # A frame stands for the time until the next one is due; 0.49 bears rounded times.
        place = int((frame.ms / 1000 + 0.49 / fps) * rate)
        if place >= due:
            due = place + 1
            yield frame


def _frames(
    annotator: Annotator, reader: VideoReader, options: VideoOptions, rate: float
) -> Iterator[tuple[Frame, Annotated]]:
    pace = 0.0  # seconds per frame, smoothed
    frames = sampled(reader, reader.fps, rate)
    while batch := list(islice(frames, options.frames_at_once)):
        start = time.perf_counter()
        annotated = annotator([frame.image for frame in batch])
        seconds = (time.perf_counter() - start) / len(batch)
        pace = seconds if pace == 0 else 0.9 * pace + 0.1 * seconds
        caption = f"{1 / pace:.1f} fps"
        shown = [
            a._replace(picture=draw_caption(a.picture, caption)) if options.show_fps else a
            for a in annotated
        ]
        yield from zip(batch, shown, strict=True)
        if options.emulate_playback:
            # In real time the frames that pass while one is computed are never seen: the last
            # picture stays on the screen instead, so the result keeps its length.
            late = max(0, math.ceil(pace * len(batch) * reader.fps) - len(batch))
            yield from ((missed, shown[-1]) for missed in islice(frames, late))


@contextmanager
def _writer(out: Path | None, fps: float) -> Iterator[_Writer | None]:
    """What writes ``out``; the file appears when the block ends."""
    if out is None:
        yield None
        return
    with atomic_path(out) as temporary:
        writer = _Writer(temporary, out, fps)
        try:
            yield writer
        except BaseException:
            writer.release()
            raise
        writer.close()


class _Writer:
    """Puts pictures at their times into a file of a constant number of frames per second."""

    def __init__(self, path: Path, out: Path, fps: float) -> None:
        """Write to ``path``, which messages call ``out``."""
        silence_opencv()
        self.path, self.out, self.fps = path, out, fps
        self.given, self.written, self.dropped = 0, 0, 0
        self._last: RgbImage | None = None
        self._sink: cv2.VideoWriter | None = None

    def write(self, picture: RgbImage, ms: float) -> None:
        """Show ``picture`` from ``ms`` on, and until then the one before."""
        self.given += 1
        place = int(ms * self.fps / 1000 + 0.5)
        if place < self.written:
            self.dropped += 1
            return
        if self._sink is None:  # the first frame knows the size better than the file's header
            self._sink = self._opened(picture)
        elif self._last is not None and picture.shape != self._last.shape:
            height, width = self._last.shape[:2]  # OpenCV leaves out what has another size
            picture = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
        while self._last is not None and self.written < place:
            self._append(self._sink, self._last)
        self._append(self._sink, picture)
        self._last = picture

    def close(self) -> None:
        """Finish the file, and look whether everything is in it: OpenCV tells no write error.

        Raises:
            StorageError: It is not.
        """
        self.release()
        if self._sink is None:
            raise KeyboardInterrupt  # before the first frame: there is nothing to keep
        with unicode_path(self.path) as name:
            written = cv2.VideoCapture(name)
            opened, count = written.isOpened(), int(written.get(cv2.CAP_PROP_FRAME_COUNT))
        if not opened:
            self._require_room()
            raise _no_video(self.out)
        if 0 < count < 0.98 * self.written - 1:
            self._require_room()
            raise StorageError(
                f"only {count} of {self.written} frames could be written to {self.out}",
                hint="use a name that ends in .mp4, and look whether the disk is full",
            )

    def say_what_was_left_out(self, source: str) -> None:
        """Count the frames of ``source`` that had no place of their own."""
        if self.dropped:
            log.warning(
                "%s: %d of %d frames follow another within 1/%g s, left out of %s",
                *(source, self.dropped, self.given, self.fps, self.out),
            )

    def release(self) -> None:
        """Let go of the file."""
        if self._sink is not None:
            self._sink.release()

    def _append(self, sink: cv2.VideoWriter, picture: RgbImage) -> None:
        sink.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.written += 1

    def _opened(self, picture: RgbImage) -> cv2.VideoWriter:
        height, width = picture.shape[:2]
        if min(height, width) < _SIDES[0] or max(height, width) > _SIDES[1]:
            raise DataError(
                f"frames of {width} x {height} pixels cannot be written to {self.out}: MPEG-4 has "
                f"sides of {_SIDES[0]} to {_SIDES[1]} pixels",
                hint="scale the video, for instance with ffmpeg, or write no video of it",
            )
        code = cv2.VideoWriter.fourcc(*"mp4v")
        with unicode_path(self.path) as name:
            sink = cv2.VideoWriter(name, code, self.fps, (width, height))
        if not sink.isOpened():
            self._require_room()
            raise _no_video(self.out)
        return sink

    def _require_room(self) -> None:
        if shutil.disk_usage(self.path.parent).free < _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
