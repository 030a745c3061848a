"""ProtoNet: the masks that all instances of an image share (YOLACT, sec. 3.1, fig. 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return [conv, nn.ReLU(inplace=True)]


class ProtoNet(nn.Sequential):
    """Three convolutions, a doubling of the resolution, one more, and a 1 x 1 to k prototypes.

    A plain Sequential on purpose: recipes and public checkpoints address its convolutions as
    ``proto_net.{0,2,4,8,10}``, so the indices are part of the interface. The ReLU after the
    upsampling does nothing to values that are >= 0 already; it stands for its index.
    """

    def __init__(self, in_channels: int, channels: int, num_prototypes: int) -> None:
        """Build the layers.

        Args:
            in_channels: Channels of P3.
            channels: Channels of all convolutions but the last.
            num_prototypes: k.
        """
        super().__init__(
            *_conv3(in_channels, channels),
            *_conv3(channels, channels),
            *_conv3(channels, channels),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.ReLU(inplace=True),
            *_conv3(channels, channels),
            nn.Conv2d(channels, num_prototypes, kernel_size=1),
        )

    def forward(self, p3: Tensor) -> Tensor:
        """Compute the prototypes.

        Args:
            p3: [B, C, H, W], the stride-8 level of the pyramid (69 x 69 for a 550 px input).

        Returns:
            [B, 2H, 2W, k], all >= 0; channels last, so that for one image
            ``prototypes @ coefficients.T`` is [2H, 2W, n] mask logits.
        """
        prototypes = super().forward(p3)  # type: ignore[no-untyped-call]
        return F.relu(prototypes).permute(0, 2, 3, 1).contiguous()
