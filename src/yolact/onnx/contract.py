"""What the values at the edge of an exported graph mean, in words that travel with the file."""

from __future__ import annotations

DETECTED = ("boxes", "scores", "classes", "masks")
"""Outputs of a graph with detection inside, in order; see :mod:`yolact.onnx.nms`."""

INPUT_MEANING = "RGB image, divided by 255, resized to height x width without keeping the ratio"

OUTPUT_MEANINGS = {
    "loc": "box regression: center and size offsets against the priors, variances not yet applied",
    "conf": "class probabilities after softmax; index 0 is the background",
    "mask": "mask coefficients, -1 to 1",
    "priors": "prior boxes: center x, center y, width, height, relative to the image",
    "proto": "prototype masks, at least 0; sigmoid(proto x coefficients) is the mask of an object",
    "boxes": "corners x1, y1, x2, y2 relative to the image, not clipped",
    "scores": "descending; 0 behind the last object",
    "classes": "index into the classes, from 0, without a background",
    "masks": "probabilities, cut at the box; enlarged to the image, more than 0.5 is inside",
}
"""Of every output that an exported file may have, by name."""
