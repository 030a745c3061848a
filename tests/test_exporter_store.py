"""Smaller files of the same network: weights in 16 bits, or with the input channels last."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnx_models import CLASSES, noise, outputs_of, prune, quantized_model, small_model
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import ConfigError, ExportError
from yolact.exporter.export import ExportReport, export
from yolact.exporter.graph import conv_weights, graph_sparsity
from yolact.exporter.options import LAYOUTS, ExportOptions, Layout
from yolact.exporter.passes.store import store_weights_as_half
from yolact.exporter.write import HALF_SQNR
from yolact.model.yolact import Yolact


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


BLOCK = 4


def prune_blocks(model: nn.Module) -> None:
    """Set four of five blocks of input channels to zero, as a recipe with mask_type [1,4] does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels % BLOCK == 0:
                rows, columns, height, width = module.weight.shape
                kept = torch.rand(rows, columns // BLOCK, height, width, generator=generator) > 0.8
                module.weight *= kept.repeat_interleave(BLOCK, 1)


@pytest.fixture(scope="module")
def model() -> Yolact:
    return quantized_model(prune_blocks)


Write = Callable[..., ExportReport]


@pytest.fixture(scope="module")
def write(model: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Makes a file once for each set of options."""
    folder = tmp_path_factory.mktemp("blocks")

    @cache
    def made(layout: Layout = "qdq", **options: Any) -> ExportReport:
        path = folder / f"{layout} {options}.onnx"
        images = [noise(1, seed) for seed in range(2)]
        return export(model, CLASSES, path, ExportOptions(layout=layout, **options), images=images)

    return made


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_are_the_same_to_the_last_bit(write: Write, layout: Layout) -> None:
    plain = write(layout)
    packed = write(layout, pack_blocks=True)
    images = noise(2, 5)
    expected = run_graph(plain.path, images)
    for name, value in run_graph(packed.path, images).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_zeros_pack_better(write: Write, layout: Layout) -> None:
    plain = write(layout)
    packed = write(layout, pack_blocks=True)
    for kind in ("gz", "zst"):
        assert packed.packed[kind] < 0.9 * plain.packed[kind], kind
    assert packed.size < plain.size + 20_000, "the file itself grows by a few nodes"


@pytest.mark.slow
def test_only_weights_of_several_pixels_are_turned(write: Write) -> None:
    plain = onnx.load(str(write().path))
    packed = onnx.load(str(write(pack_blocks=True).path))
    turned = conv_weights(packed)
    for name, weight in conv_weights(plain).items():
        if weight.shape[2:] == (1, 1):
            np.testing.assert_array_equal(turned.pop(name), weight)
        else:
            last = turned.pop(f"{name}_channels_last")
            np.testing.assert_array_equal(last, weight.transpose(0, 2, 3, 1))
    assert not turned, "a weight that five levels share is stored once"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_are_counted_in_that_order_too(write: Write, layout: Layout) -> None:
    report = write(layout, pack_blocks=True)
    assert graph_sparsity(onnx.load(str(report.path))) == report.sparsity > 0.7


@pytest.mark.slow
def test_channels_keep_their_own_ranges(write: Write) -> None:
    paths = [
        write(per_channel=True).path,
        write(per_channel=True, pack_blocks=True).path,
    ]
    expected, actual = (run_graph(path, noise(1, 5)) for path in paths)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.slow
def test_detection_goes_inside_behind_packed_weights(write: Write) -> None:
    plain, packed = write(with_nms=True), write(with_nms=True, pack_blocks=True)
    expected = run_graph(plain.path, noise(1, 5))
    for name, value in run_graph(packed.path, noise(1, 5)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_floats_have_no_blocks_to_pack(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(pack_blocks=True))
    assert str(caught.value) == "--pack_blocks has no use for a model that is not quantized"


def test_what_was_trained_is_left_alone_or_packed_but_not_both(
    model: Yolact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        export(
            model, CLASSES, tmp_path / "m.onnx", ExportOptions(pack_blocks=True, convert_qat=False)
        )
    assert str(caught.value) == (
        "--pack_blocks changes what --skip-qat-convert leaves as it was trained"
    )
