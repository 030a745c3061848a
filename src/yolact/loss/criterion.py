"""The loss of one batch, and what a training run minimises.

:class:`YolactLoss` compares the outputs of the network with ground truth, in four terms:

* **box**: smooth L1 on the positive priors (YOLACT sec. 4, after SSD sec. 2.2).
* **classification**: softmax cross entropy on positives and the hardest negatives (sec. 4).
* **mask**: cross entropy of the masks assembled from prototypes and coefficients (sec. 3.3).
* **semantic**: sigmoid cross entropy of a segmentation of P3 features, which is there while
  training only (sec. 5).

:class:`Objective` is what the training loop asks of a loss. :class:`Supervised` is this loss as
such; :class:`yolact.distill.objective.Distillation` adds what a teacher answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.config import LossConfig
from yolact.loss.matching import BACKGROUND, Matches, Objects, learnable, match
from yolact.ops.boxes import area, encode
from yolact.ops.masks import box_window, mask_logits, reduce_masks
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


class DistilledLosses(NamedTuple):
    """The weighted terms of one batch of a run with a teacher, float32 scalars.

    The first four are those of :class:`Losses`, scaled by what the teacher leaves to the task, so
    that the sum of all five is what the optimizer minimises.
    """

    box: Tensor
    classification: Tensor
    mask: Tensor
    semantic: Tensor
    distillation: Tensor
    """All that is learned from the teacher."""

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return torch.stack(tuple(self)).sum()


BatchLosses = Losses | DistilledLosses
"""What an :class:`Objective` returns."""


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


class Objective(Protocol):
    """What a training run minimises, and what it has to know of that besides.

    Attributes:
        criterion: What compares the network's outputs with ground truth.
        teacher_name: Whom it learns from besides ground truth, in words; None for nobody.
    """

    criterion: YolactLoss
    teacher_name: str | None

    def __call__(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> BatchLosses:
        """Run the network and compute the terms of one batch.

        Args:
            model: The network in training mode.
            images: [B, 3, S, S] float32 RGB, 0..1.
            targets: B of them.
        """

    def set_epoch(self, epoch: float) -> None:
        """Let the next step be the one that begins at ``epoch``."""

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """What is trained besides the network."""

    def state(self) -> dict[str, Tensor] | None:
        """The values of :attr:`own_parameters`, for a checkpoint; None when there are none."""

    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            RuntimeError: It belongs to another objective.
        """


class Supervised:
    """Learning from ground truth alone: the :class:`Objective` of a run without a teacher."""

    teacher_name: str | None = None

    def __init__(self, criterion: YolactLoss) -> None:
        """Minimise ``criterion``; there is no other state."""
        self.criterion = criterion

    def __call__(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> Losses:
        """Run the network and compare its outputs with ``targets``."""
        return self.criterion(model(images), targets)

    def set_epoch(self, epoch: float) -> None:
        """Every step is the same."""

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def state(self) -> None:
        """Nothing to keep."""

    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Nothing to take over; what an objective with a teacher kept has no use here."""


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


def box_loss(loc: Tensor, boxes: Tensor, priors: Tensor) -> Tensor:
    """Smooth L1 between regression output and encoded object, summed over positives.

    Args:
        loc: [P, 4] output of the positive priors.
        boxes: [P, 4] their objects, relative corner form, with positive sides.
        priors: [P, 4] relative centre form.

    Returns:
        Scalar; 0 with a gradient when P = 0.
    """
    return F.smooth_l1_loss(loc, encode(boxes, priors), reduction="sum")


def classification_loss(logits: Tensor, classes: Tensor, negatives_per_positive: int) -> Tensor:
    """Cross entropy summed over positives and mined negatives of the batch.

    Args:
        logits: [B, N, 1 + C]; index 0 is the background.
        classes: [B, N] int64 roles, as :class:`yolact.loss.matching.Matches` has them.
        negatives_per_positive: Ratio of background to positive priors within each image.

    Returns:
        Scalar; 0 with a gradient when no image has a positive.
    """
    positive = classes > BACKGROUND
    used = positive | hard_negatives(logits, classes, negatives_per_positive)
    return F.cross_entropy(logits[used], classes[used], reduction="sum")


@torch.no_grad()
def hard_negatives(logits: Tensor, classes: Tensor, per_positive: int) -> Tensor:
    """The background priors that look least like background, a fixed ratio to the positives.

    Args:
        logits: [B, N, 1 + C].
        classes: [B, N] int64 roles.
        per_positive: How many to take for each positive prior of the same image.

    Returns:
        [B, N] bool.
    """
    background = classes == BACKGROUND
    # -log softmax of the background, each row with its own maximum: nothing can underflow.
    hardness = logits.logsumexp(dim=2) - logits[:, :, BACKGROUND]
    order = hardness.masked_fill(~background, -torch.inf).argsort(dim=1, descending=True)
    wanted = per_positive * (classes > BACKGROUND).sum(dim=1, keepdim=True)
    first = torch.arange(classes.shape[1], device=classes.device) < wanted
    return torch.zeros_like(background).scatter(1, order, first) & background


def semantic_target(masks: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Union of the objects' masks for each class.

    Args:
        masks: [n, h, w] bool.
        labels: [n] int64, 0-based class index.
        num_classes: C.

    Returns:
        [C, h, w] float32 in {0, 1}.
    """
    count = masks.new_zeros((num_classes, *masks.shape[1:]), dtype=labels.dtype)
    return (count.index_add(0, labels, masks.to(labels.dtype)) > 0).float()


def semantic_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid cross entropy summed over classes, averaged over pixels and images.

    Classes may overlap, hence a sigmoid for each and no softmax.

    Args:
        logits: [B, C, h, w].
        target: [B, C, h, w] in {0, 1}.

    Returns:
        Scalar.
    """
    batch, _, height, width = logits.shape
    total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return total / (batch * height * width)


def mask_loss(
    prototypes: Tensor,
    coefficients: Tensor,
    boxes: Tensor,
    masks: Tensor,
    objects: Tensor,
    limit: int,
) -> Tensor:
    """Cross entropy inside each object's box over the box's area, summed over positives.

    Dividing by the area keeps large objects from drowning out small ones. Of more than ``limit``
    positives a random choice (torch's global generator) stands for all.

    Args:
        prototypes: [h, w, k] of one image.
        coefficients: [P, k], one row per positive prior.
        boxes: [n, 4] objects, relative corner form, with positive sides.
        masks: [n, h, w] bool, reduced to the prototype grid.
        objects: [P] int64, the object of each positive.
        limit: Most positives to look at.

    Returns:
        Scalar; 0 with a gradient when P = 0.
    """
    height, width, _ = prototypes.shape
    count = len(objects)
    if count > limit:
        chosen = torch.randperm(count)[:limit].to(objects.device)
        coefficients, objects = coefficients[chosen], objects[chosen]
    boxes = boxes[objects]
    logits = mask_logits(prototypes, coefficients)
    target = masks.permute(1, 2, 0)[:, :, objects].to(logits.dtype)
    cost: Tensor = _CroppedCrossEntropy.apply(logits, target, box_window(boxes, height, width))
    per_positive = cost.sum(dim=(0, 1)) / (area(boxes) * height * width)
    return per_positive.sum() * (count / max(len(objects), 1))


class _CroppedCrossEntropy(torch.autograd.Function):
    """Binary cross entropy of probabilities that are zero outside a window.

    The value is the published one: where float32 rounds a probability to exactly 0 or 1, a wrong
    pixel costs 100. Autograd would return no gradient there and leave a saturated pixel wrong for
    good; this backward is the exact ``probability - target``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, window: Tensor) -> Tensor:
        probability = logits.sigmoid() * window
        ctx.save_for_backward(probability, target, window)
        # torch refuses NaN here, on a GPU by ending the process; the training loop skips the step.
        cost = F.binary_cross_entropy(probability.nan_to_num(), target, reduction="none")
        return cost + 0 * probability

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probability, target, window = ctx.saved_tensors
        return gradients[0] * (probability - target) * window, None, None
