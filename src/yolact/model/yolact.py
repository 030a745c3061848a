"""The assembled network and its inference wrapper (YOLACT: https://arxiv.org/abs/1904.02689)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from yolact.config import BackboneConfig, ModelConfig
from yolact.model.backbones import Backbone
from yolact.model.backbones.darknet import DarkNet
from yolact.model.backbones.efficientnet_lite import EfficientNetLite
from yolact.model.backbones.resnet import ResNet
from yolact.model.backbones.timm import TimmBackbone
from yolact.model.fpn import FeaturePyramid
from yolact.model.heads import PredictionHead, Predictions
from yolact.model.priors import PriorCache, grid_size
from yolact.model.protonet import ProtoNet
from yolact.types import NetworkOutputs, RawOutputs


def build_backbone(config: BackboneConfig) -> Backbone:
    """A backbone without trained weights.

    Raises:
        ConfigError: It is one of timm's, which is not installed, or has no such features.
    """
    families: dict[str, Callable[[BackboneConfig], Backbone]] = {
        "darknet": DarkNet,
        "resnet": ResNet,
        "efficientnet_lite": EfficientNetLite,
        "timm": TimmBackbone,
    }
    return families[config.family](config)


class Yolact(nn.Module):
    """YOLACT on any backbone.

    The names, shapes and order of its parameters are those of the published checkpoints
    (``state_dict()`` has 348 entries with the default config), and recipes address parameters by
    these names: they are part of the interface.

    Attributes:
        config: Widths, depths, classes and priors.
        mean: [1, 3, 1, 1], taken from the input; no part of the state dict.
        std: [1, 3, 1, 1], by which it is divided afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers with torch's default weights.

        Args:
            config: Widths, depths, classes and priors; kept as ``self.config``.
        """
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.proto_net = ProtoNet(config.fpn_channels, config.proto_channels, config.num_prototypes)
        self.fpn = FeaturePyramid(self.backbone.channels, config.fpn_channels)
        # One head for all levels; a list, as upstream can have one per level.
        self.prediction_layers = nn.ModuleList(
            [
                PredictionHead(
                    config.fpn_channels,
                    config.head_channels,
                    priors_per_cell=len(config.prior_aspect_ratios),
                    num_classes=config.num_classes,
                    num_prototypes=config.num_prototypes,
                )
            ]
        )
        self.semantic_seg_conv = nn.Conv2d(config.fpn_channels, config.num_classes, kernel_size=1)
        self._priors = PriorCache(config)
        # Not layers: those would be quantized, and recipes would have to know them.
        backbone = config.backbone
        self._normalizes = (backbone.mean, backbone.std) != ((0, 0, 0), (1, 1, 1))
        for name in ("mean", "std"):
            value = torch.tensor(getattr(backbone, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def set_input(self, config: ModelConfig) -> None:
        """Expect other images or have other priors from now on; no parameter changes.

        Args:
            config: With the layers of this network, but perhaps another ``image_size`` or
                ``prior_base_size``.
        """
        self.config = config
        self._priors = PriorCache(config)

    def forward(self, images: Tensor) -> NetworkOutputs:
        """Run the network.

        Args:
            images: [B, 3, H, W] RGB, 0..1, meant to be of ``config.input_size``. Any other size
                works too; priors then keep their share of the image.

        Returns:
            Logits and prototypes; ``segm`` (an auxiliary task, sec. 5) in training mode only.
        """
        if self._normalizes:
            images = (images - self.mean) / self.std
        levels = self.fpn(self.backbone(images))
        head = self.prediction_layers[0]
        by_level = [head(level) for level in levels]
        predictions = Predictions(*(torch.cat(parts, 1) for parts in zip(*by_level, strict=True)))
        return NetworkOutputs(
            *predictions,
            priors=self._priors([grid_size(level) for level in levels], like=predictions.loc),
            proto=self.proto_net(levels[0]),
            segm=self.semantic_seg_conv(levels[0]) if self.training else None,
        )


class InferenceModel(nn.Module):
    """What is validated and exported: the network with class probabilities in place of logits.

    It shares the weights of ``model`` and changes nothing in it; call ``eval()`` first.
    """

    def __init__(self, model: Yolact) -> None:
        """Wrap ``model``, which stays usable by itself."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> RawOutputs:
        """Run the network and apply the softmax.

        Args:
            images: [B, 3, H, W] RGB, 0..1.

        Returns:
            The five outputs of the exported graph, in its order.
        """
        outputs: NetworkOutputs = self.model(images)
        return RawOutputs(
            loc=outputs.loc,
            conf=torch.softmax(outputs.conf, dim=-1),
            mask=outputs.mask,
            priors=outputs.priors,
            proto=outputs.proto,
        )
