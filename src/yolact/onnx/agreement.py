"""Whether a quantized graph finds the objects that PyTorch finds: what users of it will notice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torchvision.ops import box_iou

from yolact.config import DetectConfig
from yolact.detect import detect
from yolact.errors import ExportError
from yolact.types import RawOutputs

LEAST = 0.99
"""Smallest share that is accepted."""

_CONFIDENT = 0.5
"""Of a score, above which a class is more likely than all else together. Detections below it come
and go with the least change of a network; one that is not trained has no others."""
_SAME_PLACE = 0.5
"""IoU of boxes from which two detections of a class are the same, as in COCO's AP50."""

_SAME_SCORE = 0.5
"""Share of the score that has to be left."""


@dataclass(frozen=True)
class Agreement:
    """PyTorch's detections looked for among those of the graph."""

    images: int
    detections: int
    """Of PyTorch, with a score of at least 0.5, among the best of each image."""
    share: float
    """How many of them the graph finds, weighted by score, 0..1; 1 when there are none."""
    lost: int = 0
    """How many it does not find."""

    @property
    def passed(self) -> bool:
        """Whether that is enough. One may be lost: in a few images chance decides about it."""
        return self.share >= LEAST or self.lost <= 1

    def __str__(self) -> str:
        """For instance ``99.8 % of the 25 detections in 4 images``."""
        return (
            f"{100 * self.share:.1f} % of the {self.detections} detections in {self.images} images"
        )


def agreement(
    pairs: Iterable[tuple[RawOutputs, RawOutputs]], config: DetectConfig | None = None
) -> Agreement:
    """Compare detections.

    Args:
        pairs: PyTorch's outputs and the graph's, for a batch of images each.
        config: How raw outputs become detections; None for the default.
    """
    config = config or DetectConfig()
    images = count = lost = 0
    total = found = 0.0
    for expected, actual in pairs:
        for wanted, there in zip(detect(expected, config), detect(actual, config), strict=True):
            counted = wanted.scores >= _CONFIDENT
            same = (box_iou(wanted.boxes, there.boxes) >= _SAME_PLACE) & (
                wanted.labels[:, None] == there.labels
            )
            same &= there.scores >= _SAME_SCORE * wanted.scores[:, None]
            scores = wanted.scores[counted]
            again = same.any(1)[counted]
            found += float(scores[again].sum())
            lost += int((~again).sum())
            total += float(scores.sum())
            images, count = images + 1, count + int(counted.sum())
    return Agreement(images, count, found / total if total else 1.0, lost)


def require_agreement(agreement: Agreement, layer: str | None = None) -> None:
    """Raise ExportError unless nearly all detections are found.

    Args:
        agreement: The comparison.
        layer: Where the graph begins to differ, if that is known.
    """
    if agreement.passed:
        return
    begins = f"; it begins to differ at {layer}" if layer else ""
    raise ExportError(
        f"the exported graph finds {agreement}, weighted by score (at least {100 * LEAST:g} % is "
        f"accepted){begins}",
        hint="nothing was written; give --calibration_images more like those the model was trained "
        "on, or export with --skip-qat-convert",
    )
