"""Looking at what layers inside a network compute, by the layers' names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from yolact.config import ModelConfig
from yolact.errors import RecipeError
from yolact.model.yolact import Yolact

_FOLLOWERS = (nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU)
"""What belongs to the convolution before it: quantization may fuse them into one layer."""

_TRAINING_ONLY = "semantic_seg_conv"
"""A layer that a teacher, in evaluation mode, does not run."""


def feature_layers(config: ModelConfig, wanted: Sequence[str] | None) -> list[str]:
    """Names of the modules whose outputs are the features of the wanted layers.

    A convolution stands for its group, with the batch norm and the activation that follow it in
    its ``Sequential``: quantization fuses them, and an activation in place overwrites its input.
    The output of the group's last module is the same thing before and after.

    Args:
        config: Of the network; its structure is what counts, so it may be quantized by now.
        wanted: Names of modules; None stands for every convolution.

    Raises:
        RecipeError: The network has no such layer.
    """
    with torch.device("meta"):
        modules = dict(Yolact(config).named_modules())
    if wanted is None:
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        wanted = [name for name in convolutions if name != _TRAINING_ONLY]
    for name in wanted:
        if name not in modules or not name:
            near = get_close_matches(name, modules, n=1, cutoff=0.5) or ["fpn.pred_layers.0"]
            raise RecipeError(
                f"the network has no layer {name!r} to distil", hint=f"try: {near[0]}"
            )
    return [_end_of_group(modules, name) for name in wanted]


def _end_of_group(modules: dict[str, nn.Module], name: str) -> str:
    parent, _, index = name.rpartition(".")
    if not isinstance(modules[name], (nn.Conv2d, *_FOLLOWERS)) or not index.isdigit():
        return name
    following = f"{parent}.{int(index) + 1}"
    follows = isinstance(modules[parent], nn.Sequential) and following in modules
    if follows and isinstance(modules[following], _FOLLOWERS):
        return _end_of_group(modules, following)
    return name


@contextmanager
def watched(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of modules while ``model`` runs inside the ``with`` block.

    Args:
        model: Of one device.
        names: Of its modules.

    Yields:
        Name -> outputs, one for every time the module ran.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: seen[name].append(output)

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in seen]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
