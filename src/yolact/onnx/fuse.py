"""Fold batch normalization into the convolutions of a model copy, before it is traced.

In evaluation mode BN(conv(x)) = (gamma / std) * conv(x) + (beta - mean * gamma / std), which is a
convolution again. A weight that is zero stays exactly zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.nn.intrinsic import qat as intrinsic_qat
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every Conv2d followed by a BatchNorm2d inside one Sequential, in place."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                module[index] = _positive_zeros(fuse_conv_bn_eval(conv, norm))
                module[index + 1] = nn.Identity()


@torch.no_grad()
def _positive_zeros(conv: nn.Conv2d) -> nn.Conv2d:
    """Zeros times a negative scale are -0.0: as good to compute with, but not to compress."""
    conv.weight.add_(0.0)
    return conv


def fold_quantized_batch_norms(model: nn.Module) -> None:
    """Turn quantization-aware Conv+BN modules into quantization-aware convolutions, in place.

    During training torch computes BN(conv(x, fake_quant(w * gamma / std)) / (gamma / std)), so
    that the batch statistics stay those of the unscaled convolution. With frozen statistics the
    division and the BN cancel: a convolution with the same fake-quantized weight and one bias
    gives the same result, and is what runtimes have integer kernels for.
    """
    for name, child in model.named_children():
        if isinstance(child, intrinsic_qat.ConvBn2d):
            setattr(model, name, _folded(child))
        else:
            fold_quantized_batch_norms(child)


def freeze_observers(model: nn.Module) -> None:
    """Stop fake-quantization modules from adapting their ranges to what they are fed."""
    model.apply(torch.ao.quantization.disable_observer)


def _folded(fused: intrinsic_qat.ConvBn2d) -> nn.Module:
    relu = isinstance(fused, intrinsic_qat.ConvBnReLU2d)
    plain = fused.to_float()  # type: ignore[no-untyped-call]
    plain.qconfig = fused.qconfig
    kind: Any = intrinsic_qat.ConvReLU2d if relu else qat.Conv2d
    conv = kind.from_float(plain)
    scale, shift = _scale_and_shift(fused)
    with torch.no_grad():
        # In the order of operations of the training graph: the last bit decides roundings.
        conv.weight.copy_(fused.weight * scale.reshape(-1, 1, 1, 1))
        conv.bias.copy_(shift)
    conv.weight_fake_quant = fused.weight_fake_quant
    if hasattr(fused, "activation_post_process"):  # an output observer is attached as a hook
        conv.activation_post_process = fused.activation_post_process
        conv._forward_hooks = fused._forward_hooks
    folded: nn.Module = conv.train(fused.training)
    return folded


def _scale_and_shift(fused: intrinsic_qat.ConvBn2d) -> tuple[Tensor, Tensor]:
    """Per output channel: BN(y + conv bias) = y * scale + shift."""
    norm = fused.bn
    assert norm.running_mean is not None and norm.running_var is not None
    scale: Tensor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if fused.bias is None else norm.running_mean - fused.bias
    return scale, norm.bias - mean * scale
