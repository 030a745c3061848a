"""Faults of sparseml's quantization, put right; :mod:`yolact.sparsify.sparseml` imports this.

What each piece corrects:

* :func:`_enable_legacy`: observers and batch norms of a submodule that quantization replaces, a
  single layer, are not stopped when their epoch comes.
* :func:`_freeze_statistics`, :func:`_update_statistics`: a batch norm that is not fused is wrapped
  twice when it is quantized, and freezing reaches the wrapper only.
"""

from __future__ import annotations

from typing import Any

from sparseml.pytorch.sparsification.quantization import helpers
from sparseml.pytorch.sparsification.quantization.legacy_modifier_quantization import (
    QuantizationModifier as LegacyQuantizationModifier,
)
from torch import nn

_enable_as_given = LegacyQuantizationModifier._enable_module_qat


def _enable_legacy(self: Any, module: nn.Module) -> None:
    _enable_as_given(self, module)
    self._modules_to_quantize = [
        part._replace(module=module.get_submodule(part.name or ""))
        for part in self._modules_to_quantize
    ]


def _freeze_statistics(self: Any) -> Any:
    self.freeze_bn = True
    self.bn.eval()
    return self


def _update_statistics(self: Any) -> Any:
    self.freeze_bn = False
    self.bn.train()
    return self


LegacyQuantizationModifier._enable_module_qat = _enable_legacy
helpers._BNWrapper.freeze_bn_stats = _freeze_statistics
helpers._BNWrapper.update_bn_stats = _update_statistics
