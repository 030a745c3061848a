"""Writing files so that a crash, a full disk or a second run never costs what was there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from yolact.errors import ConfigError, StorageError

Compression = Literal["gz", "xz", "zst"]
"""Endings of compressed files: gzip for every tool, xz for the smallest file, zstd for the
fastest unpacking."""


def cache_folder() -> Path:
    """Where files are kept that can be made again: under ``XDG_CACHE_HOME`` or ~/.cache."""
    parent = os.environ.get("XDG_CACHE_HOME")
    return (Path(parent).expanduser() if parent else Path.home() / ".cache") / "sparseml-yolact"


def storage_error(error: OSError, path: Path) -> StorageError | None:
    """What a refusal of the operating system to write ``path`` means; None for other errors."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"no permission to write {path}", hint="choose a folder you can write to"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            f"no space left to write {path}", hint="free some space or choose another disk"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return StorageError(
            f"cannot write {path}: a file or folder of that name is in the way",
            hint="choose another name",
        )
    if error.errno in (errno.EIO, errno.ENAMETOOLONG, errno.ELOOP) or _is_about(error, path):
        return StorageError(
            f"cannot write {path}: {error.strerror}", hint="choose another name or folder"
        )
    return None


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into a StorageError."""
    try:
        yield
    except OSError as error:
        known = storage_error(error, path)
        if known is None:
            raise
        raise known from error
    except UnicodeEncodeError as error:
        if error.encoding.replace("-", "") != sys.getfilesystemencoding().replace("-", ""):
            raise
        raise StorageError(
            f"cannot write {path}: names of files are {error.encoding} here, without these letters",
            hint="set the environment variable PYTHONUTF8=1",
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step.

    When the block raises, the temporary file is removed and whatever was at ``path`` is untouched.

    Raises:
        StorageError: The folder cannot be made or written, or the disk is full.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step (see :func:`atomic_path`)."""
    with atomic_path(path) as temporary:
        # Bytes of a file's name that are no UTF-8 become escapes, which JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path`` as a whole.

    When the block raises, the temporary folder is removed and whatever was at ``path`` is
    untouched. An older folder goes with all that it holds: look into it before.

    Raises:
        StorageError: The folder cannot be made, or a file of that name is in the way.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            new = temporary / "new"
            new.mkdir()
            yield new
            _swap(new, path, temporary / "old")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def unicode_path(path: Path) -> Iterator[str]:
    """An absolute path of the same file for OpenCV, which some names would end the process with.

    These are names that are no UTF-8, as older systems wrote them; a link stands for them while
    the block lasts. What was opened under it stays open.
    """
    name = os.path.abspath(path)
    if is_unicode(name):
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, f"link{path.suffix if is_unicode(path.suffix) else ''}")
        os.symlink(name, link)
        yield link


def is_unicode(text: str) -> bool:
    """Whether ``text`` holds no bytes that are no UTF-8, as names of files can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_writable(folder: Path) -> None:
    """Make ``folder`` and check that a file can be created in it, before long work starts.

    Raises:
        StorageError: It cannot.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def require_writable_file(path: Path) -> None:
    """Check that a file can be put at ``path``, replacing one if need be; makes its folder.

    Raises:
        StorageError: It cannot, for instance because ``path`` is a folder.
    """
    require_writable(path.parent)
    with storage_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def require_own_places(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that no result takes the place of a file that is read, or of another result.

    Files are compared, not spellings: links, another letter case where that means the same file,
    and two names of one file count. None stands for what is not wanted, and a path that does not
    exist for an input that another check will miss.

    Raises:
        ConfigError: One does.
    """
    read: dict[tuple[int, int] | str, Path] = {}
    for path in inputs:
        if path is not None and path.is_file():
            read |= {_identity(path): path, _place(path): path}
    places: dict[str, Path] = {}
    for output in (path for path in outputs if path is not None):
        place = _place(output)  # also where folders on the way to it are still to be made
        known = read.get(_identity(output) if output.exists() else place)
        if known is not None:
            same = "" if str(known) == str(output) else f" (it is {known})"
            raise ConfigError(
                f"the result {output} would replace a file that is read{same}",
                hint="give the result another name or folder",
            )
        if place in places:
            raise ConfigError(
                f"two results would go to {output}", hint="give each of them a name of its own"
            )
        places[place] = output


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name without ending for what becomes of each file, never the same for two of them.

    It is the file's own where no other has it, else with its ending, else with its folder, else
    numbered. Names that differ in letter case only count as the same.

    >>> distinct_names([Path(name) for name in ("a.jpg", "b.jpg", "x/b.png", "y/b.png")])
    ['a', 'b_jpg', 'x_b_png', 'y_b_png']
    """
    spellings: tuple[Callable[[Path], str], ...] = (
        lambda path: path.stem,
        lambda path: path.name.replace(".", "_"),
        lambda path: "_".join((*path.parts[-2:-1], *path.name.split("."))),
    )
    names = [cut_name(path.stem) for path in paths]
    for spell in spellings:
        times = Counter(name.casefold() for name in names)
        names = [
            cut_name(spell(path)) if times[name.casefold()] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    taken = {name.casefold() for name in names}
    given: set[str] = set()
    for index, name in enumerate(names):
        number = 0
        while names[index].casefold() in given or (number and names[index].casefold() in taken):
            number += 1
            names[index] = f"{name}_{number:03d}"
        given.add(names[index].casefold())
    return names


def cut_name(name: str, most: int = 180) -> str:
    """At most so many bytes: file systems take 255, and results have more to their names."""
    return name.encode(errors="surrogateescape")[:most].decode(errors="ignore") or "_"


def _place(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def require_space(folder: Path, size: int, what: str) -> None:
    """Check that ``size`` bytes fit into ``folder``, which exists.

    Raises:
        StorageError: They do not; the message calls them ``what``.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{folder} has {free / 1e6:.1f} MB free, {what} takes {size / 1e6:.1f} MB",
            hint="free some space or choose another disk",
        )


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error names ``path``, a folder above it, or a temporary file made for it."""
    if error.filename is None:
        return False
    named = Path(os.fsdecode(error.filename))
    temporary = named.parent == path.parent and named.name.startswith(f".{path.name}.")
    return path.is_relative_to(named) or named.parent == path or temporary


def _flush_to_disk(path: Path) -> None:
    """Else a power cut right after the rename could leave an empty file under the new name."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(new: Path, target: Path, old: Path) -> None:
    """No system call exchanges two folders everywhere; when the second step fails, undo the first.

    A crash between the two leaves no folder, which is better than half of one.
    """
    try:
        os.rename(target, old)
    except FileNotFoundError:
        os.rename(new, target)
        return
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
