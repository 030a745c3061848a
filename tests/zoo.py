"""What tests of stubs need: a user with empty folders, and files that can be told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = "cv/segmentation/yolact-darknet53/pytorch/dbolya/coco"
BASE, PRUNED, QUANT = (
    f"zoo:{ROOT}/{name}" for name in ("base-none", "pruned90-none", "pruned82_quant-none")
)
RECIPE = "---\nmodifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 3}\n---\n"


def new_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches and settings under ``home``."""
    for variable, folder in {
        "SPARSEZOO_MODELS_PATH": "zoo",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
    }.items():
        monkeypatch.setenv(variable, str(home / folder))
    for variable in ("YOLACT_OFFLINE", "YOLACT_ZOO_MIRRORS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return home


def put(path: Path, content: str | bytes = "content") -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def weights(path: Path, value: float = 1.0) -> Path:
    """A file of one tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"layer.weight": torch.full((2,), value)}, path)
    return path
