"""What network weights are of, told by their names and shapes: one of ours, or which other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from yolact.config import BackboneConfig, ModelConfig
from yolact.errors import ConfigError

if TYPE_CHECKING:  # commands ask for configurations before they load torch
    from torch import Tensor

State = Mapping[str, "Tensor"]

HEAD = re.compile(r"((?:.*\.)?)prediction_layers\.\d+\.")
"""Matches names in the head of a YOLACT model, behind what is before them."""
DETECTOR = re.compile(r"(^|\.)(roi_heads?|rpn\w*|neck|bbox_head|mask_head|fpn)\.")
"""Occurs in names of detectors of other programs, which have ResNets inside."""
WIDTHS = {
    "fpn_channels": "fpn.lat_layers.0",
    "proto_channels": "proto_net.0",
    "head_channels": "prediction_layers.0.upfeature.0",
    "num_prototypes": "proto_net.10",
}
"""Settings of the network, and the convolutions whose output channels they are."""
_STEMS = {"darknet": "_preconv.0", "resnet": "conv1", "efficientnet_lite": "stem.0"}
_BLOCKS = {
    "darknet": r"layers\.(\d+)\.(\d+)\.conv2\.0",
    "resnet": r"layers\.(\d+)\.(\d+)\.conv3",
    "efficientnet_lite": r"blocks\.(\d+)\.project\.0",
}
"""Of each family, the last convolution of each block; its number of channels is the stage's."""
_DEPTHS = {2: 18, 6: 34}
"""Of a ResNet without bottlenecks: blocks of its third stage -> layers."""
_OTHERS = (
    (r"conv_exp\.|conv_transition", "CSPDarkNet, which is not DarkNet-53"),
    (r"(^|\.)backbone\.dark[2-5]\.|backbone\.backbone\.dark", "YOLOX"),
    (r"(^|\.)model\.\d+\.(conv|cv\d|m|bn|proto|c)\b", "a YOLO model of Ultralytics"),
    (r"(^|\.)image_encoder\.|mask_decoder\.", "Segment Anything"),
    (r"(^|\.)patch_embed\.|cls_token|attn\.qkv", "a vision transformer"),
    (r"(^|\.)query_embed\.|transformer\.decoder\.", "DETR"),
    (r"(^|\.)features\.\d+\.", "VGG, MobileNet or the like"),
    (r"(^|\.)stages\.\d+\.blocks\.\d+\.", "another network of timm"),
)


def identify(state: State) -> ModelConfig | None:
    """The layers that a model's weights are for: backbone, widths, prototypes, priors of a cell.

    Where channels were removed, widths are those that are left. What weights do not tell has its
    default: input size, scales of priors, classes. None where the backbone is of no family that is
    known, or the rest is not YOLACT.
    """
    weights = _convolutions(state)
    prefix = "backbone."
    backbone = identify_backbone(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    )
    boxes = weights.get("prediction_layers.0.bbox_layer")
    if backbone is None or boxes is None or not weights.keys() >= set(WIDTHS.values()):
        return None
    widths: dict[str, Any] = {setting: len(weights[layer]) for setting, layer in WIDTHS.items()}
    found = ModelConfig(backbone=backbone, **widths)
    priors = len(boxes) // 4
    known = len(found.prior_aspect_ratios)
    return found if priors == known else replace(found, prior_aspect_ratios=(1,) * max(priors, 1))


def identify_backbone(state: State) -> BackboneConfig | None:
    """The family, widths and depths of a backbone's weights; None when no family has such names.

    Normalization and activations, which weights do not tell, have their defaults.
    """
    weights = _convolutions(state)
    for family, pattern in _BLOCKS.items():
        stem = weights.get(_STEMS[family])
        blocks = [
            (*map(int, match.groups()), len(weight))
            for name, weight in weights.items()
            if (match := re.fullmatch(pattern, name))
        ]
        if not blocks or stem is None:
            continue
        widths, depths = zip(*_stages(family, sorted(blocks)), strict=True)
        try:
            return BackboneConfig(
                name=family, stem_channels=len(stem), stage_channels=widths, stage_blocks=depths
            )
        except ConfigError:  # another number of stages
            return None
    return None


