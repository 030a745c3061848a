"""config.json: settings, class names and learning rates of the original's DarkNet-53 config."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from golden.reference import CONFIG, Reference, idle_recipe
from golden.store import origin, save_json

SCHEDULE = ("lr", "max_iter", "lr_steps")
"""Settings that train.py scales with the batch size."""
ELSEWHERE = ("dataset", "mask_proto_debug", "_tmp_img_h", "_tmp_img_w")
"""Not of the config: listed on its own, made by a command line, or by the last forward pass."""
ITERATIONS = (
    *(0, 1, 2, 50, 250, 499, 500, 501, 1000, 279_999, 280_000, 599_999, 600_000),
    *(699_999, 700_000, 749_999, 750_000, 799_999),
)


def write_config(reference: Reference, folder: Path) -> None:
    """Write config.json."""
    cfg = reference.cfg
    # building a network completes the config
    fixed = constants(reference)
    content = {
        **origin(reference),
        "config_name": CONFIG,
        "config": {
            name: simple(value, activations(reference))
            for name, value in vars(cfg).items()
            if name not in ELSEWHERE
        },
        "class_names": cfg.dataset.class_names,
        "label_map": cfg.dataset.label_map,
        "means_bgr": reference.data.MEANS,
        "std_bgr": reference.data.STD,
        "constants_not_in_config": fixed,
        "lr_schedule": [schedule(reference, size) for size in (8, 16, 4)],
    }
    save_json(folder / "config.json", content)


def activations(reference: Reference) -> dict[Any, str]:
    """The original's activation functions, one of which is a lambda, and their names."""
    return {function: name for name, function in vars(reference.data.activation_func).items()}


def simple(value: Any, names: dict[Any, str]) -> Any:
    """A setting as JSON has it; activations and backbones by name."""
    if isinstance(value, dict):
        return {str(key): simple(part, names) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [simple(part, names) for part in value]
    if isinstance(value, type):
        return f"class:{value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return f"activation:{names[value]}"
    return simple(vars(value), names)


def constants(reference: Reference) -> dict[str, Any]:
    """Numbers that the original keeps in its code, read from the network it builds."""
    network: Any = reference.model.Yolact()
    stages = network.backbone.layers
    norm, activation = network.backbone._preconv[1], network.backbone._preconv[2]
    return {
        "darknet_blocks": [len(stage) - 1 for stage in stages],
        "darknet_channels": list(network.backbone.channels),
        "darknet_stem_channels": network.backbone._preconv[0].out_channels,
        "batchnorm_eps": norm.eps,
        "batchnorm_momentum": norm.momentum,
        "leaky_relu_slope": activation.negative_slope,
        "eval_iou_thresholds": reference.evaluation.iou_thresholds,
    }


def schedule(reference: Reference, batch_size: int) -> dict[str, Any]:
    """The learning rate that the original's training sets at some iterations."""
    cfg = reference.cfg
    with reference.settings(**{name: getattr(cfg, name) for name in SCHEDULE}):
        arguments = ("--cuda=False", "--no_log", "--validation_epoch=-1", "--num_workers=0")
        train = reference.command("train", f"--batch_size={batch_size}", *arguments)
        return {
            "batch_size": batch_size,
            "lr": cfg.lr,
            "max_iter": cfg.max_iter,
            "lr_steps": list(cfg.lr_steps),
            "warmup_init": cfg.lr_warmup_init,
            "warmup_until": cfg.lr_warmup_until,
            "lr_at": [[at, rate_at(train, at)] for at in ITERATIONS],
        }


class _Begun(Exception):
    """Training has reached its first forward pass."""


class _Network(nn.Module):
    """As much of a network as the original's training asks for before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, _: Tensor) -> None: ...

    def init_weights(self, backbone_path: str) -> None: ...

    def freeze_bn(self, enable: bool = False) -> None: ...


def rate_at(train: ModuleType, iteration: int) -> float:
    """Start training as if at an iteration, and look at the optimizer when a batch is asked for."""
    kept: list[torch.optim.Optimizer] = []

    def optimizer(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        kept.append(torch.optim.SGD(*arguments, **options))
        return kept[-1]

    def begun(_: Any) -> None:
        raise _Begun

    stand_ins: dict[str, Any] = {
        "COCODetection": lambda **_: range(10**8),
        "Yolact": _Network,
        "SparseMLWrapper": idle_recipe(),
        "MultiBoxLoss": lambda **_: None,
        "NetLoss": lambda *_: None,
        "CustomDataParallel": lambda _: begun,
        "optim": SimpleNamespace(SGD=optimizer),
        "data": SimpleNamespace(DataLoader=lambda *_, **__: [None]),
    }
    train.args.start_iter = iteration
    train.args.save_folder = "."
    with (
        patch.dict(vars(train), stand_ins),
        # one image is sent through the network first
        patch.object(Tensor, "cuda", lambda self: self),
        redirect_stdout(io.StringIO()),
    ):
        try:
            train.train()
        except _Begun:
            return float(kept[-1].param_groups[0]["lr"])
    raise AssertionError("training did not begin")
