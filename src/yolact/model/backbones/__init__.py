"""Backbones: from an image to features at strides 8, 16 and 32, one file for each family."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """What the rest of the network knows of a backbone.

    It takes images [B, 3, H, W] that are normalised as its configuration says, and returns C3, C4
    and C5: [B, channels, H / stride, W / stride] at strides 8, 16 and 32, sides rounded up.

    Attributes:
        channels: Widths of C3, C4 and C5.
    """

    channels: tuple[int, ...]
