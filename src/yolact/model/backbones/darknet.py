"""DarkNet-53, the backbone of YOLOv3 (https://arxiv.org/abs/1804.02767, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from yolact.config import BackboneConfig
from yolact.model.backbones import Backbone

SLOPE = 0.1
"""Of DarkNet's leaky ReLUs below 0; torch's default is 0.01."""


def conv_bn_leaky(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, slope: float = SLOPE
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
        nn.LeakyReLU(slope, inplace=True),
    )


class ResidualBlock(nn.Module):
    """1 x 1 convolution to half the channels, 3 x 3 back to all of them, plus the input."""

    def __init__(self, channels: int, slope: float = SLOPE) -> None:
        """Build the layers; ``channels`` is the width of input and output."""
        super().__init__()
        self.conv1 = conv_bn_leaky(channels, channels // 2, 1, slope=slope)
        self.conv2 = conv_bn_leaky(channels // 2, channels, 3, slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        out: Tensor = self.conv2(self.conv1(x))
        return out + x


class DarkNet(Backbone):
    """A stem, and stages that halve the resolution and refine it in residual blocks."""

    def __init__(self, config: BackboneConfig) -> None:
        """Build the layers.

        Args:
            config: Its stem works at full resolution; each of its stages begins with a convolution
                of stride 2, and has as many residual blocks as it says.
        """
        super().__init__()
        # The stem runs first but is registered last, and under its upstream name: the order and
        # names of the parameters are those of the published checkpoints and recipes.
        self.layers = nn.ModuleList()
        self._preconv = conv_bn_leaky(3, config.stem_channels, 3, slope=config.negative_slope)
        in_channels = config.stem_channels
        for out_channels, blocks in zip(config.stage_channels, config.stage_blocks, strict=True):
            self.layers.append(
                nn.Sequential(
                    conv_bn_leaky(
                        in_channels, out_channels, 3, stride=2, slope=config.negative_slope
                    ),
                    *(ResidualBlock(out_channels, config.negative_slope) for _ in range(blocks)),
                )
            )
            in_channels = out_channels
        self.channels = config.stage_channels[-3:]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            images: [B, 3, H, W], normalised as the configuration says.

        Returns:
            The outputs of the last three stages: C3, C4, C5 at strides 8, 16, 32, sides rounded up.
        """
        x = self._preconv(images)
        stages = []
        for stage in self.layers:
            x = stage(x)
            stages.append(x)
        return tuple(stages[-3:])
