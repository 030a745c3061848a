"""Images to detections through any engine: the one path of validation, annotation and training."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from yolact.config import DetectConfig
from yolact.data.images import RgbImage
from yolact.data.transforms import preprocess
from yolact.engines.base import DetectingEngine, Engine
from yolact.errors import ConfigError
from yolact.predict.detect import above, detect, first, pixel_boxes, to_instances
from yolact.types import Detections, Instances

_T = TypeVar("_T")


class Found(NamedTuple):
    """What the model sees in one image, before masks are made."""

    detections: Detections
    proto: Tensor
    """[h, w, k] prototypes, a view of the batch's."""
    size: tuple[int, int]
    """(height, width) of the image in pixels."""

    def instances(self, *, crop: bool = True, masks: bool = True) -> Instances:
        """The objects at the image's own resolution; see :func:`to_instances`.

        Args:
            crop: Cut each mask at its box.
            masks: False saves the work of assembling masks; all of them are then empty.
        """
        if masks:
            return to_instances(self.detections, self.proto, self.size, crop=crop)
        boxes, scores, labels, *_ = self.detections
        nothing = scores.new_zeros((), dtype=torch.bool).expand(len(scores), *self.size)
        return Instances(pixel_boxes(boxes, self.size), scores, labels, nothing)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the objects that a model sees count, and what their masks are like."""

    detect: DetectConfig = field(default_factory=DetectConfig)
    """Thresholds and suppression, for models that do not detect inside their graph."""
    score_threshold: float = 0.0
    """Above 0, only objects with a higher score."""
    labels: frozenset[int] | None = None
    """Only objects of these class indices; None for all."""
    top_k: int | None = None
    """At most so many objects per image, the best ones."""
    crop: bool = True
    """Cut masks at their boxes."""
    masks: bool = True
    """False leaves masks out."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ConfigError: The threshold is not in 0..1, or ``top_k`` is below 1.
        """
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold is {self.score_threshold}", hint="use 0 to 1")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}", hint="use 1 or more, or None for all")

    def find(
        self,
        engine: Engine | DetectingEngine,
        images: Sequence[RgbImage],
        *,
        watch: Stopwatch | None = None,
    ) -> list[Found]:
        """Run the network on images of any size and find those of their objects that count.

        An engine of a fixed batch size gets a batch filled up with copies of the last image.

        Args:
            engine: A loaded model; one that detects inside its graph has its own thresholds.
            images: One batch, each [height, width, 3] uint8 RGB.
            watch: Gets the stages ``preprocess``, ``network`` and ``detect``.

        Raises:
            ConfigError: More images than the engine's batch size.
        """
        watch = watch or Stopwatch()
        with watch("preprocess"):
            inputs = torch.stack([preprocess(image, engine.image_size) for image in images])
            if engine.batch_size is not None and len(inputs) < engine.batch_size:
                filler = inputs[-1:].expand(engine.batch_size - len(inputs), -1, -1, -1)
                inputs = torch.cat([inputs, filler])
        if isinstance(engine, DetectingEngine):
            with watch("network"):
                pairs = engine.detect(inputs)
        else:
            with watch("network"):
                outputs = engine(inputs)
            with watch("detect"):
                pairs = list(zip(detect(outputs, self.detect), outputs.proto, strict=True))
        return [
            Found(self._best(detections), proto, (image.shape[0], image.shape[1]))
            for (detections, proto), image in zip(pairs, images, strict=False)
        ]

    def _best(self, detections: Detections) -> Detections:
        kept = above(detections, self.score_threshold)
        if self.labels is not None:
            wanted = torch.tensor(sorted(self.labels), device=kept.labels.device)
            keep = torch.isin(kept.labels, wanted)
            kept = Detections(*(values[keep] for values in kept))
        return kept if self.top_k is None else first(kept, self.top_k)


@dataclass(frozen=True)
class Stopwatch:
    """Seconds spent per stage, one entry per call of that stage."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block, including the GPU work that it started."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[stage].append(time.perf_counter() - start)


def groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The items in lists of ``size``, the last one of what is left."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
