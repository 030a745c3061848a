"""Videos, cameras and streams as timed frames."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import yolact.data.video
from videos import delay, ticks, turn, write_video
from yolact.data.images import RgbImage
from yolact.data.sources import Images, Videos, find_source
from yolact.data.video import Frame, Video, find_video, frame_rate, named_video, open_video
from yolact.errors import DataError


def read(video: Video) -> list[Frame]:
    with open_video(video) as reader:
        return list(reader)


def red_corner(image: RgbImage) -> tuple[bool, bool]:
    """Whether the red patch is below and right of the middle."""
    red = (image[..., 0].astype(int) - image[..., 2]) > 100
    rows, columns = np.nonzero(red)
    return rows.mean() > image.shape[0] / 2, columns.mean() > image.shape[1] / 2


@pytest.mark.parametrize(
    ("degrees", "size", "corner"),
    [(90, (96, 64), (False, True)), (180, (64, 96), (True, True)), (270, (96, 64), (True, False))],
)
def test_videos_are_turned_as_a_player_turns_them(
    tmp_path: Path, degrees: int, size: tuple[int, int], corner: tuple[bool, bool]
) -> None:
    path = write_video(tmp_path / "phone.mp4")
    assert red_corner(read(Video(path))[0].image) == (False, False)
    turn(path, degrees)
    image = read(Video(path))[0].image
    assert image.shape[:2] == size
    assert red_corner(image) == corner


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.wmv", "WMV2"), ("b.FLV", "FLV1"), ("c.ts", "MPG2"), ("d.3gp", "mp4v"), ("e", "mp4v")],
)
def test_a_video_is_known_by_what_it_holds(tmp_path: Path, name: str, code: str) -> None:
    written = tmp_path / (name if "." in name else "x.mkv")
    path = write_video(written, code=code, fps=25).rename(tmp_path / name)
    found = find_source(str(path))
    assert found == Videos([Video(path)])
    assert len(read(found.videos[0])) == 6


def test_pictures_are_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 90, 180)]
    frames[0].save(tmp_path / "a.mp4", "PNG")
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name in ("a.mp4", "still.gif", "photo.heic"):
        assert find_source(str(tmp_path / name)) == Images([tmp_path / name])
    moving = find_source(str(tmp_path / "moving.gif"))
    assert isinstance(moving, Videos)
    assert [frame.ms for frame in read(moving.videos[0])] == [0, 100, 200]


def test_a_name_with_a_colon_is_no_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "x.mp4").rename("12:30.mp4")
    assert len(read(Video(Path("12:30.mp4")))) == 6


def test_uneven_times_are_read_from_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "screen.mp4")
    tick = ticks(path)
    delay(path, [round(tick * seconds) for seconds in (0.1, 0.1, 1, 0.5, 2, 0.1)])
    with open_video(Video(path)) as reader:
        times = [frame.ms for frame in reader]
    assert times == pytest.approx([0, 100, 200, 1200, 1700, 3700], abs=1)
    assert min(b - a for a, b in pairwise(times)) * reader.fps >= 999


@pytest.mark.parametrize(
    ("claimed", "times", "expected"),
    [
        (25, [0, 40, 80, 120], 25),
        (29.97, [0, 33, 67, 100, 133], 29.97),
        (240, [0, 4, 8, 13, 17], 240),
        (0.5, [0, 2000, 4000], 0.5),
        (1000, [0, 40, 80, 120], 25),
        (90000, [0, 20, 40, 60], 50),
        (0, [0, 100, 200], 30),
        (float("nan"), [], 30),
        (0, [0, 0, 0, 0], 30),
        (12, [0, 0, 0, 0], 12),
        (-1, [], 30),
    ],
)
def test_a_rate_follows_the_times_where_the_claim_is_absurd(
    claimed: float, times: list[float], expected: float
) -> None:
    assert frame_rate(claimed, times) == pytest.approx(expected)


def test_a_video_without_times_has_even_ones(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.avi", code="MJPG")
    jpegs = path.read_bytes().split(b"\xff\xd8\xff")[1:]
    raw = tmp_path / "raw.mjpeg"
    raw.write_bytes(b"".join(b"\xff\xd8\xff" + jpeg for jpeg in jpegs))
    times = [frame.ms for frame in read(Video(raw))]
    assert len(times) == 6
    assert [b - a for a, b in pairwise(times)] == pytest.approx([times[1]] * 5, abs=1.5)
    assert times[1] > 0


def broken(folder: Path, kind: str) -> Path:
    """A file that calls itself a video."""
    path = folder / "x.mp4"
    if kind == "missing":
        return path
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"no video at all, just words\n" * 40)
    else:
        data = write_video(path, frames=30).read_bytes()
        index = data.index(b"moov") - 4
        path.write_bytes(data[: index if kind == "cut" else 40])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no image, video or folder at"),
        ("empty", "x.mp4 is empty"),
        ("text", "no format that OpenCV knows"),
        ("cut", "it is cut off, its index"),
        ("stub", "it is cut off, its index"),
    ],
)
def test_what_is_no_video_is_told_apart(tmp_path: Path, kind: str, message: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=message):
        found = find_source(str(path))
        assert isinstance(found, Videos)
        read(found.videos[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "notes.txt is empty"), (b"words\n", "neither an image nor a video")],
)
def test_other_files_are_neither(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_source(str(path))


def test_a_file_that_ends_early_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.avi", frames=30, code="MJPG")
    with open_video(Video(path)) as whole:
        assert len(list(whole)) == 30 and whole.missing == 0
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_video(Video(path)) as cut:
        assert 0 < len(list(cut)) < 20
        assert cut.missing == 30 - cut.done


def test_a_folder_of_videos_is_read_as_these(
    tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    clips = [write_video(tmp_path / name) for name in ("a.mp4", "b.mkv")]
    (tmp_path / "notes.txt").write_text("words")
    videos = Videos([Video(path) for path in clips])
    assert find_source(str(tmp_path)) == videos
    assert find_source(str(tmp_path / "*")) == videos
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((8, 8, 3), np.uint8))
    assert find_source(str(tmp_path)) == Images([tmp_path / "c.png"])
    assert "2 of 3 files are videos, left out (first: a.mp4, b.mkv)" in package_log.text


def _animation(path: Path) -> None:
    pictures = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue")]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)


def test_animations_of_a_folder_are_videos_as_those_that_are_named(tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif"):
        _animation(tmp_path / name)
    write_video(tmp_path / "a.mp4")
    names = ["a.gif", "a.mp4", "b.gif"]
    assert find_source(str(tmp_path)) == Videos([Video(tmp_path / name) for name in names])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.gif").read_bytes())
    found = find_source(str(tmp_path))
    assert isinstance(found, Images) and len(found.paths) == 3


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_an_animation_that_is_read_as_an_image_is_said(
    tmp_path: Path, name: str, package_log: pytest.LogCaptureFixture
) -> None:
    _animation(tmp_path / name)
    assert find_source(str(tmp_path / name)) == Images([tmp_path / name])
    assert "holds 2 pictures, the first is used" in package_log.text


def test_names_that_are_no_unicode_are_read(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4").rename(tmp_path / os.fsdecode(b"\xff\n.mp4"))
    assert find_source(str(video)) == Videos([Video(video)])
    with open_video(find_video(str(video))) as reader:
        assert len(list(reader)) == 6
    image = tmp_path / os.fsdecode(b"\xfe.\xff")
    Image.new("RGB", (8, 8)).save(image, "PNG")
    assert find_source(str(image)) == Images([image])


def test_one_video_is_asked_for(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((8, 8, 3), np.uint8))
    assert find_video("3") == Video(3)
    assert find_video("/dev/video3") == Video(3)
    path = write_video(tmp_path / "a b.mp4")
    assert find_video(path.as_uri()) == find_video(str(path)) == Video(path)
    for name, message in (("", "is a folder"), ("no.mp4", "no video at"), ("c.png", "is an image")):
        with pytest.raises(DataError, match=message):
            find_video(str(tmp_path / name))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://cam/1", "rtsp://cam/1"),
        ("rtsp://me:secret@cam:554/1", "rtsp://...@cam:554/1"),
        ("rtsp://me:sec/ret@x@cam/1", "rtsp://...@cam/1"),
        ("http://cam/v.cgi?user=me&pwd=secret", "http://cam/v.cgi?..."),
        ("HTTP://me@cam/", "HTTP://...@cam/"),
    ],
)
def test_a_password_is_never_part_of_a_name(address: str, name: str) -> None:
    video = named_video(address)
    assert video is not None and video.remote and video.live
    assert video.name == name
    assert "sec" not in repr(video)


class _Camera(BaseHTTPRequestHandler):
    """Serves a file, or JPEGs one after the other without an end in sight."""

    video = b""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/file.mp4":
            self.send_header("Content-Length", str(len(self.video)))
            self.end_headers()
            self.wfile.write(self.video)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for shade in range(8):
            jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), shade * 20, np.uint8))[1].tobytes()
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            self.wfile.write(head + jpeg + b"\r\n")
            time.sleep(0.05)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server on this machine; a source has half a second to answer."""
    monkeypatch.setattr(yolact.data.video, "PATIENCE_S", 0.5)
    monkeypatch.setattr(_Camera, "video", write_video(tmp_path / "x.mp4").read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_video_is_read_from_a_server(camera: str) -> None:
    frames = read(find_source(f"{camera}/file.mp4").videos[0])  # type: ignore[union-attr]
    assert [frame.ms for frame in frames] == pytest.approx([0, 100, 200, 300, 400, 500])


def test_a_stream_without_times_is_timed_as_it_comes(camera: str) -> None:
    frames = read(Video(f"{camera}/stream"))
    assert len(frames) == 8
    assert 150 < frames[-1].ms < 5000


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
@pytest.mark.parametrize("answers", [False, True])
def test_a_dead_stream_is_an_error_within_bounded_time(
    monkeypatch: pytest.MonkeyPatch, scheme: str, answers: bool
) -> None:
    monkeypatch.setattr(yolact.data.video, "PATIENCE_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen()
        address = f"{scheme}://me:secret@127.0.0.1:{silent.getsockname()[1]}/1"
        start = time.monotonic()
        with pytest.raises(DataError, match="cannot open") as caught:
            read(Video(address))
    assert time.monotonic() - start < 5
    assert "secret" not in f"{caught.value}{caught.value.hint}"