def _stages(family: str, blocks: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Width and number of blocks of each stage, from the numbers and the width of each block."""
    if family == "efficientnet_lite":  # numbered through; a new stage has another width
        return [(w, len(list(run))) for w, run in groupby(width for _, width in blocks)]
    stages = [list(run) for _, run in groupby(blocks, key=lambda block: block[0])]
    # DarkNet's blocks begin at 1: 0 is what halves the resolution.
    return [(run[-1][-1], run[-1][1] + (family == "resnet")) for run in stages]


def differences(found: ModelConfig, model: ModelConfig, *, widths: bool = True) -> list[str]:
    """Which layers weights are for that a configuration does not have, in words.

    Args:
        found: What :func:`identify` told of the weights.
        model: The network of the configuration.
        widths: False looks at the family of the backbone only, as where a recipe removed
            channels or layers.
    """
    ours, theirs = model.backbone, found.backbone
    other = [_pair("backbone", *distinct_words(theirs, ours))]
    if not widths:
        return [] if ours.family == theirs.family else other
    result = [] if same_layers(ours, theirs) else other
    for setting in WIDTHS:
        values = getattr(found, setting), getattr(model, setting)
        if values[0] != values[1]:
            result.append(_pair(setting, *map(str, values)))
    priors = [str(len(one.prior_aspect_ratios)) for one in (found, model)]
    return result if priors[0] == priors[1] else [*result, _pair("priors of a cell", *priors)]


def same_layers(one: BackboneConfig, other: BackboneConfig) -> bool:
    """Whether weights of one backbone fit the other."""
    names = ("name", "stem_channels", "stage_channels", "stage_blocks")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def words(backbone: BackboneConfig) -> str:
    """What a backbone is called.

    >>> words(BackboneConfig())
    'DarkNet-53'
    """
    blocks = sum(backbone.stage_blocks)
    match backbone.family:
        case "darknet":
            return f"DarkNet-{2 * blocks + len(backbone.stage_blocks) + 2}"
        case "resnet":
            return f"ResNet-{3 * blocks + 2}"
        case "efficientnet_lite":
            return "EfficientNet-Lite"
    return backbone.name


def distinct_words(one: BackboneConfig, other: BackboneConfig) -> tuple[str, str]:
    """What two backbones are called; where that is the same, with what tells them apart."""
    names = words(one), words(other)
    if names[0] != names[1]:
        return names
    first, second = (
        f"{words(each)} of {'-'.join(map(str, each.stage_channels))} channels, "
        f"{'-'.join(map(str, each.stage_blocks))} blocks"
        for each in (one, other)
    )
    return first, second


def _pair(what: str, theirs: str, ours: str) -> str:
    return f"{what} {theirs}, not {ours}"


def _convolutions(state: State) -> dict[str, Tensor]:
    """Weights of convolutions by the name of the layer, also of one that quantization wrapped."""
    return {
        name.removesuffix(".weight").removesuffix(".module"): value
        for name, value in state.items()
        if name.endswith(".weight") and value.ndim == 4
    }


def other_network(names: Iterable[str]) -> str | None:
    """What weights are of and why they cannot be used, when they are known to be none of ours.

    >>> other_network(["backbone.dark2.0.conv.weight"])
    'YOLOX: only YOLACT is supported, and backbones that it is built on'
    """
    listed = list(names)
    if any(HEAD.match(name) for name in listed):
        return _other_yolact(listed)
    resnet, supported = _resnet(listed)
    what = None if supported else resnet
    if resnet and any(re.search(r"roi_heads?\.|rpn", name) for name in listed):
        what = f"Mask R-CNN or Faster R-CNN on {resnet}"
    elif resnet and any(DETECTOR.search(name) for name in listed):
        what = f"a detector of another program on {resnet}"
    elif resnet is None and not any(re.search(r"(^|\.)_preconv\.[01]\.", n) for n in listed):
        what = next((w for p, w in _OTHERS if any(re.search(p, n) for n in listed)), None)
    return what and f"{what}: only YOLACT is supported, and backbones that it is built on"


def _other_yolact(names: list[str]) -> str | None:
    on = _resnet(names)[0] or "another backbone"
    if any(re.search(r"maskiou_net|conv_offset_mask", name) for name in names):
        return (
            f"YOLACT++ on {on}: its deformable convolutions and its network that rates masks are "
            "not supported"
        )
    if any(re.search(r"backbone\.layers\.\d+\.\d+\.(weight|bias)$", name) for name in names):
        return "YOLACT on VGG: DarkNet, ResNet and EfficientNet-Lite are supported, and timm's"
    return None


def _resnet(names: Iterable[str]) -> tuple[str | None, bool]:
    """Which ResNet has these names, torchvision's, detectron2's or ours; whether it is ours."""
    third = re.compile(r"(?:.*\.)?(layers\.2|layer3|res4)\.(\d+)\.conv([123])\.weight")
    found = [match for name in names if (match := third.match(name))]
    if not found:
        return None, False
    blocks = 1 + max(int(match[2]) for match in found)
    bottlenecks = any(match[3] == "3" for match in found)
    ours = bottlenecks and all(match[1] == "layers.2" for match in found)
    depth = {6: 50, 23: 101, 36: 152}.get(blocks) if bottlenecks else _DEPTHS.get(blocks)
    return (f"ResNet-{depth}" if depth else "a ResNet"), ours
