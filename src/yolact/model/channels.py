"""Which channels of the network belong together: removing one means removing it everywhere.

A channel that one convolution writes is read by others; where tensors are added, several
convolutions write the same channels. Such a set of channels is a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from yolact.config import ModelConfig


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


def _conv_bn(name: str) -> Writer:
    """The convolution of a Conv-BN-LeakyReLU Sequential."""
    return Writer(f"{name}.0", f"{name}.1")


def _backbone(config: ModelConfig) -> Iterator[ChannelGroup]:
    yield ChannelGroup(
        "stem",
        config.stem_channels,
        (_conv_bn("backbone._preconv"),),
        ("backbone.layers.0.0.0",),
    )
    last = len(config.stage_channels) - 1
    for stage, (width, blocks) in enumerate(
        zip(config.stage_channels, config.stage_blocks, strict=True)
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
