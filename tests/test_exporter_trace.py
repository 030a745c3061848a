"""Quantizers of fewer than 8 bits, written for a format that knows 8."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.ao.quantization import FakeQuantize, disable_observer

from onnx_models import noise, outputs_of, small_model
from yolact.exporter.trace import fold_quantized_batch_norms, widen_quantizers
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "as it trains"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_eight_bits_behind_a_limit_are_fewer_bits(strategy: str, folded: bool) -> None:
    weights = f"{{num_bits: 4, symmetric: False, strategy: {strategy}}}"
    scheme = f"{{weights: {weights}, input_activations: {{num_bits: 6}}}}"
    model = small_model()
    apply_structure(
        model,
        load_recipe(f"modifiers:\n- !QuantizationModifier {{start_epoch: 0, scheme: {scheme}}}"),
    )
    model.eval()(noise(1, 0))  # with gradients on: observers look
    model.apply(disable_observer)
    if folded:
        fold_quantized_batch_norms(model)
    wide = copy.deepcopy(model)
    widen_quantizers(wide)
    ranges = {(m.quant_min, m.quant_max) for m in wide.modules() if isinstance(m, FakeQuantize)}
    assert ranges == {(-128, 127)}
    for one, other in zip(
        outputs_of(model, noise(1, 1)), outputs_of(wide, noise(1, 1)), strict=True
    ):
        assert torch.equal(one, other)


def test_eight_bits_are_left_alone() -> None:
    model = small_model()
    apply_structure(model, load_recipe("modifiers:\n- !QuantizationModifier {start_epoch: 0}"))
    before = [type(module) for module in model.modules()]
    widen_quantizers(model)
    assert [type(module) for module in model.modules()] == before
