"""Engines: one interface, equal results, and errors that say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_models import (
    CLASSES,
    QUANTIZATION,
    SIDE,
    noise,
    outputs_of,
    quantized_model,
    save,
    small_model,
)
from yolact.data.labels import COCO_CLASSES, Classes
from yolact.engines import load_detector, load_engine
from yolact.engines.base import Engine
from yolact.engines.compress import FORMATS, compress_file
from yolact.engines.onnxruntime import OrtEngine
from yolact.engines.torch import TorchEngine
from yolact.errors import CheckpointError, ConfigError
from yolact.exporter.export import export
from yolact.files import Compression
from yolact.sizes import sides_of
from yolact.types import RawOutputs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_model(), tmp_path_factory.mktemp("engines") / "small.pth")


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> Path:
    path = checkpoint.with_suffix(".onnx")
    export(small_model(), CLASSES, path)
    return path


@pytest.mark.slow
def test_torch_and_onnxruntime_agree(checkpoint: Path, onnx_file: Path) -> None:
    engines: list[Engine] = [load_engine(checkpoint), load_engine(onnx_file)]
    assert [engine.name for engine in engines] == ["torch", "onnxruntime"]
    for engine in engines:
        assert engine.classes == CLASSES
        assert engine.image_size == (SIDE, SIDE)
        assert engine.batch_size is None
    images = noise(2, seed=0)
    expected = outputs_of(small_model(), images)
    for engine in engines:
        outputs = engine(images)
        assert isinstance(outputs, RawOutputs)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_outputs_are_probabilities_without_gradients(checkpoint: Path) -> None:
    outputs = load_engine(checkpoint)(noise(1, seed=0))
    torch.testing.assert_close(outputs.conf.sum(-1), torch.ones(1, 582))
    assert not outputs.loc.requires_grad


def test_the_torch_engine_puts_the_model_into_evaluation_mode() -> None:
    model = small_model().train()
    before = model.state_dict()["backbone._preconv.1.running_mean"].clone()
    TorchEngine(model, CLASSES)(noise(2, seed=0))
    assert torch.equal(model.state_dict()["backbone._preconv.1.running_mean"], before)


def test_a_thread_limit_holds_during_the_call_only(checkpoint: Path, onnx_file: Path) -> None:
    threads = torch.get_num_threads()
    images = noise(1, seed=0)
    torch.testing.assert_close(
        load_engine(checkpoint, num_cores=1)(images).conf,
        load_engine(onnx_file, num_cores=1)(images).conf,
        atol=1e-4,
        rtol=1e-3,
    )
    assert torch.get_num_threads() == threads


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_compressed_files_run_as_they_are(kind: Compression, onnx_file: Path) -> None:
    packed = compress_file(onnx_file, kind)
    images = noise(1, seed=0)
    assert torch.equal(load_engine(packed)(images).conf, load_engine(onnx_file)(images).conf)


def renamed(source: Path, target: Path, *, batched_priors: bool = False) -> Path:
    """The same graph as another exporter would write it: its own names, no metadata."""
    model = onnx.load(str(source))
    names = {"input": "input.1"} | {name: f"{i + 500}" for i, name in enumerate(RawOutputs._fields)}
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    del model.metadata_props[:]
    if batched_priors:
        priors = model.graph.output[3]
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
        model.graph.initializer.append(axes)
        model.graph.node.append(helper.make_node("Unsqueeze", [priors.name, "axes"], ["p"]))
        priors.CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 582, 4]))
    onnx.save(model, str(target))
    return target


@pytest.mark.parametrize("batched_priors", [False, True])
def test_files_of_other_exporters_are_read_by_order(
    batched_priors: bool, onnx_file: Path, tmp_path: Path
) -> None:
    engine = load_engine(renamed(onnx_file, tmp_path / "a.onnx", batched_priors=batched_priors))
    assert engine.classes == Classes.numbered(3)
    images = noise(2, seed=0)
    for a, b in zip(engine(images), load_engine(onnx_file)(images), strict=True):
        assert torch.equal(a, b)


def test_eighty_unnamed_classes_are_cocos(tmp_path: Path) -> None:
    path = tmp_path / "coco.onnx"
    graph_of_constants(path, classes=81)
    assert load_engine(path).classes == COCO_CLASSES


def graph_of_constants(path: Path, *, classes: int = 4, outputs: int = 5) -> None:
    """A file with the first ``outputs`` of YOLACT's that computes nothing."""
    shapes = [[1, 5, 4], [1, 5, classes], [1, 5, 2], [5, 4], [1, 3, 3, 2]]
    nodes, values = [], []
    for name, shape in list(zip(RawOutputs._fields, shapes, strict=True))[:outputs]:
        tensor = numpy_helper.from_array(np.zeros(shape, np.float32))
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph(nodes, "graph", [image], values)
    opset = [helper.make_opsetid("", 14)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=7), str(path))


