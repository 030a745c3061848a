"""YOLACT (DarkNet-53) instance segmentation: train, sparsify, export and run.

Importing this package loads neither torch nor sparseml; the names below are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact.api import Instance as Instance
    from yolact.api import Model as Model
    from yolact.api import Result as Result
    from yolact.api import load as load
    from yolact.checkpoint import load_checkpoint as load_checkpoint
    from yolact.config import YolactConfig as YolactConfig
    from yolact.data.coco import CocoInstances as CocoInstances
    from yolact.engines import load_engine as load_engine
    from yolact.errors import YolactError as YolactError
    from yolact.model.yolact import InferenceModel as InferenceModel
    from yolact.model.yolact import Yolact as Yolact
    from yolact.predict.detect import to_instances as to_instances
    from yolact.presets import named_config as named_config

__version__ = "0.1.0"

NM_INTEGRATED = True
"""SparseML 1.8's own ``sparseml.yolact.*`` scripts look for this before they call our ``main``s."""

_LAZY = {
    "load": "yolact.api",
    "Model": "yolact.api",
    "Result": "yolact.api",
    "Instance": "yolact.api",
    "YolactConfig": "yolact.config",
    "named_config": "yolact.presets",
    "YolactError": "yolact.errors",
    "Yolact": "yolact.model.yolact",
    "InferenceModel": "yolact.model.yolact",
    "CocoInstances": "yolact.data.coco",
    "load_checkpoint": "yolact.checkpoint",
    "load_engine": "yolact.engines",
    "to_instances": "yolact.predict.detect",
}

__all__ = ["NM_INTEGRATED", "__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
