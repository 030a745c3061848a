"""How sparse a model is, what its recipe wanted, and whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from yolact.sparsify.recipe import Recipe
from yolact.sparsify.sparseml import get_mask_creator_default
from yolact.sparsify.structure import recipe_names
from yolact.sparsify.targets import Mask, PruningTarget, nm_of, targets_by_parameter

TOLERANCE = 0.005
"""How far a layer may be from its target, as a fraction of its weights."""


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
    granule: float = 0.0
    """Share of the weights that are pruned together: no mask can be closer to the target."""

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
        LayerSparsity(name, weight.numel(), weight.numel() - int(weight.count_nonzero()))
        for name, module in convolutions(model).items()
        for weight in [module.weight.detach()]
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


def sparsity_targets(
    model: nn.Module, recipe: Recipe, *, epoch: float = float("inf")
) -> list[SparsityTarget]:
    """Every parameter with a final sparsity of its own in the recipe, with its actual one.

    Args:
        model: After or during training.
        recipe: Possibly with stages; of several targets for a parameter, the last to be reached
            counts.
        epoch: Targets due later are left out.
    """
    layers = {layer.name: layer for layer in layer_sparsity(model)}
    shapes = {name: conv.weight.shape for name, conv in convolutions(model).items()}
    return [
        SparsityTarget(
            name,
            target.sparsity,
            layers[name].sparsity,
            granule(target.mask, layers[name], shapes[name]),
        )
        for name, target in targets_by_parameter(list(layers), recipe.entries, epoch).items()
        if not target.shared
    ]


def shared_targets(
    model: nn.Module, recipe: Recipe, *, epoch: float = float("inf")
) -> list[SparsityTarget]:
    """The same of modifiers whose sparsity is that of all their parameters together.

    Args:
        model: After or during training.
        recipe: As for :func:`sparsity_targets`.
        epoch: As for :func:`sparsity_targets`.
    """
    layers = {layer.name: layer for layer in layer_sparsity(model)}
    groups: dict[PruningTarget, list[LayerSparsity]] = {}
    for name, target in targets_by_parameter(list(layers), recipe.entries, epoch).items():
        if target.shared:
            groups.setdefault(target, []).append(layers[name])
    return [
        SparsityTarget(
            f"{', '.join(target.patterns)} ({len(group)} layers together)",
            target.sparsity,
            sum(layer.zeros for layer in group) / sum(layer.weights for layer in group),
        )
        for target, group in groups.items()
    ]


def missed_targets(model: nn.Module, recipe: Recipe, *, epoch: float = float("inf")) -> list[str]:
    """The parameters that are less or more sparse than their recipe wanted, one sentence each.

    Args:
        model: After training.
        recipe: As for :func:`sparsity_targets`.
        epoch: As for :func:`sparsity_targets`.
    """
    targets = [
        *sparsity_targets(model, recipe, epoch=epoch),
        *shared_targets(model, recipe, epoch=epoch),
    ]
    return [target.missed for target in targets if target.missed]


def granule(mask: Mask, layer: LayerSparsity, shape: Sequence[int]) -> float:
    """Share of a layer's weights that a mask takes or leaves as one."""
    match mask:
        case "filter":
            return 1 / shape[0]
        case "channel":
            return 1 / shape[1]
        case "block4":
            return 4 / layer.weights
        case (int(rows), int(columns)):
            return (
                (rows if rows > 0 else shape[0])
                * (columns if columns > 0 else shape[1])
                / layer.weights
            )
    return 1 / layer.weights


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
        creator = get_mask_creator_default(list(mask) if isinstance(mask, tuple) else mask)
        share = creator.group_tensor(kept)
    else:
        return None
    return int(((share > 0) & (share < 1)).sum())
