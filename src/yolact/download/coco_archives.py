"""COCO's archives: where they are, what they hold, and what of them is in a data folder.

A receipt makes a look at the folder enough for a second download. :func:`verify` compares every
byte with its CRC, and :func:`check_sense` finds out whether the data can be used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from yolact.data.images import read_rgb
from yolact.download.file import Digest, Source, digest_of, require_web_address
from yolact.download.part import remove_record, write_record
from yolact.download.unzip import Rules, Unpacked, file_crc
from yolact.errors import DataError

MIRRORS = (
    "https://s3.amazonaws.com/images.cocodataset.org/",
    "http://images.cocodataset.org/",
)
"""The same files under two addresses; the second has no valid certificate for HTTPS."""

_ZIP = (b"PK\3\4",)
_GB = 10**9
_LOOKED_AT = 500
"""Files of each archive whose size is looked at; a look at all takes seconds on a cold disk."""


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


@dataclass(frozen=True)
class Receipt:
    """What came out of one archive; written last, when all of it is in place.

    In columns, because a hundred thousand tuples would take most of the time of a second run.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """In bytes."""
    crcs: tuple[int, ...]
    """CRC-32 of each file's content."""
    kept: bool
    """Whether the archive itself was to be kept."""

    @property
    def files(self) -> Iterator[Unpacked]:
        """One by one."""
        return map(Unpacked, self.names, self.sizes, self.crcs)


