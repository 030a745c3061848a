"""Small videos, and what phones and screen recorders write into theirs."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

TURNS = {
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}
"""The part of a matrix in an .mp4 that turns what is shown clockwise."""


def write_video(path: Path, frames: int = 6, fps: float = 10, code: str = "mp4v") -> Path:
    """A grey video of 96 x 64 with a red patch at the upper left."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (96, 64))
    for index in range(frames):
        picture = np.full((64, 96, 3), 60 + index, np.uint8)
        picture[:24, :32] = (0, 0, 250)
        writer.write(picture)
    writer.release()
    assert path.stat().st_size
    return path


def turn(path: Path, degrees: int) -> None:
    """Write into the track's header what a phone writes that was held upright."""
    data = bytearray(path.read_bytes())
    a, b, c, d = TURNS[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(bytes(data))


def delay(path: Path, deltas: list[int]) -> None:
    """Give each frame of an .mp4 its own time on the screen, in ticks of its track."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12  # what is shown of it, in milliseconds
    data[place : place + 4] = (1000 * sum(deltas) // ticks(path)).to_bytes(4, "big")
    place = data.index(b"stts") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    table = struct.pack(">II", 0, len(deltas)) + b"".join(struct.pack(">II", 1, d) for d in deltas)
    new = struct.pack(">I", 8 + len(table)) + b"stts" + table
    data[place : place + size] = new
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        start = data.index(box) - 4
        length = int.from_bytes(data[start : start + 4], "big") + len(new) - size
        data[start : start + 4] = length.to_bytes(4, "big")
    path.write_bytes(bytes(data))


def ticks(path: Path) -> int:
    """Ticks per second of the track."""
    data = path.read_bytes()
    place = data.index(b"mdhd") + 16
    return int.from_bytes(data[place : place + 4], "big")
