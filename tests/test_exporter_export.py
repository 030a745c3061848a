"""The exported file: its contract, its parity with PyTorch, and what export leaves alone."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from onnx_models import CLASSES, SIDE, outputs_of, prune, small_model, with_golden_weights
from yolact.data.labels import Classes
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import ConfigError, DataError, ExportError, StorageError
from yolact.exporter.export import ExportReport, export
from yolact.exporter.graph import conv_weights, infer_shapes
from yolact.exporter.options import OPSETS, ExportOptions
from yolact.exporter.trace import compute_priors
from yolact.exporter.verify import TOLERANCE
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.sizes import ImageSize, sides_of
from yolact.types import RawOutputs


@dataclass(frozen=True)
class Exported:
    model: Yolact
    path: Path
    report: ExportReport
    graph: onnx.ModelProto


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    model = small_model()
    prune(model)
    report = export(model, CLASSES, path, recipe="pruning_modifiers: []")
    return Exported(model, path, report, onnx.load(str(path)))


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_input_and_outputs_are_the_contract(exported: Exported) -> None:
    graph = exported.graph.graph
    assert [(i.name, shape_of(i)) for i in graph.input] == [("input", ["batch", 3, SIDE, SIDE])]
    priors = 3 * (12**2 + 6**2 + 3**2 + 2**2 + 1)
    assert [(o.name, shape_of(o)) for o in graph.output] == [
        ("loc", ["batch", priors, 4]),
        ("conf", ["batch", priors, 4]),
        ("mask", ["batch", priors, 16]),
        ("priors", [priors, 4]),
        ("proto", ["batch", 24, 24, 16]),
    ]
    assert [output.name for output in graph.output] == list(RawOutputs._fields)


def test_the_report_repeats_the_contract(exported: Exported) -> None:
    report, graph = exported.report, exported.graph.graph
    assert report.input_shape == tuple(shape_of(graph.input[0]))
    assert report.output_shapes == tuple(tuple(shape_of(o)) for o in graph.output)
    assert report.size == exported.path.stat().st_size > report.packed["gz"]
    assert (report.opset, report.quantized) == (14, False)


def test_the_graph_holds_convolutions_and_no_training_leftovers(exported: Exported) -> None:
    count = Counter(node.op_type for node in exported.graph.graph.node)
    assert set(count) == {
        *("Conv", "LeakyRelu", "Relu", "Add", "Resize", "Tanh", "Softmax"),
        *("Transpose", "Reshape", "Concat"),
    }
    # 2 per residual block + 5 strided + stem, 3 + 3 + 2 in the pyramid, 5 prototype convolutions,
    # and a head of 4 on each of 5 levels.
    assert count["Conv"] == (2 * 8 + 5 + 1) + 8 + 5 + 4 * 5
    assert count["Softmax"] == 1


def test_only_the_batch_axis_is_dynamic(exported: Exported) -> None:
    shapes = infer_shapes(exported.graph)
    for node in exported.graph.graph.node:
        first, *others = shapes[node.output[0]]
        assert isinstance(first, str), node.name
        assert others and all(isinstance(size, int) for size in others), node.name


@pytest.mark.slow
@pytest.mark.parametrize("side", [97, 130, 138])
def test_sides_that_do_not_halve_evenly_keep_their_sizes(side: int, tmp_path: Path) -> None:
    report = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(image_size=side))
    priors = report.output_shapes[3][0]
    shapes = infer_shapes(onnx.load(str(report.path)))
    assert [shapes[name][1] for name in ("loc", "conf", "mask")] == [priors] * 3
    assert "Shape" not in {node.op_type for node in onnx.load(str(report.path)).graph.node}


def test_the_priors_are_one_constant_without_a_batch_axis(exported: Exported) -> None:
    priors = [t for t in exported.graph.graph.initializer if list(t.dims) == [582, 4]]
    assert [tensor.name for tensor in priors] == ["priors"]
    images = torch.zeros(1, 3, SIDE, SIDE)
    expected = outputs_of(exported.model, images).priors.numpy()
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(priors[0]), expected)


def test_zeros_have_no_sign(exported: Exported) -> None:
    assert any(
        (value < 0).any()
        for name, value in exported.model.state_dict().items()
        if name.endswith(".1.weight")
    ), "a batch norm with negative scales"
    for name, weight in conv_weights(exported.graph).items():
        assert not np.signbit(weight[weight == 0]).any(), name


def test_opset_is_14_unless_asked_for(exported: Exported, tmp_path: Path) -> None:
    assert [o.version for o in exported.graph.opset_import] == [14]
    path = tmp_path / "newest.onnx"
    export(exported.model, CLASSES, path, ExportOptions(opset=OPSETS[-1]))
    assert [o.version for o in onnx.load(str(path)).opset_import] == [OPSETS[-1]]


def test_any_batch_size_gives_each_image_its_own_result(exported: Exported) -> None:
    engine = OrtEngine(exported.path)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    together = engine(images)
    for index in range(3):
        alone = engine(images[index : index + 1])
        for name in ("loc", "conf", "mask", "proto"):
            a, b = getattr(together, name)[index], getattr(alone, name)[0]
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert torch.equal(together.priors, alone.priors)


def test_a_static_file_takes_its_batch_size_only(tmp_path: Path) -> None:
    report = export(
        small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(batch_size=2, static=True)
    )
    assert report.input_shape == (2, 3, SIDE, SIDE)
    assert report.output_shapes[0][0] == 2 and report.output_shapes[3] == (582, 4)
    engine = OrtEngine(report.path)
    assert engine.batch_size == 2
    with pytest.raises(ConfigError, match=r"takes images of shape \[2, 3, 96, 96\], got \[1, 3"):
        engine(torch.zeros(1, 3, SIDE, SIDE))


def test_the_file_computes_what_pytorch_computes(exported: Exported) -> None:
    assert all(output.max_difference < 1e-4 for output in exported.report.outputs)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    for a, b in zip(
        outputs_of(exported.model, images), OrtEngine(exported.path)(images), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_the_published_network_agrees_on_a_picture(tmp_path: Path, tiny_shapes: Path) -> None:
    picture = sorted((tiny_shapes / "images").iterdir())[0]
    config = named_config("yolact_darknet53").with_model(image_size=138)
    model = with_golden_weights(Yolact(config.model)).eval()
    report = export(
        model,
        Classes.numbered(80),
        tmp_path / "full.onnx",
        ExportOptions(image=picture),
        config=config,
    )
    assert max(output.max_difference for output in report.outputs) < TOLERANCE
    # 47.7 M convolution weights and as many bytes times four: the head is stored once.
    assert report.size == pytest.approx(4 * 47.8e6, rel=0.01)


@pytest.mark.parametrize(
    "size",
    [
        (64, 96),
        pytest.param((137, 250), marks=pytest.mark.slow),
    ],
)
def test_another_image_size_keeps_the_sides_of_priors_in_pixels(
    size: ImageSize, tmp_path: Path
) -> None:
    model = small_model()
    report = export(model, CLASSES, tmp_path / "m.onnx", ExportOptions(image_size=size))
    height, width = sides_of(size)
    assert report.input_shape == ("batch", 3, height, width)
    assert max(output.max_difference for output in report.outputs) < TOLERANCE
    engine = OrtEngine(report.path)
    config = engine.metadata.config
    assert engine.image_size == engine.metadata.image_size == (height, width)
    assert config is not None and config.model.image_size == size
    priors = engine(torch.zeros(2, 3, height, width)).priors
    usual = outputs_of(model, torch.zeros(1, 3, SIDE, SIDE)).priors
    wanted = {round(side * SIDE, 3) for side in usual[:, 2].tolist()}
    assert {round(side * width, 3) for side in priors[:, 2].tolist()} == wanted
    assert {round(side * height, 3) for side in priors[:, 3].tolist()} == wanted
    assert model.config.image_size == SIDE


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "half"), [(11, False), (12, True)])
def test_opencv_computes_the_outputs_of_older_opsets_and_the_priors(
    opset: int, half: bool, tmp_path: Path
) -> None:
    path, size = tmp_path / "m.onnx", (64, 96)
    options = ExportOptions(opset=opset, image_size=size, half=half, priors_output=True)
    export(small_model(), CLASSES, path, options)
    onnx.checker.check_model(str(path), full_check=True)
    assert [o.version for o in onnx.load(str(path)).opset_import] == [opset]
    for count in (1, 4):
        images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
        network = cv2.dnn.readNetFromONNX(str(path))
        network.setInput(images.numpy(), "input")
        names = list(network.getUnconnectedOutLayersNames())
        assert sorted(names) == sorted(RawOutputs._fields)
        wanted = OrtEngine(path)(images)._asdict()
        for name, value in zip(names, network.forward(names), strict=True):
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-3, err_msg=name)
            assert name != "priors" or np.array_equal(value, wanted[name])


def test_computed_priors_are_the_stored_ones_to_the_bit(tmp_path: Path) -> None:
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    stored = np.random.default_rng(0).random((5, 4), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["input"], ["loc"])],
        "boxes",
        [value("input", "batch", 5, 4)],
        [value("loc", "batch", 5, 4), value("priors", 5, 4)],
        [onnx.numpy_helper.from_array(stored, "priors")],
    )
    opset = [onnx.helper.make_opsetid("", 11)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=7)
    compute_priors(model)
    onnx.checker.check_model(model, full_check=True)
    for count in (1, 3):
        found = run_graph(model.SerializeToString(), -1e30 * torch.rand(count, 5, 4))
        assert np.array_equal(found["priors"], stored)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = small_model().train()
    before = deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    export(model, CLASSES, tmp_path / "m.onnx")
    assert model.training
    assert [name for name, _ in model.named_modules()] == names
    assert model.config.image_size == SIDE
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model(torch.zeros(2, 3, SIDE, SIDE)).segm is not None


def test_a_model_that_has_run_before_exports_too(tmp_path: Path) -> None:
    model = small_model()
    images = torch.rand(1, 3, SIDE, SIDE)
    expected = outputs_of(model, images)
    export(model, CLASSES, tmp_path / "m.onnx")
    for a, b in zip(outputs_of(model, images), expected, strict=True):
        assert torch.equal(a, b)


def test_pruned_weights_stay_exactly_zero_under_their_own_names(exported: Exported) -> None:
    state = exported.model.state_dict()
    weights = conv_weights(exported.graph)
    assert set(weights) == {
        name for name, value in state.items() if value.ndim == 4 and "semantic" not in name
    }
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight == 0, state[name].numpy() == 0, err_msg=name)
    assert exported.report.sparsity == pytest.approx(0.8, abs=0.01)


def test_metadata_says_all_that_is_needed_to_use_the_file(exported: Exported) -> None:
    props = {entry.key: entry.value for entry in exported.graph.metadata_props}
    assert json.loads(props["classes"]) == list(CLASSES.names)
    assert json.loads(props["category_ids"]) == list(CLASSES.ids)
    assert json.loads(props["image_size"]) == [SIDE, SIDE]
    assert props["recipe"] == "pruning_modifiers: []"
    assert "divided by 255" in props["preprocessing"]
    engine = OrtEngine(exported.path)
    assert engine.classes == CLASSES
    assert engine.metadata.config is not None
    assert engine.metadata.config.model == exported.model.config
    assert engine.metadata.sparsity == pytest.approx(exported.report.sparsity, abs=1e-6)


def test_the_same_model_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    export(exported.model, CLASSES, again, recipe="pruning_modifiers: []")
    assert again.read_bytes() == exported.path.read_bytes()


def test_a_graph_that_differs_is_refused_and_the_old_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(graph: onnx.ModelProto, passes: object) -> None:
        bias = next(t for t in graph.graph.initializer if t.name == "proto_net.10.bias")
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.5)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    monkeypatch.setattr("yolact.exporter.export.run_passes", damage)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"yesterday's")
    message = (
        r"differs from PyTorch: proto by 0\.5 \(at most 0\.0001 is "
        r"accepted\); it begins at proto_net\.10$"
    )
    with pytest.raises(ExportError, match=message):
        export(small_model(), CLASSES, path)
    assert path.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.state_dict()["proto_net.0.weight"].fill_(float("nan"))
    with pytest.raises(ExportError, match="differs from PyTorch: proto by nan") as caught:
        export(model, CLASSES, tmp_path / "m.onnx")
    assert "nothing was written" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 10}, "opset 10 cannot be exported"),
        ({"opset": 0}, "opset 0 cannot be exported"),
        ({"opset": 12, "with_nms": True}, "opset 12 lacks operators"),
        ({"priors_output": True, "with_nms": True}, "no priors that --priors_output could add"),
        ({"image_size": (96, 5000)}, "image size 96 x 5000 is too large"),
        ({"prior_base_size": -1}, "prior base size -1"),
        ({"opset": 20}, "opset 20 cannot be exported"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"image_size": 32}, "image size 32 is too small"),
    ],
)
def test_impossible_options_are_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(**options))
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_text("hello")
    with pytest.raises(DataError, match=r"picture\.jpg"):
        export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(image=picture))


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "deploy").write_text("")
    with pytest.raises(StorageError, match="in the way"):
        export(small_model(), CLASSES, tmp_path / "deploy" / "m.onnx")
