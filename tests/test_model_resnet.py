"""ResNet: torchvision's network, and layers that quantization may put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision

from recipe_engines import ENGINES_HERE
from training import tiny_config
from yolact.config import BackboneConfig, ModelConfig
from yolact.model.backbones.resnet import ResNet
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.foreign import adapt
from yolact.model.weights import load_backbone
from yolact.model.yolact import Yolact
from yolact.presets import yolact_resnet50
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import apply_structure

BLOCKS = (2, 1, 2, 1)
QUANTIZED = "modifiers:\n- !QuantizationModifier {start_epoch: 0}\n"


def randomised(network: nn.Module) -> nn.Module:
    """Statistics and scales as no two layers have them, in evaluation mode."""
    torch.manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    return network.eval()


def tiny_resnet() -> ModelConfig:
    """A network of few channels on a ResNet with and without blocks that only add."""
    backbone = BackboneConfig(
        name="resnet",
        stem_channels=4,
        stage_channels=(8, 16, 16, 32),
        stage_blocks=(2, 1, 2, 1),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    return replace(tiny_config().model, backbone=backbone, num_classes=3)


@pytest.fixture(scope="module")
def theirs() -> torchvision.ResNet:
    network = torchvision.ResNet(torchvision.Bottleneck, list(BLOCKS), num_classes=5)
    assert isinstance(randomised(network), torchvision.ResNet)
    return network


@pytest.mark.parametrize("size", [(64, 64), (61, 91)])
def test_weights_of_torchvision_compute_what_they_compute_there(
    theirs: torchvision.ResNet, size: tuple[int, int]
) -> None:
    preset = yolact_resnet50().model
    model = Yolact(replace(preset, backbone=replace(preset.backbone, stage_blocks=BLOCKS)))
    adapted = adapt(theirs.state_dict())
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
    model = Yolact(tiny_resnet())
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
    backbone = ResNet(tiny_resnet().backbone).eval()
    with torch.inference_mode():
        shapes = [tuple(x.shape) for x in backbone(torch.zeros(1, 3, 33, 65))]
    assert shapes == [(1, 16, 5, 9), (1, 16, 3, 5), (1, 32, 2, 3)]
