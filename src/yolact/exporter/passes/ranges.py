"""Ranges of the values between quantized layers: found in the graph, derived, or measured.

Training quantizes what layers read: inputs of convolutions, of activation functions, of the
upsampling. Engines compute in integers only where outputs are quantized as well. Most outputs are
inputs of a next layer. Of the rest, many follow:

* LeakyReLU takes [l, h] to [slope * l, h], for l <= 0 <= h, and nothing else gives that;
* interpolation between values, and moving them, leaves them in their range;
* ReLU followed by a quantizer whose 0 is the smallest number has nothing left to do; nor has ReLU6
  whose quantizer ends at 6, which it does where it was learnt from what ReLU6 puts out;
* pixels are in 0..1, so their normalised values are known without looking.

What does not follow has to be measured on images: the outputs of convolutions that end in a graph
output, and the lateral ones of the pyramid, which are added to what was upsampled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from tqdm import tqdm

from yolact.exporter.graph import Array, Graph
from yolact.exporter.trace import watched

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest output of convolutions, by the name of the weight in the model's state."""
_LEVELS = 255
"""Steps between the smallest and the largest uint8."""
MOVING = ("Transpose", "Reshape", "Concat")
"""Nodes that leave numbers as they are."""
_KEEPING = (*MOVING, "Resize", "MaxPool")
LIMITING = ("Relu", "Clip")
"""Nodes that cut values off."""
_ON_GRID = 1e-3
"""Of a step: how near a number is to a multiple of it when it is meant to be one."""


@dataclass(frozen=True)
class Quantizer:
    """x is stored as round(x / scale) + zero, limited to 0..255."""

    scale: float
    """Above 0; a float32 number."""
    zero: int
    """Stands for 0.0; 0..255."""

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantizer | None:
        """The finest one that holds ``low``, ``high`` and 0; None when no step is left for it."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / _LEVELS))
        if not math.isfinite(scale) or scale < np.finfo(np.float32).tiny:
            return None
        return cls(scale, min(_LEVELS, max(0, round(-low / scale))))

    @property
    def low(self) -> float:
        """The smallest number it holds."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """The largest number it holds."""
        return (_LEVELS - self.zero) * self.scale

    def implies(self, low: float, high: float) -> bool:
        """Whether limiting values to this range before changes no integer."""
        last = round(min(high / self.scale, 2 * _LEVELS)) + self.zero
        return round(max(low / self.scale, -2 * _LEVELS)) + self.zero <= 0 and last >= _LEVELS

    def has_on_grid(self, low: float, high: float) -> bool:
        """Whether both are numbers that it holds exactly: limits of fewer bits are."""
        steps = np.array([low, high]) / self.scale
        return bool(np.all(np.abs(steps - np.rint(steps)) < _ON_GRID))


def found_quantizers(graph: Graph) -> dict[str, Quantizer]:
    """Those in the graph, by the value they quantize. Of several the widest counts.

    Beyond its range a quantizer cuts values off: of what one reader sees, another must not lose
    any. With the finest of several, prototypes of trained networks kept 17 to 22 dB; with the
    widest 28 and more.
    """
    found: dict[str, Quantizer] = {}
    for node in plain_quantizers(graph):
        scale, zero = (graph.constant(name) for name in node.input[1:])
        if scale is None or zero is None or zero.dtype != np.uint8 or scale.size != 1:
            continue
        quantizer = Quantizer(float(scale.reshape(())), int(zero.reshape(())))
        known = found.get(node.input[0])
        if known is None or quantizer.scale > known.scale:
            found[node.input[0]] = quantizer
    return found


def plain_quantizers(graph: Graph) -> list[onnx.NodeProto]:
    """QuantizeLinear nodes with nothing but DequantizeLinear behind them.

    Quantizers of fewer than 8 bits have a limit in between, and stay where they are.
    """
    return [
        node
        for node in graph.nodes("QuantizeLinear")
        if all(r.op_type == "DequantizeLinear" for r in graph.readers(node.output[0]))
    ]


def derive(graph: Graph, found: Mapping[str, Quantizer], measured: Ranges) -> dict[str, Quantizer]:
    """``found``, and what follows from it and from what was ``measured``.

    Args:
        graph: Without the nodes that quantize activations.
        found: Value name to quantizer.
        measured: Of convolutions whose output has no quantizer.
    """
    known = dict(found)
    for value, ends in _normalized(graph):
        if value in known:
            _learn(known, value, *ends)
    for node in graph.nodes(*LIMITING):
        _end_with_limits(graph, node, known)
    _follow(graph, known)
    for conv, value in unknown_outputs(graph, known):
        if conv in measured:
            quantizer = Quantizer.of_range(*measured[conv])
            if quantizer is not None:
                known[value] = quantizer
    _follow(graph, known)
    for node in graph.nodes("Add"):
        _bound_summand(node, known)
    for node in graph.nodes("Resize"):
        _keep_apart(node, known)
    return known


def unknown_outputs(graph: Graph, known: Mapping[str, Quantizer]) -> Iterator[tuple[str, str]]:
    """Weight name and output of every convolution of integer weights without a known range."""
    for node in graph.nodes("Conv"):
        weight = graph.producer(node.input[1], "DequantizeLinear")
        if weight is not None and node.output[0] not in known:
            yield weight.input[0].removesuffix("_int8"), node.output[0]


@torch.no_grad()
def measure_outputs(
    network: nn.Module, weights: Collection[str], images: Iterable[Tensor]
) -> dict[str, tuple[float, float]]:
    """Run the simulated-quantized network, and note what some convolutions put out.

    The whole range counts. Cutting off rare large values, which is good for what other layers
    read, would here cut off the scores of the best detections.

    Args:
        network: What is traced for the export; not changed.
        weights: Names of the convolutions' weights in the exported graph.
        images: [B, 3, H, W] network inputs.

    Returns:
        Weight name to the smallest and the largest value, of those that were run.
    """
    seen: dict[str, tuple[float, float]] = {}

    def note(name: str, output: Tensor) -> None:
        weight = f"{name}.weight"
        if weight in weights:
            low, high = seen.get(weight, (0.0, 0.0))
            seen[weight] = min(low, float(output.min())), max(high, float(output.max()))

    with watched(network, note):
        for image in tqdm(images, desc="measuring outputs", unit="image", disable=None):
            network(image)
    return seen


def data_inputs(node: onnx.NodeProto) -> list[str]:
    """The inputs that hold activations, not shapes or scales."""
    return list(node.input if node.op_type in ("Concat", "Add") else node.input[:1])


def limits_of(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """The range that a Relu or a Clip limits values to; None where it is not constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    ends = [-math.inf, math.inf]
    for index, name in enumerate(node.input[1:]):
        array = graph.constant(name) if name else np.array(ends[index])
        if array is None or array.size != 1:
            return None
        ends[index] = float(array.item())
    return ends[0], ends[1]


