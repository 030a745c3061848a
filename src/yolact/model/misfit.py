"""Why weights do not fit a network, in words that let the user fix it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from yolact.model.quantized import is_quantized_state

_SHOWN = 3
_HEAD = "prediction_layers.0."


class Misfit(NamedTuple):
    """What keeps weights from being loaded."""

    missing: list[str]
    unexpected: list[str]
    differ: list[str]
    """Names with the file's and the model's shape."""

    def summary(self) -> str:
        """The three lists in a line, shortened."""
        kinds = zip(self, ("missing", "unexpected", "of another shape"), strict=True)
        return "; ".join(listing(names, what) for names, what in kinds if names)


def try_loading(model: nn.Module, weights: Mapping[str, Tensor]) -> Misfit:
    """Load into ``model`` whatever fits and tell what does not.

    Torch decides what is missing or unexpected, since the modules of a quantized model accept
    more than their exact names; only shapes are compared here, where torch would raise.
    """
    own = {name: tuple(value.shape) for name, value in own_shapes(model).items()}
    differ = {name for name in own if name in weights and tuple(weights[name].shape) != own[name]}
    rest = {name: value for name, value in weights.items() if name not in differ}
    missing, unexpected = model.load_state_dict(rest, strict=False)
    return Misfit(
        missing=[name for name in missing if name not in differ],
        unexpected=list(unexpected),
        differ=[
            f"{name} {list(weights[name].shape)} for {list(own[name])}"
            for name in own
            if name in differ
        ],
    )


def listing(names: Collection[str], what: str) -> str:
    """Count and first few of ``names``.

    >>> listing(["a", "b", "c", "d", "e"], "missing")
    '5 missing (a, b, c, ...)'
    """
    return f"{len(names)} {what} ({first(names)})"


def first(names: Collection[str]) -> str:
    """The first few of ``names``.

    >>> first(["a", "b"])
    'a, b'
    """
    more = [] if len(names) <= _SHOWN else ["..."]
    return ", ".join([*list(names)[:_SHOWN], *more])


def hint_for(model: nn.Module, weights: Mapping[str, Tensor], misfit: Misfit) -> str:
    """The likeliest reason of a misfit, judged by the names, and what to do about it."""
    own = model.state_dict()
    if origin := hint_for_origin(weights):
        return origin
    quantized = is_quantized_state(weights)
    if quantized != is_quantized_state(own):
        return (
            "the weights are of a quantized model: apply the recipe they were trained with first"
            if quantized
            else "the model is quantized, the weights are not: load them before the recipe"
        )
    common = sum(name in own for name in weights)
    if common < min(len(own), len(weights)) / 2:
        return "they belong to another network; only YOLACT on DarkNet-53 is supported"
    if misfit.differ:
        return "they are of other widths or depths: use the --config they were trained with"
    return "the file is incomplete or of a modified network; take the file as training saved it"


def hint_for_origin(weights: Mapping[str, Tensor]) -> str | None:
    """What to do with weights that are recognised as something else than a model's."""
    if any(name.startswith("module.") for name in weights):
        return "they were saved from a DataParallel wrapper: strip 'module.' from the names"
    if not is_whole_model(weights) and any(re.match(r"layers\.\d+\.", name) for name in weights):
        return "it is the file of a backbone alone: load it with --backbone"
    return None


def is_whole_model(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is a prediction head among the weights."""
    return any(name.startswith(_HEAD) for name in weights)


def own_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict whose shape never changes; observers adapt theirs when loaded."""
    parameters = {name for name, _ in model.named_parameters()}
    statistics = (".running_mean", ".running_var")
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in parameters or name.endswith(statistics)
    }
