"""Distillation: a student network learns what a teacher network answers.

Why not sparseml's own term: it is the Kullback-Leibler divergence of the softmax over every output
tensor's last axis (sparseml/pytorch/sparsification/distillation/modifier_distillation_base.py).
Of YOLACT's outputs only the class scores are logits. A softmax over four box offsets, or over mask
coefficients or prototypes, has no meaning, the priors are constants, and ``segm`` exists in
training mode only. It also weighs all priors alike, of which hundreds of background priors stand
beside each that has an object. So each output has a term of its own here:

* **classification**: divergence of the class distributions softened by a temperature T, times T
  squared (Hinton et al., https://arxiv.org/abs/1503.02531). Each prior weighs as much as the
  teacher believes in an object there (Du et al., https://arxiv.org/abs/2111.12933), or as the
  student does: an object that only the student sees is what it has to unlearn.
* **box**: smooth L1 between the regression outputs, on the teacher's foreground alone, since
  nobody taught a teacher where the boxes of its background are (Chen et al., NeurIPS 2017,
  "Learning Efficient Object Detection Models with Knowledge Distillation").
* **mask**: divergence of the assembled masks inside the teacher's boxes. Coefficients and
  prototypes by themselves are no target: permute and scale the prototypes, do the inverse to the
  coefficients, and every mask is the same, so two good networks need not agree on either. The
  numbers of prototypes may differ, too.

Each term is 0 where both networks agree, is never negative, and has the scale and the weight of
the task's term of the same name. Gradients reach the student only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.config import LossConfig
from yolact.loss.matching import BACKGROUND
from yolact.ops.boxes import decode
from yolact.ops.masks import box_window, mask_logits
from yolact.types import TERMS, NetworkOutputs

FOREGROUND = 0.5
"""A prior is the teacher's foreground when it believes in an object at least this much."""


def distillation_loss(
    student: NetworkOutputs,
    teacher: NetworkOutputs,
    config: LossConfig,
    *,
    temperature: float = 1.0,
    terms: Collection[str] = TERMS,
) -> Tensor:
    """Weighted sum of the terms, in float32 also under autocast.

    Args:
        student: Outputs for B images.
        teacher: Outputs for the same images, with the same priors, classes and prototype grid.
        config: Weights of the task's terms, which are those of distillation too.
        temperature: Softens class distributions, above 0; masks and boxes have none.
        terms: Which of :data:`yolact.types.TERMS` to sum up.

    Returns:
        Scalar, at least 0; 0 with a gradient where there is nothing to learn.
    """
    with torch.autocast(student.loc.device.type, enabled=False):
        ours, theirs = _wide(student), _wide(teacher)
        believed = foreground(theirs.conf)
        total = ours.loc.sum() * 0
        if "classification" in terms:
            # The task's class term looks at so many priors for each positive, this at one.
            weight = config.class_weight * (1 + config.negatives_per_positive)
            total = total + weight * class_distillation(ours.conf, theirs.conf, temperature)
        if "box" in terms:
            chosen = believed >= FOREGROUND
            total = total + config.box_weight * box_distillation(ours.loc, theirs.loc, chosen)
        if "mask" in terms:
            total = total + config.mask_weight * _mask_term(ours, theirs, believed, config)
        return total


def foreground(logits: Tensor) -> Tensor:
    """Belief that a prior has an object of any class, 0..1.

    Args:
        logits: [..., 1 + C].

    Returns:
        [...] sum of all probabilities but the background's.
    """
    return 1 - logits.softmax(dim=-1)[..., BACKGROUND]


def class_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened class distributions, averaged over priors by their foreground.

    Args:
        student: [B, N, 1 + C] logits.
        teacher: [B, N, 1 + C] logits.
        temperature: Above 0; the larger, the more the unlikely classes count.

    Returns:
        Scalar.
    """
    weight = torch.maximum(foreground(teacher), foreground(student.detach()))
    divergence = F.kl_div(
        (student / temperature).log_softmax(dim=-1),
        (teacher / temperature).log_softmax(dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    mean = (weight * divergence).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    return mean * temperature**2


def box_distillation(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """Smooth L1 between box regressions, averaged over the chosen priors.

    Args:
        student: [B, N, 4].
        teacher: [B, N, 4].
        chosen: [B, N] bool.

    Returns:
        Scalar; 0 with a gradient when none is chosen.
    """
    cost = F.smooth_l1_loss(student[chosen], teacher[chosen], reduction="sum")
    return cost / chosen.sum().clamp(min=1)


def mask_distillation(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    """Divergence of mask probabilities inside boxes, averaged over each box's pixels.

    Args:
        student: [h, w, P] mask logits.
        teacher: [h, w, P] mask logits.
        boxes: [P, 4] relative corner form; a box without pixels costs nothing.

    Returns:
        Scalar, summed over the P masks.
    """
    wanted = teacher.sigmoid()
    cost = F.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    least = F.binary_cross_entropy_with_logits(teacher, wanted, reduction="none")
    window = box_window(boxes, *student.shape[:2])
    per_mask = ((cost - least) * window).sum(dim=(0, 1))
    return (per_mask / window.sum(dim=(0, 1)).clamp(min=1)).sum()


def feature_distillation(
    layers: Sequence[Sequence[tuple[Tensor, Tensor]]], *, normalize: bool, epsilon: float
) -> Tensor:
    """Mean squared difference of feature maps, in float32, summed over the layers.

    Args:
        layers: For each layer the student's and the teacher's features, of one shape: a pair for
            every time the layer ran, as the head does at each level of the pyramid.
        normalize: Divide each difference by the teacher's mean square.
        epsilon: Added to that divisor.

    Returns:
        Scalar; the times that one layer ran are averaged.
    """
    costs = []
    for pairs in layers:
        for student, teacher in pairs:
            wanted = teacher.float()
            cost = (student.float() - wanted).square().mean() / len(pairs)
            costs.append(cost / (wanted.square().mean() + epsilon) if normalize else cost)
    return torch.stack(costs).sum()


def _wide(outputs: NetworkOutputs) -> NetworkOutputs:
    """At least float32; ``segm``, which a teacher does not have, is left out."""
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in outputs[:5]]
    return NetworkOutputs._make([*wide, None])


def _mask_term(
    student: NetworkOutputs, teacher: NetworkOutputs, believed: Tensor, config: LossConfig
) -> Tensor:
    """Average over the teacher's foreground; in each image, its surest stand for all."""
    terms, count = [], 0
    for index, belief in enumerate(believed):
        found = int((belief >= FOREGROUND).sum())
        surest = belief.argsort(descending=True, stable=True)[: min(found, config.masks_to_train)]
        boxes = decode(teacher.loc[index, surest], teacher.priors[surest])
        masks = [mask_logits(n.proto[index], n.mask[index, surest]) for n in (student, teacher)]
        scale = found / max(len(surest), 1)
        terms.append(mask_distillation(masks[0], masks[1], boxes) * scale)
        count += found
    return torch.stack(terms).sum() / max(count, 1)
