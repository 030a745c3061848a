"""Batches in an order that depends on the seed and the epoch only, from any number of workers."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import active_children
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from yolact.data.workers import PATIENCE, Note, Parcel, Watch, die_with_parent, refused
from yolact.errors import YolactError
from yolact.types import Batch, Sample

logger = logging.getLogger(__name__)

Key = tuple[int, int]
"""(epoch, index): what a dataset needs to know to make one sample."""


class EpochBatches(Sampler[list[Key]]):
    """A batch sampler that shuffles each epoch by ``(seed, epoch)`` and can start anywhere in it.

    The last partial batch is dropped, unless it is the only one.
    """

    def __init__(self, images: int, batch_size: int, seed: int = 0) -> None:
        """Batch the indices 0 .. ``images`` - 1."""
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._epoch, self._batch = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the next iteration starts."""
        return max(self.images // self.batch_size, min(self.images, 1))

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration yield the batches of ``epoch`` from number ``batch`` on."""
        self._epoch, self._batch = epoch, batch

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of the remaining batches of the epoch."""
        epoch = self._epoch
        order = np.random.Generator(np.random.PCG64((self.seed, epoch))).permutation(self.images)
        for start in range(self._batch, len(self)):
            chosen = order[start * self.batch_size : (start + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chosen]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the images of samples; targets stay one per image."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=[sample.target for sample in samples],
        image_ids=[sample.image_id for sample in samples],
    )


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that ends with one error whatever happens to its workers, and never hangs.

    Attributes:
        watch: Of its workers.
    """

    batch_sampler: EpochBatches
    watch: Watch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches from the sampler's position to the end of its epoch.

        Raises:
            YolactError: One of the dataset, as it is; a worker died; or all of them are stuck.
        """
        batches = self._batches()
        while True:
            batch = self._next(batches)
            if batch is None:
                return
            if isinstance(batch, YolactError):
                del batches  # the error's traceback would keep it, and with it the workers
                raise batch
            yield batch

    def _next(self, batches: Iterator[Any]) -> Batch | YolactError | None:
        """The next batch, why there is none, or None at the end; the workers end after errors."""
        try:
            with self.watch.waiting():
                batch: Batch | Parcel | YolactError = next(batches)
                result = batch.open() if isinstance(batch, Parcel) else batch
        except StopIteration:
            return None
        except Exception as error:
            failure = self.watch.failure(error)
            self.close()
            if failure is None:
                raise
            error.__traceback__ = None  # whose frames would keep what torch iterates over
            return failure
        if isinstance(result, YolactError):
            self.close()
        return result

    def close(self) -> None:
        """End the workers at once."""
        self.watch.close()
        self._iterator = None

    def check_worker_number_rationality(self) -> None:
        """Warn of nothing: more processes than cores is the option's default."""

    def _batches(self) -> Iterator[Any]:
        """What torch iterates over; without workers where the system allows no new processes."""
        if self.num_workers == 0 or self.watch.started:
            with self.watch.waiting():
                return super().__iter__()
        before = set(active_children())
        try:
            with _own_sigchld():
                batches = super().__iter__()
            self.watch.start([child for child in active_children() if child not in before])
        except BaseException as error:
            for child in set(active_children()) - before:
                child.kill()
            if not isinstance(error, OSError | RuntimeError):  # a signal came meanwhile
                raise
            _say_alone(self.num_workers, error)
            with _unfinished():
                error.__traceback__ = None
            self.num_workers = 0
            return super().__iter__()
        return batches


def make_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    workers: int,
    seed: int,
    *,
    pin_memory: bool = False,
    name: Callable[[int], str] = "sample {}".format,
    patience: float = PATIENCE,
) -> BatchLoader:
    """Batches of a dataset whose ``[(epoch, index)]`` is a sample.

    ``loader.batch_sampler.set_position(epoch, batch)`` chooses where the next iteration starts.

    Args:
        dataset: For instance :class:`~yolact.data.coco.CocoInstances`.
        batch_size: Images per batch.
        workers: Processes that prepare batches; 0 prepares them here. No effect on the batches.
        seed: Of the order; the dataset has a seed of its own.
        pin_memory: For faster copies to a GPU.
        name: Says what the sample at an index is made of, for messages.
        patience: Of the :class:`~yolact.data.workers.Watch`, in seconds.
    """
    try:
        watch = Watch(workers, name, patience)
    except OSError as error:
        _say_alone(workers, error)
        workers, watch = 0, Watch(0, name)
    guarded = _Guarded(dataset, watch.notes)
    loader = BatchLoader(
        guarded,
        batch_sampler=EpochBatches(len(guarded), batch_size, seed),
        num_workers=workers,
        collate_fn=_collate_or_error,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
    )
    loader.watch = watch
    weakref.finalize(loader, watch.close)
    return loader


class _Guarded(Dataset[Any]):
    """Hands a user's error over as it is: torch would make a traceback of it, without its hint."""

    def __init__(self, dataset: Dataset[Sample], notes: Sequence[Note]) -> None:
        self.dataset = dataset
        self.notes = notes

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> Sample | YolactError:
        worker = get_worker_info()
        try:
            with nullcontext() if worker is None else self.notes[worker.id].making(key[1]):
                return self.dataset[key]
        except YolactError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | YolactError]) -> Batch | Parcel | YolactError:
    errors = [sample for sample in samples if isinstance(sample, YolactError)]
    if errors:
        return errors[0]
    try:
        batch = collate([s for s in samples if isinstance(s, Sample)])
        return batch if get_worker_info() is None else Parcel(batch)
    except (OSError, MemoryError) as error:
        failure = refused(error)
        if failure is None:
            raise
        return failure


def _say_alone(workers: int, error: Exception) -> None:
    logger.warning(
        "cannot start %d processes that prepare images (%s): this process prepares them; "
        "a smaller --num_workers may do",
        *(workers, error),
    )


@contextmanager
def _unfinished() -> Iterator[None]:
    """Keep quiet while what torch could not build goes: it looks for what it has not got yet."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _own_sigchld() -> Iterator[None]:
    """Give SIGCHLD back what the block takes from it.

    torch's handler raises wherever the training process happens to be, in the middle of a step or
    of a checkpoint. That a worker died is early enough known when its batch is missing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _pass_over_once(number: int, frame: FrameType | None) -> None:
    """Job schedulers and timeouts send the whole group a SIGTERM; a second one means this process.

    The training process needs its workers until it has saved, and they follow when it ends.
    """
    signal.signal(number, signal.SIG_DFL)


def _start_worker(worker: int) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    signal.signal(signal.SIGTERM, _pass_over_once)
    cv2.setNumThreads(0)  # one process per worker is parallel enough; a fork loses the threads
