"""Configurations by name: what ``--config`` accepts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from yolact.config import (
    TIMM,
    AugmentConfig,
    BackboneConfig,
    LossConfig,
    ModelConfig,
    YolactConfig,
)
from yolact.errors import CheckpointError, ConfigError
from yolact.model.identify import WIDTHS, differences, words
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
        augment=AugmentConfig(mosaic=0.5),
        optim=OptimConfig(
            optimizer="adamw",
            lr=2e-3,
            weight_decay=0.05,
            backbone_lr=0.3,
            schedule="cosine",
            max_iter=3_000,
            warmup_init=2e-4,
            warmup_until=50,
            max_grad_norm=10.0,
        ),
    )


def yolact_resnet50() -> YolactConfig:
    """The published network on ResNet-50: 550 px."""
    return _resnet("yolact_resnet50", (3, 4, 6, 3))


def yolact_base() -> YolactConfig:
    """The published network on ResNet-101, the best of its paper at 550 px."""
    return _resnet("yolact_base", RESNET101)


def yolact_im400() -> YolactConfig:
    """The published network on ResNet-101 for images of 400 px, with priors to match."""
    return _resnet("yolact_im400", RESNET101, 400)


def yolact_im700() -> YolactConfig:
    """The published network on ResNet-101 for images of 700 px, with priors to match."""
    config = _resnet("yolact_im700", RESNET101, 700)
    return replace(config, loss=LossConfig(masks_to_train=300))


RESNET101 = (3, 4, 23, 3)
"""Blocks of each stage."""


def _resnet(name: str, blocks: tuple[int, ...], size: int = 550) -> YolactConfig:
    """As published, where prior scales are those of 550 px, scaled and rounded down."""
    published = ModelConfig()
    ratio = size / published.prior_base_size
    return YolactConfig(
        name=name,
        model=ModelConfig(
            image_size=size,
            backbone=BackboneConfig(
                name="resnet",
                stem_channels=64,
                stage_channels=(256, 512, 1024, 2048),
                stage_blocks=blocks,
                mean=(123.68 / 255, 116.78 / 255, 103.94 / 255),
                std=(58.40 / 255, 57.12 / 255, 57.38 / 255),
                negative_slope=0,
            ),
            prior_scales=tuple(int(scale * ratio) for scale in published.prior_scales),
            prior_base_size=size,
        ),
    )


CONFIGS: dict[str, Callable[[], YolactConfig]] = {
    "yolact_darknet53_config": yolact_darknet53,
    "yolact_darknet_small_config": yolact_darknet_small,
    "yolact_lite0_config": yolact_lite0,
    "yolact_lite2_config": yolact_lite2,
    "yolact_resnet50_config": yolact_resnet50,
    "yolact_base_config": yolact_base,
    "yolact_im400_config": yolact_im400,
    "yolact_im700_config": yolact_im700,
}
"""Names that ``--config`` accepts."""

BACKBONE_FILES = {
    "yolact_darknet53": "darknet53.pth",
    "yolact_resnet50": "resnet50-19c8e357.pth",
    **dict.fromkeys(("yolact_base", "yolact_im400", "yolact_im700"), "resnet101_reducedfc.pth"),
}
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
        raise ConfigError(
            f"unknown config {name!r}",
            hint=f"try: {', '.join(near)}, or {TIMM} and a name of timm's",
        )
    return CONFIGS[full]()


def config_of(found: ModelConfig, file: str, *, exact: bool = True) -> YolactConfig:
    """The configuration that weights without one are taken for.

    Where several have the same layers and differ by the size of the input, the file's name
    decides, such as that of ``yolact_im700_54_800000.pth``, and else the first of them.

    Args:
        found: Their layers, as :func:`yolact.model.identify.identify` tells them.
        file: Name of their file.
        exact: False where a recipe may have removed channels or layers.

    Returns:
        One by name; where none has these layers, one of the same family with them.

    Raises:
        CheckpointError: Their priors cannot be known, or are not square.
    """
    if "pascal" in file.lower():  # the one published configuration that weights do not tell apart
        raise CheckpointError(
            f"{file} seems to be of yolact_resnet50_pascal_config, whose priors are not square: "
            "they are not supported",
            hint="if it was trained with another configuration, say so with --config",
        )
    family = found.backbone.family
    configs = [c for make in CONFIGS.values() if (c := make()).model.backbone.family == family]
    same = [config for config in configs if not differences(found, config.model)]
    if not same and not exact:
        blocks = found.backbone.stage_blocks
        same = [c for c in configs if c.model.backbone.stage_blocks == blocks] or configs
    if same:
        return next((c for c in same if c.name.removeprefix("yolact_") in file), same[0])
    usual = configs[0].model
    ratios = len(usual.prior_aspect_ratios)
    if len(found.prior_aspect_ratios) != ratios:
        raise CheckpointError(
            f"the weights are for {len(found.prior_aspect_ratios)} priors in each cell, not "
            f"{ratios}, and only their training knew which",
            hint="take a checkpoint with its configuration in it, as this tool's training saves it",
        )
    backbone = replace(
        usual.backbone,
        stem_channels=found.backbone.stem_channels,
        stage_channels=found.backbone.stage_channels,
        stage_blocks=found.backbone.stage_blocks,
    )
    widths = {name: getattr(found, name) for name in WIDTHS}
    return YolactConfig(
        name=f"yolact_{words(backbone).lower().replace('-', '')}",
        model=replace(usual, backbone=backbone, **widths),
    )
