"""Class names and the category ids that COCO-format files know them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolact.errors import DataError


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset or model; index i everywhere means ``names[i]`` and ``ids[i]``."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """Category ids as in the annotation file: any integers, gaps allowed, ascending."""

    def __post_init__(self) -> None:
        """Check that the names and ids belong together."""
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise DataError(
                "every category needs a name and an id of its own",
                hint="check the categories list of the annotation file",
            )

    def __len__(self) -> int:
        """Number of classes, without the background."""
        return len(self.names)

    @property
    def index_of(self) -> dict[int, int]:
        """Category id -> class index."""
        return {category: index for index, category in enumerate(self.ids)}

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Placeholder names for a model file that carries none."""
        return cls(tuple(f"class {i + 1}" for i in range(count)), tuple(range(1, count + 1)))

    @classmethod
    def assumed(cls, count: int) -> Classes:
        """Classes of a model file without names: COCO's when there are 80, else numbers."""
        return COCO_CLASSES if count == len(COCO_CLASSES) else cls.numbered(count)


def _coco(names: Sequence[str], missing: set[int]) -> Classes:
    ids = [i for i in range(1, 91) if i not in missing]
    return Classes(tuple(names), tuple(ids))


COCO_CLASSES = _coco(
    [
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
        *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
        *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
        *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard"),
        *("sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
        *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza"),
        *("donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
        *("tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven"),
        *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
        *("hair drier", "toothbrush"),
    ],
    missing={12, 26, 29, 30, 45, 66, 68, 69, 71, 83},
)
"""The 80 classes of COCO 2017 and their ids 1..90."""
