"""Which channels of the network belong together, and removing some of them.

A channel that one convolution writes is read by others; where tensors are added, several
convolutions write the same channels. Such a set of channels is a group: removing one means removing
it everywhere, and what is left is an ordinary, smaller dense network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.config import ModelConfig

_OUT, _IN = 0, 1
"""Axes of a convolution's weight."""


@dataclass(frozen=True)
class Writer:
    """A convolution whose output channels are the group's."""

    conv: str
    """Name of the module."""
    norm: str | None = None
    """Name of the batch norm behind it."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together."""

    name: str
    """For messages: what the channels are."""
    width: int
    """Channels before any is removed."""
    writers: tuple[Writer, ...]
    readers: tuple[str, ...]
    """Names of the convolutions whose input channels are the group's."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters by which recipes address the group."""
        return tuple(f"{writer.conv}.weight" for writer in self.writers)


def channel_groups(config: ModelConfig) -> list[ChannelGroup]:
    """Every group of the network whose size is free, from the image to the outputs.

    Not free are the channels of image, boxes, classes, mask coefficients and prototypes.
    """
    return [*_backbone(config), *_pyramid(config), *_prototypes(config), _head(config)]


def width_of(model: nn.Module, group: ChannelGroup) -> int:
    """Channels that a group has now."""
    return _conv(model, group.writers[0].conv).out_channels


def channel_scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    """How much of what the group's readers compute comes from each of its channels.

    The energy of a channel times the squared weights that read it. Behind a batch norm, a channel
    has mean beta and deviation gamma, so that its energy is known without looking at images;
    elsewhere the squared weights that write it stand for it. Channels that are added contribute
    the sum of their energies.

    Returns:
        [width], >= 0, on the model's device.
    """
    energy = sum(
        _written(model, writer.conv, writer.norm) / len(group.writers) for writer in group.writers
    )
    read = sum(_per_mean(_squares(_conv(model, name), _IN)) for name in group.readers)
    return torch.as_tensor(energy * read)


def remove_channels(
    model: nn.Module, group: ChannelGroup, keep: Tensor, optimizer: Optimizer | None = None
) -> None:
    """Keep only some channels of a group, in place.

    Parameters stay the same objects, so that an optimizer goes on with them; its momentum and
    gradients are cut alike.

    Args:
        model: Float, not quantized.
        group: One of the model's.
        keep: [n] int64, indices of the channels to keep.
        optimizer: The one that trains the model, if any.
    """
    for writer in group.writers:
        conv = _conv(model, writer.conv)
        _cut(conv, ("weight", "bias"), _OUT, keep, optimizer)
        conv.out_channels = len(keep)
        if writer.norm is not None:
            norm = _norm(model, writer.norm)
            _cut(norm, ("weight", "bias", "running_mean", "running_var"), _OUT, keep, optimizer)
            norm.num_features = len(keep)
    for name in group.readers:
        conv = _conv(model, name)
        _cut(conv, ("weight",), _IN, keep, optimizer)
        conv.in_channels = len(keep)


def _conv_bn(name: str) -> Writer:
    """The convolution of a Conv-BN-LeakyReLU Sequential."""
    return Writer(f"{name}.0", f"{name}.1")


def _backbone(config: ModelConfig) -> Iterator[ChannelGroup]:
    yield ChannelGroup(
        "stem",
        config.backbone.stem_channels,
        (_conv_bn("backbone._preconv"),),
        ("backbone.layers.0.0.0",),
    )
    backbone = config.backbone
    last = len(backbone.stage_channels) - 1
    for stage, (width, blocks) in enumerate(
        zip(backbone.stage_channels, backbone.stage_blocks, strict=True)
    ):
        prefix = f"backbone.layers.{stage}"
        inside = [f"{prefix}.{block}" for block in range(1, blocks + 1)]
        for block in inside:
            yield ChannelGroup(
                f"inside of {block}",
                width // 2,
                (_conv_bn(f"{block}.conv1"),),
                (f"{block}.conv2.0",),
            )
        onwards = [f"backbone.layers.{stage + 1}.0.0"] if stage < last else []
        lateral = [f"fpn.lat_layers.{last - stage}"] if stage >= 2 else []
        # The blocks add to what the first convolution of the stage wrote.
        yield ChannelGroup(
            f"stage {stage}",
            width,
            (_conv_bn(f"{prefix}.0"), *(_conv_bn(f"{block}.conv2") for block in inside)),
            (*(f"{block}.conv1.0" for block in inside), *onwards, *lateral),
        )


def _pyramid(config: ModelConfig) -> Iterator[ChannelGroup]:
    laterals = [f"fpn.lat_layers.{i}" for i in range(3)]
    merged = [f"fpn.pred_layers.{i}" for i in range(3)]
    coarser = [f"fpn.downsample_layers.{i}" for i in range(2)]
    yield ChannelGroup(
        "pyramid, merging", config.fpn_channels, tuple(map(Writer, laterals)), tuple(merged)
    )
    # One head reads all five levels, so their channels mean the same.
    yield ChannelGroup(
        "pyramid, levels",
        config.fpn_channels,
        tuple(map(Writer, [*merged, *coarser])),
        (*coarser, "proto_net.0", "prediction_layers.0.upfeature.0", "semantic_seg_conv"),
    )


def _prototypes(config: ModelConfig) -> Iterator[ChannelGroup]:
    convs = [f"proto_net.{i}" for i in (0, 2, 4, 8, 10)]
    for conv, reader in zip(convs, convs[1:], strict=False):
        yield ChannelGroup(conv, config.proto_channels, (Writer(conv),), (reader,))


def _head(config: ModelConfig) -> ChannelGroup:
    head = "prediction_layers.0"
    branches = tuple(f"{head}.{name}_layer" for name in ("bbox", "conf", "mask"))
    shared = f"{head}.upfeature.0"
    return ChannelGroup(shared, config.head_channels, (Writer(shared),), branches)


def _written(model: nn.Module, conv: str, norm: str | None) -> Tensor:
    if norm is None:
        return _per_mean(_squares(_conv(model, conv), _OUT))
    layer = _norm(model, norm)
    return _per_mean(layer.weight.detach().square() + layer.bias.detach().square())


def _squares(conv: nn.Conv2d, axis: int) -> Tensor:
    """Sum of the squared weights of each channel on ``axis``."""
    return conv.weight.detach().square().sum([a for a in range(4) if a != axis])


def _per_mean(values: Tensor) -> Tensor:
    """Relative to their mean, so that layers of other scales weigh the same."""
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


def _cut(
    module: nn.Module,
    names: Sequence[str],
    axis: int,
    keep: Tensor,
    optimizer: Optimizer | None,
) -> None:
    for name in names:
        tensor: Tensor | None = getattr(module, name)
        if tensor is None:
            continue
        gradient, whole = tensor.grad, tensor.shape
        tensor.grad = None  # torch checks its shape against the data's
        tensor.data = _kept(tensor.data, axis, keep)
        if gradient is not None:
            tensor.grad = _kept(gradient, axis, keep)
        state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == whole:
                state[key] = _kept(value, axis, keep)


def _kept(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    kept = tensor.index_select(axis, keep)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return kept.contiguous(memory_format=torch.channels_last)
    return kept.contiguous()


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _norm(model: nn.Module, name: str) -> nn.BatchNorm2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    return module
