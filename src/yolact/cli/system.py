"""When the machine itself gives up: no memory, no space, no permission, in the user's words.

Where a file is read or written, the error is raised there, with the file's name. This is for the
refusals that can come from anywhere, such as an allocation deep inside a library.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from yolact.errors import ConfigError, StorageError, YolactError
from yolact.files import storage_error

_NO_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc"),
    *("can't allocate memory", "failed to allocate memory"),
)
"""Parts of what torch's and ONNX Runtime's allocators say."""
_REFUSALS = {
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
}
"""What no code can foresee; a missing file, for instance, is foreseen or a bug."""


def as_user_error(error: BaseException) -> YolactError | None:
    """What the user can do about ``error``; None when it is no such refusal but a bug."""
    text = str(error)
    if _is_about_memory(error):
        return ConfigError(
            f"out of memory: {_first_line(text)}",
            hint="use a smaller --batch_size or --image_size",
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return ConfigError(
            f"a process that prepares images was killed: {_first_line(text)}",
            hint="use a smaller --num_workers, or give the machine more (shared) memory",
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ConfigError(
            f"too many open files: {_first_line(text)}",
            hint="use a smaller --num_workers, or raise the limit: ulimit -n 4096",
        )
    where = error.filename or "a file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(f"no permission to use {where}", hint="check its owner and its mode")
    if error.errno in _REFUSALS:
        return storage_error(error, Path(os.fsdecode(where)))
    return None


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(part in said for part in _NO_MEMORY)


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "") or "no details"
