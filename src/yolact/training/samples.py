"""Training batches and their loss, for recipes that prune by gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from yolact.data.loader import make_loader
from yolact.loss.criterion import YolactLoss
from yolact.sparsify.driver import GradientSamples
from yolact.types import Batch, Sample, Target


def gradient_samples(
    model: nn.Module,
    criterion: YolactLoss,
    dataset: Dataset[Sample],
    *,
    batch_size: int,
    seed: int,
) -> GradientSamples:
    """Batches of the run's own data, in float32 and in this process.

    Args:
        model: The network, where its batches go too.
        criterion: Its loss.
        dataset: Training images.
        batch_size: Where the recipe asks for no other.
        seed: Of the batches' order.
    """

    def batches(size: int | None) -> Iterator[Batch]:
        loader = make_loader(dataset, size or batch_size, 0, seed)
        for epoch in count():
            loader.batch_sampler.set_position(epoch)
            yield from loader

    def loss(batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        images = batch.images.to(device, memory_format=torch.channels_last)
        targets = [Target(*(part.to(device) for part in target)) for target in batch.targets]
        return criterion(model(images), targets).total

    return GradientSamples(batches, loss)
