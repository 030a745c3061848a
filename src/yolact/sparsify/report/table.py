"""The report of a model as text: a line per convolution, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence

from yolact.sparsify.report.quantization import Quantizer
from yolact.sparsify.report.report import LayerReport, ModelReport
from yolact.tables import columns

_HEAD = ("parameter", "shape", "sparsity", "target", "mask", "weights", "inputs", "batch norm", "")
_NUMBERS = (2, 3)
"""Columns that are aligned to the right."""


def table(result: ModelReport) -> str:
    """Every convolution, then :func:`summary`; columns nothing stands in are left out."""
    rows = [_HEAD, *(_row(layer) for layer in result.layers)]
    used = [i for i in range(len(_HEAD)) if i < 3 or any(row[i] for row in rows[1:])]
    aligned = "".join(">" if i in _NUMBERS else "<" for i in used)
    text = columns(([row[i] for i in used] for row in rows), aligned)
    return f"{text}\n\n{summary(result)}"


def summary(result: ModelReport) -> str:
    """A line for the whole model, one for each target of several layers, and the verdict."""
    parts = [
        f"sparsity {result.sparsity:.4f} of {result.weights / 1e6:.2f} M convolution weights",
        f"{result.quantized} of {len(result.layers)} convolutions quantized",
        f"{result.parameters / 1e6:.2f} M parameters",
    ]
    if result.macs is not None:
        parts.append(f"{result.macs / 1e9:.3g} GMACs")
    together = [
        f"{target.name}: sparsity {target.actual:.4f}, target {target.wanted:.4f}"
        for target in result.together
    ]
    return "\n".join([", ".join(parts), *together, _verdict(result)])


def _verdict(result: ModelReport) -> str:
    if result.missed:
        return f"targets missed: {len(result.missed)}"
    promised = result.together or any(x.target is not None for x in result.layers)
    return "all targets met" if promised or result.quantized else "no targets"


def _row(layer: LayerReport) -> Sequence[str]:
    mask = layer.mask
    return (
        layer.name,
        "x".join(map(str, layer.shape)),
        f"{layer.sparsity:.4f}",
        "" if layer.target is None else f"{layer.target:.4f}",
        f"[{mask[0]}, {mask[1]}]" if isinstance(mask, tuple) else mask or "",
        _weights(layer.weight_quantizer),
        _inputs(layer.input_quantizer),
        layer.batch_norm or "",
        "MISSED" if layer.problems else "",
    )


def _weights(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return ""
    low, high = (f"{scale:.2e}" for scale in quantizer.scale)
    steps = low if low == high else f"{low}..{high}"
    return f"{quantizer.bits} bit {quantizer.scheme}, step {steps}"


def _inputs(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return ""
    low, high = quantizer.range
    return f"{quantizer.bits} bit {low:.3g}..{high:.3g}"
