"""The PyTorch engine: the reference that every other engine is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from yolact.data.labels import Classes
from yolact.engines.base import check_images
from yolact.model.yolact import InferenceModel, Yolact
from yolact.types import RawOutputs


class TorchEngine:
    """Runs a :class:`Yolact` in evaluation mode, without gradients.

    Args:
        model: Put into evaluation mode and moved to ``device``; not copied.
        classes: Meaning of the class indices.
        device: A torch device such as ``cpu`` or ``cuda:0``.
        num_cores: Threads per call; None leaves torch's setting alone.
    """

    name = "torch"
    batch_size: int | None = None

    def __init__(
        self,
        model: Yolact,
        classes: Classes,
        device: str | torch.device = "cpu",
        num_cores: int | None = None,
    ) -> None:
        """Wrap the model; see the class."""
        self.classes = classes
        self.image_size = model.config.input_size
        self.device = torch.device(device)
        self.num_cores = num_cores
        self._model = InferenceModel(model).eval().to(self.device)

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see :class:`yolact.engines.base.Engine`."""
        check_images(self, images)
        with torch.inference_mode(), torch_threads(self.num_cores):
            outputs: RawOutputs = self._model(images.to(self.device))
        return outputs


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block; the setting belongs to the process."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
