"""Small files that note how far a download is, written again and again."""

from __future__ import annotations

import os
from pathlib import Path


def write_record(path: Path, text: str) -> None:
    """Replace ``path`` in one step, on the disk before that.

    Unlike :func:`yolact.files.write_text`, a killed process leaves at most one file of a known
    name behind, which the next call uses up. Only one process may write a record at a time.
    """
    spare = _spare(path)
    with spare.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(spare, path)


def remove_record(path: Path) -> None:
    """Remove a record and what a killed process may have left beside it."""
    path.unlink(missing_ok=True)
    _spare(path).unlink(missing_ok=True)


def _spare(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
