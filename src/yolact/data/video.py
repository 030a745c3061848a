"""Videos of every container that OpenCV opens, cameras and network streams, as timed frames."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from PIL import Image

from yolact.data.images import RgbImage, silence_opencv
from yolact.errors import DataError
from yolact.files import unicode_path

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v"),
    *(".vob", ".wmv", ".asf", ".flv", ".f4v", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".ogv"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg", ".mxf", ".dv", ".y4m"),
)
"""What videos in a folder are known by; a file that is named itself is judged by its content."""
PATIENCE_S = 10
"""Seconds that a network source has to answer, and to send its next frame."""

_FASTEST, _SLOWEST = 240.0, 0.01
"""Frames per second that a video file can sensibly have."""
_DEFAULT_FPS = 30.0
_FINE, _FINEST = 24, 10
"""Frames per second for uneven times; how many a frame may become for that."""
_SCANNED = 120
"""Frames whose times are looked at before a video is read."""
_LONGEST_PAUSE_MS = 60_000.0
"""A longer one is a jump of the clock, unless the video is known to be that long."""
_TURNED_BACK_MS = 1000.0
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_STILLS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")
"""Pictures in the container of .mp4 files."""


@dataclass(frozen=True)
class Video:
    """A video file, a camera when ``path`` is its number, or a stream when it is an address."""

    path: Path | int | str

    @property
    def camera(self) -> bool:
        """Whether this is a camera of this machine: shown as in a mirror."""
        return isinstance(self.path, int)

    @property
    def remote(self) -> bool:
        """Whether reading it opens a connection."""
        return isinstance(self.path, str)

    @property
    def live(self) -> bool:
        """Whether only the user or the other side may end it."""
        return self.camera or self.remote

    @property
    def name(self) -> str:
        """What messages and files call it: an address without user, password and query."""
        if not isinstance(self.path, str):
            return str(self.path)
        scheme, rest = self.path.split("://", 1)
        place, query, _ = rest.partition("?")
        user, at, host = place.rpartition("@")  # also of passwords that hold a slash
        return f"{scheme}://{'...@' if at else ''}{host}{'?...' if query else ''}"

    def __repr__(self) -> str:
        """Without the password, as the name."""
        return f"Video({self.name!r})"


def named_video(text: str) -> Video | None:
    """The camera or stream that ``text`` means; None when it is the path of something.

    >>> named_video("0"), named_video("rtsp://me:secret@cam/1"), named_video("dog.mp4")
    (Video('0'), Video('rtsp://...@cam/1'), None)
    """
    if _ADDRESS.match(text):
        scheme = text.split(":", 1)[0].lower()
        return Video(Path(unquote(urlsplit(text).path))) if scheme == "file" else Video(text)
    number = re.fullmatch(r"(?:/dev/video)?([0-9]+)", text)
    return Video(int(number[1])) if number and not Path(text).is_file() else None


def find_video(text: str) -> Video:
    """The one video that ``text`` names: a file, an address or a camera's number.

    Raises:
        DataError: There is nothing, or something else.
    """
    video, path = named_video(text) or Video(Path(text)), Path(text)
    if isinstance(video.path, Path):
        path = video.path
        if path.is_dir():
            raise DataError(
                f"{text} is a folder, not a video",
                hint="name one video; sparseml.yolact.annotate takes a folder of videos",
            )
        if not path.exists():
            raise DataError(
                f"no video at {text}",
                hint="give a video file, an address such as rtsp://..., or a camera number",
            )
        if path.is_file() and holds_image(path):
            raise DataError(f"{text} is an image, not a video", hint="use --image IN:OUT")
    return video


def holds_image(path: Path) -> bool:
    """Whether a file's first bytes are a picture's; an animation of several pictures is none."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:  # what reads it says why it cannot
        return False
    if head.startswith(b"GIF8"):
        try:
            with Image.open(path) as image:
                return not getattr(image, "is_animated", False)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return True
    if head[4:8] == b"ftyp":
        return head[8:12] in _STILLS
    with unicode_path(path) as name:
        return bool(cv2.haveImageReader(name))


def holds_video(path: Path) -> bool:
    """Whether OpenCV finds a frame in a file when it takes it for a video."""
    silence_opencv()
    capture = _capture(Video(path))
    try:
        return bool(capture.isOpened() and capture.grab())
    finally:
        capture.release()


class Frame(NamedTuple):
    """One picture of a video."""

    image: RgbImage
    ms: float
    """Milliseconds since the first frame; never less than of the frame before."""


class VideoReader:
    """An opened video; iterating it yields its frames, turned as the video says."""

    def __init__(self, video: Video, capture: Any) -> None:
        """Look at the times of the first frames; ``capture`` is OpenCV's."""
        self._capture, self._video = capture, video
        claimed, frames = (capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        times = [] if video.live else _first_times(video)
        self.fps = frame_rate(claimed, times)
        """Frames per second, constant; a video of changing pace has times at this resolution."""
        self.frames = int(frames) if 0 < frames < 2**31 and not video.camera else None
        """How many the file says it has, or None when unknown or endless."""
        code = int(capture.get(cv2.CAP_PROP_FOURCC))
        self.codec = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
        """Four letters, or none."""
        self.done = 0
        """Frames that were read."""
        length = 1000 * self.frames / claimed if self.frames and claimed > 0 else 0.0
        timed = any(later > earlier for earlier, later in zip(times, times[1:], strict=False))
        pause = max(_LONGEST_PAUSE_MS, 2 * length)
        self._clock = _Clock(1000 / self.fps, pause, timed=timed, live=video.live)

    def __iter__(self) -> Iterator[Frame]:
        """RGB frames until the end."""
        while True:
            more, frame = self._capture.read()
            if not more:
                return
            self.done += 1
            ms = self._clock(self._capture.get(cv2.CAP_PROP_POS_MSEC), time.monotonic())
            frame = cv2.flip(frame, 1) if self._video.camera else frame
            yield Frame(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8), ms)

    @property
    def missing(self) -> int:
        """Of a file read to its end, the frames it says it has and has not.

        Some files only estimate their number, so 2 percent and a single frame do not count.
        """
        missing = (self.frames or 0) - self.done
        return missing if missing > max(1.0, 0.02 * self.done) else 0


