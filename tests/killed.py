"""A small data set, and a process that downloads it: what the test of SIGKILL kills."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
import zipfile
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from yolact.download import coco as download
from yolact.download.coco_archives import Archive
from yolact.download.connections import Effort
from yolact.download.http import Patience
from yolact.download.unzip import Rules

_RANDOM = random.Random(0)
FILES = {
    "annotations": {f"{number}.json": _RANDOM.randbytes(9_000) for number in range(3)},
    "images": {f"{number}.jpg": _RANDOM.randbytes(5_000) for number in range(50)},
}
SUFFIXES = {"annotations": ".json", "images": ".jpg"}
_SLOW = 0.006
"""Seconds more that each file takes to unpack."""


def zips() -> dict[Archive, bytes]:
    """The archives and their bytes; the same in every process."""
    made = {}
    for folder, files in FILES.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), data)
        data = buffer.getvalue()
        rules = Rules(folder, SUFFIXES[folder], 10**6)
        md5 = hashlib.md5(data).hexdigest()
        made[Archive(f"{folder}.zip", md5, len(data), rules, folder, len(files))] = data
    return made


def run(folder: str, mirror: str, started: Connection) -> None:
    """Say that all is imported, then download slowly enough to be hit anywhere."""
    started.send(True)
    tqdm.set_lock(threading.RLock())  # its usual one needs a semaphore, which SIGKILL leaks
    archives = list(zips())
    open_member = zipfile.ZipFile.open

    def slowly(*args: Any) -> Any:
        time.sleep(_SLOW)
        return open_member(*args)

    patience = Patience(first_wait=0.01, save_every=0.03)
    options = download.Options((mirror,), workers=2, patience=patience)
    with (
        patch.object(zipfile.ZipFile, "open", slowly),
        patch.object(download, "Effort", partial(Effort, piece=30_000)),
        patch.object(download, "flush_disks"),  # it would wait for other processes' files
    ):
        download.download(archives, Path(folder), options)
