"""A download is resumed, verified and never half-finished, whatever the server does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopback import PAGE, Fault, Loopback, serving
from yolact.errors import ConfigError, DownloadError, StorageError
from yolact.fetch.part import Part
from yolact.fetch.patience import Patience
from yolact.fetch.source import Digest, Source, digest_of
from yolact.fetch.transfer import Fetched, fetch

QUICK = Patience(attempts=3, first_wait=0.005, connect=2, stall=0.3, save_every=0.01)
DATA = random.Random(0).randbytes(100_000)
PIECE = 16_384
NAME = "some/file.zip"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as server:
        server.files[NAME] = DATA
        yield server


def digest(data: bytes, algorithm: str = "md5") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def known(server: Loopback, **changes: Any) -> Source:
    values = {"urls": (server.url(NAME),), "size": len(DATA), "digest": digest(DATA)}
    return Source(**{**values, **changes})


def unknown(server: Loopback) -> Source:
    return Source((server.url(NAME),))


def get(source: Source, folder: Path, **options: Any) -> Fetched:
    return fetch(
        source,
        folder / "file.zip",
        **{"patience": QUICK, "piece": PIECE, "connections": 1, **options},
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(folder: Path) -> bool:
    """Whether the file, and nothing but the file, is there."""
    return names(folder) == {"file.zip"} and (folder / "file.zip").read_bytes() == DATA


@pytest.mark.parametrize("connections", [1, 3, 50])
@pytest.mark.parametrize("piece", [1000, PIECE, 10**9])
@pytest.mark.parametrize("make", [known, unknown])
def test_a_file_arrives_whole(
    server: Loopback, tmp_path: Path, make: Any, piece: int, connections: int
) -> None:
    got = get(make(server), tmp_path, piece=piece, connections=connections)
    assert whole(tmp_path)
    assert (got.path, got.size) == (tmp_path / "file.zip", len(DATA))
    assert got.url == server.url(NAME)
    assert got.digest == digest(DATA, "md5" if make is known else "sha256")


def test_pieces_are_asked_for_in_the_order_of_the_file(server: Loopback, tmp_path: Path) -> None:
    get(known(server), tmp_path)
    first, *rest = server.ranges(NAME)
    assert first == f"bytes=0-{PIECE - 1}"
    assert rest == [
        f"bytes={start}-{min(start + PIECE, len(DATA)) - 1}"
        for start in range(PIECE, len(DATA), PIECE)
    ]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=7000),
        Fault(reset=7000),
        Fault(stall=7000),
        Fault(reset=0),
        Fault(status=503),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(headers={"Content-Length": "9000"}),
    ],
    ids=str,
)
def test_what_passes_is_waited_for(
    server: Loopback, tmp_path: Path, fault: Fault, connections: int
) -> None:
    server.plan(NAME, *[Fault(), fault] * 3)
    get(unknown(server), tmp_path, connections=connections)
    assert whole(tmp_path)


def test_a_broken_connection_goes_on_where_it_ended(server: Loopback, tmp_path: Path) -> None:
    server.plan(NAME, *[Fault(cut=30_000)] * 3)
    get(unknown(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == [
        *("bytes=0-999999", "bytes=30000-99999", "bytes=60000-99999", "bytes=90000-99999")
    ]
    assert whole(tmp_path)
