"""Parameter names are an interface: published checkpoints and recipes depend on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from conftest import PUBLISHED, GoldenSet
from yolact.config import BackboneConfig, ModelConfig
from yolact.model.protonet import ProtoNet
from yolact.model.yolact import Yolact
from yolact.presets import named_config


@pytest.fixture(scope="module")
def model() -> Yolact:
    """The published network without memory for its weights."""
    with torch.device("meta"):
        return Yolact(ModelConfig())


def test_names_shapes_types_and_order_of_the_state_dict_equal_the_reference(
    golden: GoldenSet, model: Yolact
) -> None:
    expected = golden.json("state_dict.json")
    state = model.state_dict()
    assert [
        {"key": name, "shape": list(value.shape), "dtype": str(value.dtype).split(".")[1]}
        for name, value in state.items()
    ] == [{key: row[key] for key in ("key", "shape", "dtype")} for row in expected["keys"]]
    assert len(state) == expected["num_keys"] == 348


def test_optimizers_see_the_parameters_in_the_reference_order(
    golden: GoldenSet, model: Yolact
) -> None:
    expected = golden.json("state_dict.json")
    assert [name for name, _ in model.named_parameters()] == expected["parameter_order"]
    assert sum(p.numel() for p in model.parameters()) == expected["num_parameters"] == 47_783_087


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone._preconv.0.weight", (32, 3, 3, 3)),
        ("backbone.layers.0.1.conv1.0.weight", (32, 64, 1, 1)),
        ("backbone.layers.4.4.conv2.0.weight", (1024, 512, 3, 3)),
        ("proto_net.8.weight", (256, 256, 3, 3)),
        ("proto_net.10.weight", (32, 256, 1, 1)),
        ("fpn.lat_layers.0.weight", (256, 1024, 1, 1)),
        ("fpn.pred_layers.2.weight", (256, 256, 3, 3)),
        ("fpn.downsample_layers.1.weight", (256, 256, 3, 3)),
        ("prediction_layers.0.upfeature.0.weight", (256, 256, 3, 3)),
        ("prediction_layers.0.bbox_layer.weight", (12, 256, 3, 3)),
        ("prediction_layers.0.conf_layer.weight", (243, 256, 3, 3)),
        ("prediction_layers.0.mask_layer.weight", (96, 256, 3, 3)),
        ("semantic_seg_conv.weight", (80, 256, 1, 1)),
    ],
)
def test_recipes_find_the_convolution(model: Yolact, name: str, shape: tuple[int, ...]) -> None:
    assert tuple(model.get_parameter(name).shape) == shape


def named_in(value: Any) -> Iterator[str]:
    """Parameter names in the modifiers of the published recipes."""
    if isinstance(value, dict):
        if isinstance(value.get("params"), list):
            yield from value["params"]
        for item in value.values():
            yield from named_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from named_in(item)


def test_every_parameter_of_the_published_recipes_exists(model: Yolact) -> None:
    recipes = json.loads((PUBLISHED / "recipes.json").read_text())
    names = set(named_in(recipes))
    assert len(names) > 60
    assert names <= {name for name, _ in model.named_parameters()}


def test_the_small_network_has_the_same_names_outside_the_backbone(model: Yolact) -> None:
    with torch.device("meta"):
        small = Yolact(named_config("yolact_darknet_small").model)

    def names(network: Yolact) -> list[str]:
        return [name for name, _ in network.named_parameters() if not name.startswith("backbone")]

    assert names(small) == names(model)
    assert {name for name, _ in small.named_parameters()} < {n for n, _ in model.named_parameters()}


def test_prototype_convolutions_keep_their_indices() -> None:
    names = [name for name, p in ProtoNet(4, 4, 2).named_parameters() if p.ndim == 4]
    assert names == [f"{index}.weight" for index in (0, 2, 4, 8, 10)]


def test_every_batch_norm_follows_its_convolution_in_one_sequential(model: Yolact) -> None:
    """What SparseML's and torch's fusion of Conv and BatchNorm for quantization looks for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            parent, index = name.rsplit(".", 1)
            assert index == "1"
            sequence = model.get_submodule(parent)
            assert [type(part) for part in sequence.children()] == [
                nn.Conv2d,
                nn.BatchNorm2d,
                nn.LeakyReLU,
            ]


def test_every_width_and_depth_of_the_config_is_honoured() -> None:
    config = ModelConfig(
        num_classes=3,
        backbone=BackboneConfig(
            stem_channels=7, stage_channels=(8, 10, 12, 14, 16), stage_blocks=(1, 0, 2, 3, 1)
        ),
        fpn_channels=18,
        proto_channels=20,
        head_channels=22,
        num_prototypes=5,
        prior_aspect_ratios=(1, 2),
    )
    model = Yolact(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["backbone._preconv.0.weight"] == (7, 3, 3, 3)
    blocks = [
        len(list(stage.children())) - 1
        for stage in model.backbone.get_submodule("layers").children()
    ]
    assert blocks == [1, 0, 2, 3, 1]
    assert [shapes[f"backbone.layers.{i}.0.0.weight"][0] for i in range(5)] == [8, 10, 12, 14, 16]
    assert [shapes[f"fpn.lat_layers.{i}.weight"][:2] for i in range(3)] == [
        (18, 16),
        (18, 14),
        (18, 12),
    ]
    assert shapes["proto_net.0.weight"] == (20, 18, 3, 3)
    assert shapes["proto_net.10.weight"] == (5, 20, 1, 1)
    assert shapes["prediction_layers.0.upfeature.0.weight"] == (22, 18, 3, 3)
    assert shapes["prediction_layers.0.bbox_layer.weight"] == (2 * 4, 22, 3, 3)
    assert shapes["prediction_layers.0.conf_layer.weight"] == (2 * (1 + 3), 22, 3, 3)
    assert shapes["prediction_layers.0.mask_layer.weight"] == (2 * 5, 22, 3, 3)
    assert shapes["semantic_seg_conv.weight"] == (3, 18, 1, 1)
