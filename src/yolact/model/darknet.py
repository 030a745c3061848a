"""DarkNet-53, the backbone of YOLOv3 (https://arxiv.org/abs/1804.02767, table 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_bn_leaky(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, leaky ReLU: the only layer DarkNet is made of.

    A plain Sequential on purpose: checkpoints and recipes address its parts as ``.0`` and ``.1``,
    and quantization fuses the two.
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.1, inplace=True),  # 0.1 is DarkNet's slope; torch's default is 0.01
    )


class ResidualBlock(nn.Module):
    """1 x 1 convolution to half the channels, 3 x 3 back to all of them, plus the input."""

    def __init__(self, channels: int) -> None:
        """Build the layers; ``channels`` is the width of input and output."""
        super().__init__()
        self.conv1 = conv_bn_leaky(channels, channels // 2, 1)
        self.conv2 = conv_bn_leaky(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        out: Tensor = self.conv2(self.conv1(x))
        return out + x


class DarkNet(nn.Module):
    """A stem, and stages that halve the resolution and refine it in residual blocks."""

    def __init__(
        self, stem_channels: int, stage_channels: Sequence[int], stage_blocks: Sequence[int]
    ) -> None:
        """Build the layers.

        Args:
            stem_channels: Channels at full resolution.
            stage_channels: Output channels of each stage.
            stage_blocks: Residual blocks of each stage; (1, 2, 8, 8, 4) makes it DarkNet-53.
        """
        super().__init__()
        # The stem runs first but is registered last, and under its upstream name: the order and
        # names of the parameters are those of the published checkpoints and recipes.
        self.layers = nn.ModuleList()
        self._preconv = conv_bn_leaky(3, stem_channels, 3)
        in_channels = stem_channels
        for out_channels, blocks in zip(stage_channels, stage_blocks, strict=True):
            self.layers.append(
                nn.Sequential(
                    conv_bn_leaky(in_channels, out_channels, 3, stride=2),
                    *(ResidualBlock(out_channels) for _ in range(blocks)),
                )
            )
            in_channels = out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            images: [B, 3, H, W] RGB, 0..1.

        Returns:
            The output of every stage: C1..C5 at strides 2, 4, 8, 16, 32, sides rounded up.
        """
        x = self._preconv(images)
        stages = []
        for stage in self.layers:
            x = stage(x)
            stages.append(x)
        return tuple(stages)
