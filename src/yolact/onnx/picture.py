"""The images that a graph is checked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def sample_images(path: Path | None, size: int, batch_size: int) -> Tensor:
    """The network input made from one picture.

    Args:
        path: An image file; None for :func:`test_card`.
        size: Side of the network input, in pixels.
        batch_size: How often the picture is repeated.

    Returns:
        [batch_size, 3, size, size] float32 RGB, 0..1.

    Raises:
        DataError: The file cannot be read as an image.
    """
    from yolact.data.images import read_rgb
    from yolact.data.transforms import preprocess

    picture = test_card() if path is None else read_rgb(path)
    return torch.stack([preprocess(picture, size)] * batch_size)


def test_card(height: int = 480, width: int = 640) -> npt.NDArray[np.uint8]:
    """A picture that needs no file: gradients, edges, discs and fine texture, always the same.

    Returns:
        [height, width, 3] uint8 RGB.
    """
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    )
    for index, colour in enumerate([(230, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 60)]):
        centre_y, centre_x = height * (0.3 + 0.4 * (index // 2)), width * (0.3 + 0.4 * (index % 2))
        inside = np.hypot(y - centre_y, x - centre_x) < height * (0.1 + 0.03 * index)
        picture[:, inside] = np.array(colour)[:, None]
    noise = np.random.PCG64(0).random_raw(height * width).reshape(height, width) >> np.uint64(59)
    rows: npt.NDArray[np.uint8] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return rows.transpose(1, 2, 0)
