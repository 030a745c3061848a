"""How fast a model finds objects in images, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from yolact.config import DetectConfig
from yolact.data.images import RgbImage
from yolact.postprocess import above, first
from yolact.predict import Stopwatch, find
from yolact.runtime.base import Engine

STAGES = ("preprocess", "network", "detect", "postprocess")


@dataclass(frozen=True)
class Speed:
    """Median times of one batch."""

    milliseconds: dict[str, float]
    """Median per batch of each of :data:`STAGES`."""
    batch_size: int
    batches: int
    """Batches measured, after the warm-up."""

    @property
    def total(self) -> float:
        """Milliseconds per batch."""
        return sum(self.milliseconds.values())

    @property
    def images_per_second(self) -> float:
        """Throughput with all stages one after the other."""
        return 1000 * self.batch_size / self.total

    def table(self) -> str:
        """One line per stage, and the sum."""
        lines = [
            f"{stage:12} {time:9.2f} ms {100 * time / self.total:5.1f} %"
            for stage, time in self.milliseconds.items()
        ]
        total = f"{'total':12} {self.total:9.2f} ms {self.images_per_second:7.2f} img/s"
        head = f"median of {self.batches} batches of {self.batch_size}"
        return "\n".join([head, *lines, total])


def measure(
    engine: Engine,
    batches: Iterable[Sequence[RgbImage]],
    detect: DetectConfig,
    *,
    warm_up: int = 10,
    score_threshold: float = 0.0,
    top_k: int | None = None,
    crop: bool = True,
    masks: bool = True,
) -> Speed:
    """Time the path from decoded images to full-size masks.

    Args:
        engine: A loaded model.
        batches: Batches of one size; the first ``warm_up`` of them are not counted.
        detect: Thresholds and suppression.
        warm_up: Batches to run before measuring.
        score_threshold: Above 0, only detections with a higher score get a mask.
        top_k: Only so many of the best detections get one.
        crop: Cut masks at their boxes.
        masks: False leaves masks out.

    Returns:
        Medians, which a single slow batch does not move.
    """
    batches = iter(batches)

    def run(batch: Sequence[RgbImage], watch: Stopwatch) -> None:
        found = find(engine, batch, detect, watch=watch)
        with watch("postprocess"):
            for image in found:
                kept = above(image.detections, score_threshold)
                kept = kept if top_k is None else first(kept, top_k)
                image._replace(detections=kept).instances(crop=crop, masks=masks)

    for batch in islice(batches, warm_up):
        run(batch, Stopwatch())
    watch, size = Stopwatch(), 1
    for batch in batches:
        run(batch, watch)
        size = len(batch)
    times = {stage: 1000 * median(watch.seconds[stage]) for stage in STAGES}
    return Speed(times, size, len(watch.seconds["network"]))
