"""An exported graph against PyTorch: its numbers, and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnx_models import CLASSES, SIDE, quantized_model
from yolact.data.sources import calibration_images
from yolact.errors import ExportError
from yolact.exporter.export import export
from yolact.exporter.passes import to_integers
from yolact.exporter.trace import generated_picture
from yolact.exporter.verify import (
    Agreement,
    agreement,
    compare,
    require_agreement,
    require_parity,
    sqnr,
)
from yolact.model.yolact import Yolact
from yolact.types import RawOutputs


def raw_outputs(offset: float = 0.0) -> RawOutputs:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 6, 4), (1, 6, 3), (1, 6, 2), (6, 4), (1, 4, 4, 2)]
    return RawOutputs(*(torch.rand(*shape, generator=generator) + offset for shape in shapes))


def test_signal_to_noise_by_hand() -> None:
    signal = torch.tensor([3.0, 4.0])
    assert sqnr(signal, signal) == float("inf")
    assert sqnr(signal, signal + torch.tensor([0.0, 0.5])) == pytest.approx(20.0)
    assert sqnr(torch.zeros(2), signal) == -float("inf")


def test_float_graphs_may_differ_by_a_ten_thousandth() -> None:
    parity = compare(raw_outputs(), raw_outputs(5e-5))
    require_parity(parity)
    assert parity[0].max_difference == pytest.approx(5e-5, rel=1e-2)
    assert not any(output.passed for output in compare(raw_outputs(), raw_outputs(2e-4)))


def test_quantized_graphs_may_differ_by_what_quantization_costs() -> None:
    expected, unquantized = raw_outputs(), raw_outputs(0.01)
    assert all(output.passed for output in compare(expected, raw_outputs(-0.01), unquantized))
    assert not any(output.passed for output in compare(expected, raw_outputs(0.05), unquantized))


PRIORS = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.2, 0.7, 0.2, 0.2]])


def outputs(scores: list[float], shift: float = 0.0) -> RawOutputs:
    """One object of class 1 at each prior, moved by ``shift`` of its width."""
    conf = torch.tensor([[[1 - score, score, 0.0] for score in scores]])
    loc = torch.zeros(1, 3, 4)
    loc[..., 0] = shift / 0.1
    return RawOutputs(loc, conf, torch.zeros(1, 3, 2), PRIORS, torch.zeros(1, 4, 4, 2))


def test_equal_outputs_agree() -> None:
    same = outputs([0.9, 0.8, 0.6])
    found = agreement([(same, same)])
    assert found == Agreement(images=1, detections=3, share=1.0)
    assert str(found) == "100.0 % of the 3 detections in 1 images"


def test_detections_that_are_gone_count_by_their_score() -> None:
    found = agreement([(outputs([0.9, 0.8, 0.6]), outputs([0.9, 0.0, 0.6]))])
    assert found.share == pytest.approx(1.5 / 2.3)


def test_weak_detections_do_not_count() -> None:
    found = agreement([(outputs([0.9, 0.4, 0.4]), outputs([0.9, 0.0, 0.0]))])
    assert (found.detections, found.share, found.lost) == (1, 1.0, 0)


@pytest.mark.parametrize(("shift", "share"), [(0.3, 1.0), (0.4, 0.0)])
def test_a_box_may_move_as_far_as_it_is_still_the_same(shift: float, share: float) -> None:
    # Two boxes of width w, d * w apart, have an IoU of (1 - d) / (1 + d): 1/2 at d = 1/3.
    assert agreement([(outputs([0.9, 0, 0]), outputs([0.9, 0, 0], shift))]).share == share


def test_another_class_is_another_detection() -> None:
    wanted = outputs([0.9, 0, 0])
    assert agreement([(wanted, wanted._replace(conf=wanted.conf[..., [0, 2, 1]]))]).share == 0


def test_nothing_to_find_is_found() -> None:
    nothing = outputs([0.0, 0.0, 0.0])
    assert agreement([(nothing, nothing)]).share == 1.0


def test_too_few_are_refused_with_the_layer_that_begins_to_differ() -> None:
    require_agreement(Agreement(4, 20, 0.99, 2))
    require_agreement(Agreement(4, 20, 0.9, 1))
    with pytest.raises(ExportError) as caught:
        require_agreement(Agreement(4, 20, 0.9, 2), "proto_net.0")
    assert str(caught.value) == (
        "the exported graph finds 90.0 % of the 20 detections in 4 images, weighted by score "
        "(at least 99 % is accepted); it begins to differ at proto_net.0"
    )
    assert "--calibration_images" in str(caught.value.hint)


def decided(model: Yolact) -> Yolact:
    """With scores spread like those of a trained network, which random weights do not have."""
    layer: Any = model.get_submodule("prediction_layers.0.conf_layer.module")
    with torch.no_grad():
        layer.weight.mul_(30)
        layer.weight_fake_quant.scale.mul_(30)
        layer.bias.mul_(0)
        layer.bias[0::4] = 3.0
    return model


@pytest.mark.slow
def test_integers_find_on_pictures_what_pytorch_finds(tmp_path: Path, pictures: Path) -> None:
    images = calibration_images(str(pictures), 8, SIDE)
    report = export(decided(quantized_model()), CLASSES, tmp_path / "m.onnx", images=images)
    assert report.agreement is not None
    assert report.agreement.images == 8 and report.agreement.detections > 40
    assert report.agreement.share >= 0.99


@pytest.mark.slow
def test_a_graph_that_misses_detections_is_refused(
    tmp_path: Path, tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its classes are swapped behind the last layer, and the check of outputs is off."""

    def damage(graph: onnx.ModelProto, *others: object) -> int:
        count = to_integers(graph, *others)  # type: ignore[arg-type]
        softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
        order = onnx.numpy_helper.from_array(torch.tensor([0, 2, 3, 1]).numpy(), "order")
        graph.graph.initializer.append(order)
        swap = onnx.helper.make_node("Gather", ["sm", "order"], list(softmax.output), axis=2)
        softmax.output[0] = "sm"
        graph.graph.node.append(swap)
        return count

    monkeypatch.setattr("yolact.exporter.export.to_integers", damage)
    monkeypatch.setattr("yolact.exporter.write.compare", lambda *_: ())
    images = calibration_images(str(tiny_shapes / "images"), 2, SIDE)
    with pytest.raises(ExportError, match=r"^the exported graph finds \d+\.\d % of the \d+ detec"):
        export(decided(quantized_model()), CLASSES, tmp_path / "m.onnx", images=images)
    assert not list(tmp_path.iterdir())


def test_the_generated_picture_is_one_and_always_the_same() -> None:
    picture = generated_picture(120, 160)
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 40 and len(np.unique(picture)) > 200
    np.testing.assert_array_equal(picture, generated_picture(120, 160))
