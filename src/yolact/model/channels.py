"""Removing channels from a network: which matter least, and cutting them out.

Removing a channel means removing it from its whole group (:mod:`yolact.model.channel_groups`). What
is left is an ordinary, smaller dense network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from yolact.model.channel_groups import NORM_STATE, ChannelGroup

_OUT, _IN = 0, 1
"""Axes of a convolution's weight."""


def width_of(model: nn.Module, group: ChannelGroup) -> int:
    """Channels that a group has now."""
    return _conv(model, group.writers[0].conv).out_channels


def channel_scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    """How much of what the group's readers compute comes from each of its channels.

    The energy of a channel times the squared weights that read it. Behind a batch norm, a channel
    has mean beta and deviation gamma, so that its energy is known without looking at images;
    elsewhere the squared weights that write it stand for it. Channels that are added contribute
    the sum of their energies. Behind depthwise convolutions, theirs are what is read.

    Returns:
        [width], >= 0, on the model's device.
    """
    writers = [writer for writer in group.writers if writer.depthwise] or group.writers
    energy = sum(_written(model, writer.conv, writer.norm) / len(writers) for writer in writers)
    read = sum(_per_mean(_squares(_conv(model, name), _IN)) for name in group.readers)
    return torch.as_tensor(energy * read)


def remove_channels(
    model: nn.Module, group: ChannelGroup, keep: Tensor, optimizer: Optimizer | None = None
) -> None:
    """Keep only some channels of a group, in place.

    Parameters stay the same objects, so that an optimizer goes on with them; its momentum and
    gradients are cut alike.

    Args:
        model: Float, not quantized.
        group: One of the model's.
        keep: [n] int64, indices of the channels to keep.
        optimizer: The one that trains the model, if any.
    """
    for writer in group.writers:
        conv = _conv(model, writer.conv)
        _cut(conv, ("weight", "bias"), _OUT, keep, optimizer)
        conv.out_channels = len(keep)
        if writer.depthwise:
            conv.in_channels = conv.groups = len(keep)
    behind = (writer.norm for writer in group.writers if writer.norm is not None)
    for name in dict.fromkeys([*behind, *group.norms]):
        norm = _norm(model, name)
        _cut(norm, NORM_STATE, _OUT, keep, optimizer)
        norm.num_features = len(keep)
    for name in group.readers:
        conv = _conv(model, name)
        _cut(conv, ("weight",), _IN, keep, optimizer)
        conv.in_channels = len(keep)


def _written(model: nn.Module, conv: str, norm: str | None) -> Tensor:
    if norm is None:
        return _per_mean(_squares(_conv(model, conv), _OUT))
    layer = _norm(model, norm)
    if not layer.affine:
        return _conv(model, conv).weight.new_ones(layer.num_features)
    return _per_mean(layer.weight.detach().square() + layer.bias.detach().square())


def _squares(conv: nn.Conv2d, axis: int) -> Tensor:
    """Sum of the squared weights of each channel on ``axis``."""
    return conv.weight.detach().square().sum([a for a in range(4) if a != axis])


def _per_mean(values: Tensor) -> Tensor:
    """Relative to their mean, so that layers of other scales weigh the same."""
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


def _cut(
    module: nn.Module,
    names: Sequence[str],
    axis: int,
    keep: Tensor,
    optimizer: Optimizer | None,
) -> None:
    for name in names:
        tensor: Tensor | None = getattr(module, name)
        if tensor is None:
            continue
        gradient, whole = tensor.grad, tensor.shape
        tensor.grad = None  # torch checks its shape against the data's
        tensor.data = _kept(tensor.data, axis, keep)
        if gradient is not None:
            tensor.grad = _kept(gradient, axis, keep)
        state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == whole:
                state[key] = _kept(value, axis, keep)


def _kept(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    kept = tensor.index_select(axis, keep)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return kept.contiguous(memory_format=torch.channels_last)
    return kept.contiguous()


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _norm(model: nn.Module, name: str) -> nn.BatchNorm2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    return module
