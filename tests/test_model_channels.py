"""Groups of channels, and removing channels from them."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training import tiny_config
from yolact.config import ModelConfig
from yolact.model.channels import (
    ChannelGroup,
    channel_groups,
    channel_scores,
    remove_channels,
    width_of,
)
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import yolact_darknet53, yolact_darknet_small

CONFIG = tiny_config().model
GROUPS = channel_groups(CONFIG)
OUTPUTS = {
    "proto_net.10",
    "semantic_seg_conv",
    *(f"prediction_layers.0.{name}_layer" for name in ("bbox", "conf", "mask")),
}
"""Convolutions that write what the network is for."""


def convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(
    "config", [yolact_darknet53().model, yolact_darknet_small().model, CONFIG], ids=str
)
def test_every_convolution_writes_and_reads_exactly_one_group(config: ModelConfig) -> None:
    with torch.device("meta"):
        convs = convolutions(Yolact(config))
    written = Counter(w.conv for group in channel_groups(config) for w in group.writers)
    read = Counter(name for group in channel_groups(config) for name in group.readers)
    assert set(written) == convs - OUTPUTS
    assert set(read) == convs - {"backbone._preconv.0"}  # which reads the image
    assert set(written.values()) == set(read.values()) == {1}


def test_groups_have_the_widths_of_the_network() -> None:
    model = Yolact(CONFIG)
    assert [width_of(model, group) for group in GROUPS] == [group.width for group in GROUPS]


def random_model(seed: int = 0) -> Yolact:
    """With batch norms that shift and scale, so that forgetting one shows."""
    torch.manual_seed(seed)
    model = Yolact(CONFIG)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean = torch.randn(module.num_features) * 0.3
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval()


def outputs(model: Yolact) -> tuple[Tensor, ...]:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: tuple[Tensor, ...] = InferenceModel(model)(images)
    return found


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_removing_channels_that_nobody_listens_to_changes_nothing(group: ChannelGroup) -> None:
    model = random_model()
    ignored = torch.arange(group.width) % 2 == 1
    with torch.no_grad():
        for name in group.readers:
            model.get_parameter(f"{name}.weight")[:, ignored] = 0
    before = outputs(model)
    remove_channels(model, group, (~ignored).nonzero()[:, 0])
    for one, other in zip(before, outputs(model), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_channels_that_matter_not_score_lowest(group: ChannelGroup) -> None:
    model = random_model()
    with torch.no_grad():
        for name in group.readers:
            model.get_parameter(f"{name}.weight")[:, 1] = 0
    scores = channel_scores(model, group)
    assert scores.shape == (group.width,)
    assert scores.argmin() == 1 and scores[1] == 0 and (scores >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=len(GROUPS), max_size=len(GROUPS)))
def test_any_widths_make_a_network_with_the_same_output_shapes(widths: list[int]) -> None:
    model = Yolact(CONFIG).eval()
    shapes = [output.shape for output in outputs(model)]
    for group, width in zip(GROUPS, widths, strict=True):
        remove_channels(model, group, torch.arange(min(width, group.width)))
    assert [output.shape for output in outputs(model)] == shapes


def test_momentum_and_gradients_are_cut_with_their_weights() -> None:
    model = random_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.rand(2, 3, 64, 64)

    def step() -> None:
        outputs = model(images)
        sum(part.square().mean() for part in outputs if part.requires_grad).backward()
        optimizer.step()

    step()
    group = next(group for group in GROUPS if group.name == "stage 3")
    weight = model.get_parameter("backbone.layers.3.0.0.weight")
    momentum = optimizer.state[weight]["momentum_buffer"]
    keep = torch.tensor([1, 4, 5])
    remove_channels(model, group, keep, optimizer)
    assert model.get_parameter("backbone.layers.3.0.0.weight") is weight
    assert weight.grad is not None and weight.grad.shape == weight.shape
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum[keep])
    step()


def test_weights_keep_the_memory_format() -> None:
    model = random_model().to(memory_format=torch.channels_last)
    for group in GROUPS:
        remove_channels(model, group, torch.arange(group.width // 2))
    assert all(
        p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
        if p.ndim == 4
    )


def test_a_copy_without_removals_is_left_alone() -> None:
    model = random_model()
    copied = copy.deepcopy(model)
    remove_channels(model, GROUPS[0], torch.arange(2))
    assert width_of(copied, GROUPS[0]) == GROUPS[0].width
