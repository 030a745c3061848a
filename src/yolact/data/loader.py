"""Batches in an order that depends on the seed and the epoch only, from any number of workers."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from yolact.errors import YolactError
from yolact.types import Batch, Sample

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
    """A DataLoader whose workers hand a user's error over as it is.

    PyTorch would raise it again as a traceback in a message, without its hint.
    """

    batch_sampler: EpochBatches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches from the sampler's position to the end of its epoch."""
        for batch in super().__iter__():
            if isinstance(batch, YolactError):
                try:
                    raise batch
                finally:
                    del batch  # with this frame it would form a cycle that keeps workers alive
            yield batch


def make_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    workers: int,
    seed: int,
    *,
    pin_memory: bool = False,
) -> BatchLoader:
    """Batches of a dataset whose ``[(epoch, index)]`` is a sample.

    ``loader.batch_sampler.set_position(epoch, batch)`` chooses where the next iteration starts.

    Args:
        dataset: For instance :class:`~yolact.data.coco.CocoInstances`.
        batch_size: Images per batch.
        workers: Processes that prepare batches; 0 prepares them here. No effect on the batches.
        seed: Of the order; the dataset has a seed of its own.
        pin_memory: For faster copies to a GPU.
    """
    guarded = _Guarded(dataset)
    with warnings.catch_warnings():  # more processes than cores is the option's default
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return BatchLoader(
            guarded,
            batch_sampler=EpochBatches(len(guarded), batch_size, seed),
            num_workers=workers,
            collate_fn=_collate_or_error,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
        )


class _Guarded(Dataset[Any]):
    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> Sample | YolactError:
        try:
            return self.dataset[key]
        except YolactError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | YolactError]) -> Batch | YolactError:
    errors = [sample for sample in samples if isinstance(sample, YolactError)]
    return errors[0] if errors else collate([s for s in samples if isinstance(s, Sample)])


def _pass_over_once(number: int, frame: FrameType | None) -> None:
    """Job schedulers and timeouts send the whole group a SIGTERM; a second one means this process.

    The training process needs its workers until it has saved, and they follow when it ends.
    """
    signal.signal(number, signal.SIG_DFL)


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    signal.signal(signal.SIGTERM, _pass_over_once)
    cv2.setNumThreads(0)  # one process per worker is parallel enough; a fork loses the threads
