"""The sparsity that a recipe promises, what a model has, and whether the two agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import Entry, matches, nm_of
from yolact.sparsify.native.masks import pattern_of
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.structure import recipe_names

TOLERANCE = 0.005
"""How far a layer may be from its target, as a fraction of its weights."""

Mask = str | tuple[int, ...]
"""A recipe's ``mask_type``: a name, ``N:M``, or the shape of a block."""


@dataclass(frozen=True)
class PruningTarget:
    """The sparsity that one pruning modifier ends with."""

    end: float
    """Epoch at which it is reached."""
    patterns: tuple[str, ...]
    """Names, ``re:`` expressions and tokens of parameters."""
    sparsity: float
    """0..1."""
    mask: Mask
    """``unstructured``, a block such as [1, 4], ``N:M``, ``block4``, ``filter`` or ``channel``."""
    shared: bool
    """Of all its parameters together, not of each."""

    def covers(self, name: str) -> bool:
        """Whether the parameter ``name`` is one of those."""
        return any(matches(pattern, name) for pattern in self.patterns)


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros among the weights of one convolution."""

    name: str
    """Of its weight, as recipes spell it."""
    shape: tuple[int, ...]
    """[O, I, h, w]."""
    zeros: int

    @property
    def weights(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 0..1."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class SparsityTarget:
    """What a recipe wanted of one parameter, or of several together, and what became of it."""

    name: str
    wanted: float
    actual: float
    granule: float = 0.0
    """Share of the weights that are pruned together: no mask can be closer to the target."""
    together: bool = False
    """Whether it is of several parameters."""

    @property
    def missed(self) -> str | None:
        """What is wrong, in words: too few zeros, or too many."""
        if abs(self.actual - self.wanted) <= max(TOLERANCE, self.granule):
            return None
        many = ", more than asked" if self.actual > self.wanted else ""
        return f"{self.name} has sparsity {self.actual:.4f} instead of {self.wanted:.4f}{many}"


def layer_sparsity(model: nn.Module) -> list[LayerSparsity]:
    """Zeros of every convolution's weight, in the model's order, quantized or not."""
    return [
        LayerSparsity(name, tuple(conv.weight.shape), int(conv.weight.detach().eq(0).sum()))
        for name, conv in convolutions(model).items()
    ]


def overall_sparsity(model: nn.Module) -> float:
    """Fraction of zeros among all convolution weights, 0..1."""
    layers = layer_sparsity(model)
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.weights for layer in layers))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every convolution by the name that recipes have for its weight."""
    names = recipe_names(model)
    return {
        names[f"{name}.weight"]: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def targets_by_parameter(
    names: Sequence[str], entries: Iterable[Entry], epoch: float
) -> dict[str, PruningTarget]:
    """For each parameter with a target due by ``epoch``, the last one to be reached.

    Args:
        names: Of parameters, as recipes spell them.
        entries: All modifiers of a recipe.
        epoch: As the recipe counts them; targets that are due later are left out.
    """
    due = [target for entry in entries for target in _targets_of(entry) if target.end <= epoch]
    found = {}
    for name in names:
        mine = [target for target in due if target.covers(name)]
        if mine:
            found[name] = max(reversed(mine), key=lambda target: target.end)
    return found


def sparsity_targets(
    model: nn.Module, recipe: Recipe, *, epoch: float = math.inf
) -> list[SparsityTarget]:
    """Every final sparsity in a recipe with the actual one; those of several layers come last.

    Args:
        model: After or during training.
        recipe: Possibly with stages; of several targets for a parameter, the last to be reached
            counts.
        epoch: Targets due later are left out.
    """
    layers = {layer.name: layer for layer in layer_sparsity(model)}
    promised = targets_by_parameter(list(layers), recipe.entries, epoch)
    groups: dict[PruningTarget, list[LayerSparsity]] = {}
    for name, target in promised.items():
        if target.shared:
            groups.setdefault(target, []).append(layers[name])
    return [
        *(of_layer(layers[name], target) for name, target in promised.items() if not target.shared),
        *(_of_group(group, target) for target, group in groups.items()),
    ]


def of_layer(layer: LayerSparsity, target: PruningTarget) -> SparsityTarget:
    """What became of a target that one layer has by itself."""
    coarse = _granule(target.mask, layer.shape) / layer.weights
    return SparsityTarget(layer.name, target.sparsity, layer.sparsity, coarse)


def broken_groups(weight: Tensor, mask: Mask) -> int | None:
    """How many groups of weights do not have the pattern that a mask gives them.

    Args:
        weight: [O, I, h, w].
        mask: A recipe's ``mask_type``. Weights of a block, filter or channel are zero all or
            none; of M neighbouring input channels of ``N:M``, at most N are not zero.

    Returns:
        None for masks without a pattern.
    """
    kept = weight.detach().ne(0).float()
    if ratio := nm_of(mask):
        keep, size = ratio
        return int((kept.permute(0, 2, 3, 1).reshape(-1, size).sum(1) > keep).sum())
    if mask == "filter":
        share = kept.flatten(1).mean(1)
    elif mask == "channel":
        share = kept.transpose(0, 1).flatten(1).mean(1)
    elif mask == "block4" or isinstance(mask, tuple):
        share = pattern_of(mask).grouped(kept)
    else:
        return None
    return int(((share > 0) & (share < 1)).sum())


def _targets_of(entry: Entry) -> Iterator[PruningTarget]:
    """What a modifier promises; one target for each of its final sparsities."""
    facts = facts_of(entry.name)
    final = entry.fields.get(facts.final) if facts.final else None
    params = entry.fields.get("params") or ["__ALL_PRUNABLE__"]
    mask: Any = entry.fields.get("mask_type", facts.mask)
    shared = entry.fields.get("global_sparsity", facts.shared == "unless told")
    for value, patterns in (final if isinstance(final, dict) else {final: params}).items():
        if value is not None:
            yield PruningTarget(
                end=float(entry.fields.get("end_epoch", -1)),
                patterns=tuple([patterns] if isinstance(patterns, str) else patterns),
                sparsity=float(value),
                mask=tuple(mask) if isinstance(mask, list) else str(mask),
                shared=bool(shared) or facts.shared == "always",
            )


def _of_group(group: Sequence[LayerSparsity], target: PruningTarget) -> SparsityTarget:
    return SparsityTarget(
        f"{', '.join(target.patterns)} ({len(group)} layers together)",
        target.sparsity,
        sum(layer.zeros for layer in group) / sum(layer.weights for layer in group),
        together=True,
    )


def _granule(mask: Mask, shape: Sequence[int]) -> float:
    """How many weights a mask takes or leaves as one."""
    match mask:
        case "filter":
            return math.prod(shape) / shape[0]
        case "channel":
            return math.prod(shape) / shape[1]
        case "block4":
            return 4
        case (int(rows), int(columns)):
            return (rows if rows > 0 else shape[0]) * (columns if columns > 0 else shape[1])
    return 1
