"""The records that travel between rooms: network outputs, targets, batches, detections.

Shapes: B images, N priors, C object classes, k prototypes, S input side, (h, w) prototype grid.
Boxes are xyxy; "relative" means divided by the image's width and height, so 0..1 inside it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

TERMS = ("box", "classification", "mask")
"""What can be distilled from a network's outputs."""


class NetworkOutputs(NamedTuple):
    """What the network computes; the loss and the inference wrapper read it."""

    loc: Tensor
    """[B, N, 4] box regression against the priors (variances not yet applied)."""
    conf: Tensor
    """[B, N, 1 + C] class logits; index 0 is the background."""
    mask: Tensor
    """[B, N, k] mask coefficients after tanh, -1..1."""
    priors: Tensor
    """[N, 4] (cx, cy, w, h), relative."""
    proto: Tensor
    """[B, h, w, k] prototypes after ReLU, >= 0, channels last."""
    segm: Tensor | None
    """[B, C, S/8, S/8] semantic logits in training mode, None in evaluation mode."""


class RawOutputs(NamedTuple):
    """What an inference engine returns: the ONNX contract, in the graph's output order."""

    loc: Tensor
    """[B, N, 4] as in :class:`NetworkOutputs`."""
    conf: Tensor
    """[B, N, 1 + C] class probabilities (softmax applied); index 0 is the background."""
    mask: Tensor
    """[B, N, k]."""
    priors: Tensor
    """[N, 4] (cx, cy, w, h), relative."""
    proto: Tensor
    """[B, h, w, k]."""


class Target(NamedTuple):
    """Ground truth of one network input."""

    boxes: Tensor
    """[n, 4] float32 xyxy, relative."""
    labels: Tensor
    """[n] int64, 0-based class index."""
    masks: Tensor
    """[n, S, S] uint8 in {0, 1}."""
    crowd: Tensor
    """[n] bool; a crowd region neutralises priors and is never learned as an object."""


class Sample(NamedTuple):
    """One transformed image with its target, as the dataset returns it."""

    image: Tensor
    """[3, S, S] float32 RGB, 0..1."""
    target: Target
    image_id: int
    size: tuple[int, int]
    """(height, width) of the image file, after EXIF rotation."""


class Batch(NamedTuple):
    """Samples of one training step."""

    images: Tensor
    """[B, 3, S, S] float32 RGB, 0..1."""
    targets: list[Target]
    image_ids: list[int]


class Detections(NamedTuple):
    """Objects of one image after NMS, in descending score; resolution-free."""

    boxes: Tensor
    """[n, 4] float32 xyxy, relative, not clipped."""
    scores: Tensor
    """[n] float32, 0..1."""
    labels: Tensor
    """[n] int64, 0-based class index."""
    coefficients: Tensor
    """[n, k] float32."""
    prior_index: Tensor
    """[n] int64, the prior each detection comes from."""


class Instances(NamedTuple):
    """Objects of one image at its own resolution (height, width), in descending score."""

    boxes: Tensor
    """[n, 4] int64 xyxy in pixels."""
    scores: Tensor
    """[n] float32, 0..1."""
    labels: Tensor
    """[n] int64, 0-based class index."""
    masks: Tensor
    """[n, height, width] bool."""
