"""SIGKILL at any moment costs at most the last moments of work."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from killed import FILES, run, zips
from loopback import Loopback, serving

KILLS = 50


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as server:
        server.files = {archive.path: data for archive, data in zips().items()}
        server.rate = 1_000_000
        yield server


def stage(folder: Path) -> str:
    """What a killed download was doing."""
    parts = list(folder.glob("*.part"))
    unpacking = list(folder.glob("*/.*.unpacking"))
    if parts:
        return "fetching and unpacking" if unpacking else "fetching"
    return "unpacking" if unpacking else "in between"


def require_no_half_file(folder: Path) -> None:
    """What has a final name has its final content."""
    for name, files in FILES.items():
        for path in (folder / name).glob("[!.]*"):
            assert path.read_bytes() == files[path.name], path


def require_whole(folder: Path) -> None:
    require_no_half_file(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    records = {
        f".downloaded/{name}" for name in ("lock", "annotations.zip.json", "images.zip.json")
    }
    assert names == records | {f"{name}/{file}" for name, files in FILES.items() for file in files}


def start(folder: Path, server: Loopback) -> BaseProcess:
    """A process that has just begun to download."""
    context = multiprocessing.get_context("forkserver")  # it starts in milliseconds
    context.set_forkserver_preload(["yolact.download.coco"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(str(folder), server.url(), there))
    process.start()
    assert here.poll(60) and here.recv()
    return process


def finish(folder: Path, server: Loopback) -> float:
    """Download to the end; returns how many seconds it takes."""
    process = start(folder, server)
    began = time.monotonic()
    process.join(60)
    assert process.exitcode == 0
    require_whole(folder)
    return time.monotonic() - began


@pytest.mark.slow
def test_fifty_kills_end_in_a_correct_tree(server: Loopback, tmp_path: Path) -> None:
    longest = 0.5 * finish(tmp_path / "unharmed", server)
    moments = random.Random(1)
    stages: Counter[str] = Counter()
    folder, kills = tmp_path / "0", 0
    while kills < KILLS:
        process = start(folder, server)
        process.join(moments.uniform(0, longest))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            require_whole(folder)
            folder = tmp_path / str(kills)
        elif folder.exists():
            require_no_half_file(folder)
            stages[stage(folder)] += 1
    finish(folder, server)
    made = {path.name for path in tmp_path.iterdir()}
    assert made <= {"unharmed", *(str(kill) for kill in range(KILLS + 1))}
    assert stages["fetching"] >= 3, stages
    assert stages["unpacking"] + stages["fetching and unpacking"] >= 3, stages
