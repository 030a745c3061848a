"""Hashes of files that nobody has published one for: recorded on first use, compared after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

from yolact.errors import ConfigError
from yolact.fetch.source import digest_of
from yolact.files import storage_errors, write_text
from yolact.zoo.folders import settings_folder

FILE = "known_hashes.json"


@dataclass(frozen=True)
class KnownHashes:
    """The hashes recorded on this machine, in a small JSON file.

    It maps the name of a file, or the address it came from, to ``sha256``, ``size`` in bytes and
    the day it was ``recorded``.
    """

    path: Path

    @classmethod
    def of_user(cls) -> KnownHashes:
        """Those in the user's settings folder."""
        return cls(settings_folder() / FILE)

    def entry(self, name: str) -> Mapping[str, Any] | None:
        """What was recorded for ``name``; None when nothing was.

        Raises:
            ConfigError: The file of hashes cannot be read.
        """
        entry: Mapping[str, Any] | None = self._read().get(name)
        return entry

    def record(self, name: str, file: Path) -> None:
        """Remember ``file`` as what ``name`` is.

        Raises:
            StorageError: The hashes cannot be written.
        """
        entry = {
            "sha256": digest_of(file).value,
            "size": file.stat().st_size,
            "recorded": date.today().isoformat(),
        }
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                content = {**self._read(), name: entry}
                write_text(self.path, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _read(self) -> Mapping[str, Any]:
        if not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if all({"sha256", "recorded"} <= entry.keys() for entry in content.values()):
                return dict(content)
        except (OSError, ValueError, AttributeError):
            pass
        raise ConfigError(
            f"{self.path} is not a file of recorded hashes",
            hint="remove it; hashes are then recorded anew",
        )
