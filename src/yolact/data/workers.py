"""The processes of a loader: how batches leave them, and what happens when they die or get stuck.

torch's DataLoader sends every tensor of a batch through a file of its own in shared memory. A
container has 64 MB of that; a batch that does not fit is lost in a thread of its process, and the
loader waits for it for ever. It also waits for ever for a process that waits for a disk. Here a
batch is one file without a name (:class:`Parcel`), which needs no shared memory, and a
:class:`Watch` ends processes that do nothing, so that the loader sees that they are gone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from multiprocessing import RawArray
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from yolact.errors import ConfigError, DataError, YolactError
from yolact.types import Batch, Target

Items = TypeVar("Items", bound=Sequence[Any])
Read = TypeVar("Read")

PATIENCE = 40.0
"""Seconds that a disk may take for its first image."""
_BETWEEN_LOOKS = 0.1
_SECONDS_TO_DIE = 1.0
_ALIGNMENT = 64
"""Bytes; of the tensors in a parcel."""
_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


class WorkerError(ConfigError):
    """A process that prepares images could not be started, died, or could not hand over a batch."""


class Parcel:
    """A batch on its way from the process that made it, in memory that only a descriptor names.

    One descriptor serves a whole batch, however many tensors it has. What travels through the pipe
    besides is so short that no process can be killed in the middle of it.
    """

    def __init__(self, batch: Batch) -> None:
        """Copy ``batch`` into the file.

        Raises:
            OSError: There is no memory or no descriptor left.
        """
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(_each(batch, Tensor.numpy), 5, buffer_callback=buffers.append)
        lengths = []
        with _nameless_file() as file:
            for buffer in buffers:
                raw = buffer.raw()
                lengths.append(raw.nbytes)
                file.write(raw)
                file.write(bytes(-raw.nbytes % _ALIGNMENT))
            self._size = file.tell()
            pickle.dump((lengths, head), file)
            file.flush()
            # Made here, not while it is pickled: there, nobody would hear of an error.
            self._descriptor: Any = DupFd(file.fileno())

    def open(self) -> Batch:
        """The batch; its tensors lie in the file, which goes when they do.

        Raises:
            OSError: There is no memory or no descriptor left, or the other process is gone.
            EOFError: The other process is gone.
            RuntimeError: There is no descriptor left.
        """
        descriptor = self._descriptor.detach()
        try:
            view = memoryview(mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE))
        finally:
            os.close(descriptor)
        lengths, head = pickle.loads(view[self._size :])
        buffers, start = [], 0
        for length in lengths:
            buffers.append(view[start : start + length])
            start += length + -length % _ALIGNMENT
        return _each(pickle.loads(head, buffers=buffers), torch.from_numpy)

    def pin_memory(self) -> Batch:
        """The batch in memory from which copies to a GPU are fast; torch calls this."""
        return _each(self.open(), Tensor.pin_memory)


class Note(ctypes.Structure):
    """What a process does, written by it and read by the one that waits."""

    _fields_ = (("index", ctypes.c_longlong), ("samples", ctypes.c_longlong))
    index: int
    """Of the sample that it makes now, plus 1; 0 while it makes none."""
    samples: int
    """Made so far."""

    @contextmanager
    def making(self, index: int) -> Iterator[None]:
        """The block makes the sample at ``index``."""
        self.index = index + 1
        try:
            yield
        finally:
            self.index = 0
            self.samples += 1


class Watch:
    """Knows what the processes of one loader do, and ends them.

    Args:
        workers: How many there will be.
        name: Says what the sample at an index is made of, for messages.
        patience: Seconds without any sample after which they are taken for stuck, beyond those
            that samples have taken so far.
    """

    def __init__(
        self, workers: int, name: Callable[[int], str], patience: float = PATIENCE
    ) -> None:
        """Nothing is watched before :meth:`start`."""
        self.notes: Any = RawArray(Note, workers) if workers else ()
        self._name = name
        self._patience = patience
        self._processes: Sequence[BaseProcess] = ()
        self._waiting = False
        self._ended = threading.Event()
        self._owner = os.getpid()
        self._failure: YolactError | None = None

    def start(self, processes: Sequence[BaseProcess]) -> None:
        """Watch ``processes`` from now on.

        Raises:
            RuntimeError: The system allows no more threads.
        """
        self._processes = processes
        self._failure = None
        self._ended.clear()
        threading.Thread(target=self._look, name="loader-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the block waits for a batch, somebody has to make samples."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def failure(self, error: BaseException) -> YolactError | None:
        """Why waiting for a batch ended with ``error``; None when that is a bug."""
        if isinstance(error, OSError | EOFError):
            time.sleep(3 * _BETWEEN_LOOKS)  # a connection ends before the process does
        self._look_for_dead()
        self._failure = self._failure or refused(error)
        return self._failure

    @property
    def started(self) -> bool:
        """Whether there are processes to watch."""
        return bool(self._processes)

    def close(self) -> None:
        """End the processes, also those that wait for a disk; they have nothing to lose."""
        self._ended.set()
        if os.getpid() != self._owner:  # a process that was forked from it later
            return
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_SECONDS_TO_DIE)
        self._processes = ()

    def _look(self) -> None:
        """Count looks at which nothing had changed, not time: that passes while all are stopped."""
        silent, longest, seen = 0.0, 0.0, self._samples()
        while not self._ended.wait(_BETWEEN_LOOKS):
            samples = self._samples()
            if samples != seen or not self._waiting:
                longest, silent, seen = max(longest, silent), 0.0, samples
                continue
            silent += _BETWEEN_LOOKS
            self._look_for_dead()
            if silent >= self._patience + longest:
                self._failure = self._failure or self._says_stuck(silent)
            if self._failure is not None:
                for process in self._processes:
                    process.kill()  # which the loader notices
                return

    def _look_for_dead(self) -> None:
        for process, note in zip(self._processes, self.notes, strict=False):
            if self._failure is None and not process.is_alive():
                self._failure = self._death(process, note)

    def _samples(self) -> int:
        return sum(note.samples for note in self.notes)

    def _says_stuck(self, seconds: float) -> YolactError:
        busy = [self._name(note.index - 1) for note in self.notes if note.index]
        if not busy:
            return WorkerError(
                f"no batch arrived for {seconds:.0f} s from the processes that prepare images",
                hint="use --num_workers 0",
            )
        return DataError(
            f"no image could be read for {seconds:.0f} s: {len(busy)} of {len(self.notes)} "
            f"processes wait for a disk (first: for {busy[0]})",
            hint="check the disk or the network mount that it is on",
        )

    def _death(self, process: BaseProcess, note: Note) -> YolactError:
        code = process.exitcode or 0
        how = f"was killed ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
        where = f" while it read {self._name(note.index - 1)}" if note.index else ""
        return WorkerError(
            f"a process that prepares images {how}{where}",
            hint="if memory ran out, use a smaller --num_workers or --batch_size; "
            "--num_workers 0 uses no such processes",
        )


class Reader:
    """Reads ahead in one thread, which nobody waits for in vain: neither here nor at the end.

    In its place a pool of ``concurrent.futures`` would be waited for when the program ends.

    Args:
        patience: As that of a :class:`Watch`; each item to read has a second more.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        """Nothing read yet."""
        self._patience = patience
        self._longest = 0.0

    def submit(self, read: Callable[[Items], Read], items: Items) -> Callable[[], Read]:
        """Begin to read ``items``.

        Returns:
            What waits for the result. It raises what ``read`` raises, and a DataError when the disk
            does not answer.
        """
        answer: Future[Read] = Future()

        def work() -> None:
            try:
                answer.set_result(read(items))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, name="reader", daemon=True).start()
        return lambda: self._wait(answer, len(items))

    def _wait(self, answer: Future[Read], items: int) -> Read:
        silent, limit = 0.0, self._patience + items + self._longest
        while not wait([answer], _BETWEEN_LOOKS).done:
            silent += _BETWEEN_LOOKS
            if silent >= limit:
                raise DataError(
                    f"no image could be read for {silent:.0f} s",
                    hint="check the disk or the network mount that they are on",
                )
        self._longest = max(self._longest, silent)
        return answer.result()


