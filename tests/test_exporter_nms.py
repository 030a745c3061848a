"""Detection inside the graph finds what detection outside of it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_models import CLASSES, noise, quantized_model, small_model
from yolact.cli.annotate import annotate
from yolact.config import DetectConfig
from yolact.engines import load_detector, load_engine
from yolact.engines.onnx_file import DETECTED
from yolact.engines.onnxruntime import OrtEngine, run_graph
from yolact.errors import CheckpointError, ExportError
from yolact.exporter.export import export
from yolact.exporter.graph import Array
from yolact.exporter.nms import detect_inside
from yolact.exporter.options import ExportOptions
from yolact.exporter.trace import generated_picture
from yolact.predict.detect import detect, low_masks
from yolact.predict.pipeline import Selection
from yolact.types import RawOutputs

GREEDY = DetectConfig(fast_nms=False)
STANDARD = {""}


def detecting_graph(shapes: RawOutputs, config: DetectConfig) -> bytes:
    """A graph of nothing but detection, whose inputs are the raw outputs of ``shapes``."""
    values = [
        helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, tuple(value.shape))
        for name, value in zip(RawOutputs._fields, shapes, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, tuple(value.shape))
        for name, value in zip(RawOutputs._fields, shapes, strict=True)
    ]
    nodes = [helper.make_node("Identity", [f"{o.name}_in"], [o.name]) for o in outputs]
    graph = helper.make_graph(nodes, "raw", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    detect_inside(model, config)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def run_inside(raw: RawOutputs, config: DetectConfig) -> dict[str, Array]:
    session = ort.InferenceSession(detecting_graph(raw, config))
    feed = {
        f"{name}_in": value.numpy() for name, value in zip(RawOutputs._fields, raw, strict=True)
    }
    return dict(zip(DETECTED, session.run(list(DETECTED), feed), strict=True))


def assert_same(raw: RawOutputs, inside: dict[str, Array], config: DetectConfig) -> int:
    total = 0
    for index, found in enumerate(detect(raw, config)):
        count = len(found.scores)
        scores, boxes, classes, masks = (
            inside[name][index] for name in ("scores", "boxes", "classes", "masks")
        )
        assert int((scores > 0).sum()) == count
        np.testing.assert_array_equal(scores[:count], found.scores)
        np.testing.assert_array_equal(classes[:count], found.labels)
        np.testing.assert_allclose(boxes[:count], found.boxes, atol=1e-6)
        soft = low_masks(found, raw.proto[index])
        np.testing.assert_allclose(masks[:count], soft, atol=1e-5)
        assert not masks[count:].any()
        total += count
    return total


def random_outputs(
    seed: int, batch: int, priors: int, classes: int, sharpness: float
) -> RawOutputs:
    """Boxes that overlap a lot; the larger the sharpness, the fewer the candidates."""
    random = torch.Generator().manual_seed(seed)
    center = torch.rand(priors, 2, generator=random)
    size = 0.1 + 0.3 * torch.rand(priors, 2, generator=random)
    logits = sharpness * torch.randn(batch, priors, classes + 1, generator=random)
    return RawOutputs(
        loc=torch.randn(batch, priors, 4, generator=random),
        conf=logits.softmax(-1),
        mask=torch.randn(batch, priors, 8, generator=random).tanh(),
        priors=torch.cat([center, size], 1),
        proto=torch.rand(batch, 13, 17, 8, generator=random),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    classes=st.integers(1, 5),
    sharpness=st.sampled_from([0.5, 2.0, 6.0]),
    threshold=st.sampled_from([0.05, 0.3, 0.9]),
    iou=st.sampled_from([0.3, 0.5, 0.8]),
    most=st.sampled_from([1, 10, 100]),
)
def test_inside_equals_outside(
    seed: int, batch: int, classes: int, sharpness: float, threshold: float, iou: float, most: int
) -> None:
    raw = random_outputs(seed, batch, 120, classes, sharpness)
    scores = raw.conf[..., 1:][raw.conf[..., 1:] > threshold]
    assume(len(torch.unique(scores)) == len(scores))  # of equal scores, either may come first
    config = replace(GREEDY, score_threshold=threshold, nms_iou=iou, max_detections=most)
    assert_same(raw, run_inside(raw, config), config)


def test_fewer_priors_than_detections_leave_fewer_rows() -> None:
    raw = random_outputs(0, 1, 6, 2, 3.0)
    inside = run_inside(raw, GREEDY)
    assert inside["scores"].shape == (1, 12)
    assert assert_same(raw, inside, GREEDY) > 0


def test_an_image_without_objects_gives_zeros() -> None:
    raw = random_outputs(0, 2, 50, 2, 3.0)
    conf = torch.zeros_like(raw.conf)
    conf[..., 0] = 1
    inside = run_inside(raw._replace(conf=conf), GREEDY)
    assert not inside["scores"].any() and not inside["masks"].any()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e6])
def test_boxes_that_overflow_are_no_objects(value: float) -> None:
    raw = random_outputs(3, 1, 50, 2, 3.0)
    raw.loc[0, :25] = value
    found = assert_same(raw, run_inside(raw, GREEDY), GREEDY)
    assert found > 0


def test_the_exported_file_holds_standard_operators_and_states_its_outputs(tmp_path: Path) -> None:
    report = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True))
    graph = onnx.load(str(report.path))
    assert {node.domain for node in graph.graph.node} == STANDARD
    assert report.detected == {
        "boxes": ("batch", 100, 4),
        "scores": ("batch", 100),
        "classes": ("batch", 100),
        "masks": ("batch", 100, 24, 24),
    }
    props = {p.key: p.value for p in graph.metadata_props}
    assert list(json.loads(props["outputs"])) == list(DETECTED)
    assert json.loads(props["config"])["detect"]["fast_nms"] is False
    assert report.detections is not None and report.detections > 10


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_a_batch_gives_what_the_file_of_raw_outputs_gives(quantized: bool, tmp_path: Path) -> None:
    model = quantized_model() if quantized else small_model()
    raw = export(model, CLASSES, tmp_path / "raw.onnx").path
    inside = export(model, CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    images = noise(3, 7)
    found = assert_same(OrtEngine(raw)(images), run_graph(inside, images), GREEDY)
    assert found > 10


@pytest.mark.slow
def test_a_static_file_detects_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export(
        small_model(), CLASSES, path, ExportOptions(with_nms=True, static=True, batch_size=2)
    )
    assert report.detected["masks"] == (2, 100, 24, 24)
    assert run_graph(path, noise(2, 1))["boxes"].shape == (2, 100, 4)


@pytest.mark.slow
def test_commands_that_need_raw_outputs_say_so(tmp_path: Path) -> None:
    path = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    with pytest.raises(CheckpointError) as caught:
        load_engine(path)
    assert str(caught.value) == f"{path} detects inside the graph, and raw outputs are needed here"
    assert caught.value.hint == (
        "use a file exported without --with-nms; sparseml.yolact.annotate and deployment/run.py "
        "run this one"
    )


@pytest.mark.slow
def test_a_graph_that_detects_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(graph: onnx.ModelProto, config: DetectConfig) -> None:
        detect_inside(graph, replace(config, score_threshold=0.9))

    monkeypatch.setattr("yolact.exporter.write.detect_inside", other)
    with pytest.raises(ExportError, match="finds something else than outside: 0 objects, not") as e:
        export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True))
    assert e.value.hint == "nothing was written; export without --with-nms"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_annotations_are_those_of_the_file_of_raw_outputs(tmp_path: Path) -> None:
    raw = export(small_model(), CLASSES, tmp_path / "raw.onnx").path
    inside = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    engines = [load_detector(path) for path in (raw, inside)]
    image = generated_picture(150, 200)
    ours, theirs = (
        Selection(detect=GREEDY).find(engine, [image])[0].instances() for engine in engines
    )
    assert engines[1].classes == CLASSES
    assert len(theirs.scores) == len(ours.scores) > 10
    assert torch.equal(theirs.labels, ours.labels) and torch.equal(theirs.boxes, ours.boxes)
    torch.testing.assert_close(theirs.scores, ours.scores)
    assert (theirs.masks ^ ours.masks).float().mean() < 1e-4


@pytest.mark.slow
def test_the_annotate_command_takes_the_file(tmp_path: Path) -> None:
    path = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), generated_picture(60, 80))
    arguments = ["--model_filepath", path, "--source", picture, "--save_dir", tmp_path / "out"]
    result = CliRunner().invoke(annotate, [*map(str, arguments), "--save_json"])
    assert result.exit_code == 0, result.output
    content = json.loads(next((tmp_path / "out").rglob("detections.json")).read_text())
    assert content["annotations"]


@pytest.mark.slow
def test_openvino_sends_annotate_to_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    with pytest.raises(CheckpointError, match="detects inside the graph"):
        load_detector(path, engine="openvino")


@pytest.mark.slow
def test_a_file_without_our_metadata_does_not_guess_its_classes(tmp_path: Path) -> None:
    path = export(small_model(), CLASSES, tmp_path / "m.onnx", ExportOptions(with_nms=True)).path
    graph = onnx.load(str(path))
    del graph.metadata_props[:]
    onnx.save(graph, str(path))
    with pytest.raises(CheckpointError) as caught:
        load_detector(path)
    assert str(caught.value) == f"{path} does not name its classes"