@contextmanager
def open_video(video: Video) -> Iterator[VideoReader]:
    """Open a video, camera or stream for the time of the block.

    Raises:
        DataError: It cannot be opened.
    """
    silence_opencv()
    capture = _capture(video)
    try:
        if not capture.isOpened():
            raise _unopened(video)
        # Off by default in OpenCV 4.11, on in the others.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        yield VideoReader(video, capture)
    finally:
        capture.release()


def frame_rate(claimed: float, times: Sequence[float]) -> float:
    """Frames per second of a result that shows every frame at its time.

    Args:
        claimed: What the file says, which may be an average or nonsense.
        times: Milliseconds of its first frames; none, or all the same, when it has none.

    >>> frame_rate(25, [0, 40, 80]), frame_rate(1000, [0, 40, 80]), frame_rate(0, [])
    (25.0, 25.0, 30.0)
    >>> frame_rate(2.55, [0, 100, 200, 300, 1300, 2300])
    30.0
    """
    sane = math.isfinite(claimed) and _SLOWEST <= claimed <= _FASTEST
    gaps = np.diff(np.asarray(times, float))
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return float(claimed) if sane else _DEFAULT_FPS
    if sane and (abs(gaps - 1000 / claimed) <= max(1.5, 50 / claimed)).all():
        return float(claimed)
    measured = 1000 / float(np.percentile(gaps, 10))  # the shortest, but for a few
    if sane and claimed <= 2 * _DEFAULT_FPS:
        measured = max(measured, claimed)  # an average: some frames later are as quick
    measured = min(max(measured, _SLOWEST), _FASTEST)
    return round(measured * min(math.ceil(_FINE / measured), _FINEST), 2)


class _Clock:
    """When each frame of a video is seen, in milliseconds from the first one."""

    def __init__(self, step: float, pause: float, *, timed: bool, live: bool) -> None:
        """The usual and the longest time between frames; whether to trust the video's times."""
        self.step, self.pause, self.timed, self.live = step, pause, timed, live
        self.count, self.previous, self.origin, self.began = 0, 0.0, 0.0, 0.0

    def __call__(self, stamp: float, now: float) -> float:
        """The next frame's: ``stamp`` is the video's word for it, ``now`` this machine's in s."""
        self.count += 1
        if self.count == 1:
            self.origin, self.began = stamp, now
            return 0.0
        elapsed = stamp - self.origin
        if self.live and self.count == 2:
            self.timed = 0 < elapsed <= self.pause
        if not self.timed:
            elapsed = 1000 * (now - self.began) if self.live else (self.count - 1) * self.step
        elif not -_TURNED_BACK_MS <= elapsed - self.previous <= self.pause:
            elapsed = self.previous + self.step  # the times start anew in the middle
            self.origin = stamp - elapsed
        self.previous = max(self.previous, elapsed)
        return self.previous


def _capture(video: Video) -> Any:
    if isinstance(video.path, int):
        return cv2.VideoCapture(video.path)
    if isinstance(video.path, str):
        patience = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        limits = [number for kind in patience for number in (kind, int(1000 * PATIENCE_S))]
        return cv2.VideoCapture(video.path, cv2.CAP_ANY, limits)
    # FFmpeg takes what is before a colon for a protocol, but not in an absolute path.
    with unicode_path(video.path) as name:
        return cv2.VideoCapture(name)


def _first_times(video: Video) -> list[float]:
    capture = _capture(video)
    times: list[float] = []
    try:
        while len(times) < _SCANNED and capture.grab():
            times.append(float(capture.get(cv2.CAP_PROP_POS_MSEC)))
    finally:
        capture.release()
    return times


def _unopened(video: Video) -> DataError:
    if isinstance(video.path, int):
        return DataError(
            f"cannot open camera {video.name}", hint="check that it is connected and not in use"
        )
    if isinstance(video.path, str):
        return DataError(
            f"cannot open {video.name}: no video from there within {PATIENCE_S} s",
            hint="check address, user and password, and whether a player opens it",
        )
    path = video.path
    if not path.is_file():
        return DataError(f"no video at {path}", hint="check the path")
    if not os.access(path, os.R_OK):
        return DataError(f"no permission to read video {path}", hint="change it with chmod")
    if not path.stat().st_size:
        return DataError(f"video {path} is empty", hint="copy or record it again")
    if _without_index(path):
        return DataError(
            f"cannot open video {path}: it is cut off, its index (moov) is missing",
            hint="copy it again; if the recording itself broke off, a tool such as untrunc helps",
        )
    return DataError(
        f"cannot open video {path}: no format that OpenCV knows",
        hint="check that it is a video and can be read; ffmpeg -i IN OUT.mp4 converts most",
    )


def _without_index(path: Path) -> bool:
    """Whether a file is of the .mp4 family and ends before the box that tells where frames are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place, kinds = 0, []
        while place + 8 <= size:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            kinds.append(head[4:8])
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                break
            place += length
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds
