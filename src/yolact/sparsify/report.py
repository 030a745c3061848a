"""How sparse a model is, and whether it is as sparse as its recipe wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from yolact.sparsify.check import matches
from yolact.sparsify.document import entries, parse
from yolact.sparsify.structure import recipe_names


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros among the weights of one convolution."""

    name: str
    """Of the parameter, as recipes spell it."""
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 0..1."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class SparsityTarget:
    """What a recipe wanted of one parameter, and what became of it."""

    name: str
    wanted: float
    actual: float


def layer_sparsity(model: nn.Module) -> list[LayerSparsity]:
    """Zeros of every convolution's weight, in the model's order, quantized or not."""
    names = recipe_names(model)
    layers = []
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            zeros = weight.numel() - int(weight.count_nonzero())
            layers.append(LayerSparsity(names[f"{module_name}.weight"], weight.numel(), zeros))
    return layers


def overall_sparsity(model: nn.Module) -> float:
    """Fraction of zeros among all convolution weights, 0..1."""
    layers = layer_sparsity(model)
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.weights for layer in layers))


def sparsity_targets(
    model: nn.Module, recipe_text: str, *, epoch: float = float("inf")
) -> list[SparsityTarget]:
    """Every parameter with a final sparsity in the recipe, with its actual one.

    Args:
        model: After or during training.
        recipe_text: A resolved recipe, possibly with stages; of several targets for a parameter,
            the last to be reached counts.
        epoch: Targets due later are left out.
    """
    wanted: dict[str, tuple[float, float]] = {}
    layers = {layer.name: layer.sparsity for layer in layer_sparsity(model)}
    for end, pattern, target in _final_sparsities(recipe_text):
        if end > epoch:
            continue
        for name in layers:
            if matches(pattern, name) and end >= wanted.get(name, (0.0, 0.0))[0]:
                wanted[name] = (end, target)
    return [
        SparsityTarget(name, wanted[name][1], layers[name]) for name in layers if name in wanted
    ]


def missed_targets(
    model: nn.Module,
    recipe_text: str,
    *,
    epoch: float = float("inf"),
    tolerance: float = 0.005,
) -> list[str]:
    """The parameters that are less sparse than their recipe wanted, one sentence each.

    Args:
        model: After training.
        recipe_text: As for :func:`sparsity_targets`.
        epoch: As for :func:`sparsity_targets`.
        tolerance: Allowed shortfall, as a fraction of the weights.
    """
    return [
        f"{target.name} has sparsity {target.actual:.4f} instead of {target.wanted:.4f}"
        for target in sparsity_targets(model, recipe_text, epoch=epoch)
        if target.actual < target.wanted - tolerance
    ]


def to_json(layers: Sequence[LayerSparsity]) -> dict[str, Any]:
    """JSON-ready: ``overall`` and one record per layer."""
    zeros, weights = sum(x.zeros for x in layers), sum(x.weights for x in layers)
    return {
        "overall": zeros / max(1, weights),
        "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in layers],
    }


def table(layers: Sequence[LayerSparsity]) -> str:
    """A line per layer and one for all of them.

    >>> print(table([LayerSparsity("fpn.0.weight", 200, 150)]))
    parameter    weights sparsity
    fpn.0.weight     200   0.7500
    all              200   0.7500
    """
    total = LayerSparsity("all", sum(x.weights for x in layers), sum(x.zeros for x in layers))
    rows = [*layers, *([total] if layers else [])]
    name = max(len("parameter"), *(len(row.name) for row in rows)) if rows else len("parameter")
    count = max(len("weights"), *(len(str(row.weights)) for row in rows)) if rows else 7
    lines = [f"{'parameter':<{name}} {'weights':>{count}} sparsity"]
    lines += [f"{row.name:<{name}} {row.weights:>{count}} {row.sparsity:8.4f}" for row in rows]
    return "\n".join(lines)


def _final_sparsities(recipe_text: str) -> Iterator[tuple[float, str, float]]:
    """(end epoch, name or pattern, target) of every gradual pruning modifier."""
    for entry in entries(parse(recipe_text, "the recipe")):
        final, params = entry.fields.get("final_sparsity"), entry.fields.get("params") or []
        if final is None:
            continue
        end = float(entry.fields.get("end_epoch", -1))
        if isinstance(final, dict):
            groups = [(float(value), names) for value, names in final.items()]
        else:
            names = [params] if isinstance(params, str) else params
            groups = [(float(final), names or ["__ALL_PRUNABLE__"])]
        for value, names in groups:
            for pattern in names:
                yield end, pattern, value
