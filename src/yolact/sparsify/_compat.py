"""The one door to sparseml: quiet, offline and mended for the torch this package pins.

sparseml 1.8.0 is the last release and was written for an older torch. What each line mends:

* ``NM_DISABLE_ANALYTICS``: importing sparseml would post usage data, after asking ident.me and a
  geolocation service for this machine's country, without a timeout (sparsezoo/analytics.py).
* Handlers: sparseml logs to the console itself and also takes over the ``__main__`` logger
  (sparseml/log.py).
* ``torch.compile``: sparseml replaces it by a function that warns (sparseml/pytorch/__init__.py).
* :class:`_QConfig`: sparseml hangs its scheme on a qconfig (quantization_scheme.py), but torch's
  has ``__slots__ = ()`` and takes no attributes.
* Observers: torch's also learn ranges while a model is validated, so that the next image's result
  would depend on the images before it. These learn only when gradients are recorded.
* The warning filter: sparseml's LearningRateModifier steps its scheduler before the optimizer on
  purpose, which torch cannot know.
* :func:`quiet_loggers`: with no logger, modifiers open a file in ``./sparse_logs``
  (sparseml/pytorch/utils/logger.py).
"""

from __future__ import annotations

import logging
import os
import warnings
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

os.environ["NM_DISABLE_ANALYTICS"] = "1"
_compile = torch.compile
_main_handlers = list(logging.getLogger("__main__").handlers)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in sparseml's own imports
    from sparseml.pytorch.optim import ScheduledModifierManager
    from sparseml.pytorch.sparsification import (
        ConstantPruningModifier,
        GlobalMagnitudePruningModifier,
        GMPruningModifier,
        MagnitudePruningModifier,
        SetParamModifier,
    )
    from sparseml.pytorch.sparsification.modifier import (
        Modifier,
        ModifierProp,
        PyTorchModifierYAML,
        ScheduledUpdateModifier,
    )
    from sparseml.pytorch.sparsification.pruning.mask_creator import GroupedPruningMaskCreator
    from sparseml.pytorch.sparsification.pruning.modifier_pruning_base import BasePruningModifier
    from sparseml.pytorch.sparsification.quantization import quantization_scheme
    from sparseml.pytorch.sparsification.quantization.quantization_scheme import (
        QuantizationArgs,
        QuantizationScheme,
    )
    from sparseml.pytorch.utils import LambdaLogger, LoggerManager
    from sparseml.sparsification import SparsificationTypes
torch.compile = _compile
logging.getLogger("__main__").handlers = _main_handlers
logging.getLogger("sparseml").handlers = []
logging.getLogger("sparseml").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`", module="sparseml")

__all__ = [
    "BasePruningModifier",
    "ConstantPruningModifier",
    "GMPruningModifier",
    "GlobalMagnitudePruningModifier",
    "GroupedPruningMaskCreator",
    "MagnitudePruningModifier",
    "Modifier",
    "ModifierProp",
    "PyTorchModifierYAML",
    "QuantizationArgs",
    "QuantizationScheme",
    "ScheduledModifierManager",
    "ScheduledUpdateModifier",
    "SetParamModifier",
    "SparsificationTypes",
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
