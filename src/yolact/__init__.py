"""YOLACT (DarkNet-53) instance segmentation: train, sparsify, export and run.

Importing this package loads neither torch nor sparseml; the names below are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

NM_INTEGRATED = True
"""SparseML 1.8's own ``sparseml.yolact.*`` scripts look for this before they call our ``main``s."""

_LAZY = {
    "YolactConfig": "yolact.config",
    "named_config": "yolact.config",
    "YolactError": "yolact.errors",
    "Yolact": "yolact.model.yolact",
    "InferenceModel": "yolact.model.yolact",
    "CocoInstances": "yolact.data.coco",
    "load_checkpoint": "yolact.checkpoint",
    "load_engine": "yolact.engines",
    "to_instances": "yolact.predict.postprocess",
}

__all__ = ["NM_INTEGRATED", "__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
