"""Folders of models laid out as SparseZoo's clients left them, in their cache or copied by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yolact.download.stubs import MODELS, Kind, Stub

_MODEL_PATTERNS = {
    Kind.CHECKPOINT: ("training/*.pth", "training/*.pt", "pytorch/*.pth", "pytorch/*.pt"),
    Kind.ONNX: ("model.onnx", "deployment/model.onnx"),
}
"""Newest layout first; ``pytorch`` was the name of ``training`` before SparseZoo 1.0."""
_TRANSFER_PATTERNS = ("training/*.ckpt.pth", "training/*.ckpt*", "pytorch/*.ckpt*")
"""Checkpoints to begin a sparse transfer from; never meant without asking for that recipe."""
_RECIPE_FOLDERS = ("", "recipe/", "recipes/")


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
