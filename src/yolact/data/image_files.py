"""Finding the image files of a data set: names that almost fit, files that are missing or unusable.

A name that no file has may still mean one: paths of another computer, URLs, other letter case. It
is taken where exactly one file can be meant; nothing is ever guessed. Messages show names as
``ascii`` writes them: what looks like another character is escaped.
"""

from __future__ import annotations

import html
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from yolact.config import OnBadImage
from yolact.data.image_checks import Look, look_at
from yolact.data.images import IMAGE_ENDINGS, wrong_size
from yolact.errors import DataError

log = logging.getLogger(__name__)

Record = dict[str, Any]
"""One object of a JSON file."""
_SHOWN = 3
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The images of an annotation file that can be used."""

    records: list[Record]
    """Their entries; ``file_name`` is now a path below the folder, and the size is known."""
    bits: int | None
    """What the values of 16-bit files fit in; see :func:`yolact.data.images.read_rgb`."""
    bad: int
    """How many images were left out because they are damaged or of another size than listed."""


def find_images(
    folder: Path,
    info: Path,
    records: Sequence[Record],
    *,
    strict: bool = False,
    on_bad_image: OnBadImage = "stop",
) -> ImageFiles:
    """Find the files of all listed images, and check that they can be used, without decoding them.

    Images whose files are missing are left out with a notice. Where ``width`` or ``height`` is
    absent or null, both are read from the file.

    Args:
        folder: What the file names are relative to.
        info: The annotation file, for messages.
        records: Its list of images; each has a ``file_name`` or a ``coco_url``.
        strict: Refuse a data set with missing files.
        on_bad_image: ``skip`` leaves out images that are damaged or of another size than listed.

    Raises:
        DataError: The folder is missing, more than half of the files are missing (with ``strict``,
            one), or images are bad; the message counts and names the first.
    """
    if not folder.is_dir():
        raise DataError(
            f"no folder of images at {folder}", hint="run sparseml.yolact.download, or correct it"
        )
    found = _with_files(folder, info, records, strict=strict)
    looks = look_at([record["file_name"] for record in found], folder)
    used, damaged, sizes, unsized, deep = [], [], [], [], []
    for record, seen in zip(found, looks, strict=True):
        if not isinstance(seen, Look):
            damaged.append(seen)
            continue
        if record.get("width") is None or record.get("height") is None:
            record = {**record, "height": seen.height, "width": seen.width}
            unsized.append(record["file_name"])
        size = record["height"], record["width"]
        if size not in seen.sizes:
            sizes.append(wrong_size(folder / record["file_name"], seen.sizes[0], size))
            continue
        used.append(record)
        if seen.bits > 8:
            deep.append((seen.bits, record["file_name"]))
    _report_bad(info, damaged, sizes, len(found), skip=on_bad_image == "skip")
    _notice(info, unsized, len(found), "images have no width or height", "read from the files")
    bits = max(deep)[0] if deep else None
    if bits is not None and bits < 16:
        names = [name for _, name in deep]
        matter = f"images are 16-bit files whose values fit in {bits} bits"
        _notice(info, names, len(found), matter, "scaled to 8 bits by that")
    return ImageFiles(records=used, bits=bits, bad=len(damaged) + len(sizes))


def _notice(info: Path, names: Sequence[str], of: int, matter: str, done: str) -> None:
    if names:
        first = ", ".join(map(ascii, names[:_SHOWN]))
        log.warning("%s: %d of %d %s, %s (first: %s)", info, len(names), of, matter, done, first)


def _report_bad(
    info: Path, damaged: Sequence[DataError], sizes: Sequence[DataError], of: int, *, skip: bool
) -> None:
    bad = [*damaged, *sizes]
    if not bad:
        return
    first = "; ".join(map(str, bad[:_SHOWN]))
    matter = "cannot be used" if damaged else "are of another size than listed"
    text = f"{info}: {len(bad)} of {of} images {matter}"
    if skip and len(bad) < of:
        log.warning("%s, left out (first: %s)", text, first)
        return
    instead = ", or leave them out with --on_bad_image skip" if len(bad) < of else ""
    raise DataError(f"{text} (first: {first})", hint=f"{bad[0].hint}{instead}")


def _with_files(
    folder: Path, info: Path, records: Sequence[Record], *, strict: bool
) -> list[Record]:
    """The records whose files are there, under the names that these have."""
    names = [_names_in(record) for record in records]
    there = _present(folder, [some[0] for some in names])
    absent = [some for some, present in zip(names, there, strict=True) if not present]
    folders = frozenset(_above(some[0]) for some, yes in zip(names, there, strict=True) if yes)
    search = _Search(folder, frozenset(some[0] for some in names), absent, folders)
    found, other, missing = [], [], []
    for record, some, present in zip(records, names, there, strict=True):
        match = None if present else search.results[some]
        if match is None and not present:
            missing.append(some[0])
            continue
        if match is not None:
            other.append((some[0], match))
        found.append({**record, "file_name": some[0] if match is None else match.name})
    if missing:
        _report_missing(search, info, missing, len(records), strict=strict)
    if other:
        _report_other(info, other, len(records))
    return found


def _names_in(record: Record) -> tuple[str, ...]:
    """What an entry calls its file: by ``file_name``, else by the address it once had."""
    values = (record.get("file_name"), record.get("coco_url"))
    return tuple(value for value in values if isinstance(value, str) and value)


def _present(folder: Path, names: Sequence[str]) -> list[bool]:
    """Whether each is there, by one listing of each folder instead of many look-ups."""
    split = [os.path.split(name) for name in names]
    present = {head: _names_of_files(folder / head) for head in {head for head, _ in split}}
    return [tail in present[head] for head, tail in split]


def _names_of_files(folder: Path) -> set[str]:
    """Names of everything in a folder that is not a folder itself."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)}
    except (OSError, ValueError):  # ValueError: a null character
        return set()


