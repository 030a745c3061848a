"""ResNet with bottlenecks (https://arxiv.org/abs/1512.03385), as torchvision and YOLACT have it.

Where a stage halves the resolution, the 3 x 3 convolution of its first block does so.
"""

from __future__ import annotations

from torch import Tensor, nn

from yolact.config import BackboneConfig
from yolact.model.backbones import Backbone

EXPANSION = 4
"""Output channels of a block for each channel inside."""


class Bottleneck(nn.Module):
    """1 x 1 convolution to few channels, 3 x 3, 1 x 1 to many; plus the input, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Build the layers.

        Args:
            in_channels: Of the input.
            out_channels: Of the output; inside are a quarter of them.
            stride: Of the 3 x 3 convolution. Where the output has not the shape of the input, a
                1 x 1 convolution of this stride brings the input to it.
        """
        super().__init__()
        width = out_channels // EXPANSION
        # Quantization fuses convolution, batch norm and ReLU that are registered one behind the
        # other. Each ReLU is therefore a module of its own behind the batch norm before it, and
        # the one after the addition stands first, where no batch norm is before it.
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.downsample.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride], rounded up."""
        inside = self.relu1(self.bn1(self.conv1(x)))
        inside = self.relu2(self.bn2(self.conv2(inside)))
        out: Tensor = self.relu(self.bn3(self.conv3(inside)) + self.downsample(x))
        return out


class ResNet(Backbone):
    """A stem of stride 4, and four stages of bottlenecks, the last three of which halve."""

    def __init__(self, config: BackboneConfig) -> None:
        """Build the layers; ``config`` has the widths and the blocks of four stages."""
        super().__init__()
        # As in YOLACT, the stem runs first but is registered last: published checkpoints and
        # optimizers have the parameters in this order.
        self.layers = nn.ModuleList()
        width = config.stem_channels
        for stage, (out_channels, blocks) in enumerate(
            zip(config.stage_channels, config.stage_blocks, strict=True)
        ):
            first = Bottleneck(width, out_channels, stride=2 if stage else 1)
            rest = (Bottleneck(out_channels, out_channels) for _ in range(blocks - 1))
            self.layers.append(nn.Sequential(first, *rest))
            width = out_channels
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels = config.stage_channels[-3:]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            images: [B, 3, H, W], normalised as the configuration says.

        Returns:
            C3, C4, C5 at strides 8, 16, 32, sides rounded up.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = []
        for stage in self.layers:
            x = stage(x)
            stages.append(x)
        return tuple(stages[-3:])
