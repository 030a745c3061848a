"""Which channels of a network belong together.

A channel that one convolution writes is read by others; where tensors are added, several
convolutions write the same channels. Such a set of channels is a group.

Groups are found by running the network on tensors without values and following the channels through
every operation. An operation that is not known to leave channels apart and in place keeps those
that it touches from being removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolact.config import ModelConfig
from yolact.model.yolact import Yolact

_PARTS = ("backbone", "fpn", "proto_net", "prediction_layers", "semantic_seg_conv")
"""Of the network, as groups and their members are sorted; recipes remove channels in this order."""

NORM_STATE = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a batch norm, one value for each channel."""

_SPATIAL = frozenset(
    {
        *("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"),
        *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        *("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"),
        *("reflection_pad2d", "replication_pad2d"),
    }
)
"""Operations on [B, C, H, W] that mix no channels."""

_PER_VALUE = frozenset({"hardswish", "hardswish_", "_to_copy", "detach", "alias"})
"""Operations on single values that torch does not tag as such."""


@dataclass(frozen=True)
class Writer:
    """A convolution whose output channels are the group's."""

    conv: str
    """Name of the module."""
    norm: str | None = None
    """Name of the batch norm behind it."""
    depthwise: bool = False
    """Whether each of its output channels is made of the same input channel alone."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together."""

    width: int
    """Channels before any is removed."""
    writers: tuple[Writer, ...]
    readers: tuple[str, ...]
    """Names of the convolutions whose input channels are the group's."""
    norms: tuple[str, ...] = ()
    """Names of the batch norms that are not right behind a writer."""

    @property
    def name(self) -> str:
        """Of the convolution that writes them first."""
        return self.writers[0].conv

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters by which recipes address the group."""
        return tuple(f"{writer.conv}.weight" for writer in self.writers)


@cache
def channel_groups(
    config: ModelConfig, without: frozenset[str] = frozenset()
) -> tuple[ChannelGroup, ...]:
    """Every group of the network whose size is free, from the image to the outputs.

    Not free are the channels of image, boxes, classes, mask coefficients and prototypes, and those
    that an unknown operation reads.

    Args:
        config: Of the network.
        without: Names of the layers in whose places identities are.
    """
    with torch.device("meta"):
        model = Yolact(config).eval()
        images = torch.empty(1, 3, *config.input_size)
    for layer in without:
        model.set_submodule(layer, nn.Identity())
    model.training = True  # of its parts none: only the convolution that is for training runs too
    return groups_of(model, images)


@torch.inference_mode(mode=False)
@torch.no_grad()
def groups_of(model: nn.Module, images: Tensor) -> tuple[ChannelGroup, ...]:
    """The groups of any network, in the order in which the last convolution writes into them.

    Args:
        model: Not quantized. What does not run keeps its channels.
        images: What it runs on, [B, C, H, W].
    """
    trace = _Trace(model)
    with trace:
        outputs = model(images)
    for tensor in _tensors(outputs):
        trace.fix(tensor)
    return tuple(trace.groups())


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, learns which channels of a network are the same.

    The channels of a tensor have a number, and so have those that a convolution reads, those that
    it writes, and those of a batch norm. Numbers that mean the same channels are united.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._channels: dict[Tensor, int] = {}
        self._owners: dict[Tensor, str] = {}
        self._widths: dict[str, int] = {}
        self._reads: dict[str, int] = {}
        self._writes: dict[str, int] = {}
        self._normed: dict[str, int] = {}
        self._writers: dict[str, Writer] = {}
        self._made_by: dict[Tensor, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                self._reads[name], self._writes[name] = self._new(), self._new()
                self._widths[name] = module.out_channels
                self._own(name, module, "weight", "bias")
            elif isinstance(module, nn.BatchNorm2d):
                self._normed[name] = self._new()
                self._own(name, module, *NORM_STATE)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and follow the channels through it."""
        results = func(*args, **(kwargs or {}))
        names = (argument.name for argument in func._schema.arguments)
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        name = func._schema.name.removeprefix("aten::")
        inputs, outputs = list(_tensors(given)), list(_tensors(results))
        if name == "convolution" and self._owner(given, "weight", "bias") in self._reads:
            self._convolution(given, results)
        elif "batch_norm" in name and self._owner(given, *NORM_STATE) in self._normed:
            self._batch_norm(given, outputs[0])
        elif not _keeps_channels(name, torch.Tag.pointwise in func.tags, given):
            for tensor in (*inputs, *outputs):
                self.fix(tensor)
        else:
            self._same(inputs, outputs)
        return results

    def fix(self, tensor: Tensor) -> None:
        """Let the channels of ``tensor`` stay."""
        self._fixed.add(self._root(self._of(tensor)))

    def groups(self) -> list[ChannelGroup]:
        """What was learnt."""
        rank = {part: number for number, part in enumerate(_PARTS)}
        order = sorted(self._writers, key=lambda name: rank.get(name.split(".")[0], 0))
        place = {name: number for number, name in enumerate(order)}
        writers, readers, norms = (defaultdict[int, list[Any]](list) for _ in range(3))
        for name in order:
            writers[self._root(self._writes[name])].append(self._writers[name])
            if not self._writers[name].depthwise:
                readers[self._root(self._reads[name])].append(name)
        behind = {writer.norm for writer in self._writers.values()}
        for name, channels in self._normed.items():
            if name not in behind:
                norms[self._root(channels)].append(name)
        free = [root for root in writers if root not in self._fixed]
        free.sort(key=lambda root: place[writers[root][-1].conv])
        return [
            ChannelGroup(
                width=self._widths[writers[root][0].conv],
                writers=tuple(writers[root]),
                readers=tuple(readers[root]),
                norms=tuple(norms[root]),
            )
            for root in free
        ]

    def _convolution(self, given: Mapping[str, Any], output: Tensor) -> None:
        name, source = self._owners[given["weight"]], self._of(given["input"])
        reads, writes = self._reads[name], self._writes[name]
        width = given["weight"].shape[0]
        depthwise = 1 < given["groups"] == width == given["input"].shape[1]
        self._unite(source, reads)
        self._unite(self._of(output, new=True), writes)
        if depthwise:
            self._unite(reads, writes)
        elif given["groups"] > 1 or given["transposed"]:
            self._fixed |= {self._root(reads), self._root(writes)}
        self._writers.setdefault(name, Writer(name, depthwise=depthwise))
        self._made_by[output] = name

    def _batch_norm(self, given: Mapping[str, Any], output: Tensor) -> None:
        name, source = self._owner(given, *NORM_STATE), self._of(given["input"])
        self._unite(source, self._normed[name])
        self._unite(self._of(output, new=True), self._normed[name])
        conv = self._made_by.get(given["input"])
        if conv is not None and self._writers[conv].norm is None:
            self._writers[conv] = replace(self._writers[conv], norm=name)

    def _same(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Unite the channels of tensors that are broadcast against each other."""
        for output in outputs:
            self._of(output, new=output.ndim > 1)
            for tensor in inputs:
                if tensor.ndim == output.ndim > 1:
                    if tensor.shape[1] == output.shape[1]:
                        self._unite(self._of(tensor), self._of(output))
                elif tensor.numel() > 1:  # which of its axes are channels is not known
                    self.fix(tensor)
                    self.fix(output)

    def _own(self, name: str, module: nn.Module, *attributes: str) -> None:
        for attribute in attributes:
            tensor = getattr(module, attribute)
            if tensor is None:
                continue
            if tensor in self._owners:  # to cut it with one of its layers would break the other
                self._fix_layer(self._owners[tensor])
                self._fix_layer(name)
            self._owners[tensor] = name

    def _owner(self, given: Mapping[str, Any], *names: str) -> str:
        """The layer that all these arguments are parameters of; "" if there is none."""
        tensors = [given[name] for name in names if given[name] is not None]
        owners = {self._owners.get(tensor, "") for tensor in tensors}
        return owners.pop() if len(owners) == 1 else ""

    def _of(self, tensor: Tensor, *, new: bool = False) -> int:
        """The number of a tensor's channels; what nobody has made keeps them."""
        if tensor not in self._channels:
            self._channels[tensor] = self._new()
            if not new:
                self.fix(tensor)
                self._fix_layer(self._owners.get(tensor, ""))
        return self._channels[tensor]

    def _fix_layer(self, name: str) -> None:
        for channels in (self._reads, self._writes, self._normed):
            if name in channels:
                self._fixed.add(self._root(channels[name]))

    def _new(self) -> int:
        self._parents.append(len(self._parents))
        return self._parents[-1]

    def _root(self, channels: int) -> int:
        while self._parents[channels] != channels:
            channels = self._parents[channels]
        return channels

    def _unite(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[other] = one
        if other in self._fixed:
            self._fixed.add(one)


def _keeps_channels(name: str, per_value: bool, given: Mapping[str, Any]) -> bool:
    """Whether each channel of an operation's result is made of the same channel of its inputs."""
    if per_value or name in _PER_VALUE or name in _SPATIAL:
        return True
    if name == "constant_pad_nd":
        return bool(len(given["pad"]) <= 2 * (given["self"].ndim - 2))
    if name == "mean" and given.get("dim") and given.get("keepdim"):
        return all(axis % given["self"].ndim > 1 for axis in given["dim"])
    return False


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