@dataclass(frozen=True)
class DataFolder:
    """A data folder as it is when it is first asked; make another object after changes."""

    path: Path

    def place(self, archive: Archive) -> Path:
        """Where the files of an archive are."""
        return self.path / archive.folder

    def zip(self, archive: Archive) -> Path:
        """Where the archive itself is until it is unpacked."""
        return self.path / archive.name

    @property
    def records(self) -> Path:
        """The folder of the receipts."""
        return self.path / ".downloaded"

    def sign(self, archive: Archive, receipt: Receipt) -> None:
        """Write the receipt of an archive whose files are in place."""
        self.records.mkdir(parents=True, exist_ok=True)
        write_record(self._record(archive), json.dumps({"md5": archive.md5, **vars(receipt)}))

    def withdraw(self, archive: Archive) -> None:
        """Remove an archive's receipt: the next download looks at every file."""
        remove_record(self._record(archive))

    def receipt(self, archive: Archive) -> Receipt | None:
        """The receipt of an archive, if there is one that can be read."""
        md5, receipt = _read(self._record(archive))
        return receipt if md5 == archive.md5 else None

    def holds(self, archive: Archive) -> bool:
        """Whether the files of an archive are there: all names, and the sizes of some."""
        receipt = self.receipt(archive)
        if receipt is None or not self._names[archive.folder].issuperset(receipt.names):
            return False
        some = slice(None, None, max(1, len(receipt.names) // _LOOKED_AT))
        place = self.place(archive)
        return all(
            _size(place / name) == size
            for name, size in zip(receipt.names[some], receipt.sizes[some], strict=True)
        )

    def loose_bytes(self, folder: str) -> int:
        """Bytes of the files in ``images`` or ``annotations`` that are on no receipt."""
        receipts = [_read(path)[1] for path in self.records.glob("*.json")]
        listed = {name for receipt in receipts if receipt for name in receipt.names}
        sizes = _file_sizes(self.path / folder)
        return sum(size for name, size in sizes.items() if name not in listed)

    def _record(self, archive: Archive) -> Path:
        return self.records / f"{archive.name}.json"

    @cached_property
    def _names(self) -> dict[str, frozenset[str]]:
        places = {name: self.path / name for name in ("images", "annotations")}
        return {
            name: frozenset(os.listdir(place)) if place.is_dir() else frozenset()
            for name, place in places.items()
        }


def verify(archives: Sequence[Archive], folder: Path, *, workers: int = 4) -> list[str]:
    """Compare everything on disk with the sizes and CRCs that the archives state.

    The receipt of an archive with a damaged file is withdrawn, so that the next download fetches
    the archive again and replaces that file.

    Returns:
        A line for each file that is missing or damaged.
    """
    state = DataFolder(folder)
    found: list[str] = []
    for archive in archives:
        wrong = list(_wrong_in(archive, state, workers))
        if wrong:
            state.withdraw(archive)
        found += wrong
    return found


def check_sense(archives: Sequence[Archive], folder: Path, *, sample: int = 32) -> None:
    """Read the annotations, look for every image that they name, and decode a sample of images.

    Args:
        archives: Those that were unpacked; of others nothing is looked at.
        folder: The data folder.
        sample: About how many images of each archive are decoded.

    Raises:
        DataError: Something cannot be read, or an image is missing.
    """
    state = DataFolder(folder)
    receipts = {archive: state.receipt(archive) for archive in archives}
    names = {
        archive.rules.folder: sorted(receipt.names)
        for archive, receipt in receipts.items()
        if receipt and archive.folder == "images"
    }
    for split, images in names.items():
        some = images[:: max(1, len(images) // sample)]
        for name in tqdm(some, f"decoding some of {split}", disable=None):
            read_rgb(folder / "images" / name)
    for archive, receipt in receipts.items():
        for name in receipt.names if receipt and archive.folder == "annotations" else ():
            path = state.place(archive) / name
            split = path.stem.rpartition("_")[2]
            _require_images(path, set(names[split]) if split in names else None)


def _read(path: Path) -> tuple[str, Receipt | None]:
    try:
        content = json.loads(path.read_bytes())
        md5, kept = str(content.pop("md5")), bool(content.pop("kept"))
        receipt = Receipt(**{name: tuple(column) for name, column in content.items()}, kept=kept)
        sound = 0 < len(receipt.names) == len(receipt.sizes) == len(receipt.crcs)
        return (md5, receipt) if sound else ("", None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "", None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing, for instance
        return None


def _file_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _wrong_in(archive: Archive, state: DataFolder, workers: int) -> Iterator[str]:
    path = state.zip(archive)
    if path.is_file() and digest_of(path, "md5").value != archive.md5:
        yield f"{path}: its MD5 differs"
    receipt = state.receipt(archive)
    if receipt is None:
        yield f"{archive.name}: not downloaded, or not completely"
        return
    place = state.place(archive)
    sizes = _file_sizes(place)
    complete: list[Unpacked] = []
    for file in receipt.files:
        size = sizes.get(file.name)
        if size is None:
            yield f"{place / file.name}: is missing"
        elif size != file.size:
            yield f"{place / file.name}: has {size} bytes instead of {file.size}"
        else:
            complete.append(file)
    for file in _damaged(complete, place, archive.name, workers):
        yield f"{place / file.name}: its content differs"


def _damaged(files: Sequence[Unpacked], place: Path, name: str, workers: int) -> Iterator[Unpacked]:
    def crc(file: Unpacked) -> int:
        return file_crc(place / file.name)

    with ThreadPoolExecutor(workers) as pool:
        crcs = tqdm(pool.map(crc, files), f"verifying {name}", len(files), disable=None)
        for file, found in zip(files, crcs, strict=True):
            if found != file.crc:
                yield file


def _require_images(path: Path, there: set[str] | None) -> None:
    """Parse an annotation file; ``there`` are the images of its split, if they were fetched."""
    try:
        named = {image["file_name"] for image in json.loads(path.read_bytes())["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no annotation file of COCO: {error!r}",
            hint="run sparseml.yolact.download --verify",
        ) from error
    lost = sorted(named - there) if there is not None else []
    if lost:
        raise DataError(
            f"{path} names images that are not there ({len(lost)}), such as {lost[0]}",
            hint="run sparseml.yolact.download --verify",
        )