def _report_missing(
    search: _Search, info: Path, missing: Sequence[str], of: int, *, strict: bool
) -> None:
    matter = f"images are not in {search.folder}"
    if not strict and 2 * len(missing) <= of:
        _notice(info, missing, of, matter, "left out with their objects")
        return
    first = ", ".join(map(ascii, missing[:_SHOWN]))
    raise DataError(
        f"{info}: {len(missing)} of {of} {matter} (first: {first})", hint=search.advice(missing[0])
    )


def _report_other(info: Path, other: Sequence[tuple[str, _Match]], of: int) -> None:
    kinds = Counter(kind for _, match in other for kind in match.differences)
    counted = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
    name, match = other[0]
    log.warning(
        "%s: %d of %d file names differ from the files (%s), the only ones meant are taken "
        "(first: %s is %s)",
        *(info, len(other), of, counted, ascii(name), ascii(match.name)),
    )


class _Match(NamedTuple):
    """A file that a name means, though it is not its name."""

    name: str
    """Its path below the folder."""
    differences: tuple[str, ...]
    """How the name differs, in words that follow "by"."""


@dataclass(frozen=True)
class _Search:
    """Files for the names that no file has exactly."""

    folder: Path
    taken: frozenset[str]
    """All names of the annotation file: a file that has one of them is not meant by another."""
    wanted: Sequence[tuple[str, ...]]
    """The names without a file, each with its alternatives."""
    folders: frozenset[str]
    """Those of files that have a listed name. What else is listed there is missing, if it is not:
    a namesake elsewhere may be its mask, its thumbnail, or the picture of another split."""

    @cached_property
    def files(self) -> _Files:
        """What is in the folder and below it."""
        return _Files(self.folder)

    @cached_property
    def candidates(self) -> dict[tuple[str, ...], list[_Match]]:
        """The files that each wanted name may mean."""
        return {names: self._candidates(names) for names in self.wanted}

    @cached_property
    def results(self) -> dict[tuple[str, ...], _Match | None]:
        """The one file that each wanted name means; None where there is none, or several.

        Where two names come to one file, at least one of them means another.
        """
        claims = Counter(m.name for found in self.candidates.values() for m in found)
        return {
            names: found[0]
            if len(found) == 1 and claims[found[0].name] == 1 and found[0].name not in self.taken
            else None
            for names, found in self.candidates.items()
        }

    def advice(self, name: str) -> str:
        """What to do about a missing file."""
        found = next(found for names, found in self.candidates.items() if names[0] == name)
        paths = self.files.paths
        if len(found) > 1:
            places = " or ".join(ascii(match.name) for match in found[:2])
            return f"{ascii(name)} may be {places}: write the folder into file_name"
        if found:
            return f"{ascii(found[0].name)} is the nearest, but another name means it too"
        near = get_close_matches(_loose(_last(name)), {_loose(p[-1]): p for p in paths}, 1)
        if near:
            path = next(path for path in paths if _loose(path[-1]) == near[0])
            return (
                f"the nearest of {len(paths)} names there is {ascii('/'.join(path))}: "
                "correct file_name, or give the folder that belongs to the annotation file"
            )
        if _URL.match(name):
            return f"the names are addresses: download the images to {self.folder}"
        if not paths:
            return f"{self.folder} holds no files: give the folder that the images are in"
        return (
            f"{self.folder} holds {len(paths)} files such as {ascii('/'.join(paths[0]))}: "
            "give the folder that belongs to the annotation file"
        )

    def _candidates(self, names: tuple[str, ...]) -> list[_Match]:
        for name in names:
            kind = ("address",) if _URL.match(name) else ()
            forms = [((*kind, *words), _parts(form)) for words, form in _forms(name)]
            for rule in _RULES:
                for words, parts in forms:
                    hits = self.files.by(rule).get(rule(parts[-1]), []) if parts else []
                    above = _above(name)
                    if above in self.folders and (above or rule is _stem):
                        hits = [path for path in hits if path[:-1] == parts[:-1]]
                    if hits:
                        return [
                            _Match("/".join(path), _differences(words, parts, path))
                            for path in _most_alike(parts, hits)
                        ]
        return []


