"""Groups of channels in any network, and removing channels from them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training import tiny_config
from yolact.config import ModelConfig
from yolact.model.channel_groups import ChannelGroup, channel_groups, groups_of
from yolact.model.channels import channel_scores, remove_channels, width_of
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import CONFIGS, yolact_darknet53, yolact_darknet_small

CONFIG = tiny_config().model
OUTPUTS = {
    "proto_net.10",
    "semantic_seg_conv",
    *(f"prediction_layers.0.{name}_layer" for name in ("bbox", "conf", "mask")),
}
"""Convolutions that write what the network is for."""

Group = tuple[int, list[str], list[str | None], list[str]]
"""Width, writers, the batch norms behind them, readers."""


def plain(group: ChannelGroup) -> Group:
    assert group.norms == () and not any(writer.depthwise for writer in group.writers)
    writers = [writer.conv for writer in group.writers]
    return group.width, writers, [w.norm for w in group.writers], list(group.readers)


def darknet_groups(config: ModelConfig) -> Iterator[Group]:
    """What recipes and checkpoints of DarkNet networks were made with, in this order."""
    backbone = config.backbone

    def normed(*convs: str) -> tuple[list[str], list[str | None]]:
        return [f"{conv}.0" for conv in convs], [f"{conv}.1" for conv in convs]

    yield backbone.stem_channels, *normed("backbone._preconv"), ["backbone.layers.0.0.0"]
    for stage, (width, count) in enumerate(
        zip(backbone.stage_channels, backbone.stage_blocks, strict=True)
    ):
        blocks = [f"backbone.layers.{stage}.{block}" for block in range(1, count + 1)]
        for block in blocks:
            yield width // 2, *normed(f"{block}.conv1"), [f"{block}.conv2.0"]
        writers = [f"backbone.layers.{stage}.0", *(f"{block}.conv2" for block in blocks)]
        onwards = [f"backbone.layers.{stage + 1}.0.0"] if stage < 4 else []
        lateral = [f"fpn.lat_layers.{4 - stage}"] if stage >= 2 else []
        yield width, *normed(*writers), [*(f"{b}.conv1.0" for b in blocks), *onwards, *lateral]
    lat, pred, down = (
        [f"fpn.{name}_layers.{i}" for i in range(count)]
        for name, count in (("lat", 3), ("pred", 3), ("downsample", 2))
    )
    upfeature = "prediction_layers.0.upfeature.0"
    branches = [f"prediction_layers.0.{name}_layer" for name in ("bbox", "conf", "mask")]
    proto = [f"proto_net.{index}" for index in (0, 2, 4, 8, 10)]
    levels = [*down, "proto_net.0", upfeature, "semantic_seg_conv"]
    yield config.fpn_channels, lat, [None] * 3, pred
    yield config.fpn_channels, [*pred, *down], [None] * 5, levels
    for writer, reader in zip(proto, proto[1:], strict=False):
        yield config.proto_channels, [writer], [None], [reader]
    yield config.head_channels, [upfeature], [None], branches


GROUPS = len(list(darknet_groups(CONFIG)))


@pytest.mark.parametrize(
    "config", [yolact_darknet53().model, yolact_darknet_small().model, CONFIG], ids=str
)
def test_groups_of_darknet_are_those_that_recipes_were_made_with(config: ModelConfig) -> None:
    assert [plain(group) for group in channel_groups(config)] == list(darknet_groups(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_convolution_writes_and_reads_exactly_one_group(name: str) -> None:
    config = CONFIGS[name]().model
    with torch.device("meta"):
        convs = {n: m for n, m in Yolact(config).named_modules() if isinstance(m, nn.Conv2d)}
    groups = channel_groups(config)
    written = Counter(w.conv for group in groups for w in group.writers)
    read = Counter(name for group in groups for name in group.readers)
    images = {name for name, conv in convs.items() if conv.in_channels == 3}
    depthwise = {name for name, conv in convs.items() if conv.groups > 1}
    assert set(written) == set(convs) - OUTPUTS
    assert set(read) == set(convs) - images - depthwise
    assert set(written.values()) == set(read.values()) == {1}
    assert {w.conv for group in groups for w in group.writers if w.depthwise} == depthwise


def test_groups_have_the_widths_of_the_network() -> None:
    model, groups = Yolact(CONFIG), channel_groups(CONFIG)
    assert [width_of(model, group) for group in groups] == [group.width for group in groups]


T = TypeVar("T", bound=nn.Module)


def random_model(seed: int = 0) -> Yolact:
    """With batch norms that shift and scale, so that forgetting one shows."""
    torch.manual_seed(seed)
    return with_random_norms(Yolact(CONFIG))


def with_random_norms(model: T) -> T:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
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


@pytest.mark.parametrize("number", range(GROUPS))
def test_removing_channels_that_nobody_listens_to_changes_nothing(number: int) -> None:
    model, group = random_model(), channel_groups(CONFIG)[number]
    ignored = torch.arange(group.width) % 2 == 1
    with torch.no_grad():
        for name in group.readers:
            model.get_parameter(f"{name}.weight")[:, ignored] = 0
    before = outputs(model)
    remove_channels(model, group, (~ignored).nonzero()[:, 0])
    for one, other in zip(before, outputs(model), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("number", range(GROUPS))
def test_channels_that_matter_not_score_lowest(number: int) -> None:
    model, group = random_model(), channel_groups(CONFIG)[number]
    with torch.no_grad():
        for name in group.readers:
            model.get_parameter(f"{name}.weight")[:, 1] = 0
    scores = channel_scores(model, group)
    assert scores.shape == (group.width,)
    assert scores.argmin() == 1 and scores[1] == 0 and (scores >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=GROUPS, max_size=GROUPS))
def test_any_widths_make_a_network_with_the_same_output_shapes(widths: list[int]) -> None:
    model = Yolact(CONFIG).eval()
    shapes = [output.shape for output in outputs(model)]
    for group, width in zip(channel_groups(CONFIG), widths, strict=True):
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
    group = next(g for g in channel_groups(CONFIG) if g.name == "backbone.layers.3.0.0")
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
    for group in channel_groups(CONFIG):
        remove_channels(model, group, torch.arange(group.width // 2))
    assert all(
        p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
        if p.ndim == 4
    )


def test_a_copy_without_removals_is_left_alone() -> None:
    model = random_model()
    copied, group = copy.deepcopy(model), channel_groups(CONFIG)[0]
    remove_channels(model, group, torch.arange(2))
    assert width_of(copied, group) == group.width


class Net(nn.Module):
    """Five convolutions of 8 channels ``a`` to ``e``, as many batch norms, and ways to use them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.image, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(8, 8, 1) for _ in range(5))
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.doubled = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.wide, self.linear = nn.Conv2d(16, 8, 1), nn.Linear(8, 8)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.layer_norm, self.group_norm = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.prelu, self.scale = nn.PReLU(8), nn.Parameter(torch.rand(8, 1, 1))
        self.same = nn.Conv2d(8, 8, 1)
        if way == "weights shared":
            self.same.weight = self.a.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.middle(self.image(images)))  # type: ignore[no-any-return]

    def middle(self, x: Tensor) -> Tensor:  # noqa: PLR0911
        match self.way:
            case "depthwise":
                x = F.relu6(self.norm(self.a(x)))
                return self.b(self.norm2(self.depthwise(F.pad(x, (0, 1, 0, 1)))))
            case "bottleneck":
                inside = self.b(F.relu(self.norm(self.a(x))))
                return F.relu_(self.norm2(inside) + self.c(x)) + 1
            case "squeeze-excite":
                gate = self.c(F.silu(self.b(self.a(x).mean((2, 3), keepdim=True))))
                return self.a(x) * F.hardsigmoid(gate)
            case "one convolution, two norms":
                return self.b(self.norm(self.a(x)) + self.norm2(self.a(x)))
            case "two convolutions, one norm":
                return self.c(self.norm(self.a(x)) * self.norm(self.b(x)))
            case "norms before convolutions":
                x = self.a(x)
                return self.b(F.relu(self.norm(x))) + self.c(F.hardswish(self.plain_norm(x)))
            case "pooled and resized":
                x = F.adaptive_avg_pool2d(F.max_pool2d(self.a(x), 2), 3) + F.avg_pool2d(x, 8)
                return F.interpolate(x, scale_factor=2) / torch.full((1, 1, 1, 1), 2.0)
            case "concatenated":
                return self.wide(torch.cat((self.a(x), self.b(self.c(x))), 1))
            case "concatenated below":
                return self.c(torch.cat((self.a(x), self.b(x)), 2))
            case "grouped":
                return self.b(self.grouped(self.a(x)))
            case "two for each":
                return self.wide(self.doubled(self.a(x)))
            case "linear":
                return self.b(self.linear(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            case "layer norm":
                return self.b(self.layer_norm(self.a(x).mT.transpose(1, 3)).transpose(1, 3))
            case "group norm":
                return self.b(self.group_norm(self.a(x)))
            case "weights of its own":
                return self.c(self.prelu(self.a(x)) + self.b(x))
            case "scaled":
                return self.c(self.scale * self.a(x)) + self.b(x)
            case "weights shared":
                return self.c(self.same(self.b(self.a(x))))
            case "weights standardised":
                return self.b(F.conv2d(x, self.a.weight / self.a.weight.std()))
            case "transposed":
                return self.c(F.conv_transpose2d(self.b(x), self.a.weight))
            case "softmax":
                return self.b(F.softmax(self.a(x), 1) + self.c(self.d(x)))
            case "mean of channels":
                return self.b(self.a(x) * self.c(x).mean(1, keepdim=True))
            case "sliced":
                return self.c(self.a(x)[:, :4].repeat(1, 2, 1, 1) + self.b(x))
            case "padded with channels":
                return self.wide(F.pad(self.a(x), (0, 0, 0, 0, 4, 4)))
        raise AssertionError(self.way)


FREE: dict[str, list[str]] = {
    "depthwise": ["image", "a depthwise", "b"],
    "bottleneck": ["image", "a", "b c"],
    "squeeze-excite": ["image", "b", "a c"],
    "one convolution, two norms": ["image", "a", "b"],
    "two convolutions, one norm": ["image", "a b", "c"],
    "norms before convolutions": ["image", "a", "b c"],
    "pooled and resized": ["image a"],
    "concatenated": ["image", "c", "wide"],
    "concatenated below": ["image", "c"],
    "grouped": ["image", "b"],
    "two for each": ["image", "wide"],
    "linear": ["image", "b"],
    "layer norm": ["image", "b"],
    "group norm": ["image", "b"],
    "weights of its own": ["image", "c"],
    "scaled": ["image", "c b"],
    "weights shared": ["c"],
    "weights standardised": ["b"],
    "transposed": ["image", "c"],
    "softmax": ["image", "d", "b"],
    "mean of channels": ["image", "a", "b"],
    "sliced": ["image", "c"],
    "padded with channels": ["image", "wide"],
}
"""By way: what writes each group that is free."""


def net(way: str) -> tuple[Net, Tensor, list[ChannelGroup]]:
    torch.manual_seed(0)
    model, images = with_random_norms(Net(way)), torch.randn(1, 3, 8, 8)
    return model, images, list(groups_of(model, images))


@pytest.mark.parametrize("way", FREE)
def test_channels_are_followed_where_they_stay_apart_and_kept_where_they_do_not(way: str) -> None:
    _, _, groups = net(way)
    assert [" ".join(w.conv for w in group.writers) for group in groups] == FREE[way]


@pytest.mark.parametrize("way", FREE)
def test_any_network_computes_the_same_without_channels_that_nobody_listens_to(way: str) -> None:
    model, images, groups = net(way)
    kept = [torch.randperm(8)[: 2 + number].sort().values for number in range(len(groups))]
    with torch.no_grad():
        for group, keep in zip(groups, kept, strict=True):
            ignored = torch.ones(8, dtype=torch.bool).index_fill(0, keep, False)
            for name in group.readers:
                model.get_parameter(f"{name}.weight")[:, ignored] = 0
        before = model(images)
        for group, keep in zip(groups, kept, strict=True):
            assert channel_scores(model, group).shape == (8,)
            remove_channels(model, group, keep)
            assert width_of(model, group) == len(keep)
        torch.testing.assert_close(model(images), before)
