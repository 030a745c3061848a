"""Networks told by their weights: checkpoints of others, which say nothing of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import tiny_config, tiny_resnet
from yolact.checkpoint import Checkpoint, load_checkpoint
from yolact.config import YolactConfig
from yolact.errors import CheckpointError
from yolact.model.weights import load_backbone
from yolact.model.yolact import Yolact
from yolact.presets import CONFIGS, named_config, yolact_resnet50
from yolact.restore import build_model, config_for
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import apply_structure

QUANTIZED = "modifiers:\n- !QuantizationModifier {start_epoch: 0}\n"


@cache
def shapes(name: str) -> Mapping[str, Tensor]:
    """The state dict of a preset, without memory for its values."""
    with torch.device("meta"):
        return Yolact(named_config(name).model).state_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_every_configuration_are_taken_for_it(name: str) -> None:
    config = named_config(name)
    taken = Checkpoint(model_state=shapes(name), file=f"{config.name}_54_800000.pth").recognised
    assert taken == config


@pytest.mark.parametrize(
    ("file", "taken"),
    [
        ("yolact_base_54_800000.pth", "yolact_base"),
        ("yolact_im700_54_800000.pth", "yolact_im700"),
        ("my_im400.pt", "yolact_im400"),
        ("yolact_resnet50_54_800000.pth", "yolact_base"),
        ("weights.pth", "yolact_base"),
    ],
)
def test_the_name_of_the_file_decides_only_what_weights_do_not_tell(
    file: str, taken: str, package_log: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(model_state=shapes("yolact_base"), file=file)
    assert config_for(checkpoint, file) == named_config(taken)
    (line,) = package_log.messages
    size = named_config(taken).model.image_size
    assert line.startswith(f"{file}: ") and f"{taken}_config (ResNet-101, {size} px)" in line
    told = taken.removeprefix("yolact_") in file
    assert ("--config yolact_im400_config or yolact_im700_config" in line) == (not told)


def test_a_configuration_that_was_asked_for_is_used_without_words(
    package_log: pytest.LogCaptureFixture,
) -> None:
    checkpoint = Checkpoint(model_state=shapes("yolact_base"), file="yolact_base_54_800000.pth")
    assert config_for(checkpoint, "x", named_config("yolact_im700")).name == "yolact_im700"
    assert package_log.messages == []


@pytest.mark.parametrize("name", ["yolact_darknet53", "yolact_resnet50", "yolact_lite0"])
def test_a_configuration_of_other_layers_is_refused_and_both_are_named(name: str) -> None:
    checkpoint = Checkpoint(model_state=shapes("yolact_base"), file="yolact_base_54_800000.pth")
    with pytest.raises(CheckpointError) as error:
        config_for(checkpoint, "weights/a.pth", named_config(name))
    assert str(error.value).startswith(
        f"weights/a.pth does not fit {name}_config: it has backbone ResNet-101, not "
    )
    assert error.value.hint == "add --config yolact_base_config, or leave --config out"


@pytest.mark.parametrize("config", [tiny_config(), tiny_resnet()], ids=["darknet", "resnet"])
def test_networks_of_any_widths_are_built_as_their_weights_are(
    config: YolactConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Yolact(config.model)
    apply_structure(model, Recipe.of_text(QUANTIZED, "test"))
    content = {"model_state_dict": model.state_dict(), "checkpoint_recipe": QUANTIZED, "epoch": 1}
    for name, saved in (("quantized", content), ("float", Yolact(config.model).state_dict())):
        torch.save(saved, tmp_path / f"{name}.pth")
    loaded = build_model(load_checkpoint(tmp_path / "float.pth"))
    assert loaded.config.backbone.stage_channels == config.model.backbone.stage_channels
    assert loaded.config.num_prototypes == config.model.num_prototypes
    quantized = load_checkpoint(tmp_path / "quantized.pth")
    assert quantized.recognised is not None  # of the family: a recipe may have removed channels
    build_model(quantized, config)


def test_a_resnet_of_any_depth_has_the_normalization_of_imagenet() -> None:
    state = Yolact(tiny_resnet(stage_blocks=(1, 1, 2, 1)).model).state_dict()
    taken = Checkpoint(model_state=state, file="mine.pth").recognised
    assert taken is not None and taken.name == "yolact_resnet17"
    assert taken.model.backbone.mean == yolact_resnet50().model.backbone.mean
    assert taken.model.backbone.stage_blocks == (1, 1, 2, 1)


def test_priors_that_weights_do_not_tell_are_not_guessed() -> None:
    model = replace(tiny_resnet().model, prior_aspect_ratios=(1, 2, 3, 4))
    checkpoint = Checkpoint(model_state=Yolact(model).state_dict(), file="mine.pth")
    with pytest.raises(CheckpointError, match="4 priors in each cell, not 3"):
        build_model(checkpoint)
    build_model(replace(checkpoint, config=YolactConfig(model=model)))


def test_priors_that_are_not_square_are_refused() -> None:
    """Only the file's name tells them; a configuration that is given is believed."""
    file = "yolact_resnet50_pascal_111_120000.pth"
    checkpoint = Checkpoint(model_state=shapes("yolact_resnet50"), file=file)
    with pytest.raises(CheckpointError, match=f"{file} seems to be of yolact_resnet50_pascal"):
        config_for(checkpoint, file)
    assert config_for(checkpoint, file, yolact_resnet50()) == yolact_resnet50()


def test_backbones_of_other_depths_are_refused_though_names_fit() -> None:
    model = Yolact(tiny_resnet().model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for blocks in ((2, 1, 3, 1), (1, 1, 1, 1)):
        other = Yolact(tiny_resnet(stage_blocks=blocks).model).backbone.state_dict()
        with pytest.raises(CheckpointError, match=r"the file has ResNet-\d+, the model ResNet-20"):
            load_backbone(model, other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
