"""Putting convolutions, batch norms and ReLUs together, and replacing layers by rounding ones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from yolact.model import fused_layers, quantized_layers
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.fused_layers import is_fused
from yolact.model.quantized_layers import BatchNormWrapper

_FUSED: dict[tuple[type[nn.Module], ...], type[nn.Sequential]] = {
    (nn.BatchNorm2d,): fused_layers.ConvBn2d,
    (nn.BatchNorm2d, nn.ReLU): fused_layers.ConvBnReLU2d,
    (nn.ReLU,): fused_layers.ConvReLU2d,
}


def fuse(model: nn.Module) -> None:
    """Make one module of each convolution and the batch norm, the ReLU, or both right after it.

    They follow each other in one parent. The fused module takes the place of the convolution,
    identities those of the others. Forward hooks of all go to it.
    """
    for parent in list(model.modules()):
        if is_fused(parent):
            continue
        children = list(parent.named_children())
        for at, (name, conv) in enumerate(children):
            if type(conv) is not nn.Conv2d:
                continue
            after = [child for _, child in children[at + 1 : at + 3]]
            kinds = tuple(type(child) for child in after)
            followers = next((k for k in (kinds, kinds[:1]) if k in _FUSED), None)
            if followers is None:
                continue
            parts = [conv, *after[: len(followers)]]
            fused = _FUSED[followers](*parts)
            fused.training = conv.training
            move_hooks(parts, fused)
            setattr(parent, name, fused)
            for other, _ in children[at + 1 : at + len(parts)]:
                setattr(parent, other, nn.Identity())


def wrap_batch_norms(model: nn.Module, fused: Collection[nn.Module]) -> None:
    """Make the statistics of batch norms freezable, except inside of ``fused``.

    Those get a module that can do it by itself.
    """
    for parent in list(model.modules()):
        if parent in fused and is_fused(parent):
            continue
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                setattr(parent, name, BatchNormWrapper(child))


def with_rounded_weights(
    layer: nn.Module, quantizer: Callable[[nn.Module], nn.Module]
) -> nn.Module | None:
    """What takes the place of a layer in a quantized network; None if it has no weights to round.

    Args:
        layer: Its parameters and forward hooks go to the new one.
        quantizer: From the module that decides, the layer or the convolution in it, to what rounds
            its weights.
    """
    new: nn.Module
    match layer:
        case fused_layers.ConvBn2d():
            new = quantized_layers.ConvBn2d(_conv(layer), _norm(layer), quantizer(layer))
        case fused_layers.ConvBnReLU2d():
            new = quantized_layers.ConvBnReLU2d(_conv(layer), _norm(layer), quantizer(layer))
        case fused_layers.ConvReLU2d():
            new = quantized_layers.ConvReLU2d(_conv(layer), quantizer(layer[0]))
        case nn.Conv2d() if type(layer) is nn.Conv2d:
            new = quantized_layers.Conv2d(layer, quantizer(layer))
        case nn.Linear() if type(layer) is nn.Linear:
            new = quantized_layers.Linear(layer, quantizer(layer))
        case _:
            return None
    move_hooks([layer], new)
    return new


def to_device(model: nn.Module) -> None:
    """Move new quantizers to where the parameters are."""
    parameter = next(model.parameters(), None)
    if parameter is not None:
        for quantizer in fake_quantizers(model):
            quantizer.to(parameter.device)


def move_hooks(parts: Collection[nn.Module], to: nn.Module) -> None:
    """Let forward hooks of ``parts`` be those of ``to``."""
    for part in parts:
        for hook in part._forward_pre_hooks.values():
            to.register_forward_pre_hook(hook)
        for hook in part._forward_hooks.values():
            to.register_forward_hook(hook)
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()


def _conv(fused: Any) -> nn.Conv2d:
    conv: nn.Conv2d = fused[0]
    return conv


def _norm(fused: Any) -> nn.BatchNorm2d:
    norm: nn.BatchNorm2d = fused[1]
    return norm
