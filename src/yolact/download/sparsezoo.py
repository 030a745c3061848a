"""What SparseZoo has of a model: in folders laid out like its cache, and at its service.

The service is asked through SparseZoo's own client, run so that it can neither hang nor report on
the user. It ended in 2025; a company may still run one of its own, which ``SPARSEZOO_API_URL``
names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from yolact.download.offline import why_unreachable
from yolact.download.stubs import MODELS, Kind, Stub

_PROGRAM = Path(__file__).parents[1] / "sparsify" / "sparseml" / "ask_sparsezoo.py"
"""It imports SparseZoo, which nothing outside its folder does, and is run by its path: with ``-m``,
a file yolact.py in the current folder would be in its place."""
_SERVICE = "https://api.neuralmagic.com"
_MODEL_PATTERNS = {
    Kind.CHECKPOINT: ("training/*.pth", "training/*.pt", "pytorch/*.pth", "pytorch/*.pt"),
    Kind.ONNX: ("model.onnx", "deployment/model.onnx"),
}
"""Newest layout first; ``pytorch`` was the name of ``training`` before SparseZoo 1.0."""
_TRANSFER_PATTERNS = ("training/*.ckpt.pth", "training/*.ckpt*", "pytorch/*.ckpt*")
"""Checkpoints to begin a sparse transfer from; never meant without asking for that recipe."""
_RECIPE_FOLDERS = ("", "recipe/", "recipes/")


class NoAnswerError(Exception):
    """The service did not name a file; the message says why."""


@dataclass(frozen=True)
class TimeLimits:
    """Of a question to the service, in seconds."""

    connect: float = 3.0
    answer: float = 15.0
    """For the whole question, the start of the client's process included."""


class Service:
    """SparseZoo's service, asked at most once about a model."""

    def __init__(self, stub: Stub, limits: TimeLimits) -> None:
        """Ask nothing yet."""
        self.stub = stub
        self.limits = limits

    def url_of(self, kind: Kind) -> str:
        """The address of a file of the model.

        Raises:
            NoAnswerError: The service cannot be reached, takes too long, or has no such file.
        """
        if isinstance(self._answer, str):
            raise NoAnswerError(self._answer)
        ranked = [(_rank(name, self.stub, kind), url) for name, url in self._answer]
        fitting = [(place, url) for place, url in ranked if place is not None]
        if not fitting:
            raise NoAnswerError(f"{_service_url()} has no {kind.value} of it")
        return min(fitting)[1]

    @cached_property
    def _answer(self) -> str | list[tuple[str, str]]:
        """Name and address of each file, or why there is no answer."""
        # Found in milliseconds, where the client would need seconds to start.
        unreachable = why_unreachable(_service_url(), self.limits.connect)
        if unreachable:
            return unreachable
        try:
            done = subprocess.run(
                [sys.executable, str(_PROGRAM), str(self.stub)],
                capture_output=True,
                text=True,
                timeout=self.limits.answer,
                env={**os.environ, "NM_DISABLE_ANALYTICS": "1", "NM_VERSION_CHECK": "false"},
            )
        except subprocess.TimeoutExpired:
            return f"{_service_url()} did not answer within {self.limits.answer:g} s"
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
        try:
            return [(name, url) for name, url in json.loads(lines[-1])]
        except (ValueError, TypeError):
            return f"{_service_url()} gave no files: {lines[-1]}"


def find_in_cache(stub: Stub, kind: Kind, roots: tuple[Path, ...]) -> Path | None:
    """The first such file in the caches ``roots``."""
    found = (
        find_in_folder(folder, stub, kind)
        for root in roots
        if root.is_dir()
        for folder in _folders_of(stub, root)
    )
    return next(filter(None, found), None)


def find_in_folder(folder: Path, stub: Stub, kind: Kind) -> Path | None:
    """The file of that kind in a model's folder; None when it is absent or empty."""
    for pattern in _patterns(stub, kind):
        for path in sorted(folder.glob(pattern)):
            if not _unwanted(path.name, pattern) and path.is_file() and path.stat().st_size:
                return path
    return None


def place_in_cache(stub: Stub, kind: Kind) -> str:
    """Where a model's folder has a file that :func:`find_in_folder` finds."""
    transfer = stub.recipe == "transfer_learn"
    return {
        Kind.CHECKPOINT: "training/model.ckpt.pth" if transfer else "training/model.pth",
        Kind.ONNX: "model.onnx",
        Kind.RECIPE: "recipe_transfer_learn.md" if transfer else "recipe.md",
    }[kind]


def _service_url() -> str:
    """Where the client asks."""
    return os.environ.get("SPARSEZOO_API_URL") or _SERVICE


def _folders_of(stub: Stub, root: Path) -> Iterator[Path]:
    """The folders under ``root`` that hold a model of the zoo.

    Clients named them by the model's id, later ones by namespace and repository; files that are
    fetched for a stub, and most copies made by hand, lie under the stub's path.
    """
    yield root / stub.path
    yield from (root / name for name in MODELS[stub.model].cache_ids)
    tag = stub.model.removesuffix("-none")
    for name in (f"yolact-*-{tag}", f"yolact-*-{stub.model}"):
        yield from sorted(root.glob(f"*/{name}"))


def _rank(name: str, stub: Stub, kind: Kind) -> int | None:
    """How well a path in a model's folder fits: 0 is best; None when it is no such file."""
    patterns = enumerate(_patterns(stub, kind))
    path = PurePosixPath(name)
    return next((i for i, p in patterns if path.match(p) and not _unwanted(name, p)), None)


def _patterns(stub: Stub, kind: Kind) -> tuple[str, ...]:
    if kind is Kind.RECIPE:
        return tuple(_recipe_patterns(stub.recipe))
    usual = _MODEL_PATTERNS[kind]
    transfer = kind is Kind.CHECKPOINT and stub.recipe == "transfer_learn"
    return (*_TRANSFER_PATTERNS, *usual) if transfer else usual


def _unwanted(name: str, pattern: str) -> bool:
    """Whether a checkpoint is one for transfer that ``pattern`` did not ask for."""
    return ".ckpt" in name and pattern not in _TRANSFER_PATTERNS


def _recipe_patterns(recipe: str | None) -> Iterator[str]:
    """The zoo's default is recipe.md, later recipe_original.md; others are never a stand-in."""
    names = ["recipe", "recipe_original", "original"]
    if recipe == "transfer_learn":
        names = ["recipe_transfer*", "transfer*"]
    for name in names:
        for folder in _RECIPE_FOLDERS:
            yield from (f"{folder}{name}.md", f"{folder}{name}.yaml")
