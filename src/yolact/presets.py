"""Configurations by name: what ``--config`` accepts."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches

from yolact.config import TIMM, AugmentConfig, BackboneConfig, ModelConfig, YolactConfig
from yolact.errors import ConfigError
from yolact.optim_config import OptimConfig


def _efficientnet_lite(channels: tuple[int, ...], blocks: tuple[int, ...]) -> BackboneConfig:
    mean, std = 127 / 255, 128 / 255
    return BackboneConfig(
        name="efficientnet_lite",
        stem_channels=32,
        stage_channels=channels,
        stage_blocks=blocks,
        mean=(mean, mean, mean),
        std=(std, std, std),
        negative_slope=0.0,
    )


LITE0 = _efficientnet_lite((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1))
"""EfficientNet-Lite0, as its ImageNet weights need it."""
LITE2 = _efficientnet_lite((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1))
"""EfficientNet-Lite2, alike."""


def yolact_darknet53() -> YolactConfig:
    """The published configuration."""
    return YolactConfig()


def yolact_darknet_small() -> YolactConfig:
    """A network of the same classes that trains in minutes on two CPU cores."""
    return YolactConfig(
        name="yolact_darknet_small",
        model=ModelConfig(
            image_size=128,
            backbone=BackboneConfig(
                stem_channels=8,
                stage_channels=(16, 32, 64, 128, 192),
                stage_blocks=(1, 1, 2, 2, 2),
            ),
            fpn_channels=64,
            proto_channels=64,
            head_channels=64,
            num_prototypes=16,
            prior_scales=(14, 24, 40, 64, 100),
            prior_base_size=128,
        ),
        # A run of minutes sees each picture a dozen times: too few for strong augmentation.
        augment=AugmentConfig(photometric=False, expand=False, crop=False),
        # Without ImageNet weights the first gradients are enormous; clipped, they allow this lr.
        optim=OptimConfig(
            lr=8e-3,
            max_iter=3_000,
            lr_steps=(2_100, 2_700),
            warmup_init=4e-4,
            warmup_until=100,
            max_grad_norm=10.0,
        ),
    )


def yolact_lite0() -> YolactConfig:
    """EfficientNet-Lite0 at 320 px, for CPUs."""
    return _lite("yolact_lite0", LITE0)


def yolact_lite2() -> YolactConfig:
    """The same on EfficientNet-Lite2, which is wider and deeper."""
    return _lite("yolact_lite2", LITE2)


def yolact_timm(name: str) -> YolactConfig:
    """A light pyramid and head on a backbone of timm.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    from yolact.model.backbones.timm import timm_config  # of no use to anybody else

    return _lite(f"yolact_timm_{re.sub('[^a-zA-Z0-9]+', '_', name)}", timm_config(name))


def _lite(name: str, backbone: BackboneConfig) -> YolactConfig:
    return YolactConfig(
        name=name,
        model=ModelConfig(
            image_size=320,
            backbone=backbone,
            fpn_channels=96,
            proto_channels=96,
            head_channels=96,
        ),
        optim=OptimConfig(
            lr=1.6e-2,
            backbone_lr=0.3,
            schedule="cosine",
            max_iter=3_000,
            warmup_init=4e-4,
            warmup_until=50,
            max_grad_norm=10.0,
        ),
    )


CONFIGS: dict[str, Callable[[], YolactConfig]] = {
    "yolact_darknet53_config": yolact_darknet53,
    "yolact_darknet_small_config": yolact_darknet_small,
    "yolact_lite0_config": yolact_lite0,
    "yolact_lite2_config": yolact_lite2,
}
"""Names that ``--config`` accepts."""

BACKBONE_FILES = {"yolact_darknet53": "darknet53.pth"}
"""ImageNet weights that training takes from its folder of checkpoints if they are there, by the
name of the configuration."""


def named_config(name: str) -> YolactConfig:
    """The configuration called ``name``, with or without the ``_config`` ending.

    Args:
        name: One of :data:`CONFIGS`, or ``timm:`` and the name of a model of timm.

    Raises:
        ConfigError: There is none; the hint lists the nearest names.
    """
    if name.startswith(TIMM):
        return yolact_timm(name.removeprefix(TIMM).removesuffix("_config"))
    full = name if name.endswith("_config") else f"{name}_config"
    if full not in CONFIGS:
        near = get_close_matches(full, CONFIGS, n=1) or list(CONFIGS)
        raise ConfigError(f"unknown config {name!r}", hint=f"try: {', '.join(near)}")
    return CONFIGS[full]()
