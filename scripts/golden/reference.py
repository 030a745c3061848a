"""The original YOLACT, imported from a checkout as it is; what it lacks is put around it here.

Nothing is copied from it. It was written for CUDA, PyTorch 1.7 and NumPy 1.19, and imports
libraries for jobs that are not done here, so this module stands in for those.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

CONFIG = "yolact_darknet53_config"
STUBBED = (
    "deepsparse",
    "sparseml",
    "sparseml.onnx",
    "sparseml.onnx.utils",
    "sparseml.pytorch",
    "sparseml.pytorch.optim",
    "sparseml.pytorch.utils",
    "sparsezoo",
    "sparsezoo.utils",
    "wandb",
)
"""Imported by the original's commands for downloads, recipes and logs, none of which happen."""
OWN_NAMES = ("backbone", "data", "eval", "layers", "train", "utils", "yolact")
"""Top-level modules of the checkout; ``yolact`` is this project's name as well."""


class _Anything(ModuleType):
    """A module that has every name; each is a class that takes no part in anything."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Idle:
    """The original's SparseML wrapper of a run without a recipe."""

    checkpoint_recipe_manager = None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def initialize(self, **_: Any) -> None: ...

    def initialize_loggers(self, *_: Any, **__: Any) -> None: ...

    def modify(self, scaler: Any, *_: Any) -> Any:
        return scaler

    def check_epoch_override(self, epochs: int) -> int:
        return epochs

    def qat_active(self, _: int) -> bool:
        return False

    def should_override_scheduler(self) -> bool:
        return False


@dataclass(frozen=True)
class Reference:
    """The modules of a checkout, configured for DarkNet-53."""

    folder: Path
    commit: str
    cfg: Any
    """Its global settings; :meth:`settings` changes them for a while."""
    model: ModuleType
    boxes: ModuleType
    detection: ModuleType
    output: ModuleType
    losses: ModuleType
    augmentations: ModuleType
    data: ModuleType
    evaluation: ModuleType

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[None]:
        """Other settings inside the block."""
        with patch.dict(vars(self.cfg), changes):
            yield

    def criterion(self) -> Any:
        """Its loss as its training builds it."""
        cfg = self.cfg
        return self.losses.MultiBoxLoss(
            num_classes=cfg.num_classes,
            pos_threshold=cfg.positive_iou_threshold,
            neg_threshold=cfg.negative_iou_threshold,
            negpos_ratio=cfg.ohem_negpos_ratio,
        )

    def command(self, name: str, *arguments: str) -> ModuleType:
        """Its train, eval or export, imported anew; train parses the command line meanwhile."""
        with (
            patch.object(sys, "argv", [f"{name}.py", *arguments]),
            # it leaves at once where there is no GPU
            patch.object(torch.cuda, "device_count", lambda: 1),
            patch.object(torch, "set_default_tensor_type", lambda _: None),
            _stubs(),
            _modules(yolact=self.model),
        ):
            return _load(self.folder / f"{name}.py", f"reference_{name}")


def load(folder: Path) -> Reference:
    """Import the original from ``folder``; its config is DarkNet-53 on COCO."""
    clash = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_own(name)}
    sys.path.insert(0, str(folder))
    try:
        with _stubs():
            data = importlib.import_module("data")
            data.set_cfg(CONFIG)
            # a setting that only its command line makes
            data.cfg.mask_proto_debug = False
            model = _load(folder / "yolact.py", "reference_yolact")
            # a recipe is neither given nor in any checkpoint
            vars(model)["SparseMLWrapper"] = _Idle
            with _modules(yolact=model):
                evaluation = importlib.import_module("eval")
        _compile_nms(folder)
        reference = Reference(
            folder=folder,
            commit=_commit(folder),
            cfg=data.cfg,
            model=model,
            boxes=importlib.import_module("layers.box_utils"),
            detection=importlib.import_module("layers.functions.detection"),
            output=importlib.import_module("layers.output_utils"),
            losses=importlib.import_module("layers.modules.multibox_loss"),
            augmentations=importlib.import_module("utils.augmentations"),
            data=data,
            evaluation=evaluation,
        )
    finally:
        sys.modules.update({name: module for name, module in clash.items() if "yolact" in name})
    vars(evaluation)["args"] = argparse.Namespace(
        output_coco_json=False, crop=True, score_threshold=0, cuda=False
    )
    return reference


def idle_recipe() -> type:
    """Stands in for the original's SparseML wrapper where no recipe is applied."""
    return _Idle


def _is_own(name: str) -> bool:
    return name.split(".")[0] in OWN_NAMES


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _modules(**temporary: ModuleType) -> Iterator[None]:
    """Other modules under some names; what is imported meanwhile stays imported."""
    before = {name: sys.modules.get(name) for name in temporary}
    sys.modules.update(temporary)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _stubs() -> AbstractContextManager[None]:
    return _modules(**{name: _Anything(name) for name in STUBBED})


def _compile_nms(folder: Path) -> None:
    """Build its traditional NMS, a Cython file, outside the checkout and the home folder."""
    compiler = importlib.import_module("pyximport")
    # removed from NumPy 1.24; the file was written before
    vars(np)["int"] = int
    finders = list(sys.meta_path)
    build = tempfile.mkdtemp(prefix="cython-")
    compiler.install(build_dir=build, setup_args={"include_dirs": np.get_include()})
    try:
        importlib.import_module("utils.cython_nms")
    finally:
        sys.meta_path[:] = finders
    # detection.py installs pyximport again with each call; the module is there already
    idle = ModuleType("pyximport")
    vars(idle)["install"] = lambda **_: None
    sys.modules["pyximport"] = idle


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
