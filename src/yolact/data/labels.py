"""Class names and the category ids that COCO-format files know them by."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from yolact.errors import DataError

log = logging.getLogger(__name__)


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


def classes_of(categories: Sequence[Mapping[str, Any]]) -> Classes:
    """The classes that an annotation file's categories name, in the order of their ids."""
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    return Classes(tuple(c["name"] for c in ordered), tuple(c["id"] for c in ordered))


def match_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Which of ``known`` each of ``names`` means; those that mean none of them are left out.

    The same name comes first. Otherwise one that differs in case, blanks, hyphens, underscores or
    Unicode form only, where exactly one of either side is like it.

    >>> match_names(["cat", "Hot_Dog ", "owl"], ["hot dog", "cat"])
    {'cat': 'cat', 'Hot_Dog ': 'hot dog'}
    """
    names, known = list(dict.fromkeys(names)), list(dict.fromkeys(known))
    same = set(names) & set(known)
    alike: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, texts in enumerate((names, known)):
        for name in texts:
            if name not in same:
                alike[_plain(name)][side].append(name)
    pairs = {ours[0]: theirs[0] for ours, theirs in alike.values() if len(ours) == len(theirs) == 1}
    return {
        name: name if name in same else pairs[name] for name in names if name in same | {*pairs}
    }


def unknown_names(
    known: Iterable[str], data: Classes, used: Collection[int] | None = None
) -> list[str]:
    """The categories of a data set that mean none of the classes ``known``.

    Args:
        known: Names of the classes.
        data: The categories.
        used: Ids of the categories that have objects: others do not matter. None or none stands
            for all of them.
    """
    same = match_names(data.names, known)
    pairs = zip(data.names, data.ids, strict=True)
    return [name for name, number in pairs if name not in same and (not used or number in used)]


def note_differences(info: Path, data: Classes, known: Sequence[str]) -> None:
    """Say in the log which categories of a file are not called as the classes that they meet.

    Args:
        info: The annotation file.
        data: Its categories.
        known: Names of the classes.
    """
    same = match_names(data.names, known)
    other = [f"{name!r} as {same[name]!r}" for name in data.names if same.get(name, name) != name]
    unknown = [repr(name) for name in data.names if name not in same]
    unlisted = [repr(name) for name in known if name not in same.values()]
    line = "%s: %d of %d %s, %s (first: %s)"
    for texts, total, what, done in (
        (other, len(data), "categories are written in another way", "matched"),
        (unknown, len(data), "categories are of no known class", "ignored, since without objects"),
        (unlisted, len(known), "classes are not among its categories", "not looked for"),
    ):
        if texts:
            log.warning(line, info, len(texts), total, what, done, ", ".join(texts[:3]))


def few_names(names: Sequence[str], known: Iterable[str] = (), most: int = 5) -> str:
    """The first few names as messages show them, each with the nearest of ``known``.

    >>> few_names(["nut", "bold"], ["nail", "bolt"])
    "'nut', 'bold' (nearest: 'bolt')"
    """
    known, texts = list(known), []
    for name in names[:most]:
        near = get_close_matches(name, known, n=1)
        texts.append(f"{name!r} (nearest: {near[0]!r})" if near else f"{name!r}")
    return ", ".join(texts) + ", ..." * (len(names) > most)


def _plain(name: str) -> str:
    """``name`` without what people write in different ways."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return re.sub(r"[\s_-]+", " ", text).strip()


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
