"""The one door to sparseml: quiet, offline and patched for the torch this package pins.

sparseml 1.8.0 is the last release and was written for an older torch. What each line patches here
(:mod:`yolact.sparsify.sparseml.patches` does the same for single modifiers, and
:mod:`yolact.sparsify.sparseml.shims` for what Python and onnx have no more):

* ``NM_DISABLE_ANALYTICS``: importing sparseml would post usage data, after asking ident.me and a
  geolocation service for this machine's country, without a timeout (sparsezoo/analytics.py).
* OpenVINO: where it is installed, importing sparseml imports it too (sparseml/onnx/utils/model.py),
  and that reports to its makers and leaves files in ``~/intel``.
* Handlers: sparseml logs to the console itself and also takes over the ``__main__`` logger
  (sparseml/log.py).
* ``torch.compile``: sparseml replaces it by a function that warns (sparseml/pytorch/__init__.py).
* :class:`_QConfig`: sparseml hangs its scheme on a qconfig (quantization_scheme.py), but torch's
  has ``__slots__ = ()`` and takes no attributes.
* Observers: torch's also learn ranges while a model is validated, so that the next image's result
  would depend on the images before it. These learn only when gradients are recorded.
* The warning filter: sparseml's LearningRateModifier steps its scheduler before the optimizer on
  purpose, which torch cannot know.
* The level of the distillation logger: sparseml's modifiers warn that they have no teacher; they
  are read for their schedule only (see :mod:`yolact.sparsify.distillation`).
* :func:`quiet_loggers`: with no logger, modifiers open a file in ``./sparse_logs``
  (sparseml/pytorch/utils/logger.py).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
)

from yolact.host import not_importable
from yolact.sparsify.sparseml.shims import shims

os.environ["NM_DISABLE_ANALYTICS"] = "1"


@contextmanager
def _without_traces() -> Iterator[None]:
    """Undo what the import does to others, also when it fails: then our own engine goes on."""
    compiles, main = torch.compile, logging.getLogger("__main__")
    handlers = list(main.handlers)
    try:
        yield
    finally:
        torch.compile, main.handlers = compiles, handlers
        logging.getLogger("sparseml").handlers = []


with warnings.catch_warnings(), not_importable("openvino"), shims(), _without_traces():
    warnings.simplefilter("ignore")  # deprecations in sparseml's own imports
    from sparseml.pytorch.optim import ScheduledModifierManager
    from sparseml.pytorch.sparsification import (
        ACDCPruningModifier,
        ConstantPruningModifier,
        DistillationModifier,
        GlobalMagnitudePruningModifier,
        GMPruningModifier,
        GradualParamModifier,
        LayerPruningModifier,
        MagnitudePruningModifier,
        OBSPruningModifier,
        PerLayerDistillationModifier,
        SetParamModifier,
        SparsificationLoggingModifier,
        TopKASTPruningModifier,
        TrainableParamsModifier,
    )
    from sparseml.pytorch.sparsification.modifier import (
        Modifier,
        ModifierProp,
        PyTorchModifierYAML,
        ScheduledUpdateModifier,
    )
    from sparseml.pytorch.sparsification.pruning.mask_creator import (
        GroupedPruningMaskCreator,
        get_mask_creator_default,
    )
    from sparseml.pytorch.sparsification.pruning.modifier_pruning_base import BasePruningModifier
    from sparseml.pytorch.sparsification.quantization import quantization_scheme
    from sparseml.pytorch.sparsification.quantization.quantization_scheme import (
        QuantizationArgs,
        QuantizationScheme,
    )
    from sparseml.pytorch.utils import LambdaLogger, LoggerManager
    from sparseml.sparsification import SparsificationTypes

    from yolact.sparsify.sparseml.patches import lift_masks
logging.getLogger("sparseml").setLevel(logging.WARNING)
logging.getLogger("sparseml.pytorch.sparsification.distillation").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`", module="sparseml")

__all__ = [
    "ACDCPruningModifier",
    "BasePruningModifier",
    "ConstantPruningModifier",
    "DistillationModifier",
    "GMPruningModifier",
    "GlobalMagnitudePruningModifier",
    "GradualParamModifier",
    "GroupedPruningMaskCreator",
    "LayerPruningModifier",
    "MagnitudePruningModifier",
    "Modifier",
    "ModifierProp",
    "OBSPruningModifier",
    "PerLayerDistillationModifier",
    "PyTorchModifierYAML",
    "QuantizationArgs",
    "QuantizationScheme",
    "ScheduledModifierManager",
    "ScheduledUpdateModifier",
    "SetParamModifier",
    "SparsificationLoggingModifier",
    "SparsificationTypes",
    "TopKASTPruningModifier",
    "TrainableParamsModifier",
    "get_mask_creator_default",
    "lift_masks",
    "log_loggers",
    "quiet_loggers",
]


class _QConfig(QConfig):
    """A qconfig with a ``__dict__``: a subclass without ``__slots__`` has one."""


class _Observer(MovingAverageMinMaxObserver):
    def forward(self, x_orig: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            super().forward(x_orig)  # type: ignore[no-untyped-call]
        return x_orig


class _ChannelObserver(MovingAveragePerChannelMinMaxObserver):
    def forward(self, x_orig: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            super().forward(x_orig)  # type: ignore[no-untyped-call]
        return x_orig


quantization_scheme.torch_quantization = SimpleNamespace(
    QConfig=_QConfig,
    FakeQuantize=FakeQuantize,
    MovingAverageMinMaxObserver=_Observer,
    MovingAveragePerChannelMinMaxObserver=_ChannelObserver,
)


def quiet_loggers() -> Any:
    """A logger manager that modifiers accept and that writes nothing."""
    nothing = LambdaLogger(lambda_func=lambda *_, **__: True, enabled=False)
    return LoggerManager([nothing], log_frequency=None, log_python=False)


def log_loggers(logger: logging.Logger) -> Any:
    """A logger manager that writes a model's totals to ``logger``; reports list its layers."""

    def write(tag: str | None, value: Any, **_: Any) -> bool:
        if value is not None and str(tag).startswith("SparsificationSummaries/"):
            logger.info("%s %s", tag, value)
        return True

    return LoggerManager([LambdaLogger(lambda_func=write)], log_python=False)
