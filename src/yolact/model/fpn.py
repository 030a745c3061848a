"""Feature pyramid (https://arxiv.org/abs/1612.03144), as YOLACT changes it (sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from yolact.model.priors import grid_size


class FeaturePyramid(nn.Module):
    """C3..C5 in, P3..P7 out.

    Every list of layers but ``downsample_layers`` is ordered from the coarsest level to the
    finest: ``lat_layers.0`` belongs to C5. That is the order of the published checkpoints.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        """Build the layers.

        Args:
            in_channels: Channels of C3, C4, C5.
            channels: Channels of every P level.
        """
        super().__init__()
        self.lat_layers = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=1) for width in reversed(in_channels)
        )
        self.pred_layers = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in in_channels
        )
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, stride=2) for _ in range(2)
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Merge the stages from the top down, then extend them by two coarser levels.

        Args:
            stages: C3, C4, C5, each [B, C, H, W] with its own C, H and W.

        Returns:
            P3..P7, each [B, channels, H, W]; P3..P5 are as large as C3..C5 and >= 0.
        """
        coarsest, *finer = reversed(stages)
        lateral, *laterals = self.lat_layers
        merged = [lateral(coarsest)]
        for lateral, stage in zip(laterals, finer, strict=True):
            # To the stage's own size and not by a factor of 2: at 550 px 18 cells become 35.
            upsampled = F.interpolate(
                merged[-1], size=grid_size(stage), mode="bilinear", align_corners=False
            )
            merged.append(upsampled + lateral(stage))
        levels = [F.relu(pred(x)) for pred, x in zip(self.pred_layers, merged, strict=True)]
        levels.reverse()
        for downsample in self.downsample_layers:
            levels.append(downsample(levels[-1]))
        return levels
