"""Exports that may lose only so much, and layers that stay float so that they lose less."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle
from torch import Tensor

from onnx_models import (
    CLASSES,
    QUANTIZATION,
    SIDE,
    outputs_of,
    save,
    small_config,
    small_model,
    with_golden_weights,
)
from training import tiny_config
from yolact.cli.export_onnx import export_onnx
from yolact.data.coco import CocoInstances
from yolact.data.transforms import EvalTransform
from yolact.engines.onnxruntime import OrtEngine
from yolact.engines.torch import TorchEngine
from yolact.errors import CheckpointError, ConfigError, DataError, TargetMissedError
from yolact.exporter.export import export
from yolact.exporter.graph import Graph
from yolact.exporter.limit import Limit, fewest
from yolact.exporter.options import ExportOptions
from yolact.exporter.passes import CLEAN, run_passes, to_integers
from yolact.exporter.prepare import Reference, prepare, without_quantization
from yolact.exporter.sensitivity import Layer, in_floats, measure_layers
from yolact.exporter.trace import trace
from yolact.exporter.verify import compare, first_wrong_layer, sqnr
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.yolact import Yolact
from yolact.predict.evaluate import collect
from yolact.predict.pipeline import Selection
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
APART = ("backbone.layers.3.1.conv1.0", "backbone.layers.3.1.conv2.0")
"""Layers that :func:`apart` makes hard to quantize."""


def apart(model: Yolact, factor: float = 1000) -> Yolact:
    """The same network with channels between two layers scaled apart, which the second undoes.

    With one range for all, most weights and values of these layers are lost in integers.
    """
    state = model.state_dict()
    scales = torch.logspace(0, math.log10(factor), len(state[f"{APART[0]}.weight"]))
    norm = f"{APART[0][:-1]}1"
    state[f"{norm}.weight"] *= scales
    state[f"{norm}.bias"] *= scales
    state[f"{APART[1]}.weight"] /= scales[None, :, None, None]
    return model


@dataclass(frozen=True)
class Scene:
    """A float model that is hard to quantize, and images in which it is right."""

    checkpoint: Path
    images: Path
    info: Path

    def run(self, target: Path, *more: object) -> Result:
        """Quantize it in one shot and export it."""
        recipe = self.info.with_name("recipe.yaml")
        recipe.write_text(QUANTIZATION)
        words = [
            *("--checkpoint", self.checkpoint, "--name", target),
            *("--one-shot", recipe, "--calibration_images", self.images),
            *("--validation_info", self.info, "--validation_images", self.images, *more),
        ]
        return CliRunner().invoke(export_onnx, [str(word) for word in words])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Its own best detections are the ground truth."""
    folder = tmp_path_factory.mktemp("scene")
    model, info = apart(small_model()), folder / "objects.json"
    images = folder / "images"
    images.mkdir()
    for index in range(4):
        picture = np.random.default_rng(index).integers(0, 255, (9, 12, 3), np.uint8)
        cv2.imwrite(str(images / f"{index}.png"), cv2.resize(picture, (120, 90)))
    pairs = zip(CLASSES.ids, CLASSES.names, strict=True)
    content: dict[str, Any] = {
        "images": [
            {"id": i + 1, "file_name": f"{i}.png", "width": 120, "height": 90} for i in range(4)
        ],
        "categories": [{"id": category, "name": name} for category, name in pairs],
        "annotations": [],
    }
    info.write_text(json.dumps(content))
    dataset = CocoInstances(images, info, EvalTransform(SIDE), annotated=False)
    found = collect(TorchEngine(model, CLASSES), dataset, Selection(top_k=5), progress=False)
    for number, entry in enumerate(found.segm, start=1):
        code = entry["segmentation"]
        annotation = {"id": number, "iscrowd": 0, "bbox": rle.toBbox(code).tolist()}
        annotation |= {"area": float(rle.area(code)), "segmentation": code}
        if annotation["area"] > 20:
            kept = {key: entry[key] for key in ("image_id", "category_id")}
            content["annotations"].append({**annotation, **kept})
    info.write_text(json.dumps(content))
    return Scene(save(model, folder / "model.pth"), images, info)


