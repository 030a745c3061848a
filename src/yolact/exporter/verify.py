"""Whether an exported graph computes what the PyTorch model computes, and where it first does not.

Outputs are compared number by number, and detections of quantized graphs by what their users will
notice. The first wrong layer is the first convolution whose output differs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from yolact.config import DetectConfig
from yolact.engines.onnxruntime import values_inside
from yolact.errors import ExportError
from yolact.exporter.graph import Graph
from yolact.exporter.prepare import Reference, without_quantization
from yolact.exporter.trace import MODEL_PREFIX, watched
from yolact.model.quantized_layers import ConvReLU2d
from yolact.predict.detect import detect
from yolact.types import RawOutputs

TOLERANCE = 1e-4
"""Largest difference of any output value of a float graph."""
SQNR_SLACK = 10.0
"""A quantized graph may be this many dB further from PyTorch than quantization itself is.

A value on the edge between two quantization steps falls on either side depending on the order of
float additions, and the change travels through all later layers. Two correct runs therefore
differ about as much as quantization costs: independent noises of equal power are 3 dB apart. A
graph of integers also rounds what training does not, at about three times as many places: 5 dB. The
rest is margin. On small networks, trained or not, correct graphs stayed within -8 to +10 dB of what
quantization cost; one scale wrong by half lost 10 to 25 dB.
"""
SQNR_ENOUGH = 30.0
"""No output has to be better than this, in dB.

Rounding an output to 8 bits over its whole range leaves 35 to 45 dB, and a graph of integers rounds
additions and outputs that training does not. On the small network, trained on the sample set, 29 dB
changed the mAP of boxes by -0.3 and that of masks by +0.2, of 45 and 41.
"""
_LEAST = 0.99
"""Smallest share of the detections that a quantized graph has to find."""
_CONFIDENT = 0.5
"""Of a score, above which a class is more likely than all else together. Detections below it come
and go with the least change of a network; one that is not trained has no others."""
_SAME_PLACE = 0.5
"""IoU of boxes from which two detections of a class are the same, as in COCO's AP50."""
_SAME_SCORE = 0.5
"""Share of the score that has to be left."""


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output of the graph compared with PyTorch's."""

    name: str
    max_difference: float
    sqnr: float
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum of squares / sum of squared errors).
    inf where they are equal."""
    floor: float | None = None
    """Least acceptable ``sqnr`` for a quantized graph; None where :data:`TOLERANCE` applies."""

    @property
    def passed(self) -> bool:
        """Whether this output is close enough."""
        if self.floor is None:
            return self.max_difference <= TOLERANCE
        return self.sqnr >= self.floor


@dataclass(frozen=True)
class Agreement:
    """PyTorch's detections looked for among those of the graph."""

    images: int
    detections: int
    """Of PyTorch, with a score of at least 0.5, among the best of each image."""
    share: float
    """How many of them the graph finds, weighted by score, 0..1; 1 when there are none."""
    lost: int = 0
    """How many it does not find."""

    @property
    def passed(self) -> bool:
        """Whether that is enough. One may be lost: in a few images chance decides about it."""
        return self.share >= _LEAST or self.lost <= 1

    def __str__(self) -> str:
        """For instance ``99.8 % of the 25 detections in 4 images``."""
        return (
            f"{100 * self.share:.1f} % of the {self.detections} detections in {self.images} images"
        )


def compare(
    expected: RawOutputs, actual: RawOutputs, unquantized: RawOutputs | None = None
) -> tuple[OutputParity, ...]:
    """Compare two sets of outputs.

    Args:
        expected: PyTorch's outputs.
        actual: The exported graph's.
        unquantized: PyTorch's with simulated quantization switched off. Given for quantized
            graphs; it tells what quantization itself costs.
    """
    before = unquantized or [None] * len(expected)
    rows = zip(RawOutputs._fields, expected, actual, before, strict=True)
    return tuple(_parity(*row) for row in rows)


