"""Box term (YOLACT sec. 4, after SSD sec. 2.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from yolact.ops.boxes import encode


def box_loss(loc: Tensor, boxes: Tensor, priors: Tensor) -> Tensor:
    """Smooth L1 between regression output and encoded object, summed over positives.

    Args:
        loc: [P, 4] output of the positive priors.
        boxes: [P, 4] their objects, relative corner form, with positive sides.
        priors: [P, 4] relative centre form.

    Returns:
        Scalar; 0 with a gradient when P = 0.
    """
    return F.smooth_l1_loss(loc, encode(boxes, priors), reduction="sum")