@given(least=st.integers(0, 90), most=st.integers(0, 80))
def test_the_fewest_that_hold_are_found_and_are_the_last_that_held(least: int, most: int) -> None:
    asked = []

    def holds(count: int) -> bool:
        assert 0 <= count <= most and count not in asked
        asked.append(count)
        return count >= least

    found = fewest(holds, most)
    assert found == (least if least <= most else None)
    held = [count for count in asked if count >= least]
    assert found is None or held[-1] == found
    assert len(asked) <= 2 + 2 * math.log2(most + 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mixed",), "--mixed has no limit to keep"),
        (("--max_drop", 1), "--max_drop 1.0 has nothing to be measured on"),
        (("--max_drop", -0.5), "--max_drop is -0.5"),
        (("--max_drop", 101, "--validation_info", "a.json"), "--max_drop is 101"),
        (("--validation_info", "a.json"), "--validation_info a.json has no use here"),
        (("--validation_images", "a"), "--validation_images a has no annotations"),
        (("--sensitivity",), "--sensitivity has no images to be measured on"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_two_lines(
    words: tuple[object, ...], message: str
) -> None:
    result = CliRunner().invoke(export_onnx, ["--checkpoint", "a.pth", *map(str, words)])
    assert result.exit_code == ConfigError.exit_code
    error, hint = result.stderr.splitlines()
    assert error == f"error: {message}" and hint.startswith("hint: ")


@pytest.mark.parametrize("option", ["--mixed", "--sensitivity"])
def test_a_float_model_has_no_layers_to_choose_from(
    scene: Scene, tmp_path: Path, option: str
) -> None:
    words = ["--checkpoint", scene.checkpoint, "--name", tmp_path / "a.onnx", option]
    words += ["--max_drop", 1, "--validation_info", scene.info, "--validation_images", scene.images]
    result = CliRunner().invoke(export_onnx, [str(word) for word in words])
    assert result.exit_code == ConfigError.exit_code
    assert f"{option} has no use for a model that is not quantized" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_validation_set_is_looked_at_before_any_work(scene: Scene, tmp_path: Path) -> None:
    content = json.loads(scene.info.read_text())
    other = [{**category, "name": f"{category['id']}?"} for category in content["categories"]]
    info = tmp_path / "other.json"
    info.write_text(json.dumps({**content, "categories": other}))
    target = tmp_path / "a.onnx"
    result = replace(scene, info=info).run(target, "--max_drop", 1)
    assert result.exit_code == CheckpointError.exit_code and not target.exists()
    info.write_text(json.dumps({**content, "annotations": []}))
    result = replace(scene, info=info).run(target, "--max_drop", 1)
    assert result.exit_code == DataError.exit_code and not target.exists()


def test_a_file_that_loses_too_much_replaces_nothing(scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(b"older")
    model, dataset = small_model(), CocoInstances(scene.images, scene.info, EvalTransform(SIDE))
    limit = Limit.of(dataset, model, CLASSES, small_config().detect, 0, "try more")
    with pytest.raises(TargetMissedError, match=r"in the float model: 0\.00 points less") as caught:
        export(model, CLASSES, target, limit=replace(limit, max_drop=-0.5))
    assert caught.value.exit_code == 9 and caught.value.hint == "try more"
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert target.read_bytes() == b"older"


@pytest.mark.slow
def test_sensitive_layers_stay_float_until_the_limit_holds(scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    result = scene.run(target, "--max_drop", 3, "--mixed")
    assert result.exit_code == 0, result.output
    metadata = OrtEngine(target).metadata
    assert metadata.float_layers is not None and set(metadata.float_layers) == set(APART)
    assert metadata.accuracy is not None
    before, after = (metadata.accuracy[model] for model in ("float", "file"))
    assert metadata.accuracy["images"] == 4 and before["mask"] - after["mask"] <= 3
    cells = [f"{before['mask']:.2f}", f"{after['mask']:.2f}"]
    (row,) = (line.split() for line in result.stdout.splitlines() if line.startswith("mask mAP"))
    assert row[2:4] == cells
    (line,) = (line for line in result.stdout.splitlines() if " layers in float, " in line)
    assert line.startswith("2 of 39 layers in float, 0.24 MB more than without: ")
    table = json.loads(target.with_suffix(".sensitivity.json").read_text())["layers"]
    assert {row["layer"] for row in table if row["float"]} == set(APART)
    assert [row["db"] for row in table] == sorted(row["db"] for row in table)
    graph = Graph(onnx.load(str(target)))
    weights = {conv.input[1] for conv in graph.nodes("Conv")}
    assert {name for name in weights if name.endswith(".weight")} == {
        f"{name}.module.weight" for name in APART
    }


@pytest.fixture(scope="module")
def measured() -> tuple[Yolact, tuple[Layer, ...]]:
    """A quantized model, and its layers as measured on an image."""
    model = apart(with_golden_weights(Yolact(tiny_config().model))).eval()
    apply_structure(model, load_recipe(QUANTIZATION))
    for quantizer in fake_quantizers(model):
        quantizer.enable_observer()
        quantizer.activation_post_process.averaging_constant = None  # keep extremes of all levels
    model(IMAGE)  # with gradients on: observers look at training only
    return model, measure_layers(model, [IMAGE], ExportOptions())


def test_the_layers_that_suffer_most_come_first(
    measured: tuple[Yolact, tuple[Layer, ...]],
) -> None:
    model, layers = measured
    assert {layer.name for layer in layers[:2]} == set(APART)
    assert layers[2].db > layers[1].db + 5
    names = {name.removesuffix(".module") for name, _ in model.named_modules()}
    assert len({layer.name for layer in layers} & names) == len(layers) == 33
    for share in ("macs", "weights"):
        assert sum(getattr(layer, share) for layer in layers) == pytest.approx(1, abs=0.01)


def test_each_layer_is_measured_alone(measured: tuple[Yolact, tuple[Layer, ...]]) -> None:
    """What is left of the noise when all other layers are in floats is this layer's."""
    model, layers = measured
    alone = in_floats(model, layers, layers[1:])
    with without_quantization(model):
        expected = outputs_of(model, IMAGE)
    ratios = [
        sqnr(*pair)
        for name, *pair in zip(expected._fields, expected, outputs_of(alone, IMAGE), strict=True)
        if name != "priors"
    ]
    assert min(ratios) == pytest.approx(layers[0].db, abs=1)


def mixed(
    measured: tuple[Yolact, tuple[Layer, ...]], names: set[str], images: list[Tensor] | None
) -> tuple[onnx.ModelProto, Reference, int]:
    """The graph with layers in floats, what it has to compute, and how many outputs stay float."""
    model, layers = measured
    chosen = [layer for layer in layers if layer.name in names]
    assert len(chosen) == len(names)
    reference = prepare(
        in_floats(model, layers, chosen), IMAGE, images, ExportOptions(), model.config
    )
    graph = trace(reference.network, reference.sample, opset=14, static=False)
    run_passes(graph, CLEAN)
    return graph, reference, to_integers(graph, reference.network, "qdq", images)


EDGES = {
    "backbone._preconv.0",
    "proto_net.4",
    "fpn.lat_layers.1",
    "prediction_layers.0.upfeature.0",
}
"""Layers beside the input, a resized value, a sum and the outputs."""


@pytest.mark.slow
def test_integers_end_at_a_float_layer_and_go_on_behind_it(
    measured: tuple[Yolact, tuple[Layer, ...]],
) -> None:
    names = EDGES | set(APART)
    model, reference, missing = mixed(measured, names, [IMAGE])
    engine = OrtEngine(model.SerializeToString())
    found = compare(reference.expected, engine(reference.sample), reference.unquantized)
    assert all(output.passed for output in found) and missing == 0
    graph = Graph(model)
    for conv in graph.nodes("Conv"):
        floats = conv.input[1].removesuffix(".module.weight") in names
        follow = {reader.op_type for reader in graph.readers(conv.output[0])}
        assert floats or follow == {"QuantizeLinear"}
    for node in graph.nodes("LeakyRelu"):
        readers = graph.readers(node.output[0])
        alone = all(r.input[1].removesuffix(".module.weight") in names for r in readers)
        assert not alone or {reader.op_type for reader in readers} == {"Conv"}


@pytest.mark.slow
def test_a_float_layer_is_named_where_a_graph_begins_to_differ(
    measured: tuple[Yolact, tuple[Layer, ...]],
) -> None:
    graph, reference, _ = mixed(measured, set(APART), None)
    assert first_wrong_layer(graph, reference, reference.sample) is None
    (tensor,) = (
        tensor for tensor in graph.graph.initializer if tensor.name == f"{APART[0]}.module.weight"
    )
    wrong = onnx.numpy_helper.to_array(tensor)[::-1].copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
    assert first_wrong_layer(graph, reference, reference.sample) == APART[0]
