"""EfficientNet-Lite: EfficientNet (https://arxiv.org/abs/1905.11946) for integers on small CPUs.

It has ReLU6 in place of Swish, and no squeeze-excite; stem and head keep their widths
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). Weights trained
by TensorFlow need its padding: at stride 2 of an even size one column fewer on the left than on the
right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.config import BackboneConfig
from yolact.model.backbones import Backbone
from yolact.model.priors import grid_size

_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
"""Kernel size, stride of the first block, and expansion of each stage."""
_FEATURES = (2, 4, 6)
"""Stages whose outputs are C3, C4 and C5."""


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, and batch norm. Where the stride is 2, :func:`same_pad` pads."""
    padding = kernel_size // 2 if stride == 1 else 0
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),  # as the weights were trained
    )


def same_pad(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """``x`` [B, C, H, W] with zeros around it, as TensorFlow's SAME padding adds them.

    Afterwards a convolution without padding has an output of the input's size over ``stride``,
    rounded up.
    """
    before_after = []
    for size in reversed(grid_size(x)):  # torch pads the last axis first
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        before_after += [total // 2, total - total // 2]
    return F.pad(x, before_after)


class InvertedResidual(nn.Module):
    """1 x 1 convolution to more channels, depthwise convolution, 1 x 1 to few channels.

    The input is added where it has the shape of the output.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, expansion: int
    ) -> None:
        """Build the layers.

        Args:
            in_channels: Of the input.
            out_channels: Of the output.
            kernel_size: Of the depthwise convolution.
            stride: Of the depthwise convolution.
            expansion: How many times ``in_channels`` the depthwise convolution has; 1 leaves out
                the convolution before it.
        """
        super().__init__()
        width = in_channels * expansion
        self.expand = nn.Sequential()
        if expansion > 1:
            self.expand = conv_bn(in_channels, width, 1).append(nn.ReLU6(inplace=True))
        self.depthwise = conv_bn(width, width, kernel_size, stride, groups=width)
        self.depthwise.append(nn.ReLU6(inplace=True))
        self.project = conv_bn(width, out_channels, 1)
        self.kernel_size, self.stride = kernel_size, stride
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride], rounded up."""
        inside = self.expand(x)
        if self.stride > 1:
            inside = same_pad(inside, self.kernel_size, self.stride)
        out: Tensor = self.project(self._depthwise(inside))
        return out + x if self.adds_input else out

    def _depthwise(self, x: Tensor) -> Tensor:
        # On CPUs the gradient of a depthwise convolution takes four times as long in bfloat16.
        with torch.autocast("cpu", enabled=False):
            in_half = x.dtype == torch.bfloat16 and x.device.type == "cpu"
            convolved: Tensor = self.depthwise(x.float() if in_half else x)
        return convolved


class EfficientNetLite(Backbone):
    """A stem of stride 2, and seven stages of inverted residuals."""

    def __init__(self, config: BackboneConfig) -> None:
        """Build the layers; ``config`` has the widths and the blocks of seven stages."""
        super().__init__()
        self.stem = conv_bn(3, config.stem_channels, 3, 2).append(nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList()
        self._ends = []
        width = config.stem_channels
        for (kernel_size, stride, expansion), out_channels, blocks in zip(
            _STAGES, config.stage_channels, config.stage_blocks, strict=True
        ):
            for block in range(blocks):
                self.blocks.append(
                    InvertedResidual(
                        width,
                        out_channels,
                        kernel_size=kernel_size,
                        stride=1 if block else stride,
                        expansion=expansion,
                    )
                )
                width = out_channels
            self._ends.append(len(self.blocks) - 1)
        self.channels = tuple(config.stage_channels[stage] for stage in _FEATURES)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            images: [B, 3, H, W], normalised as the configuration says.

        Returns:
            C3, C4, C5 at strides 8, 16, 32, sides rounded up; not limited from below.
        """
        x = self.stem(same_pad(images, 3, 2))
        ends = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._ends:
                ends.append(x)
        return tuple(ends[stage] for stage in _FEATURES)
