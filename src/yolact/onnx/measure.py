"""Ranges that training has not found: those of a few convolutions' outputs, seen on images."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from yolact.onnx.trace import MODEL_PREFIX


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
    modules = dict(network.named_modules())
    hooks = [
        modules[MODEL_PREFIX + name.removesuffix(".weight")].register_forward_hook(
            _noting(seen, name)
        )
        for name in weights
    ]
    try:
        for image in tqdm(images, desc="measuring outputs", unit="image", disable=None):
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _noting(seen: dict[str, tuple[float, float]], name: str) -> Any:
    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        low, high = seen.get(name, (0.0, 0.0))
        seen[name] = min(low, float(output.min())), max(high, float(output.max()))

    return note
