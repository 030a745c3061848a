"""Keeping packages from being imported by other packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of these packages fail inside the block, as if they were not installed.

    Packages that are imported already stay.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # what Python documents for this
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
