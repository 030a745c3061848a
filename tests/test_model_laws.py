"""What holds for every YOLACT network, checked on the small one with random weights."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from yolact.config import ModelConfig
from yolact.model.priors import make_priors
from yolact.model.weights import init_weights
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import named_config
from yolact.types import NetworkOutputs, RawOutputs

CONFIG = named_config("yolact_darknet_small").model
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture
def model() -> Yolact:
    """The small network; batch norms have statistics that matter."""
    torch.manual_seed(0)
    network = Yolact(CONFIG)
    init_weights(network)
    with torch.no_grad():
        for _ in range(2):
            network.train()(torch.rand(2, 3, 96, 96))
    return network.eval()


def images(batch: int, height: int = 96, width: int = 96) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def run(model: Yolact, batch: Tensor) -> RawOutputs:
    with torch.inference_mode():
        outputs: RawOutputs = InferenceModel(model)(batch)
    return outputs


def assert_same(actual: RawOutputs, expected: RawOutputs, *, atol: float, rtol: float) -> None:
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(actual, name), value, atol=atol, rtol=rtol)


def test_a_batch_is_its_images_one_by_one(model: Yolact) -> None:
    batch = images(3)
    together = run(model, batch)
    for index in range(3):
        alone = run(model, batch[index : index + 1])
        rows = [value[index : index + 1] for value in together]
        rows[3] = together.priors
        assert_same(RawOutputs(*rows), alone, **CLOSE)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 160), (97, 131), (160, 160)])
def test_outputs_agree_in_length_for_any_image_size(model: Yolact, height: int, width: int) -> None:
    outputs = run(model, images(2, height, width))
    grids = []
    for stride in (8, 16, 32, 64, 128):
        grids.append((-(-height // stride), -(-width // stride)))
    count = 3 * sum(rows * columns for rows, columns in grids)
    assert outputs.loc.shape == (2, count, 4)
    assert outputs.conf.shape == (2, count, 1 + CONFIG.num_classes)
    assert outputs.mask.shape == (2, count, CONFIG.num_prototypes)
    assert torch.equal(outputs.priors, make_priors(grids, CONFIG))
    rows, columns = grids[0]
    assert outputs.proto.shape == (2, 2 * rows, 2 * columns, CONFIG.num_prototypes)


def test_outputs_stay_in_their_ranges(model: Yolact) -> None:
    outputs = run(model, images(1))
    torch.testing.assert_close(outputs.conf.sum(-1), torch.ones(outputs.conf.shape[:2]))
    assert float(outputs.mask.abs().max()) <= 1
    assert float(outputs.proto.min()) >= 0
    assert outputs.proto.is_contiguous()


def test_semantic_logits_exist_in_training_mode_only(model: Yolact) -> None:
    assert model(images(1)).segm is None
    outputs = model.train()(images(2))
    assert outputs.segm.shape == (2, CONFIG.num_classes, 12, 12)
    assert isinstance(outputs, NetworkOutputs)


def test_inference_adds_the_softmax_and_nothing_else(model: Yolact) -> None:
    with torch.inference_mode():
        logits = model(images(1))
    outputs = run(model, images(1))
    assert torch.equal(outputs.conf, logits.conf.softmax(-1))
    for name in ("loc", "mask", "priors", "proto"):
        assert torch.equal(getattr(outputs, name), getattr(logits, name)), name


def test_each_prior_sees_its_own_place(model: Yolact) -> None:
    """A change in one corner reaches the predictions of that corner's priors first."""
    before, changed = images(1, 160, 160), images(1, 160, 160)
    changed[..., :8, :8] = 1 - changed[..., :8, :8]
    moved = (run(model, changed).loc - run(model, before).loc).abs().sum(-1)[0]
    cells = moved[: 3 * 20 * 20].reshape(20, 20, 3).sum(-1)  # P3
    assert cells[:4, :4].mean() > 10 * cells[-4:, -4:].mean()


def test_channels_last_memory_gives_the_same_outputs(model: Yolact) -> None:
    batch = images(2)
    expected = run(model, batch)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    actual = run(last, batch.to(memory_format=torch.channels_last))
    assert_same(actual, expected, **CLOSE)


def test_a_deep_copy_computes_the_same_and_leaves_the_original_alone(model: Yolact) -> None:
    expected = run(model, images(1))
    copied = copy.deepcopy(model)
    assert_same(run(copied, images(1)), expected, atol=0, rtol=0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_same(run(model, images(1)), expected, atol=0, rtol=0)


def test_a_model_survives_a_file(model: Yolact) -> None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Yolact(CONFIG).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(run(other, images(1)), run(model, images(1)), atol=0, rtol=0)


def test_running_the_model_adds_nothing_to_its_state(model: Yolact) -> None:
    before = list(model.state_dict())
    run(model, images(1))
    run(model, images(1, 64, 128))
    assert list(model.state_dict()) == before
    assert not any("prior" in name for name in before)


def objective(outputs: NetworkOutputs) -> Tensor:
    """Pull every output towards something it is not yet."""
    assert outputs.segm is not None
    labels = torch.ones(outputs.conf.shape[:2], dtype=torch.int64)
    return (
        F.cross_entropy(outputs.conf.transpose(1, 2), labels)
        + (outputs.loc - 1).square().mean()
        + (outputs.mask - 0.5).square().mean()
        + (outputs.proto - 1).square().mean()
        + outputs.segm.square().mean()
    )


def test_the_gradient_reaches_every_parameter(model: Yolact) -> None:
    objective(model.train()(images(2))).backward()  # type: ignore[no-untyped-call]
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert silent == []


def test_a_few_steps_lower_the_objective(model: Yolact) -> None:
    batch = images(2)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2, momentum=0.9)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = objective(model(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision_boxes_come_with_single_precision_priors(model: Yolact) -> None:
    outputs = run(model.to(torch.bfloat16), images(1).to(torch.bfloat16))
    assert outputs.loc.dtype == torch.bfloat16
    assert outputs.priors.dtype == torch.float32


def test_double_precision_works_throughout(model: Yolact) -> None:
    outputs = run(model.double(), images(1).double())
    assert {value.dtype for value in outputs} == {torch.float64}


def test_priors_are_a_constant_without_batch_axis_in_an_exported_graph(tmp_path: Path) -> None:
    """Also when the model has never run before, so that no cache helps; without any warning."""
    network = Yolact(CONFIG).eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            InferenceModel(network),
            (images(1),),
            path,
            dynamo=False,
            opset_version=14,
            input_names=["input"],
            output_names=list(RawOutputs._fields),
            dynamic_axes={"input": {0: "batch"}},
        )
    graph = onnx.load(path).graph
    (source,) = [node for node in graph.node if "priors" in node.output]
    assert source.op_type == "Constant"
    grids = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
    values = torch.from_numpy(numpy_helper.to_array(source.attribute[0].t).copy())
    assert torch.equal(values, make_priors(grids, CONFIG))
    assert [output.name for output in graph.output] == list(RawOutputs._fields)


def test_the_published_network_takes_one_image_of_a_size_it_was_not_made_for() -> None:
    outputs = run(Yolact(ModelConfig(num_classes=3)).eval(), images(1, 64, 64))
    assert outputs.conf.shape[-1] == 4