def normalization(graph: Graph, value: str) -> tuple[str, Array, Array] | None:
    """An input of the graph, and what is taken from it and what it is divided by in ``value``."""
    divide = graph.producer(value, "Div")
    subtract = divide and graph.producer(divide.input[0], "Sub")
    if divide is None or subtract is None or subtract.input[0] not in graph.input_names():
        return None
    mean, std = graph.constant(subtract.input[1]), graph.constant(divide.input[1])
    return None if mean is None or std is None else (subtract.input[0], mean, std)


def _normalized(graph: Graph) -> Iterator[tuple[str, tuple[float, float]]]:
    """Normalised pixels, and the range that follows from 0..1."""
    for node in graph.nodes("Div"):
        found = normalization(graph, node.output[0])
        if found is not None:
            mean, std = (part.astype(np.float64) for part in found[1:])
            yield node.output[0], (float((-mean / std).min()), float(((1 - mean) / std).max()))


def _end_with_limits(graph: Graph, node: onnx.NodeProto, known: dict[str, Quantizer]) -> None:
    """Let a quantizer behind limits hold nothing beyond: it was learnt where more comes by.

    Quantizers of fewer bits have limits on their own grid, which has to stay.
    """
    after, limits = known.get(node.output[0]), limits_of(graph, node)
    if after is None or limits is None or after.implies(*limits):
        return
    if node.op_type == "Relu" or not after.has_on_grid(*limits):
        _learn(known, node.output[0], max(after.low, limits[0]), min(after.high, limits[1]))


def _follow(graph: Graph, known: dict[str, Quantizer]) -> None:
    count = -1
    while len(known) != count:
        count = len(known)
        for node in graph.nodes("LeakyRelu", *LIMITING, *_KEEPING):
            _through(graph, node, known)
        for node in reversed(graph.nodes("LeakyRelu", *LIMITING, *_KEEPING)):
            _back(graph, node, known)


def _through(graph: Graph, node: onnx.NodeProto, known: dict[str, Quantizer]) -> None:
    inputs = [known.get(name) for name in data_inputs(node)]
    before, after = inputs[0], node.output[0]
    if before is None or after in known:
        return
    if node.op_type == "LeakyRelu":
        _learn(known, after, before.low * _slope(node), before.high)
    elif node.op_type in LIMITING:
        limits = limits_of(graph, node)
        if limits is not None:
            _learn(known, after, max(before.low, limits[0]), min(before.high, limits[1]))
    elif all(other == before for other in inputs):
        known[after] = before


def _back(graph: Graph, node: onnx.NodeProto, known: dict[str, Quantizer]) -> None:
    after = known.get(node.output[0])
    for before in data_inputs(node):
        if after is None or before in known:
            continue
        if node.op_type == "LeakyRelu":
            _learn(known, before, after.low / _slope(node), after.high)
        elif node.op_type in LIMITING:
            limits = limits_of(graph, node)
            if limits is not None and after.implies(*limits):
                known[before] = after
        else:
            known[before] = after


def _bound_summand(node: onnx.NodeProto, known: dict[str, Quantizer]) -> None:
    """From a + b in [l, h] and a in [m, n] follows b in [l - n, h - m]: true, but wide."""
    first, second = node.input
    total = known.get(node.output[0])
    for a, b in ((first, second), (second, first)):
        other = known.get(a)
        if total is not None and other is not None and b not in known:
            _learn(known, b, total.low - other.high, total.high - other.low)


def _keep_apart(resize: onnx.NodeProto, known: dict[str, Quantizer]) -> None:
    """Let the ranges before and behind a Resize differ, by the last bit where they are the same.

    Between equal ones ONNX Runtime before 1.27 interpolates the integers themselves, which takes
    twice the time of doing it in floats, and cuts the result off instead of rounding it: 1.5 dB of
    noise in every output (https://github.com/microsoft/onnxruntime/issues/21319). Later releases,
    and other engines, compute in floats whatever the ranges are.
    """
    before, after = (known.get(name) for name in (resize.input[0], resize.output[0]))
    if before is not None and after == before:
        wider = np.nextafter(np.float32(after.scale), np.float32(np.inf))
        known[resize.output[0]] = Quantizer(float(wider), after.zero)


def _learn(known: dict[str, Quantizer], value: str, low: float, high: float) -> None:
    quantizer = Quantizer.of_range(low, high)
    if quantizer is not None:
        known[value] = quantizer


def _slope(node: onnx.NodeProto) -> float:
    """Of a LeakyRelu, below 0."""
    return next((float(a.f) for a in node.attribute if a.name == "alpha"), 0.01)
