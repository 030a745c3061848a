"""The user's folders: SparseZoo's cache, and this tool's own cache and settings."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "sparseml-yolact"


def zoo_cache() -> Path:
    """Where SparseZoo's client keeps models: ``SPARSEZOO_MODELS_PATH`` or ~/.cache/sparsezoo."""
    return _from_environment("SPARSEZOO_MODELS_PATH") or Path.home() / ".cache" / "sparsezoo"


def own_cache() -> Path:
    """Where files fetched for a stub are kept: under ``XDG_CACHE_HOME`` or ~/.cache."""
    return (_from_environment("XDG_CACHE_HOME") or Path.home() / ".cache") / _NAME


def settings_folder() -> Path:
    """Where the mirror map and the recorded hashes are: ``XDG_CONFIG_HOME`` or ~/.config."""
    return (_from_environment("XDG_CONFIG_HOME") or Path.home() / ".config") / _NAME


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
