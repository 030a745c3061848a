"""Weights in 16 bits: half the file, nearly the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnx_models import CLASSES, noise, outputs_of, prune, quantized_model, small_model
from yolact.engines.onnxruntime import OrtEngine
from yolact.errors import ConfigError, ExportError
from yolact.exporter.export import export
from yolact.exporter.graph import graph_sparsity
from yolact.exporter.options import ExportOptions
from yolact.exporter.passes.store import store_weights_as_half
from yolact.exporter.write import HALF_SQNR


def test_the_file_is_half_as_large_and_computes_nearly_the_same(tmp_path: Path) -> None:
    model = small_model()
    prune(model)
    whole = export(model, CLASSES, tmp_path / "whole.onnx")
    half = export(model, CLASSES, tmp_path / "half.onnx", ExportOptions(half=True))
    assert half.size == pytest.approx(whole.size / 2, rel=0.05)
    assert all(output.sqnr >= HALF_SQNR for output in half.outputs)
    images = noise(2, 3)
    for a, b in zip(outputs_of(model, images), OrtEngine(half.path)(images), strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


def test_priors_and_biases_stay_as_exact_as_they_were(tmp_path: Path) -> None:
    path = export(small_model(), CLASSES, tmp_path / "half.onnx", ExportOptions(half=True)).path
    for tensor in onnx.load(str(path)).graph.initializer:
        kind = onnx.numpy_helper.to_array(tensor).dtype
        assert (kind == np.float16) == (len(tensor.dims) == 4), tensor.name


def test_zeros_are_counted_in_16_bits_too(tmp_path: Path) -> None:
    model = small_model()
    prune(model)
    report = export(model, CLASSES, tmp_path / "half.onnx", ExportOptions(half=True))
    assert graph_sparsity(onnx.load(str(report.path))) >= report.sparsity > 0.7


def test_the_head_that_five_levels_share_is_stored_once(tmp_path: Path) -> None:
    graph = onnx.load(
        str(export(small_model(), CLASSES, tmp_path / "h.onnx", ExportOptions(half=True)).path)
    )
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    assert len(casts) == sum(len(t.dims) == 4 for t in graph.graph.initializer)


def test_weights_that_16_bits_cannot_hold_are_named(tmp_path: Path) -> None:
    graph = onnx.load(str(export(small_model(), CLASSES, tmp_path / "whole.onnx").path))
    tensor = next(t for t in graph.graph.initializer if t.name == "proto_net.0.weight")
    weight = onnx.numpy_helper.to_array(tensor) * np.float32(1e6)
    weight.flat[0] = 1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight.clip(-1e5, 1e5), tensor.name))
    with pytest.raises(ExportError) as caught:
        store_weights_as_half(graph)
    assert str(caught.value) == "proto_net.0.weight holds 1e+05, which 16 bits cannot"
    assert caught.value.hint == "nothing was written; export without --half"


def test_a_quantized_model_has_nothing_to_halve(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export(quantized_model(), CLASSES, tmp_path / "h.onnx", ExportOptions(half=True))
    assert str(caught.value) == "a quantized model has no float weights to halve"
    assert caught.value.hint == "export it without --half"
