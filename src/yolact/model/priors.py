"""Priors, the boxes that every prediction is relative to, and the grids that they lie on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from yolact.config import ModelConfig


def make_priors(grid_sizes: Sequence[tuple[int, int]], config: ModelConfig) -> Tensor:
    """One prior per level, row, column and aspect ratio, in that order.

    A prior is square in pixels of ``config.input_size``, and covers as much of an image as its
    scale squared of ``config.prior_base_size`` squared. Nothing is clipped: a large prior at the
    border reaches out of the image.

    Args:
        grid_sizes: (rows, columns) of P3..P7.
        config: Its ``prior_scales`` has one entry per level.

    Returns:
        [N, 4] float32 (cx, cy, w, h), relative. In a trace it is a constant.
    """
    height, width = config.input_size
    wide, high = math.sqrt(height / width), math.sqrt(width / height)  # 1 for a square
    levels = []
    for (rows, columns), scale in zip(grid_sizes, config.prior_scales, strict=True):
        cy = (np.arange(rows) + 0.5) / rows
        cx = (np.arange(columns) + 0.5) / columns
        # The height should be scale / sqrt(ratio). Upstream made every prior square by accident
        # and kept it (``use_square_anchors``): the published weights learned from square priors.
        side = scale * np.sqrt(config.prior_aspect_ratios) / config.prior_base_size
        y, x, s = np.meshgrid(cy, cx, side, indexing="ij")
        levels.append(np.stack([x, y, s * wide, s * high], axis=-1).reshape(-1, 4))
    priors = np.concatenate(levels).astype(np.float32)
    with _intended_constants():
        return torch.from_numpy(priors)


class PriorCache:
    """Priors by grid sizes, device and precision; they are computed on first use.

    Not a module and not a buffer: checkpoints hold no priors, and one model serves every size.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Start empty; ``config`` is what :func:`make_priors` needs."""
        self._config = config
        self._priors: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, grid_sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
        """Priors for these grids, on the device of ``like``.

        Half precision would move a prior's centre by up to 1/4096 of the image, so they have at
        least single precision, and so have the boxes decoded with them.

        Returns:
            [N, 4]; shared by all callers, so never to be changed in place.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (tuple(grid_sizes), like.device, dtype)
        if key not in self._priors:
            # A tensor born in inference mode could never take part in training afterwards.
            with torch.inference_mode(False):
                priors = make_priors(grid_sizes, self._config)
                self._priors[key] = priors.to(like.device, dtype)
        return self._priors[key]


def grid_size(x: Tensor) -> tuple[int, int]:
    """(height, width) of ``x`` [B, C, H, W] as plain integers, also in a trace."""
    with _intended_constants():
        return int(x.shape[2]), int(x.shape[3])


@contextmanager
def _intended_constants() -> Iterator[None]:
    """Silence the tracer where it warns that a value becomes a constant, which is the intent.

    An exported graph has one image size, and with it one set of grids and priors.
    """
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
