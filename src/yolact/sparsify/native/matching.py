"""From the names in a recipe to the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import is_quant_wrapper
from yolact.sparsify.document import matches

ALL = "__ALL__"
PRUNABLE = "__ALL_PRUNABLE__"

_PRUNABLE_LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def parameters_of(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Every parameter with its name, and with that before its layer was fused or wrapped."""
    for path, module in model.named_modules():
        before = _before_fusing(model, path)
        for name, parameter in module.named_parameters(recurse=False):
            yield (
                f"{path}.{name}" if path else name,
                f"{before}.{name}" if before else name,
                parameter,
            )


def matching(
    model: nn.Module, patterns: Sequence[str], *, strict: bool = True
) -> dict[str, nn.Parameter]:
    """The parameters that any of the names and ``re:`` expressions stands for, in its order.

    Raises:
        ValueError: One of them stands for none, and ``strict``.
    """
    found, matched = {}, set()
    for name, before, parameter in parameters_of(model):
        mine = {p for p in patterns if _names(p, name) or _names(p, before)}
        matched |= mine
        if mine:
            found[name] = parameter
    for pattern in patterns:
        if strict and pattern not in matched:
            raise ValueError(f"no parameter of the model matches {pattern!r}")
    return found


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all convolutions and fully connected layers."""
    layers = [path for path, m in model.named_modules() if isinstance(m, _PRUNABLE_LAYERS)]
    names = [f"{path}.weight" if path else "weight" for path in layers]
    return {name: model.get_parameter(name) for name in names}


def _before_fusing(model: nn.Module, path: str) -> str:
    outer, _, last = path.rpartition(".")
    parent = model.get_submodule(outer)
    if last == "module" and is_quant_wrapper(parent):
        return _before_fusing(model, outer)
    if last == "bn":  # inside a quantized convolution, or in the wrapper of a lone one
        return _behind(_before_fusing(model, outer), int(hasattr(parent, "weight_fake_quant")))
    if last.isdigit() and is_fused(parent):
        return _behind(_before_fusing(model, outer), int(last))
    return path


def _behind(path: str, places: int) -> str:
    """The path of the layer some places behind another one in a Sequential."""
    outer, _, last = path.rpartition(".")
    return f"{outer}.{int(last) + places}" if places and last.isdigit() else path


def _names(pattern: str, name: str) -> bool:
    return pattern not in (ALL, PRUNABLE) and matches(pattern, name)
