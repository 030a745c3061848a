"""Quantization-aware models: what is folded, what is stored as integers, what parity means."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnx_models import CLASSES, noise, quantized_model, small_model
from yolact.engines.onnxruntime import OrtEngine
from yolact.errors import ExportError
from yolact.exporter.export import ExportReport, export
from yolact.exporter.graph import conv_weights
from yolact.exporter.options import ExportOptions
from yolact.exporter.passes import to_integers
from yolact.exporter.prepare import fold_quantized_batch_norms
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.quantized_layers import ConvBn2d
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact


@dataclass(frozen=True)
class Exported:
    model: Yolact
    report: ExportReport
    graph: onnx.ModelProto


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = quantized_model()
    path = tmp_path_factory.mktemp("qat") / "model.onnx"
    report = export(model, CLASSES, path)
    return Exported(model, report, onnx.load(str(path)))


def frozen(model: Yolact) -> Yolact:
    copy = deepcopy(model)
    for quantizer in fake_quantizers(copy):
        quantizer.disable_observer()
    return copy


def initializers(graph: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.graph.initializer}


def test_folding_batch_norms_changes_no_bit_of_the_quantized_weights() -> None:
    model = frozen(quantized_model())
    folded = deepcopy(model)
    fold_quantized_batch_norms(folded)
    assert not any(isinstance(module, ConvBn2d) for module in folded.modules())
    modules = dict(folded.named_modules())
    for name, fused in model.named_modules():
        if isinstance(fused, ConvBn2d):
            variance = fused.bn.running_var
            assert variance is not None
            scale = fused.bn.weight / torch.sqrt(variance + fused.bn.eps)
            expected = fused.weight_fake_quant(fused.weight * scale.reshape(-1, 1, 1, 1))
            conv: Any = modules[name]
            assert torch.equal(conv.weight_fake_quant(conv.weight), expected), name


def test_a_folded_layer_equals_the_training_layer() -> None:
    stem = frozen(quantized_model()).get_submodule("backbone._preconv")
    assert any(isinstance(module, ConvBn2d) for module in stem.modules())
    images = noise(1, seed=5)
    expected = stem(images)
    fold_quantized_batch_norms(stem)
    torch.testing.assert_close(stem(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_every_convolution_weight_is_stored_as_int8_around_zero(exported: Exported) -> None:
    weights = conv_weights(exported.graph)
    assert len(weights) == 22 + 8 + 5 + 4  # backbone, pyramid, prototypes, the shared head once
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.int8)}
    tensors = initializers(exported.graph)
    constants = {
        node.output[0]: node.attribute[0].t
        for node in exported.graph.graph.node
        if node.op_type == "Constant"
    }
    for node in exported.graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            zero = tensors.get(node.input[2]) or constants[node.input[2]]
            assert not onnx.numpy_helper.to_array(zero).any()


def test_activations_are_uint8(exported: Exported) -> None:
    tensors = initializers(exported.graph)
    nodes = [node for node in exported.graph.graph.node if node.op_type == "QuantizeLinear"]
    assert len(nodes) > 40
    for node in nodes:
        assert tensors[node.input[2]].data_type == onnx.TensorProto.UINT8
        assert node.input[0] not in tensors, "no weight is quantized at run time"


def test_no_batch_norm_is_left(exported: Exported) -> None:
    kinds = {node.op_type for node in exported.graph.graph.node}
    assert not kinds & {"BatchNormalization", "Div", "Identity", "Mul", "Constant"}


def test_the_file_is_about_a_quarter_of_the_float_file(exported: Exported, tmp_path: Path) -> None:
    dense = export(small_model(), CLASSES, tmp_path / "dense.onnx")
    assert exported.report.quantized and not dense.quantized
    assert exported.report.size < 0.33 * dense.size
    assert exported.report.packed["gz"] < 0.25 * dense.packed["gz"]


def test_pruned_weights_are_zero_in_the_file(exported: Exported) -> None:
    state = exported.model.state_dict()
    for name, stored in conv_weights(exported.graph).items():
        key = name.removesuffix("_int8")
        assert np.all(stored[state[key].numpy() == 0] == 0), key
    assert exported.report.sparsity > 0.599


def test_the_graph_is_as_close_as_quantization_allows(exported: Exported) -> None:
    by_name = {output.name: output for output in exported.report.outputs}
    for output in by_name.values():
        assert output.floor is not None and output.sqnr >= output.floor, output
    assert by_name["priors"].max_difference == 0
    assert by_name["conf"].sqnr > 20


@pytest.mark.slow
def test_the_model_keeps_its_ranges_and_observers(tmp_path: Path) -> None:
    model = quantized_model()
    before = deepcopy(model.state_dict())
    export(model, CLASSES, tmp_path / "m.onnx")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert is_quantized(model)


@pytest.mark.slow
def test_skipping_the_conversion_writes_the_training_graph(
    exported: Exported, tmp_path: Path
) -> None:
    report = export(
        exported.model, CLASSES, tmp_path / "raw.onnx", ExportOptions(convert_qat=False)
    )
    graph = onnx.load(str(report.path))
    kinds = [node.op_type for node in graph.graph.node]
    assert report.quantized and kinds.count("BatchNormalization") == 22
    assert {w.dtype for w in conv_weights(graph).values()} == {np.dtype(np.float32)}
    assert report.size > 3 * exported.report.size


def test_batches_equal_single_images(exported: Exported) -> None:
    engine = OrtEngine(exported.report.path)
    images = noise(3, 7)
    together = engine(images)
    for index in range(3):
        alone = engine(images[index : index + 1])
        torch.testing.assert_close(together.conf[index], alone.conf[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_one_wrong_scale_is_noticed(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(graph: onnx.ModelProto, *others: Any) -> int:
        count = to_integers(graph, *others)
        weight = "backbone.layers.2.0.0.module.weight_int8"
        node = next(n for n in graph.graph.node if weight in n.input)
        scale = initializers(graph).get(node.input[1])
        if scale is None:
            constant = next(n for n in graph.graph.node if node.input[1] in n.output)
            scale = constant.attribute[0].t
        values = np.float32(factor) * onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
        return count

    monkeypatch.setattr("yolact.exporter.export.to_integers", damage)
    message = r"dB, at least \d+\.\d dB is accepted\); it begins at backbone\.layers\.2\.0\.0$"
    with pytest.raises(ExportError, match=message):
        export(quantized_model(), CLASSES, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