def require_parity(outputs: Sequence[OutputParity], layer: str | None = None) -> None:
    """Raise ExportError, naming the worst output, unless all of them passed.

    Args:
        outputs: The comparison.
        layer: Where the difference begins, if that is known.
    """
    failed = [output for output in outputs if not output.passed]
    if not failed:
        return
    worst = max(failed, key=lambda output: (math.isnan(output.sqnr), -output.sqnr))
    limit = (
        f"at most {TOLERANCE:g} is accepted"
        if worst.floor is None
        else f"{worst.sqnr:.1f} dB, at least {worst.floor:.1f} dB is accepted"
    )
    raise ExportError(
        f"the exported graph differs from PyTorch: {worst.name} by {worst.max_difference:.3g}"
        f" ({limit}){f'; it begins at {layer}' if layer else ''}",
        hint="nothing was written; try another --opset, and check the weights for huge values",
    )


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Signal-to-noise ratio in dB of ``actual``; inf when equal, -inf for an all-zero signal."""
    signal = expected.detach().cpu().numpy().astype(np.float64)
    noise = float(np.square(signal - actual.detach().cpu().numpy()).sum())
    power = float(np.square(signal).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 else -math.inf


def agreement(
    pairs: Iterable[tuple[RawOutputs, RawOutputs]], config: DetectConfig | None = None
) -> Agreement:
    """Compare detections.

    Args:
        pairs: PyTorch's outputs and the graph's, for a batch of images each.
        config: How raw outputs become detections; None for the default.
    """
    config = config or DetectConfig()
    images = count = lost = 0
    total = found = 0.0
    for expected, actual in pairs:
        for wanted, there in zip(detect(expected, config), detect(actual, config), strict=True):
            counted = wanted.scores >= _CONFIDENT
            same = (box_iou(wanted.boxes, there.boxes) >= _SAME_PLACE) & (
                wanted.labels[:, None] == there.labels
            )
            same &= there.scores >= _SAME_SCORE * wanted.scores[:, None]
            scores = wanted.scores[counted]
            again = same.any(1)[counted]
            found += float(scores[again].sum())
            lost += int((~again).sum())
            total += float(scores.sum())
            images, count = images + 1, count + int(counted.sum())
    return Agreement(images, count, found / total if total else 1.0, lost)


def require_agreement(agreement: Agreement, layer: str | None = None) -> None:
    """Raise ExportError unless nearly all detections are found.

    Args:
        agreement: The comparison.
        layer: Where the graph begins to differ, if that is known.
    """
    if agreement.passed:
        return
    begins = f"; it begins to differ at {layer}" if layer else ""
    raise ExportError(
        f"the exported graph finds {agreement}, weighted by score (at least {100 * _LEAST:g} % is "
        f"accepted){begins}",
        hint="nothing was written; give --calibration_images more like those the model was trained "
        "on, or export with --skip-qat-convert",
    )


def first_wrong_layer(graph: onnx.ModelProto, reference: Reference, images: Tensor) -> str | None:
    """The first convolution, in execution order, whose output differs by more than is accepted.

    Args:
        graph: The exported one, before it is written; convolutions are found by the names of their
            weights.
        reference: What it was traced from. A layer of a quantized network may differ by as much as
            quantization changes it, with the slack that outputs have.
        images: [B, 3, H, W] input.

    Returns:
        The layer's name in recipes and state dicts; None when all agree.
    """
    places = list(_convolutions(graph))
    values = values_inside(graph, [value for _, _, value in places], images)
    network = reference.network
    expected, before = _outputs(network, images), {}
    if reference.quantized:
        with without_quantization(network):
            before = _outputs(network, images)
    for (name, index, _), array in zip(places, values, strict=True):
        wanted = expected.get((name, index))
        if wanted is None:
            continue
        actual = torch.from_numpy(array)
        if isinstance(network.get_submodule(MODEL_PREFIX + name), ConvReLU2d):
            actual = actual.relu()
        if not _parity(name, wanted, actual, before.get((name, index))).passed:
            return name.removesuffix(".module")
    return None


def _parity(
    name: str, expected: Tensor, actual: Tensor, unquantized: Tensor | None
) -> OutputParity:
    floor = None
    if unquantized is not None:
        floor = min(SQNR_ENOUGH, sqnr(unquantized, expected) - SQNR_SLACK)
    difference = float((expected.detach().cpu() - actual.detach().cpu()).abs().max())
    return OutputParity(
        name=name, max_difference=difference, sqnr=sqnr(expected, actual), floor=floor
    )


def _convolutions(graph: onnx.ModelProto) -> Iterator[tuple[str, int, str]]:
    """Module name, how often it was used before, and name of the output."""
    view = Graph(graph)
    used: dict[str, int] = defaultdict(int)
    for node in view.nodes("Conv"):
        weight = node.input[1]
        dequantize = view.producer(weight, "DequantizeLinear")
        if dequantize is not None:
            weight = dequantize.input[0].removesuffix("_int8")
        name = weight.removesuffix(".weight")
        yield name, used[name], node.output[0]
        used[name] += 1


def _outputs(network: nn.Module, images: Tensor) -> dict[tuple[str, int], Tensor]:
    """By convolution, and how many times it has run before."""
    outputs: dict[tuple[str, int], Tensor] = {}
    used: dict[str, int] = defaultdict(int)

    def note(name: str, output: Tensor) -> None:
        outputs[name, used[name]] = output.clone()
        used[name] += 1

    with watched(network, note), torch.no_grad():
        network(images)
    return outputs
