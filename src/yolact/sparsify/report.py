"""The report after a run: what became of every convolution, and whether the recipe was followed.

``<checkpoint stem>.report.json`` beside a checkpoint holds one object:

| key | value |
|---|---|
| ``schema`` | 1 |
| ``checkpoint`` | name of the file that was judged, or null |
| ``met`` | true when ``missed`` is empty |
| ``missed`` | every broken promise of the recipe, in words |
| ``sparsity``, ``weights``, ``zeros`` | of all convolution weights together |
| ``parameters`` | of the whole network |
| ``macs`` | multiply-accumulates for one image; null beside the best checkpoint |
| ``convolutions``, ``quantized`` | how many layers there are, and how many have INT8 weights |
| ``layers`` | a list, one record per convolution (below) |
| ``together`` | targets of several layers together: ``name``, ``target``, ``sparsity``, ``met`` |

A layer has ``name`` (of its weight, as recipes spell it), ``shape``, ``weights``, ``zeros``,
``sparsity``, ``target`` (null without one), ``mask`` (the recipe's ``mask_type``), ``mask_intact``
(null for masks without a pattern), ``batch_norm`` (``fused``, ``separate`` or null), ``quantized``,
``weight_quantizer`` and ``input_quantizer`` (null, or ``bits``, ``scheme``, ``scale_min``,
``scale_max``, ``range_min``, ``range_max``) and ``problems``, its share of ``missed``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from yolact.files import write_text
from yolact.model.weights import parameter_count
from yolact.sparsify.quantization import (
    Quantizer,
    WantedQuantization,
    input_quantizers,
    quantization_problems,
    wanted_quantization,
    weight_quantizer,
)
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparsity import (
    LayerSparsity,
    Mask,
    PruningTarget,
    SparsityTarget,
    broken_groups,
    convolutions,
    layer_sparsity,
    of_layer,
    sparsity_targets,
    targets_by_parameter,
)
from yolact.tables import columns

SCHEMA = 1

_HEAD = ("parameter", "shape", "sparsity", "target", "mask", "weights", "inputs", "batch norm", "")
_NUMBERS = (2, 3)
"""Columns of the table that are aligned to the right."""


@dataclass(frozen=True, kw_only=True)
class LayerReport(LayerSparsity):
    """One convolution after a run."""

    target: float | None
    """Sparsity that the recipe wanted of this layer by itself."""
    mask: Mask | None
    """``mask_type`` of the modifier that pruned it."""
    mask_intact: bool | None
    """Whether zeros have the mask's pattern; None for masks without one."""
    batch_norm: str | None
    """``fused`` into the convolution, ``separate`` after it, or None."""
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    problems: tuple[str, ...]
    """Promises of the recipe that this layer breaks, in words."""

    @property
    def quantized(self) -> bool:
        """Whether its weights are."""
        return self.weight_quantizer is not None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """A model after a run, layer by layer."""

    layers: tuple[LayerReport, ...]
    together: tuple[SparsityTarget, ...]
    """Targets of several layers together."""
    parameters: int
    macs: int | None
    """Multiply-accumulates for one image; None where they were not counted."""

    @property
    def weights(self) -> int:
        """Of all convolutions."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Of all convolutions."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among all convolution weights, 0..1."""
        return self.zeros / max(1, self.weights)

    @property
    def quantized(self) -> int:
        """Convolutions with quantized weights."""
        return sum(layer.quantized for layer in self.layers)

    @property
    def missed(self) -> tuple[str, ...]:
        """Every promise of the recipe that the model breaks, in words."""
        together = [target.missed for target in self.together if target.missed]
        return (*(problem for layer in self.layers for problem in layer.problems), *together)


def report(
    model: nn.Module,
    recipe: Recipe | None,
    *,
    epoch: float = math.inf,
    macs: int | None = None,
) -> ModelReport:
    """Look at every convolution of ``model`` and compare it with the recipe.

    A promise is broken when sparsity is off by more than 0.005 (or by more than one block, where
    that is coarser) in either direction, when a mask has lost its pattern, when a quantizer is
    absent, is of another kind or has seen no values, and when a number is not finite.

    Args:
        model: With its weights, quantized or not; it is not changed.
        recipe: Every recipe applied to it, composed; None promises nothing.
        epoch: Epochs done, counted as the composed recipe counts them; what is due later is not
            promised yet.
        macs: Multiply-accumulates for one image, if known.

    Raises:
        RecipeError: The recipe is malformed.
    """
    layers, convs = layer_sparsity(model), convolutions(model)
    promised = targets_by_parameter(list(convs), recipe.entries, epoch) if recipe else {}
    targets = sparsity_targets(model, recipe, epoch=epoch) if recipe else []
    quantization = wanted_quantization(model, recipe, epoch) if recipe else {}
    inputs, norms = input_quantizers(model), _batch_norms(model)
    return ModelReport(
        layers=tuple(
            _layer(
                layer,
                conv,
                norms.get(conv),
                inputs.get(conv),
                promised.get(layer.name),
                quantization.get(layer.name),
            )
            for layer, conv in zip(layers, convs.values(), strict=True)
        ),
        together=tuple(target for target in targets if target.together),
        parameters=parameter_count(model),
        macs=macs,
    )


