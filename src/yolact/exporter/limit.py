"""How much average precision an exported file may lose against the float model.

The float model is the checkpoint's network before anything is done to it in one shot, without
quantizers: one that was trained with simulated quantization, with that switched off. Both run over
the same images as validation runs a model, and pycocotools measures them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from yolact.config import DetectConfig, YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.data.transforms import EvalTransform
from yolact.engines import load_detector
from yolact.engines.torch import TorchEngine
from yolact.errors import DataError, ExportError, TargetMissedError, YolactError
from yolact.exporter.options import ExportJob
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.yolact import Yolact
from yolact.predict.evaluate import Evaluation, evaluate, match_classes
from yolact.predict.pipeline import Selection
from yolact.predict.results import UNDEFINED
from yolact.tables import columns

log = logging.getLogger(__name__)
_Written = TypeVar("_Written")
_EXACT = 1e-6
"""Points that the difference of two numbers of this size may be off."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Average precision of a file and of the float model, each (float model, file) in percent."""

    images: int
    mask: tuple[float, float]
    box: tuple[float, float]

    @property
    def drop(self) -> float:
        """Points of mask mAP that the file loses; below 0 where it gains some."""
        return self.mask[0] - self.mask[1]

    def to_dict(self) -> dict[str, Any]:
        """For a file's metadata: ``images``, and ``mask`` and ``box`` of ``float`` and ``file``."""
        pairs = {"mask": self.mask, "box": self.box}
        models = {
            model: {kind: round(pair[place], 2) for kind, pair in pairs.items()}
            for place, model in enumerate(("float", "file"))
        }
        return {"images": self.images, **models}

    def table(self) -> str:
        """Both kinds in aligned columns, in percent and points."""
        rows = [
            (f"{kind} mAP", f"{before:.2f}", f"{after:.2f}", f"{before - after:.2f}")
            for kind, (before, after) in (("mask", self.mask), ("box", self.box))
        ]
        head = (f"{self.images} images", "float model", "this file", "drop")
        return columns([head, *rows], "<>>>")


