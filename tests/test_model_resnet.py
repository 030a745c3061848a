"""ResNet: torchvision's network, the published ones, and what quantization puts together."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision

from conftest import OWN_GOLDEN, Golden, GoldenSet, golden_weight
from recipe_engines import ENGINES_HERE
from training import tiny_resnet
from yolact.model.backbones.resnet import ResNet
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.foreign import adapt
from yolact.model.weights import load_backbone
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import BACKBONE_FILES, named_config, yolact_darknet53, yolact_resnet50
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import apply_structure
from yolact.types import NetworkOutputs, RawOutputs

BLOCKS = (2, 1, 2, 1)
SMALL = 138
"""Pixels of the small pictures in the golden numbers."""
QUANTIZED = "modifiers:\n- !QuantizationModifier {start_epoch: 0}\n"


def randomised(network: nn.Module) -> nn.Module:
    """Statistics and scales as no two layers have them, in evaluation mode."""
    torch.manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def theirs() -> torchvision.ResNet:
    network = torchvision.ResNet(torchvision.Bottleneck, list(BLOCKS), num_classes=5)
    assert isinstance(randomised(network), torchvision.ResNet)
    return network


@pytest.mark.parametrize(("size", "prefix"), [((64, 64), ""), ((61, 91), "module.model.")])
def test_weights_of_torchvision_compute_what_they_compute_there(
    theirs: torchvision.ResNet, size: tuple[int, int], prefix: str
) -> None:
    preset = yolact_resnet50().model
    model = Yolact(replace(preset, backbone=replace(preset.backbone, stage_blocks=BLOCKS)))
    adapted = adapt({f"{prefix}{name}": value for name, value in theirs.state_dict().items()})
    load_backbone(model, adapted.state)
    assert any("2 others left out" in note for note in adapted.notes)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = []
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
        for ours, value in zip(model.backbone.eval()(images), expected[1:], strict=True):
            assert torch.equal(ours, value)


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_a_quantized_resnet_that_does_not_round_computes_the_same(engine: EngineName) -> None:
    model = Yolact(tiny_resnet().model)
    randomised(model)
    images = torch.rand(1, 3, 64, 64)
    expected = values(model, images)
    apply_structure(model, Recipe.of_text(QUANTIZED, "test"), engine=engine)
    quantizers = list(fake_quantizers(model))
    assert len(quantizers) > 2 * len(list(model.backbone.parameters())) / 3
    for quantizer in quantizers:
        quantizer.disable_fake_quant()
        quantizer.disable_observer()
    for ours, value in zip(values(model.eval(), images), expected, strict=True):
        torch.testing.assert_close(ours, value, atol=1e-5, rtol=1e-4)


def values(model: Yolact, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        outputs = model(images)
        return [*model.backbone(images), outputs.loc, outputs.conf, outputs.mask, outputs.proto]


def test_sides_are_rounded_up() -> None:
    backbone = ResNet(tiny_resnet().model.backbone).eval()
    with torch.inference_mode():
        shapes = [tuple(x.shape) for x in backbone(torch.zeros(1, 3, 33, 65))]
    assert shapes == [(1, 16, 5, 9), (1, 16, 3, 5), (1, 32, 2, 3)]


# The numbers of the original; tests/golden/README.md

NETWORKS = ("yolact_resnet50", "yolact_base")
TOLERANCE = {"atol": 3e-4, "rtol": 1e-3}


@pytest.fixture(scope="module")
def numbers() -> Golden:
    return GoldenSet("own", OWN_GOLDEN).npz("resnet.npz")


def stored(numbers: Golden, key: str) -> Any:
    return json.loads(str(numbers[key]))


@pytest.fixture(scope="module", params=NETWORKS)
def filled(request: pytest.FixtureRequest) -> Yolact:
    """A published network with the golden weights, in evaluation mode."""
    with torch.device("meta"):
        model = Yolact(named_config(request.param).model)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.from_numpy(golden_weight(name, s)) for name, s in shapes.items()}
    model.load_state_dict(weights, assign=True)
    for name in ("mean", "std"):
        setattr(model, name, torch.tensor(getattr(model.config.backbone, name)).reshape(1, 3, 1, 1))
    return model.eval()


def name_of(model: Yolact) -> str:
    return NETWORKS[model.config.backbone.stage_blocks[2] == 23]


def picture(side: int) -> Tensor:
    """[1, 3, side, side] the golden picture as the evaluation path prepares it, RGB 0..1."""
    png = GoldenSet("own", OWN_GOLDEN).npz("forward.npz")["image.png"]
    bgr = np.asarray(cv2.imdecode(png, cv2.IMREAD_COLOR))
    if side == SMALL:
        bgr = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA)
    rgb = cv2.resize(bgr.astype(np.float32), (side, side))[..., ::-1].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(rgb) / 255)[None]


def check(numbers: Golden, case: str, outputs: NetworkOutputs | RawOutputs) -> None:
    for name in ("loc", "conf", "mask", "proto"):
        numbers.check(f"{case}.{name}", getattr(outputs, name).detach(), **TOLERANCE)
    numbers.check(f"{case}.priors", outputs.priors, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_shapes_and_order_of_weights_equal_the_reference(numbers: Golden, name: str) -> None:
    with torch.device("meta"):
        model = Yolact(named_config(name).model)
    state = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert state == stored(numbers, f"{name}.state")
    assert [n for n, _ in model.named_parameters()] == stored(numbers, f"{name}.parameters")


@pytest.mark.parametrize("name", [*NETWORKS, "yolact_im400", "yolact_im700"])
def test_settings_have_the_published_values(numbers: Golden, name: str) -> None:
    config, published = named_config(name), stored(numbers, f"{name}.settings")
    backbone, model = published["backbone"], config.model
    assert published["name"] == config.name == name
    assert published["max_size"] == model.image_size == model.prior_base_size
    assert backbone["args"][0] == list(model.backbone.stage_blocks)
    assert backbone["path"] == BACKBONE_FILES[name]
    assert backbone["pred_scales"] == [[scale] for scale in model.prior_scales]
    assert backbone["pred_aspect_ratios"] == [[list(model.prior_aspect_ratios)]] * 5
    assert published["masks_to_train"] == config.loss.masks_to_train
    assert published["lr_steps"] == list(config.optim.lr_steps)
    assert published["max_iter"] == config.optim.max_iter
    assert published["mask_alpha"] == config.loss.mask_weight
    # all else is as for DarkNet-53, whose settings another test compares
    plain = GoldenSet("own", OWN_GOLDEN).json("config.json")["config"]
    theirs = {k for k, v in published.items() if k in plain and v != plain[k]}
    assert theirs <= {"name", "backbone", "max_size", "masks_to_train"}
    rest = replace(yolact_darknet53(), name=name, model=model, loss=config.loss)
    assert config == rest and replace(config.loss, masks_to_train=100) == yolact_darknet53().loss


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_torchvision_load_under_the_names_of_the_reference(
    numbers: Golden, name: str
) -> None:
    pairs = stored(numbers, f"{name}.backbone_file")
    file = {old: torch.empty(0) for old, _ in pairs}
    adapted = adapt({**file, "fc.weight": torch.empty(0), "fc.bias": torch.empty(0)}).state
    assert {new: file[old] for old, new in pairs}.items() == adapted.items()


@pytest.mark.parametrize("name", ["yolact_im400", "yolact_im700"])
def test_priors_of_other_sizes_equal_the_reference(numbers: Golden, name: str) -> None:
    config = named_config(name)
    small = replace(
        tiny_resnet().model,
        **{k: getattr(config.model, k) for k in ("image_size", "prior_scales", "prior_base_size")},
    )
    side = config.model.input_size[0]
    with torch.inference_mode():
        priors = Yolact(small).eval()(torch.zeros(1, 3, side, side)).priors
    numbers.check(f"{name}.priors", priors, atol=1e-6, rtol=1e-5)
    mean, std = (
        torch.tensor(part).reshape(3, 1, 1)
        for part in (config.model.backbone.mean, config.model.backbone.std)
    )
    numbers.check(f"{name}.input", (picture(side) - mean) / std, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_outputs_equal_the_reference(numbers: Golden, filled: Yolact) -> None:
    name = name_of(filled)
    with torch.inference_mode():
        check(numbers, f"{name}.eval550", InferenceModel(filled)(picture(550)))
        small = copy.deepcopy(filled)
        small.set_input(replace(filled.config, prior_base_size=SMALL))
        image = picture(SMALL)
        check(numbers, f"{name}.eval_small", InferenceModel(small)(image))
        normalised = (image - filled.mean) / filled.std
        numbers.check(f"{name}.input_small", normalised, atol=1e-5, rtol=1e-5)
        stages = filled.backbone(normalised)
        for index, value in enumerate(stages, 1):
            numbers.check(f"{name}.eval_small.backbone{index}", value, **TOLERANCE)
        for index, value in enumerate(filled.fpn(stages)):
            numbers.check(f"{name}.eval_small.fpn{index}", value, **TOLERANCE)


@pytest.mark.slow
def test_training_on_batch_statistics_equals_the_reference(numbers: Golden, filled: Yolact) -> None:
    """The original halves the normalised picture, here the network normalises."""
    name, image = name_of(filled), picture(SMALL)
    half = 0.5 * (image.flip(3) - filled.mean) + filled.mean
    network = copy.deepcopy(filled).train()
    network.set_input(replace(filled.config, prior_base_size=SMALL))
    with torch.no_grad():
        outputs = network(torch.cat([image, half]))
    check(numbers, f"{name}.trainbn_small", outputs)
    assert outputs.segm is not None
    numbers.check(f"{name}.trainbn_small.segm", outputs.segm, **TOLERANCE)
    prefix = f"{name}.after."
    keys = [k.removesuffix(".idx") for k in numbers.arrays.files if k.startswith(prefix)]
    for key in {k for k in keys if k.endswith(("running_mean", "running_var"))}:
        value = network.state_dict()[key.removeprefix(prefix)]
        numbers.check(key, value, atol=1e-5, rtol=1e-4)