def report_path(checkpoint: Path) -> Path:
    """Where the report of a checkpoint is.

    >>> report_path(Path("weights/yolact_darknet53_9_100.pth")).name
    'yolact_darknet53_9_100.report.json'
    """
    return checkpoint.with_name(f"{checkpoint.stem}.report.json")


def save_report(result: ModelReport, checkpoint: Path) -> Path:
    """Write ``result`` beside the checkpoint it is about.

    Raises:
        StorageError: The file cannot be written.
    """
    path = report_path(checkpoint)
    write_text(path, json.dumps(to_json(result, checkpoint.name), indent=1, allow_nan=False) + "\n")
    return path


def to_json(result: ModelReport, checkpoint: str | None = None) -> dict[str, Any]:
    """The report as the module's table describes it."""
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint,
        "met": not result.missed,
        "missed": list(result.missed),
        "sparsity": result.sparsity,
        "weights": result.weights,
        "zeros": result.zeros,
        "parameters": result.parameters,
        "macs": result.macs,
        "convolutions": len(result.layers),
        "quantized": result.quantized,
        "layers": [_layer_json(layer) for layer in result.layers],
        "together": [
            {
                "name": target.name,
                "target": target.wanted,
                "sparsity": target.actual,
                "met": target.missed is None,
            }
            for target in result.together
        ],
    }


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


def _layer(
    layer: LayerSparsity,
    conv: nn.Conv2d,
    batch_norm: str | None,
    inputs: Quantizer | None,
    target: PruningTarget | None,
    wanted: WantedQuantization | None,
) -> LayerReport:
    name, weight = layer.name, conv.weight.detach()
    own = None if target is None or target.shared else of_layer(layer, target)
    broken = broken_groups(weight, target.mask) if target else None
    weights = weight_quantizer(conv)
    problems = [
        *([] if bool(weight.isfinite().all()) else [f"{name} has weights that are not finite"]),
        *([own.missed] if own and own.missed else []),
        *([_broken(name, broken, target.mask)] if target and broken else []),
        *quantization_problems(name, "weights", weights, wanted.weights if wanted else None),
        *quantization_problems(name, "inputs", inputs, wanted.inputs if wanted else None),
    ]
    return LayerReport(
        name=name,
        shape=layer.shape,
        zeros=layer.zeros,
        target=own.wanted if own else None,
        mask=target.mask if target else None,
        mask_intact=None if broken is None else not broken,
        batch_norm=batch_norm,
        weight_quantizer=weights,
        input_quantizer=inputs,
        problems=tuple(problems),
    )


def _broken(name: str, groups: int, mask: Mask) -> str:
    text = list(mask) if isinstance(mask, tuple) else mask
    return f"{name} has {groups} broken groups of mask {text}"


def _batch_norms(model: nn.Module) -> Mapping[nn.Module, str]:
    """How the batch norm of each convolution that has one is applied."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and isinstance(
            getattr(module, "bn", None), nn.BatchNorm2d
        ):
            found[module] = "fused"
        if isinstance(module, nn.Sequential):
            children = list(module)
            for conv, norm in zip(children, children[1:], strict=False):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    found[conv] = "separate"
    return found


def _layer_json(layer: LayerReport) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "weights": layer.weights,
        "zeros": layer.zeros,
        "sparsity": layer.sparsity,
        "target": layer.target,
        "mask": list(layer.mask) if isinstance(layer.mask, tuple) else layer.mask,
        "mask_intact": layer.mask_intact,
        "batch_norm": layer.batch_norm,
        "quantized": layer.quantized,
        "weight_quantizer": layer.weight_quantizer and layer.weight_quantizer.as_json(),
        "input_quantizer": layer.input_quantizer and layer.input_quantizer.as_json(),
        "problems": list(layer.problems),
    }


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
        _weights_cell(layer.weight_quantizer),
        _inputs_cell(layer.input_quantizer),
        layer.batch_norm or "",
        "MISSED" if layer.problems else "",
    )


def _weights_cell(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return ""
    low, high = (f"{scale:.2e}" for scale in quantizer.scale)
    steps = low if low == high else f"{low}..{high}"
    return f"{quantizer.bits} bit {quantizer.scheme}, step {steps}"


def _inputs_cell(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return ""
    low, high = quantizer.range
    return f"{quantizer.bits} bit {low:.3g}..{high:.3g}"
