"""What recipes call the parameters of a network, whatever quantization has made of its layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_FUSED = ("ConvBn2d", "ConvBnReLU2d", "ConvReLU2d")
"""Classes of layers that are fused and not quantized: their parts are numbered."""


def named_parameters(model: nn.Module) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
    """Every parameter once, with its name in the network and that in the network before fusing.

    Both are the same for layers that nothing has fused or wrapped.
    """
    for path, module in model.named_modules():
        original = _before_fusing(model, path)
        for name, parameter in module.named_parameters(recurse=False):
            yield (f"{path}.{name}", f"{original}.{name}"), parameter


def _before_fusing(model: nn.Module, path: str) -> str:
    outer, _, last = path.rpartition(".")
    parent = model.get_submodule(outer)
    kind = type(parent).__name__
    if last == "module" and kind == "QuantWrapper":
        return _before_fusing(model, outer)
    if last == "bn":  # inside a quantized convolution, or in the wrapper of a lone one
        return _behind(
            _before_fusing(model, outer), 1 if hasattr(parent, "weight_fake_quant") else 0
        )
    if last.isdigit() and kind in _FUSED:
        return _behind(_before_fusing(model, outer), int(last))
    return path


def _behind(path: str, places: int) -> str:
    """The path of the layer some places behind another one in a Sequential."""
    outer, _, last = path.rpartition(".")
    return f"{outer}.{int(last) + places}" if places and last.isdigit() else path
