"""Errors that a user can fix, and the exit code each one ends a command with.

| code | error | meaning |
|---|---|---|
| 0 | | success |
| 1 | (a traceback) | a bug in this tool |
| 2 | ConfigError | an option or setting is wrong (also every usage error of the command line) |
| 3 | DataError | images or annotations are missing, unreadable or inconsistent |
| 4 | CheckpointError | a .pth or .onnx file is missing, unreadable or of another model |
| 5 | RecipeError | a recipe is missing, malformed or does not fit the model |
| 6 | ExportError | the exported graph does not reproduce the PyTorch model |
| 7 | DownloadError | something could not be fetched or verified |
| 8 | StorageError | no permission or no space to write |
| 9 | TargetMissedError | the run ended, but a stated target (sparsity, bits, mAP) was not met |
| 130 | | interrupted by Ctrl-C or SIGTERM; state was saved |
"""

from __future__ import annotations

INTERRUPTED = 130


class YolactError(Exception):
    """Something the user can fix: the message says what is wrong, ``hint`` what to do.

    Only subclasses are raised; they differ in ``exit_code`` alone.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep both; the message is also ``str(error)``."""
        super().__init__(message)
        self.hint = hint


class ConfigError(YolactError):
    """An option or setting has an impossible value."""

    exit_code = 2


class DataError(YolactError):
    """Images or annotations are missing, unreadable or inconsistent."""

    exit_code = 3


class CheckpointError(YolactError):
    """A model file is missing, unreadable or belongs to another model."""

    exit_code = 4


class RecipeError(YolactError):
    """A recipe is missing, malformed or does not fit the model."""

    exit_code = 5


class ExportError(YolactError):
    """The exported graph does not reproduce the PyTorch model."""

    exit_code = 6


class DownloadError(YolactError):
    """Something could not be fetched or verified."""

    exit_code = 7


class StorageError(YolactError):
    """A file cannot be written: no permission or no space."""

    exit_code = 8


class TargetMissedError(YolactError):
    """The run ended normally, but a target stated beforehand was not met."""

    exit_code = 9
