"""Where pictures come from: an image, a folder, a pattern, a video file or a camera."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact.data.images import RgbImage
from yolact.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Images:
    """A list of image files."""

    paths: list[Path]


@dataclass(frozen=True)
class Video:
    """A video file, or a camera when ``path`` is its number."""

    path: Path | int

    @property
    def live(self) -> bool:
        """Whether this is a camera: endless, and shown as in a mirror."""
        return isinstance(self.path, int)


def find_source(text: str) -> Images | Video:
    """What a ``--source`` means.

    Args:
        text: A camera's number, or the path of an image, a video or a folder of images, or a
            pattern with ``*``.

    Raises:
        DataError: There is nothing of that kind.
    """
    path = Path(text)
    if text.isdigit() and not path.exists():
        return Video(int(text))
    if "*" in text:
        return _some_images(sorted(Path(found) for found in glob.glob(text, recursive=True)), text)
    if path.is_dir():
        return _some_images(sorted(path.iterdir()), text)
    if not path.is_file():
        raise DataError(
            f"no image, video or folder at {text}",
            hint="give a file, a folder, a quoted pattern like 'images/*.jpg', or a camera number",
        )
    return Video(path) if path.suffix.lower() in VIDEO_ENDINGS else Images([path])


def _some_images(paths: list[Path], text: str) -> Images:
    images = [path for path in paths if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]
    if not images:
        endings = ", ".join(IMAGE_ENDINGS)
        raise DataError(f"no images in {text}", hint=f"files that count end in {endings}")
    return Images(images)


@dataclass(frozen=True)
class VideoReader:
    """An opened video; iterating it yields its frames."""

    capture: Any
    fps: float
    size: tuple[int, int]
    """(height, width) in pixels."""
    frames: int | None
    """Number of frames, or None when unknown or endless."""
    mirror: bool

    def __iter__(self) -> Iterator[RgbImage]:
        """RGB frames until the end."""
        while True:
            more, frame = self.capture.read()
            if not more:
                return
            frame = cv2.flip(frame, 1) if self.mirror else frame
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


@contextmanager
def open_video(video: Video) -> Iterator[VideoReader]:
    """Open a video or camera for the time of the block.

    Raises:
        DataError: It cannot be opened.
    """
    capture = cv2.VideoCapture(video.path if isinstance(video.path, int) else str(video.path))
    try:
        if not capture.isOpened():
            raise DataError(
                f"cannot open {'camera' if video.live else 'video'} {video.path}",
                hint="check that it is connected and not in use"
                if video.live
                else "check the path; the file may be damaged or of an unknown format",
            )
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield VideoReader(
            capture,
            fps if math.isfinite(fps) and fps > 0 else _DEFAULT_FPS,
            (
                int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
                int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            ),
            count if count > 0 and not video.live else None,
            video.live,
        )
    finally:
        capture.release()
