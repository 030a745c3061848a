"""Loading never hangs: processes that die or get stuck, disks that do not answer, no memory."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from yolact.data.loader import make_loader
from yolact.data.workers import Parcel, Reader, Watch, WorkerError, refused
from yolact.errors import DataError, YolactError
from yolact.types import Batch, Sample, Target


def target(objects: int, side: int = 8) -> Target:
    return Target(
        torch.rand(objects, 4),
        torch.arange(objects),
        torch.ones(objects, side, side, dtype=torch.uint8),
        torch.zeros(objects, dtype=torch.bool),
    )


@pytest.mark.parametrize("objects", [[], [0], [3, 0, 1], [1] * 64])
def test_a_parcel_holds_the_batch_and_is_too_short_to_be_cut(objects: list[int]) -> None:
    count = len(objects)
    batch = Batch(torch.rand(count, 3, 8, 8), [target(n) for n in objects], list(range(count)))
    message = pickle.dumps(Parcel(batch))
    assert len(message) < 512, "a pipe takes that at once or not at all"
    opened = pickle.loads(message).open()
    assert opened.image_ids == batch.image_ids and torch.equal(opened.images, batch.images)
    for one, other in zip(opened.targets, batch.targets, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    opened.images.add_(1)  # it is the receiver's own


class Process:
    """Stands in for a process of a loader."""

    def __init__(self, exitcode: int | None = None) -> None:
        self.exitcode = exitcode
        self.killed = threading.Event()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.killed.set()

    def join(self, seconds: float) -> None:
        pass


def watched(*processes: Process, patience: float = 0.2) -> Watch:
    watch = Watch(len(processes), "folder/{}.jpg".format, patience)
    watch.start(processes)  # type: ignore[arg-type]
    return watch


def said(watch: Watch, *processes: Process) -> YolactError | None:
    with watch.waiting():
        assert processes[0].killed.wait(5)
    return watch.failure(RuntimeError("the queue is empty"))


def test_processes_that_make_nothing_are_ended_and_what_they_wait_for_is_named() -> None:
    processes = Process(), Process()
    watch = watched(*processes)
    with watch.notes[1].making(7):
        failure = said(watch, *processes)
    assert isinstance(failure, DataError) and "folder/7.jpg" in str(failure)
    assert failure.hint is not None and "disk" in failure.hint


def test_a_lost_batch_is_no_reason_to_wait_for_ever() -> None:
    process = Process()
    failure = said(watched(process), process)
    assert isinstance(failure, WorkerError) and "no batch arrived" in str(failure)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-signal.SIGKILL, "SIGKILL"), (-signal.SIGBUS, "SIGBUS"), (3, "exit code 3"), (-99, "99")],
)
def test_a_process_that_died_is_told_with_its_end(code: int, words: str) -> None:
    process = Process(code)
    watch = watched(process, patience=60)
    watch.notes[0].index = 5
    failure = said(watch, process)
    assert isinstance(failure, WorkerError) and words in str(failure)
    assert "folder/4.jpg" in str(failure)
    assert failure.hint is not None and "--num_workers" in failure.hint


def test_a_slow_disk_is_no_dead_process() -> None:
    process = Process()
    watch = watched(process, patience=0.3)
    with watch.waiting():
        for _ in range(2):
            with watch.notes[0].making(0):
                assert not process.killed.wait(0.25)
    watch.close()


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "no"), "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "handed over"),
        (EOFError(), "handed over"),
        (ConnectionResetError(), "handed over"),
        (RuntimeError("received 0 items of ancdata"), "handed over"),
    ],
)
def test_refusals_of_the_system_are_errors_with_a_hint(error: Exception, word: str) -> None:
    failure = refused(error)
    assert failure is not None and word in str(failure)
    assert failure.hint is not None and "--num_workers" in failure.hint


def test_bugs_stay_bugs() -> None:
    assert refused(RuntimeError("shapes differ")) is None and refused(KeyError("x")) is None


def test_a_reader_gives_back_what_was_read_and_what_went_wrong() -> None:
    reader = Reader()
    assert reader.submit(sum, [1, 2])() == 3
    with pytest.raises(ZeroDivisionError):
        reader.submit(lambda items: items[0] / 0, [1])()


def test_a_reader_gives_up_on_a_disk_that_does_not_answer() -> None:
    never = threading.Event()
    with pytest.raises(DataError, match="no image could be read"):
        Reader(patience=0.1).submit(lambda _: never.wait(60), [])()
    never.set()


class Samples(Dataset[Sample]):
    """Of 64 px; ``act`` gets the index of each before it is made."""

    def __init__(self, act: Callable[[int], object] = bool, side: int = 64) -> None:
        self.act = act
        self.side = side

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: Any) -> Sample:
        self.act(key[1])
        return Sample(torch.zeros(3, self.side, self.side), target(1, self.side), key[1], (1, 1))


def test_where_no_process_can_be_started_images_are_prepared_all_the_same(
    monkeypatch: pytest.MonkeyPatch, package_log: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    assert len(list(make_loader(Samples(), 4, 2, 0))) == 3
    assert "cannot start 2 processes" in package_log.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_process_outlives_a_killed_parent() -> None:
    code = (
        "import os, time\nfrom test_data_workers import Samples, make_loader\n"
        "def act(index):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "list(make_loader(Samples(act), 2, 1, 0))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(__file__),
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(50):
        with suppress(ProcessLookupError, FileNotFoundError):
            if open(f"/proc/{worker}/stat").read().split()[2] != "Z":
                time.sleep(0.1)
                continue
        return
    pytest.fail("the worker lives on")


@pytest.mark.slow
def test_batches_larger_than_shared_memory_arrive() -> None:
    code = (
        "from test_data_workers import Samples, make_loader\n"
        "assert len(list(make_loader(Samples(side=800), 4, 2, 0))) == 3\n"
    )
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    trial = ["unshare", "-m", "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    program = ["sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code]
    here = os.path.dirname(__file__)
    ended = subprocess.run(["unshare", "-m", *program], cwd=here, timeout=60, capture_output=True)
    assert ended.returncode == 0, ended.stderr
