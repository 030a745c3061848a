"""Settings of the network, its loss, its training and its detections: frozen dataclasses, no torch.

Defaults are those of the published ``yolact_darknet53_config``
(https://github.com/dbolya/yolact, ``data/config.py``; paper: https://arxiv.org/abs/1904.02689).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal, TypeVar, get_type_hints

from yolact.errors import ConfigError
from yolact.setting import setting
from yolact.sizes import ImageSize, checked_size, image_size_setting, sides_of

SAME_PRIORS = 1e-9
"""Relative difference of ``prior_base_size`` up to which it is the same but for rounding."""
OnBadImage = Literal["stop", "skip"]
"""What becomes of a data set with an image that is damaged or of another size than listed."""


def on_bad_image() -> Any:
    """The setting of commands that read a data set: what they do about its images."""
    return setting(
        default="stop",
        help="Images that are damaged or of another size than listed: stop before the run, or "
        "leave them out.",
    )


def strict() -> Any:
    """The setting of the same commands: what they do about entries of its annotation file."""
    return setting(
        default=False,
        help="Refuse an annotation file with a bad entry, instead of leaving the entry out.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network. The defaults are YOLACT-550 on DarkNet-53: 47.8 M parameters."""

    image_size: ImageSize = image_size_setting(default=550)
    """In pixels; a pair of equal sides becomes one number. See :attr:`input_size`."""
    num_classes: int = 80
    """Object classes, without the background."""
    stem_channels: int = 32
    stage_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Output channels of the five DarkNet stages, strides 2, 4, 8, 16, 32."""
    stage_blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    """Residual blocks per stage."""
    fpn_channels: int = 256
    proto_channels: int = 256
    head_channels: int = 256
    num_prototypes: int = 32
    prior_scales: tuple[float, ...] = (24, 48, 96, 192, 384)
    """Prior side for P3..P7, in pixels of a square image of ``prior_base_size``."""
    prior_aspect_ratios: tuple[float, ...] = (1, 1 / 2, 2)
    prior_base_size: float = 550
    """What ``prior_scales`` are relative to: a prior covers as much of an image of any size as a
    square of its scale covers of a square of this side. In pixels it has sides of
    scale * sqrt(height * width) / prior_base_size, equal ones whatever the shape of the input."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes with a ConfigError."""
        object.__setattr__(self, "image_size", checked_size(self.image_size))
        if not 0 < self.prior_base_size < math.inf:
            raise ConfigError(
                f"prior base size {self.prior_base_size!r} is no size",
                hint="use the side in pixels of the square images that prior scales are meant for",
            )
        if self.num_classes < 1:
            raise ConfigError("a model needs at least one class", hint="check the categories")
        if len(self.stage_channels) != 5 or len(self.stage_blocks) != 5:
            raise ConfigError("DarkNet has five stages", hint="give five channels and five depths")
        if len(self.prior_scales) != 5 or not self.prior_aspect_ratios:
            raise ConfigError(
                "P3..P7 need one prior scale each and at least one aspect ratio",
                hint="give five prior scales",
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""
        return sides_of(self.image_size)

    @property
    def pixels_per_scale(self) -> float:
        """Side in pixels of a square prior of scale 1, in an image of :attr:`input_size`."""
        return self._area_side / self.prior_base_size

    @property
    def _area_side(self) -> float:
        """Side of the square that has as many pixels as the network input."""
        height, width = self.input_size
        return height if height == width else math.sqrt(height * width)

    def for_weights(
        self,
        trained: ModelConfig | None,
        image_size: ImageSize | None = None,
        prior_base_size: float | None = None,
    ) -> ModelConfig:
        """These settings for weights that learned with others.

        Weights know objects by their pixels. Priors that grew or shrank with the image would meet
        objects that did not, so that they keep their sides in pixels.

        Args:
            trained: What the weights learned with; None when nobody knows, which is taken to be
                what these settings say.
            image_size: None leaves it as these settings have it.
            prior_base_size: None for the one with which priors have as many pixels as in training.
                Where ``trained`` has other scales than these settings, theirs holds.
        """
        trained = trained or self
        sized = self if image_size is None else replace(self, image_size=image_size)
        base = prior_base_size
        if base is None and sized.prior_scales == trained.prior_scales:
            base = trained.prior_base_size
            if sized.input_size != trained.input_size:
                base *= sized._area_side / trained._area_side
        base = sized.prior_base_size if base is None else base
        # Whole numbers are written as such, as they always were. Those that rounding has missed
        # are meant too: back at an earlier size, weights have the priors they had there.
        whole = round(base) if math.isfinite(base) else 0
        exact = whole if math.isclose(base, whole, rel_tol=SAME_PRIORS) else base
        return replace(sized, prior_base_size=exact)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Matching thresholds and weights of the four loss terms."""

    positive_iou: float = 0.5
    """A prior at or above this IoU with a ground truth is foreground."""
    negative_iou: float = 0.4
    """Below it, background; in between, ignored."""
    crowd_iou: float = 0.7
    """A non-positive prior with more of its area than this inside a crowd is ignored."""
    negatives_per_positive: int = 3
    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    masks_to_train: int = 100
    """Positives per image that the mask term looks at; more are sampled and rescaled."""

    def __post_init__(self) -> None:
        """Refuse thresholds out of order with a ConfigError."""
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ConfigError(
                "need 0 <= negative_iou <= positive_iou <= 1, "
                f"got {self.negative_iou} and {self.positive_iou}",
                hint="the published values are 0.4 and 0.5",
            )


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """From raw outputs to detections (``nms_*`` settings of the reference)."""

    score_threshold: float = 0.05
    """A prior is kept when its best foreground score is strictly above this."""
    nms_iou: float = 0.5
    top_k: int = 200
    """Candidates per class that enter NMS."""
    max_detections: int = 100
    fast_nms: bool = True
    cross_class_nms: bool = False


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random transforms of the training images (SSD's, as YOLACT uses them; then newer ones)."""

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True
    mosaic: float = setting(
        default=0.0,
        at_least=0,
        at_most=1,
        help="Probability that a training image is made of windows of four.",
    )
    """``expand`` and ``crop`` leave such an image alone."""
    copy_paste: float = setting(
        default=0.0,
        at_least=0,
        at_most=1,
        help="Probability that objects of another image are pasted onto a training image.",
    )

    def __post_init__(self) -> None:
        """Refuse what is no probability with a ConfigError."""
        for name in ("mosaic", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:  # NaN is neither
                raise ConfigError(
                    f"--{name} must be in 0..1, got {getattr(self, name)}",
                    hint="it is a probability: 0 never, 0.5 for half of the images, 1 for each",
                )


_OPTIM_HINT = "the published values are --lr 0.001 --momentum 0.9 --decay 0.0005 --gamma 0.1"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD and its learning-rate schedule, counted in iterations at batch size 8."""

    lr: float = setting("--lr", "--learning_rate", default=1e-3, help="Learning rate.")
    momentum: float = setting(default=0.9, help="Momentum of SGD.")
    weight_decay: float = setting("--decay", "--weight_decay", default=5e-4, help="Weight decay.")
    gamma: float = setting(default=0.1, help="Factor at each lr step.")
    max_iter: int = 800_000
    lr_steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    warmup_init: float = 1e-4
    warmup_until: int = 500
    max_grad_norm: float | None = setting(
        "--clip_grad", default=None, help="Largest gradient norm."
    )
    """Longer gradients are scaled down to this L2 norm; None, as published, leaves them."""

    def __post_init__(self) -> None:
        """Refuse numbers that SGD cannot use with a ConfigError."""
        positive = {"learning rate": self.lr, "gamma": self.gamma, "number of steps": self.max_iter}
        if self.max_grad_norm is not None:
            positive["largest gradient norm"] = self.max_grad_norm
        for name, value in positive.items():
            if not 0 < value < math.inf:  # NaN is neither
                raise ConfigError(f"the {name} must be above 0, got {value}", hint=_OPTIM_HINT)
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"the weight decay must be at least 0, got {self.weight_decay}", hint=_OPTIM_HINT
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                f"the momentum must be at least 0 and below 1, got {self.momentum}",
                hint=_OPTIM_HINT,
            )

    def lr_at(self, iteration: int) -> float:
        """Learning rate of step ``iteration`` (from 0): linear warm-up, then steps of ``gamma``.

        The warm-up ends at ``warmup_until`` inclusive, and lasts through a step that falls into it.
        """
        if self.warmup_until > 0 and iteration <= self.warmup_until:
            done = iteration / self.warmup_until
            return (self.lr - self.warmup_init) * done + self.warmup_init
        passed = sum(iteration >= step for step in self.lr_steps)
        return self.lr * self.gamma**passed

    def fitted(self, max_iter: int) -> OptimConfig:
        """The same schedule for a run of ``max_iter`` steps.

        The learning-rate steps stay at the same fractions of the run, and the warm-up takes at most
        a tenth of it. (Upstream leaves both alone, so that a short run is all warm-up.)
        """
        return replace(
            self,
            max_iter=max_iter,
            # Rounded up: no step of the schedule comes before the first step of the run.
            lr_steps=tuple(
                math.ceil(Fraction(step * max_iter, self.max_iter)) for step in self.lr_steps
            ),
            warmup_until=min(self.warmup_until, max_iter // 10),
        )

    def autoscaled(self, batch_size: int) -> OptimConfig:
        """The same schedule for another batch size: lr times, iterations divided by, size / 8.

        Warm-up is left alone, as upstream leaves it.
        """
        factor = batch_size / 8
        return replace(
            self,
            lr=self.lr * factor,
            max_iter=max(1, int(self.max_iter // factor)),
            lr_steps=tuple(int(step // factor) for step in self.lr_steps),
        )


@dataclass(frozen=True, kw_only=True)
class YolactConfig:
    """Everything one experiment needs besides its data."""

    name: str = "yolact_darknet53"
    """First part of checkpoint names, ``<name>_<epoch>_<iter>.pth``."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def with_model(self, **changes: Any) -> YolactConfig:
        """A copy with other :class:`ModelConfig` fields, e.g. ``image_size`` or ``num_classes``."""
        return replace(self, model=replace(self.model, **changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready dicts; the inverse of :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> YolactConfig:
        """Rebuild a config, for instance the one stored in a checkpoint.

        Raises:
            ConfigError: A key is unknown; the hint names the nearest known one.
        """
        return _from_dict(cls, values)


_T = TypeVar("_T")


def _from_dict(cls: type[_T], values: Mapping[str, Any]) -> _T:
    types = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, n=1) or known
            raise ConfigError(f"unknown setting {key!r}", hint=f"try: {', '.join(near)}")
        if is_dataclass(types[key]):
            arguments[key] = _from_dict(types[key], value)
        else:
            arguments[key] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def yolact_darknet53() -> YolactConfig:
    """The published configuration."""
    return YolactConfig()


def yolact_darknet_small() -> YolactConfig:
    """A network of the same classes that trains in minutes on two CPU cores."""
    return YolactConfig(
        name="yolact_darknet_small",
        model=ModelConfig(
            image_size=128,
            stem_channels=8,
            stage_channels=(16, 32, 64, 128, 192),
            stage_blocks=(1, 1, 2, 2, 2),
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


CONFIGS: dict[str, Callable[[], YolactConfig]] = {
    "yolact_darknet53_config": yolact_darknet53,
    "yolact_darknet_small_config": yolact_darknet_small,
}
"""Names that ``--config`` accepts."""


def named_config(name: str) -> YolactConfig:
    """The configuration called ``name``, with or without the ``_config`` ending.

    Raises:
        ConfigError: There is none; the hint lists the nearest names.
    """
    full = name if name.endswith("_config") else f"{name}_config"
    if full not in CONFIGS:
        near = get_close_matches(full, CONFIGS, n=1) or list(CONFIGS)
        raise ConfigError(f"unknown config {name!r}", hint=f"try: {', '.join(near)}")
    return CONFIGS[full]()
