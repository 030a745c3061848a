"""Which checkpoint files of a run stay on disk."""

from __future__ import annotations

import logging
from contextlib import suppress
from itertools import count
from pathlib import Path

from yolact.checkpoint import Checkpoint, checkpoint_name, parse_checkpoint_name, save_checkpoint
from yolact.training.settings import SaveSettings

logger = logging.getLogger(__name__)


class CheckpointKeeper:
    """Writes a run's checkpoints and removes those it has been told not to keep."""

    def __init__(
        self, config_name: str, settings: SaveSettings, *, continues: Path | None = None
    ) -> None:
        """Write to ``settings.folder``.

        Args:
            config_name: First part of the files' names.
            settings: Where, and which ones stay.
            continues: The checkpoint whose run goes on. What that run wrote to the same folder
                may be replaced; a file of any other run is renamed where its name is needed.
        """
        self.config_name = config_name
        self.settings = settings
        self._begun: float | None = None
        if continues and continues.parent.resolve() == settings.folder.resolve():
            self._begun = continues.stat().st_mtime
        self._written: set[Path] = set()
        self._latest: tuple[int, Path] | None = None

    @property
    def best_path(self) -> Path:
        """Where the checkpoint with the best mask mAP of the run is kept."""
        return self.settings.folder / f"{self.config_name}_best.pth"

    def due(self, iteration: int) -> bool:
        """Whether a checkpoint is to be written after step ``iteration``."""
        return iteration % self.settings.interval == 0

    def holds(self, iteration: int) -> bool:
        """Whether the latest regular checkpoint of this run was written after that step."""
        return self._latest is not None and self._latest[0] == iteration

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a regular checkpoint; with keep_latest, remove this run's previous one.

        Raises:
            StorageError: It cannot be written; the previous one is then still there.
        """
        path = self._write(checkpoint, interrupt=False)
        previous, self._latest = self._latest, (checkpoint.iteration or 0, path)
        if self.settings.keep_latest and previous and previous[1] != path:
            every = self.settings.keep_latest_interval
            if every <= 0 or previous[0] % every:
                previous[1].unlink(missing_ok=True)
        return path

    def save_best(self, checkpoint: Checkpoint, *, own: bool = False) -> Path:
        """Replace the best checkpoint of this run; ``own`` says that it wrote one before."""
        if own and self._begun is not None:
            self._written.add(self.best_path)
        self._put(self.best_path, checkpoint)
        return self.best_path

    def save_interrupt(self, checkpoint: Checkpoint) -> Path:
        """Write ``*_interrupt.pth``, then remove older ones of this run.

        Those of other runs of the same configuration are renamed, so that ``interrupt`` means
        this one.
        """
        path = self._write(checkpoint, interrupt=True)
        for other in self.settings.folder.glob("*_interrupt.pth"):
            parts = parse_checkpoint_name(other)
            if other == path or not parts or parts[0] != self.config_name:
                continue
            if self._may_replace(other):
                other.unlink(missing_ok=True)
            else:
                _set_aside(other)
        return path

    def _write(self, checkpoint: Checkpoint, *, interrupt: bool) -> Path:
        name = checkpoint_name(
            self.config_name, checkpoint.epoch or 0, checkpoint.iteration or 0, interrupt=interrupt
        )
        path = self.settings.folder / name
        self._put(path, checkpoint)
        logger.info("saved %s", path)
        return path

    def _put(self, path: Path, checkpoint: Checkpoint) -> None:
        if path.exists() and not self._may_replace(path):
            _set_aside(path)
        save_checkpoint(path, checkpoint)
        self._written.add(path)

    def _may_replace(self, path: Path) -> bool:
        """Whether this run wrote a file, or the run that goes on did after the checkpoint."""
        if path in self._written:
            return True
        later = self._begun is not None and path.stat().st_mtime >= self._begun
        return later and path != self.best_path


def _set_aside(path: Path) -> None:
    """Give a checkpoint of another run a name that nothing looks for, and its report as well."""
    kept = next(
        free
        for number in count(1)
        if not (free := path.with_name(f"{path.stem}_earlier{number}.pth")).exists()
    )
    path.rename(kept)
    with suppress(FileNotFoundError):  # without a recipe there is none
        path.with_suffix(".report.json").rename(kept.with_suffix(".report.json"))
    logger.warning("%s of an earlier run is kept as %s", path, kept.name)
