"""The loss of one batch: the four terms, weighted and normalised (YOLACT sec. 3.3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolact.config import LossConfig
from yolact.loss.box import box_loss
from yolact.loss.classification import classification_loss
from yolact.loss.mask import mask_loss
from yolact.loss.matching import BACKGROUND, Matches, Objects, learnable, match
from yolact.loss.semantic import semantic_loss, semantic_target
from yolact.ops.masks import reduce_masks
from yolact.types import NetworkOutputs, Target


class Losses(NamedTuple):
    """The weighted terms of one batch, float32 scalars."""

    box: Tensor
    classification: Tensor
    mask: Tensor
    semantic: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, what the optimizer minimises."""
        return self.box + self.classification + self.mask + self.semantic


class _Positives(NamedTuple):
    """The positive priors of one image."""

    priors: Tensor
    """[P] int64, ascending."""
    objects: Tensor
    """[P] int64, row of the object each one learns."""


class YolactLoss:
    """Compares network outputs with ground truth.

    Box, class and mask terms are divided by the positive priors of the whole batch, the semantic
    term by the number of images. A term with nothing to learn is 0 and still has a gradient.
    Random only in which of more than ``masks_to_train`` positives the mask term looks at.
    """

    def __init__(self, config: LossConfig) -> None:
        """Keep the thresholds and weights; there is no other state."""
        self.config = config

    def __call__(self, outputs: NetworkOutputs, targets: Sequence[Target]) -> Losses:
        """The four terms of one batch, computed in float32 also under autocast.

        Args:
            outputs: Of the network in training mode.
            targets: One per image, on any device; they are not changed.

        Raises:
            ValueError: The outputs come from evaluation mode, or the batch sizes differ.
        """
        if outputs.segm is None:
            raise ValueError("the loss needs the outputs of training mode, which include segm")
        if len(targets) != len(outputs.loc):
            raise ValueError(f"{len(outputs.loc)} images, but {len(targets)} targets")
        device = outputs.loc.device
        with torch.autocast(device.type, enabled=False):
            segm = _at_least_float32(outputs.segm)
            wide = NetworkOutputs._make(map(_at_least_float32, (*outputs[:5], segm)))
            images = [learnable(target, device) for target in targets]
            found = [match(objects, wide.priors, self.config) for objects in images]
            return self._weighted(wide, segm, images, found)

    def count_positives(self, priors: Tensor, targets: Sequence[Target]) -> list[int]:
        """By how much each image counts in the box, class and mask terms of a batch.

        Args:
            priors: Of the network's outputs.
            targets: One per image.
        """
        images = [learnable(target, priors.device) for target in targets]
        found = [match(objects, priors, self.config) for objects in images]
        return [len(_positives(matches).priors) for matches in found]

    def _weighted(
        self, outputs: NetworkOutputs, segm: Tensor, images: list[Objects], found: list[Matches]
    ) -> Losses:
        config = self.config
        positives = [_positives(matches) for matches in found]
        count = max(sum(len(positive.priors) for positive in positives), 1)
        classes = torch.stack([matches.classes for matches in found])
        box = _box_term(outputs, images, positives)
        classification = classification_loss(outputs.conf, classes, config.negatives_per_positive)
        mask = _mask_term(outputs, images, positives, config.masks_to_train)
        return Losses(
            box=box * (config.box_weight / count),
            classification=classification * (config.class_weight / count),
            mask=mask * (config.mask_weight / count),
            semantic=_semantic_term(segm, images) * config.semantic_weight,
        )


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _positives(matches: Matches) -> _Positives:
    priors = (matches.classes > BACKGROUND).nonzero()[:, 0]
    return _Positives(priors, matches.objects[priors])


def _box_term(
    outputs: NetworkOutputs, images: list[Objects], positives: list[_Positives]
) -> Tensor:
    pairs = list(zip(images, positives, strict=True))
    loc = [row[found.priors] for row, found in zip(outputs.loc, positives, strict=True)]
    boxes = [objects.boxes[found.objects] for objects, found in pairs]
    priors = outputs.priors[torch.cat([found.priors for found in positives])]
    return box_loss(torch.cat(loc), torch.cat(boxes), priors)


def _mask_term(
    outputs: NetworkOutputs, images: list[Objects], positives: list[_Positives], limit: int
) -> Tensor:
    height, width = outputs.proto.shape[1:3]
    terms = []
    for index, (objects, found) in enumerate(zip(images, positives, strict=True)):
        masks = reduce_masks(objects.masks, (height, width))
        coefficients = outputs.mask[index, found.priors]
        terms.append(
            mask_loss(
                outputs.proto[index], coefficients, objects.boxes, masks, found.objects, limit
            )
        )
    return torch.stack(terms).sum()


def _semantic_term(segm: Tensor, images: list[Objects]) -> Tensor:
    classes, height, width = segm.shape[1:]
    targets = [
        semantic_target(reduce_masks(objects.masks, (height, width)), objects.labels, classes)
        for objects in images
    ]
    return semantic_loss(segm, torch.stack(targets))
