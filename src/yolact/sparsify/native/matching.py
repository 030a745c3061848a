"""From the names in a recipe to the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from yolact.sparsify.document import matches

ALL = "__ALL__"
PRUNABLE = "__ALL_PRUNABLE__"

_PRUNABLE_LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def parameters_of(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Every parameter with its name, and with that without the wrapper of a quantized layer."""
    for path, module in model.named_modules():
        outer, _, last = path.rpartition(".")
        wrapped = last == "module" and type(model.get_submodule(outer)).__name__ == "QuantWrapper"
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            yield full, f"{outer}.{name}" if wrapped else full, parameter


def matching(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that any of the names and ``re:`` expressions stands for, in its order.

    Raises:
        ValueError: One of them stands for none.
    """
    found, matched = {}, set()
    for name, unwrapped, parameter in parameters_of(model):
        mine = {p for p in patterns if _names(p, name) or _names(p, unwrapped)}
        matched |= mine
        if mine:
            found[name] = parameter
    for pattern in patterns:
        if pattern not in matched:
            raise ValueError(f"no parameter of the model matches {pattern!r}")
    return found


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all convolutions and fully connected layers."""
    layers = [path for path, m in model.named_modules() if isinstance(m, _PRUNABLE_LAYERS)]
    names = [f"{path}.weight" if path else "weight" for path in layers]
    return {name: model.get_parameter(name) for name in names}


def _names(pattern: str, name: str) -> bool:
    return pattern not in (ALL, PRUNABLE) and matches(pattern, name)