def test_a_graph_without_the_five_outputs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    graph_of_constants(path, outputs=4)
    with pytest.raises(CheckpointError, match="not a YOLACT model: its outputs are loc, conf"):
        load_engine(path)


def test_a_graph_with_another_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    text = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 8])
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [1, 8])
    graph = helper.make_graph([helper.make_node("Identity", ["tokens"], ["y"])], "g", [text], [out])
    opset = [helper.make_opsetid("", 14)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=7), str(path))
    with pytest.raises(CheckpointError, match="not a YOLACT model: its inputs are") as caught:
        load_engine(path)
    assert caught.value.hint == "it needs one input of shape [batch, 3, height, width]"


def test_metadata_of_other_classes_is_named(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(onnx_file))
    props = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, props | {"classes": '["a"]', "category_ids": "[1]"})
    path = tmp_path / "classes.onnx"
    onnx.save(model, str(path))
    with pytest.raises(CheckpointError, match="names 1 classes but predicts 3"):
        load_engine(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable ONNX model"),
        (b"hello", "not a readable ONNX model"),
        (None, "model not found: "),
    ],
)
def test_files_that_are_no_models_are_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        OrtEngine(path)
    assert str(path) in str(caught.value) and caught.value.hint


@pytest.mark.slow
def test_a_truncated_file_is_named(onnx_file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    half.write_bytes(onnx_file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="not a readable ONNX model"):
        load_engine(half)
    for kind in FORMATS:
        packed = compress_file(onnx_file, kind)
        broken = tmp_path / f"broken.onnx.{kind}"
        broken.write_bytes(packed.read_bytes()[:100_000])
        with pytest.raises(CheckpointError) as caught:
            load_engine(broken)
        assert str(caught.value).startswith(f"{broken} is damaged: ")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not found: .*no\.pth"):
        load_engine(tmp_path / "no.pth")


def test_engines_are_chosen_by_name_or_by_ending(checkpoint: Path, onnx_file: Path) -> None:
    assert load_engine(onnx_file, engine="ort").name == "onnxruntime"
    with pytest.raises(ConfigError, match="unknown engine 'deepsparse'") as caught:
        load_engine(onnx_file, engine="deepsparse")
    assert caught.value.hint == "choose from torch, onnxruntime, openvino"
    with pytest.raises(ConfigError, match=r"engine onnxruntime does not read small\.pth") as caught:
        load_engine(checkpoint, engine="onnxruntime")
    assert "sparseml.yolact.export_onnx" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"engine torch does not read small\.onnx") as caught:
        load_engine(onnx_file, engine="torch")
    assert caught.value.hint == "use --engine onnxruntime"
    with pytest.raises(CheckpointError, match="not a model file: model.txt"):
        load_engine(Path("model.txt"))
    with pytest.raises(ConfigError, match="number of cores is 0"):
        load_engine(onnx_file, num_cores=0)


@pytest.mark.parametrize("size", [550, (64, SIDE), (SIDE, 64)])
def test_another_size_than_that_of_an_onnx_file_is_refused(
    onnx_file: Path, size: int | tuple[int, int]
) -> None:
    height, width = sides_of(size)
    with pytest.raises(ConfigError, match=f"images of 96 x 96, not {height} x {width}") as caught:
        load_detector(onnx_file, image_size=size)
    assert caught.value.hint
    assert load_engine(onnx_file, image_size=SIDE).image_size == (SIDE, SIDE)


def test_a_size_may_be_a_list_and_what_is_none_is_shown(checkpoint: Path, onnx_file: Path) -> None:
    listed: Any = [SIDE, SIDE]
    written: Any = "96x96"
    for path in (checkpoint, onnx_file):
        assert load_detector(path, image_size=listed).image_size == (SIDE, SIDE)
        with pytest.raises(ConfigError, match="image size '96x96' cannot be read"):
            load_detector(path, image_size=written)


def test_the_priors_of_an_onnx_file_stay_as_they_are(onnx_file: Path) -> None:
    with pytest.raises(ConfigError, match="the priors of .* are part of the file"):
        load_engine(onnx_file, prior_base_size=64)


def test_images_of_another_shape_are_refused(checkpoint: Path, onnx_file: Path) -> None:
    wanted = re.escape("takes images of shape ['any', 3, 96, 96], got [1, 3, 64, 96]")
    for path in (checkpoint, onnx_file):
        with pytest.raises(ConfigError, match=wanted):
            load_engine(path)(torch.zeros(1, 3, 64, SIDE))


def test_a_quantized_checkpoint_runs_and_does_not_adapt(tmp_path: Path) -> None:
    path = save(quantized_model(), tmp_path / "quantized.pth", recipe=QUANTIZATION)
    engine = load_engine(path)
    first = engine(noise(1, seed=0))
    engine(10 * noise(1, seed=1))
    assert torch.equal(engine(noise(1, seed=0)).conf, first.conf)
