"""The prediction head that P3..P7 share (YOLACT, sec. 3.1 and fig. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Predictions(NamedTuple):
    """One level's predictions, ordered by row, column, aspect ratio: the order of the priors."""

    loc: Tensor
    """[B, n, 4] box regression."""
    conf: Tensor
    """[B, n, 1 + C] class logits; index 0 is the background."""
    mask: Tensor
    """[B, n, k] mask coefficients, -1..1."""


class PredictionHead(nn.Module):
    """One 3 x 3 convolution shared by three branches: boxes, classes, mask coefficients."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        priors_per_cell: int,
        num_classes: int,
        num_prototypes: int,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: Channels of the pyramid's levels.
            channels: Channels of the shared convolution.
            priors_per_cell: Priors at each cell, one per aspect ratio.
            num_classes: Object classes, without the background.
            num_prototypes: Mask coefficients per prior.
        """
        super().__init__()
        self.upfeature = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)
        )
        self.bbox_layer = nn.Conv2d(channels, priors_per_cell * 4, 3, padding=1)
        self.conf_layer = nn.Conv2d(channels, priors_per_cell * (1 + num_classes), 3, padding=1)
        self.mask_layer = nn.Conv2d(channels, priors_per_cell * num_prototypes, 3, padding=1)
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes

    def forward(self, level: Tensor) -> Predictions:
        """Predict for every prior of one level.

        Args:
            level: [B, in_channels, H, W].

        Returns:
            Predictions for n = H * W * priors_per_cell priors.
        """
        x = self.upfeature(level)
        return Predictions(
            loc=_per_prior(self.bbox_layer(x), 4),
            conf=_per_prior(self.conf_layer(x), self.num_classes + 1),
            mask=torch.tanh(_per_prior(self.mask_layer(x), self.num_prototypes)),
        )


def _per_prior(x: Tensor, width: int) -> Tensor:
    """[B, A * width, H, W] to [B, H * W * A, width]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