class DropTooLargeError(TargetMissedError):
    """A file loses more than it may."""

    def __init__(self, accuracy: Accuracy, size: int, *args: Any, **kwargs: Any) -> None:
        """Keep what was measured of a file of ``size`` bytes."""
        super().__init__(*args, **kwargs)
        self.accuracy, self.size = accuracy, size


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the float model reaches on a data set, and how much less a file may."""

    dataset: CocoInstances
    selection: Selection
    float_model: Evaluation
    max_drop: float
    """In points of mask mAP."""
    hint: str
    """What to do about a file that loses more."""

    @classmethod
    def of(
        cls,
        dataset: CocoInstances,
        model: Yolact,
        classes: Classes,
        detect: DetectConfig,
        max_drop: float,
        hint: str,
    ) -> Limit:
        """Measure the float model.

        Args:
            dataset: Of :func:`limit_data`.
            model: Before one shot; not changed. Its own quantization does not count.
            classes: Of the model.
            detect: How detections are found in raw outputs, of model and file alike.
            max_drop: See the class.
            hint: See the class.

        Raises:
            DataError: The data set has no object to be measured by.
        """
        copy = deepcopy(model)
        for quantizer in fake_quantizers(copy):
            quantizer.disable_observer()
            quantizer.disable_fake_quant()
        selection = Selection(detect=detect)
        found = evaluate(TorchEngine(copy, classes), dataset, selection)
        if found.mask["all"] == UNDEFINED:
            raise _nothing_to_measure(dataset)
        log.info(
            "the float model: mask mAP %.2f, box mAP %.2f", found.mask["all"], found.box["all"]
        )
        return cls(
            dataset=dataset, selection=selection, float_model=found, max_drop=max_drop, hint=hint
        )

    def require(self, path: Path) -> Accuracy:
        """Measure an exported file in ONNX Runtime.

        Raises:
            DropTooLargeError: It loses too much.
        """
        found = evaluate(load_detector(path), self.dataset, self.selection)
        mask, box = (
            (getattr(self.float_model, kind)["all"], getattr(found, kind)["all"])
            for kind in ("mask", "box")
        )
        accuracy = Accuracy(images=found.images, mask=mask, box=box)
        if accuracy.drop <= self.max_drop + _EXACT:
            return accuracy
        raise DropTooLargeError(
            accuracy,
            path.stat().st_size,
            f"mask mAP is {mask[1]:.2f} in the file and {mask[0]:.2f} in the float model: "
            f"{accuracy.drop:.2f} points less, and --max_drop is {self.max_drop:g}",
            hint=self.hint,
        )


def validation_data(job: ExportJob, config: YolactConfig, classes: Classes) -> CocoInstances | None:
    """Open the validation set of an export, before any long work; None where it has none.

    Raises:
        CheckpointError: It has objects of classes that the model does not know.
        DataError: Something of it is missing or unreadable, or it has no object although a drop is
            to be measured.
    """
    if job.validation_info is None or job.validation_images is None:
        return None
    transform = EvalTransform(config.model.image_size)
    dataset = CocoInstances(job.validation_images, job.validation_info, transform)
    match_classes(classes, dataset.classes, dataset.contents.of_category)
    if job.max_drop is not None and not dataset.coco.anns:
        raise _nothing_to_measure(dataset)
    return dataset


def _nothing_to_measure(dataset: CocoInstances) -> DataError:
    return DataError(
        f"{dataset.info} has no object that average precision counts",
        hint="give the annotation file of a validation set",
    )


def limit_hint(*, quantized: bool, half: bool) -> str:
    """What to do about a file that loses too much."""
    ways = ["nothing was written"]
    if quantized:
        ways.append("add --mixed to keep sensitive layers in float, or train with quantization")
    elif half:
        ways.append("export without --half")
    return "; ".join(ways)


def write_mixed(write: Callable[[int], _Written], layers: int) -> tuple[_Written, int | None]:
    """Write a file with the fewest layers in floats that its limit holds with.

    Whenever the limit holds, a file is written; one with fewer such layers replaces it.

    Args:
        write: Writes the file with so many layers in floats, or raises.
        layers: How many there are. One at least stays in integers.

    Returns:
        What ``write`` returned for the file that stays, and the size of the file without layers in
        floats, if there was one.

    Raises:
        TargetMissedError: Even with all but one in floats the file loses too much.
        ExportError: That file does not compute what PyTorch computes.
    """
    written: dict[int, _Written] = {}
    missed: dict[int, YolactError] = {}

    def holds(count: int) -> bool:
        try:
            written[count] = write(count)
        except (DropTooLargeError, ExportError) as error:
            missed[count] = error
            log.info("%d of %d layers in float: %s", count, layers, error)
            return False
        log.info("%d of %d layers in float: the limit holds", count, layers)
        return True

    most = layers - 1
    count = fewest(holds, most)
    if count is None:
        last = missed[most]
        if not isinstance(last, DropTooLargeError):
            raise last
        raise TargetMissedError(
            f"with {most} of {layers} layers in float, {last}",
            hint="nothing was written; measure on more images, or allow more",
        )
    first = missed.get(0)
    return written[count], first.size if isinstance(first, DropTooLargeError) else None


def fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest of 0..``most`` that holds, when all above one that does hold as well.

    Small ones are tried first: 0, 1, 2, 4 and so on, then those between the last two.

    Returns:
        None when not even ``most`` holds. What was asked last and held is the result.

    >>> fewest(lambda count: count >= 5, 20)
    5
    """
    failed, tried = -1, 0
    while not holds(tried):
        if tried >= most:
            return None
        failed, tried = tried, min(max(1, 2 * tried), most)
    while tried - failed > 1:
        middle = (failed + tried) // 2
        if holds(middle):
            tried = middle
        else:
            failed = middle
    return tried
