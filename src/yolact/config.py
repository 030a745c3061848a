"""Settings of the network, its loss, its training and its detections: frozen dataclasses, no torch.

Defaults are those of the published ``yolact_darknet53_config``
(https://github.com/dbolya/yolact, ``data/config.py``; paper: https://arxiv.org/abs/1904.02689).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_type_hints

from yolact.errors import ConfigError
from yolact.optim_config import OptimConfig
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


TIMM = "timm:"
"""What the names of timm's backbones begin with."""
STAGES = {"darknet": 5, "resnet": 4, "efficientnet_lite": 7}
"""Families of backbones, each a file of :mod:`yolact.model.backbones`, and their stages."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What computes features at strides 8, 16 and 32. The defaults are DarkNet-53."""

    name: str = "darknet"
    """A family, or ``timm:`` and the name that a model has in the package timm."""
    stem_channels: int = 32
    stage_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Output channels of each stage. These, as the other widths, do not matter to timm's."""
    stage_blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    """Residual blocks of each stage."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Taken from RGB 0..1 before the first layer."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What is left is divided by it."""
    negative_slope: float = 0.1
    """Of leaky ReLUs below 0; other families than darknet have none."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes with a ConfigError."""
        if self.family not in (*STAGES, "timm"):
            raise ConfigError(
                f"no backbone is called {self.name!r}",
                hint=f"there are {', '.join(STAGES)}, and {TIMM} with a name of timm's",
            )
        stages = STAGES.get(self.family)
        if stages and {len(self.stage_channels), len(self.stage_blocks)} != {stages}:
            raise ConfigError(
                f"a backbone of the family {self.name} has {stages} stages, not "
                f"{len(self.stage_channels)} widths and {len(self.stage_blocks)} depths",
                hint="give each stage a width and a depth",
            )
        if min(self.std) <= 0:
            raise ConfigError(
                f"standard deviations {self.std} of the input are not all above 0",
                hint="1 leaves the input as it is",
            )

    @property
    def family(self) -> str:
        """Which file of :mod:`yolact.model.backbones` builds it."""
        return "timm" if self.name.startswith(TIMM) else self.name


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network. The defaults are YOLACT-550 on DarkNet-53: 47.8 M parameters."""

    image_size: ImageSize = image_size_setting(default=550)
    """In pixels; a pair of equal sides becomes one number. See :attr:`input_size`."""
    num_classes: int = 80
    """Object classes, without the background."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
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
        return _from_dict(cls, _with_backbone(values))


_T = TypeVar("_T")


def _with_backbone(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings whose model has a backbone: earlier ones have DarkNet's widths in its place."""
    model = values.get("model", {})
    widths = {key: model[key] for key in model if key.startswith(("stem_", "stage_"))}
    if not widths:
        return values
    rest = {key: value for key, value in model.items() if key not in widths}
    return {**values, "model": {**rest, "backbone": widths}}


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