def refused(error: BaseException) -> YolactError | None:
    """What the user can do about a refusal of the system; None when ``error`` is a bug."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return WorkerError(
            f"out of memory while images were prepared: {text}",
            hint="use a smaller --num_workers or --batch_size",
        )
    if "in DataLoader worker process" in text:  # torch says so of what the dataset raised
        return None
    if isinstance(error, OSError | EOFError) or "ancdata" in str(error) or "open files" in text:
        return WorkerError(
            f"a batch could not be handed over by the process that prepared it: {text}",
            hint="raise the limit of open files (ulimit -n 4096), or use --num_workers 0",
        )
    return None


def die_with_parent() -> None:
    """Let the system end this process when its parent is gone, even while it waits for a disk.

    Only Linux does so; elsewhere torch's own look at the parent has to do, between two batches.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _nameless_file() -> IO[bytes]:
    """A file in memory where the system has such, else one on disk."""
    try:
        return open(os.memfd_create("yolact-batch"), "w+b")
    except (AttributeError, OSError):  # not Linux, or forbidden in a container
        return tempfile.TemporaryFile()


def _each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """The batch with ``change`` applied to every tensor."""
    targets = [Target(*map(change, target)) for target in batch.targets]
    return Batch(change(batch.images), targets, batch.image_ids)
