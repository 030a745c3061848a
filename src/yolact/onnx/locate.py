"""Where a graph that differs from PyTorch begins to: the first layer that computes otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import ConvReLU2d
from torch.ao.nn.intrinsic.qat import ConvReLU2d as QatConvReLU2d

from yolact.onnx.graph import Graph
from yolact.onnx.parity import SQNR_ENOUGH, SQNR_SLACK, TOLERANCE, sqnr
from yolact.onnx.trace import MODEL_PREFIX
from yolact.runtime.ort_values import ort_values

_Outputs = dict[tuple[str, int], Tensor]
"""By convolution, and how many times it has run before."""


def first_wrong_layer(
    graph: onnx.ModelProto, network: nn.Module, images: Tensor, unquantized: nn.Module | None
) -> str | None:
    """The first convolution, in execution order, whose output differs by more than is accepted.

    Args:
        graph: The exported one, before it is written.
        network: What it was traced from; convolutions are found by the names of their weights.
        images: [B, 3, H, W] input.
        unquantized: For quantized graphs, the network that does not quantize: a layer may differ
            by as much as quantization changes it, with the slack that outputs have.

    Returns:
        The layer's name in recipes and state dicts; None when all agree.
    """
    places = list(_convolutions(graph))
    values = ort_values(graph, [value for _, _, value in places], images)
    expected = _outputs(network, images)
    before = None if unquantized is None else _outputs(unquantized, images)
    for (name, index, _), array in zip(places, values, strict=True):
        wanted = expected.get((name, index))
        if wanted is None:
            continue
        actual = torch.from_numpy(array)
        if _rectifies(network.get_submodule(MODEL_PREFIX + name)):
            actual = actual.relu()
        if before is None:
            wrong = not bool(((actual - wanted).abs() <= TOLERANCE).all())
        else:
            cost = sqnr(before[name, index], wanted)
            wrong = not sqnr(wanted, actual) >= min(SQNR_ENOUGH, cost - SQNR_SLACK)
        if wrong:
            return name.removesuffix(".module")
    return None


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


def _outputs(network: nn.Module, images: Tensor) -> _Outputs:
    outputs: _Outputs = {}
    with _noting(network, outputs), torch.no_grad():
        network(images)
    return outputs


@contextmanager
def _noting(network: nn.Module, outputs: _Outputs) -> Iterator[None]:
    used: dict[str, int] = defaultdict(int)

    def hook_of(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs[name, used[name]] = output.clone()  # activations may overwrite it
            used[name] += 1

        return note

    hooks = [
        module.register_forward_hook(hook_of(name.removeprefix(MODEL_PREFIX)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rectifies(module: nn.Module) -> bool:
    return isinstance(module, (ConvReLU2d, QatConvReLU2d))
