"""Backbones of the package timm (https://github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import Tensor

from yolact.config import TIMM, BackboneConfig
from yolact.errors import ConfigError
from yolact.model.backbones import Backbone

_STRIDES = (8, 16, 32)


class TimmBackbone(Backbone):
    """The features that a model of timm has at strides 8, 16 and 32."""

    def __init__(self, config: BackboneConfig, *, pretrained: bool = False) -> None:
        """Build the layers.

        Args:
            config: Its name is ``timm:`` and that of the model.
            pretrained: Have the weights that timm has for it, which may fetch them.

        Raises:
            ConfigError: timm is not installed, has no such model, or it has no such features.
        """
        super().__init__()
        name = config.name.removeprefix(TIMM)
        info = _create(name).feature_info
        at = {reduction: index for index, reduction in enumerate(info.reduction())}
        if not set(_STRIDES) <= set(at):
            raise ConfigError(
                f"{config.name} has features at strides {', '.join(map(str, at))}, "
                "and YOLACT needs 8, 16 and 32",
                hint="take a convolutional network, such as timm:mobilenetv3_large_100",
            )
        chosen = tuple(at[stride] for stride in _STRIDES)
        self.body = _create(name, out_indices=chosen, pretrained=pretrained)
        self.channels = tuple(self.body.feature_info.channels())
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone; see :class:`yolact.model.backbones.Backbone`."""
        features = self.body(images)
        if self._channels_last:
            return tuple(feature.permute(0, 3, 1, 2) for feature in features)
        return tuple(features)


def timm_config(name: str) -> BackboneConfig:
    """The setting of a backbone of timm.

    Args:
        name: Of the model, without ``timm:``. A tag behind a dot chooses its weights.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {name!r}",
            hint=f"try: {', '.join(near)}" if near else "timm.list_models() names all",
        )
    try:
        trained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        model = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{model}.*")) or model
        raise ConfigError(f"timm has no weights {name!r}", hint=f"try: {tags}") from error
    return BackboneConfig(
        name=f"{TIMM}{name}",
        stem_channels=0,
        stage_channels=(),
        stage_blocks=(),
        mean=tuple(trained.mean),
        std=tuple(trained.std),
        negative_slope=0.0,
    )


def has_weights(config: BackboneConfig) -> bool:
    """Whether timm has ImageNet weights of one of its backbones."""
    trained = _timm().get_pretrained_cfg(config.name.removeprefix(TIMM))
    return trained is not None and bool(trained.has_weights)


def _create(name: str, **options: Any) -> Any:
    try:
        return _timm().create_model(name, features_only=True, **options)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{TIMM}{name} cannot be a backbone: {reason}",
            hint="take a convolutional network, such as timm:mobilenetv3_large_100",
        ) from error


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"the backbones of timm need the package timm: {error}",
            hint="install it: pip install 'sparseml-yolact[timm]'",
        ) from error
    return timm
