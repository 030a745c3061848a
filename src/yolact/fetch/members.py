"""Which files an archive may hold; nothing that it says about itself is taken on trust."""

from __future__ import annotations

import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from yolact.errors import DownloadError

_REGULAR = (0, stat.S_IFREG)
"""File types in a member's mode; 0 where the archive was not made on Unix."""
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Rules:
    """What is expected of an archive."""

    folder: str
    """The one folder that its files are in; they are unpacked without it."""
    suffix: str
    """How their names end."""
    most: int
    """Bytes that they may take unpacked, all together."""


class Member(NamedTuple):
    """One file that is to be unpacked."""

    info: zipfile.ZipInfo
    name: str
    """Under which it will be; a plain file name."""


def safe_members(path: Path, archive: zipfile.ZipFile, rules: Rules) -> list[Member]:
    """The files of an archive, in its order.

    Raises:
        DownloadError: One of them would be written outside its folder, is no ordinary file, is
            there twice or unexpected, or all are too large: then none is to be unpacked.
    """
    seen: set[str] = set()
    members = []
    for info in archive.infolist():
        if info.is_dir() and _is_inside(info.orig_filename):
            continue
        reason = _objection(info, rules)
        name = info.filename.rpartition("/")[2]
        if reason is None and name.lower() in seen:  # some disks do not tell A from a
            reason = "is there twice"
        if reason is not None:
            _refuse(f"{path} holds {info.orig_filename!r}, which {reason}")
        seen.add(name.lower())
        members.append(Member(info, name))
    size = sum(member.info.file_size for member in members)
    if size > rules.most:
        _refuse(f"{path} would unpack to {size} bytes instead of at most {rules.most}")
    if not members:
        _refuse(f"{path} holds no files")
    return members


def _objection(info: zipfile.ZipInfo, rules: Rules) -> str | None:
    if not _is_inside(info.orig_filename):
        return "would be written outside its folder"
    if stat.S_IFMT(info.external_attr >> 16) not in _REGULAR:
        return "is a link or a device"
    folder, _, name = info.filename.rpartition("/")
    if folder != rules.folder or not name.endswith(rules.suffix) or name.startswith("."):
        return f"is not of the form {rules.folder}/*{rules.suffix}"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is compressed in an unusual way"
    if info.header_offset < 0:
        return "begins before the archive does"
    if not info.file_size:  # zipfile would not look at its CRC
        return "is empty"
    return None


def _is_inside(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    odd = any(ord(letter) < 32 or letter in ':\\"*<>?|' for letter in name)
    return not odd and ".." not in parts and parts[0] != ""


def _refuse(message: str) -> NoReturn:
    raise DownloadError(
        message,
        hint="it is not the archive that was expected: remove it and download it again, from "
        "another network",
    )
