"""Layers whose weights, inputs or outputs are rounded in training; batch norms that can be frozen.

Class names, attributes, state-dict names and arithmetic are those that sparseml's
quantization-aware training gives a model by torch.ao's modules: recipes name the classes, and
checkpoints of either load into the other. Layers take over the parameters of those they replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from yolact.model.fake_quantize import FakeQuantize, is_fake_quantize


class _Conv2d(nn.Conv2d):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",  # these weights go at once: drawing them would move the generator
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.training = conv.training


class Conv2d(_Conv2d):
    """A convolution.

    Attributes:
        weight_fake_quant: Rounds the weight; the identity where it is not rounded.
    """

    def __init__(self, conv: nn.Conv2d, weight_fake_quant: nn.Module) -> None:
        """Take the place of ``conv``."""
        super().__init__(conv)
        self.weight_fake_quant = weight_fake_quant

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W']."""
        output: Tensor = self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)
        return output


class ConvReLU2d(Conv2d):
    """A convolution and a ReLU; attributes as of :class:`Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W']."""
        return F.relu(super().forward(input))


class _Freezable(nn.Module):
    """Something with a batch norm ``bn`` whose statistics can be frozen."""

    bn: nn.Module
    freeze_bn = False

    def freeze_bn_stats(self) -> Self:
        """Keep the statistics as they are."""
        self.freeze_bn = True
        self.bn.eval()
        return self

    def update_bn_stats(self) -> Self:
        """Learn the statistics (again)."""
        self.freeze_bn = False
        self.bn.train()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen statistics stay frozen."""
        if not self.freeze_bn:
            return super().train(mode)
        self.training = mode
        return self


class ConvBn2d(_Freezable, _Conv2d):
    """A convolution and its batch norm; weights are rounded as they will be when both are one.

    Attributes:
        bn: The batch norm.
        weight_fake_quant: Rounds the weight; the identity where it is not rounded.
        freeze_bn: Whether the statistics are frozen.
    """

    bn: nn.BatchNorm2d

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, weight_fake_quant: nn.Module) -> None:
        """Take the place of both."""
        super().__init__(conv)
        self.bn = bn
        self.weight_fake_quant = weight_fake_quant

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W'].

        The scale that a weight is rounded with is taken out of the result again: the batch norm
        sees what the convolution alone gives (https://arxiv.org/abs/1806.08342, section 3.2.2).
        """
        assert self.bn.running_var is not None
        scale = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        weight = self.weight_fake_quant(self.weight * scale.reshape(-1, 1, 1, 1))
        x = self._conv_forward(input, weight, None) / scale.reshape(1, -1, 1, 1)
        if self.bias is not None:
            x = x + self.bias.reshape(1, -1, 1, 1)
        normed: Tensor = self.bn(x)
        return normed


class ConvBnReLU2d(ConvBn2d):
    """A convolution, its batch norm and a ReLU; attributes as of :class:`ConvBn2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W']."""
        return F.relu(super().forward(input))


class Linear(nn.Linear):
    """A fully connected layer.

    Attributes:
        weight_fake_quant: Rounds the weight; the identity where it is not rounded.
    """

    def __init__(self, linear: nn.Linear, weight_fake_quant: nn.Module) -> None:
        """Take the place of ``linear``."""
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self.weight_fake_quant = weight_fake_quant

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(input, self.weight_fake_quant(self.weight), self.bias)


class BatchNormWrapper(_Freezable):
    """A batch norm by itself.

    Attributes:
        bn: The batch norm; wrapped once more where its input is rounded.
        freeze_bn: Whether the statistics are frozen.
    """

    def __init__(self, bn: nn.Module) -> None:
        """Wrap ``bn``."""
        super().__init__()
        self.bn = bn
        self.training = bn.training

    def forward(self, input: Tensor) -> Tensor:
        """What the batch norm makes of ``input``."""
        normed: Tensor = self.bn(input)
        return normed


class QuantStub(nn.Module):
    """Rounds the input of a layer.

    Attributes:
        activation_post_process: Does it.
    """

    def __init__(self, activation_post_process: nn.Module) -> None:
        """Round by this."""
        super().__init__()
        self.activation_post_process = activation_post_process

    def forward(self, input: Tensor) -> Tensor:
        """``input``, rounded."""
        rounded: Tensor = self.activation_post_process(input)
        return rounded


class DeQuantStub(nn.Module):
    """Stands where integers become floats again; here they are floats all along."""

    def forward(self, input: Any) -> Any:
        """``input`` itself."""
        return input


class QuantWrapper(nn.Module):
    """A layer whose input is rounded.

    Attributes:
        quant: Rounds the input.
        dequant: Does nothing.
        module: The layer.
    """

    def __init__(self, module: nn.Module, activation_post_process: nn.Module) -> None:
        """Wrap ``module``."""
        super().__init__()
        self.quant = QuantStub(activation_post_process)
        self.dequant = DeQuantStub()
        self.module = module
        self.training = module.training

    def forward(self, input: Tensor) -> Any:
        """What the layer makes of ``input``, rounded."""
        return self.dequant(self.module(self.quant(input)))


def round_output(module: nn.Module, activation_post_process: FakeQuantize) -> None:
    """Round what ``module`` returns, before its other forward hooks see it."""
    module.add_module("activation_post_process", activation_post_process)
    module.register_forward_hook(_round_output, prepend=True)


def _round_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    rounded: Tensor = module.get_submodule("activation_post_process")(output)
    return rounded


def is_quant_wrapper(module: nn.Module) -> TypeGuard[QuantWrapper]:
    """Whether ``module`` wraps a layer to round its input: one of this file or of torch.ao."""
    return type(module).__name__ == QuantWrapper.__name__


def coarse_depthwise(model: nn.Module) -> list[tuple[nn.Conv2d, FakeQuantize]]:
    """Depthwise convolutions whose weights are rounded with one range for all their channels.

    Also those of torch.ao; with what rounds their weights.
    """
    found = []
    for module in model.modules():
        quantizer = getattr(module, "weight_fake_quant", None)
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            if is_fake_quantize(quantizer) and not quantizer.is_per_channel:
                found.append((module, quantizer))
    return found


def freezable_batch_norms(model: nn.Module) -> Iterator[ConvBn2d | BatchNormWrapper]:
    """Modules of ``model`` with batch norms that can be frozen: of this file or of torch.ao."""
    found: Iterator[Any] = (m for m in model.modules() if hasattr(m, "freeze_bn_stats"))
    return found
