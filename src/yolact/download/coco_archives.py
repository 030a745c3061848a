"""COCO's archives: where they are, what is known of them and what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from yolact.download.file import Digest, Source, require_web_address
from yolact.download.unzip import Rules

MIRRORS = (
    "https://s3.amazonaws.com/images.cocodataset.org/",
    "http://images.cocodataset.org/",
)
"""The same files under two addresses; the second has no valid certificate for HTTPS."""

_ZIP = (b"PK\3\4",)
_GB = 10**9


@dataclass(frozen=True)
class Archive:
    """A zip file of COCO and what is known about it beforehand."""

    path: str
    """Below a mirror's address."""
    md5: str
    size: int | None
    """In bytes; None where no trustworthy source states it."""
    rules: Rules
    """What it holds; ``rules.most`` is also the space that is kept free for it."""
    folder: str
    """Where its files go: ``images`` or ``annotations``."""
    files: int
    """How many it holds."""

    @property
    def name(self) -> str:
        """File name of the zip."""
        return PurePosixPath(self.path).name

    def source(self, mirrors: tuple[str, ...] = MIRRORS) -> Source:
        """Its addresses at these mirrors, and its digest."""
        urls = tuple(f"{mirror.rstrip('/')}/{self.path}" for mirror in mirrors)
        return Source(urls, self.size, Digest("md5", self.md5), _ZIP)


TRAIN = Archive(
    "zips/train2017.zip",
    "cced6f7f71b7629ddf16f17bbcfab6b2",
    19_336_861_798,
    Rules("train2017", ".jpg", 20 * _GB),
    "images",
    118_287,
)
VAL = Archive(
    "zips/val2017.zip",
    "442b8da7639aecaf257c1dceb8ba8c80",
    815_585_330,
    Rules("val2017", ".jpg", 1 * _GB),
    "images",
    5_000,
)
TEST = Archive(
    "zips/test2017.zip",
    "77ad2c53ac5d0aea611d422c0938fb35",
    6_646_970_404,
    Rules("test2017", ".jpg", 7 * _GB),
    "images",
    40_670,
)
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    "f4bbac642086de4f52a3fdda2de5fa2c",
    252_907_541,
    Rules("annotations", ".json", 1 * _GB),
    "annotations",
    6,
)
TEST_INFO = Archive(
    "annotations/image_info_test2017.zip",
    "85da7065e5e600ebfee8af1edb634eb5",
    None,
    Rules("annotations", ".json", _GB // 10),
    "annotations",
    2,
)
DATASETS = {
    "coco2017": (ANNOTATIONS, VAL, TRAIN),
    "coco2017-val": (ANNOTATIONS, VAL),
    "coco2017-test": (TEST_INFO, TEST),
}
"""Archives of each data set, in the order in which they are fetched: the smallest first."""


def mirrors_with(preferred: str | None) -> tuple[str, ...]:
    """The known mirrors, after one that the user names.

    Raises:
        ConfigError: ``preferred`` is no web address.
    """
    if preferred is None:
        return MIRRORS
    require_web_address(preferred)
    return (preferred, *MIRRORS)