class _Files:
    """The files of a folder and the folders below it, to be looked up by parts of their names."""

    def __init__(self, folder: Path) -> None:
        """List them once; links to folders are followed, but no folder is entered twice."""
        self.paths = sorted(_walk(folder))
        self._by: dict[Callable[[str], str], dict[str, list[tuple[str, ...]]]] = {}

    def by(self, rule: Callable[[str], str]) -> dict[str, list[tuple[str, ...]]]:
        """The paths of files whose names a rule makes equal, under what it makes of them."""
        if rule not in self._by:
            self._by[rule] = defaultdict(list)
            for path in self.paths:
                self._by[rule][rule(path[-1])].append(path)
        return self._by[rule]


def _walk(folder: Path) -> Iterator[tuple[str, ...]]:
    """Paths of files below ``folder`` as their parts, without hidden ones such as ``._a.jpg``."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        parts = Path(place).relative_to(folder).parts
        yield from ((*parts, name) for name in names if not name.startswith("."))


def _forms(name: str) -> list[tuple[tuple[str, ...], str]]:
    """What a name may stand for, with what was undone: the name itself, then more and more."""
    forms: list[tuple[tuple[str, ...], str]] = [((), name)]
    for words, undo in (
        ("separators", lambda text: text.replace("\\", "/")),
        ("HTML entities", html.unescape),
        ("address", _path_of_address),
        ("percent-encoding", unquote),
        ("percent-encoding", unquote),  # some tools do it twice
    ):
        done, text = forms[-1]
        if (changed := undo(text)) != text:
            forms.append((tuple(dict.fromkeys((*done, words))), changed))
    return forms


def _path_of_address(text: str) -> str:
    """The path in a URL; some annotation tools have it in the query, as in ``?d=images/a.jpg``."""
    if not _URL.match(text) and "?" not in text:
        return text
    try:
        address = urlsplit(text)
    except ValueError:
        return text
    return address.path if "." in _last(address.path) else address.query.rpartition("=")[2]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _above(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[0]


def _composed(part: str) -> str:
    return unicodedata.normalize("NFC", part)


def _loose(part: str) -> str:
    return _composed(part).strip().casefold()


def _stem(part: str) -> str:
    """The name of an image without its ending, or of a file that lost it; others stay apart."""
    stem, ending = os.path.splitext(_loose(part))
    return stem if ending in IMAGE_ENDINGS else _loose(part)


_RULES: tuple[Callable[[str], str], ...] = (str, _composed, _loose, _stem)
"""What makes two names equal, the strictest first."""


def _most_alike(parts: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those that share the most folders with ``parts``, counted from the file."""

    def shared(path: tuple[str, ...]) -> int:
        pairs = zip(reversed(parts[:-1]), reversed(path[:-1]), strict=False)
        same = [_loose(a) == _loose(b) for a, b in pairs]
        return [*same, False].index(False)

    most = max(map(shared, paths))
    return [path for path in paths if shared(path) == most]


def _differences(
    undone: tuple[str, ...], parts: tuple[str, ...], path: tuple[str, ...]
) -> tuple[str, ...]:
    """In what a name differs from a file, of whose path it is ``parts`` after something undone."""
    found = dict.fromkeys(undone)
    if parts[:-1] != path[:-1] and "address" not in found:
        found["folders"] = None
    pairs = zip(_RULES, ("", "Unicode form", "letter case", "ending"), strict=True)
    words = next(words for rule, words in pairs if rule(parts[-1]) == rule(path[-1]))
    return (*found, words) if words else tuple(found)
