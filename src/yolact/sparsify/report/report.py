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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from yolact.files import write_text
from yolact.model.weights import parameter_count
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.report.quantization import (
    Quantizer,
    WantedQuantization,
    WantedQuantizer,
    input_quantizers,
    wanted_quantization,
    weight_quantizer,
)
from yolact.sparsify.report.sparsity import (
    LayerSparsity,
    SparsityTarget,
    broken_groups,
    convolutions,
    granule,
    shared_targets,
)
from yolact.sparsify.targets import Mask, PruningTarget, targets_by_parameter

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One convolution after a run."""

    name: str
    """Of its weight, as recipes spell it."""
    shape: tuple[int, ...]
    """[O, I, h, w]."""
    zeros: int
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
    def weights(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 0..1."""
        return self.zeros / self.weights

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
    convs = convolutions(model)
    sparsities = targets_by_parameter(list(convs), recipe.entries, epoch) if recipe else {}
    quantization = wanted_quantization(model, recipe, epoch) if recipe else {}
    inputs, norms = input_quantizers(model), _batch_norms(model)
    return ModelReport(
        layers=tuple(
            _layer(
                name,
                conv,
                norms.get(conv),
                inputs.get(conv),
                sparsities.get(name),
                quantization.get(name),
            )
            for name, conv in convs.items()
        ),
        together=tuple(shared_targets(model, recipe, epoch=epoch) if recipe else ()),
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


def _layer(
    name: str,
    conv: nn.Conv2d,
    batch_norm: str | None,
    inputs: Quantizer | None,
    target: PruningTarget | None,
    wanted: WantedQuantization | None,
) -> LayerReport:
    weight = conv.weight.detach()
    zeros = weight.numel() - int(weight.count_nonzero())
    broken = broken_groups(weight, target.mask) if target else None
    weights = weight_quantizer(conv)
    problems = [
        *([] if bool(weight.isfinite().all()) else [f"{name} has weights that are not finite"]),
        *([] if target is None else _sparsity_problems(name, conv, zeros, target)),
        *([_broken(name, broken, target.mask)] if target and broken else []),
        *_quantization_problems(name, "weights", weights, wanted.weights if wanted else None),
        *_quantization_problems(name, "inputs", inputs, wanted.inputs if wanted else None),
    ]
    return LayerReport(
        name=name,
        shape=tuple(weight.shape),
        zeros=zeros,
        target=None if target is None or target.shared else target.sparsity,
        mask=None if target is None else target.mask,
        mask_intact=None if broken is None else not broken,
        batch_norm=batch_norm,
        weight_quantizer=weights,
        input_quantizer=inputs,
        problems=tuple(problems),
    )


def _sparsity_problems(
    name: str, conv: nn.Conv2d, zeros: int, target: PruningTarget
) -> Iterator[str]:
    if target.shared:
        return
    layer = LayerSparsity(name, conv.weight.numel(), zeros)
    coarse = granule(target.mask, layer, conv.weight.shape)
    missed = SparsityTarget(name, target.sparsity, layer.sparsity, coarse).missed
    if missed:
        yield missed


def _quantization_problems(
    name: str, part: str, found: Quantizer | None, wanted: WantedQuantizer | None
) -> Iterator[str]:
    if found is not None and found.problem:
        yield f"the quantizer of the {part} of {name} {found.problem}"
    if wanted is None:
        return
    if found is None:
        yield f"the {part} of {name} are not quantized"
        return
    have = WantedQuantizer(found.bits, found.symmetric, found.per_channel)
    if have != wanted:
        yield f"the {part} of {name} are {_scheme(have)} instead of {_scheme(wanted)}"


def _scheme(quantizer: WantedQuantizer) -> str:
    symmetry = "symmetric" if quantizer.symmetric else "asymmetric"
    scope = "channel" if quantizer.per_channel else "tensor"
    return f"{quantizer.bits} bits, {symmetry} per {scope}"


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
        "weight_quantizer": _quantizer_json(layer.weight_quantizer),
        "input_quantizer": _quantizer_json(layer.input_quantizer),
        "problems": list(layer.problems),
    }


def _quantizer_json(quantizer: Quantizer | None) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    numbers = {
        "scale_min": quantizer.scale[0],
        "scale_max": quantizer.scale[1],
        "range_min": quantizer.range[0],
        "range_max": quantizer.range[1],
    }
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"bits": quantizer.bits, "scheme": quantizer.scheme, **finite}
