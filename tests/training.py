"""A network and a data set so small that a whole training run takes less than a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolact.checkpoint import Checkpoint, load_checkpoint
from yolact.config import BackboneConfig, ModelConfig, YolactConfig
from yolact.data.sample_set import generate_shapes
from yolact.loss.criterion import Losses, Objective, Supervised, YolactLoss
from yolact.optim_config import OptimConfig
from yolact.training.loop import TrainResult, carry_out
from yolact.training.settings import (
    DataSettings,
    LogSettings,
    SaveSettings,
    StartSettings,
    TrainSettings,
)
from yolact.training.start import prepare
from yolact.training.step import Stepper
from yolact.types import Target

IMAGES = 7
"""Of the training part; three batches of two, and one image left over."""
STEPS = 3
"""Of an epoch with batches of two."""

RECIPE = """
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
- !LearningRateFunctionModifier
  {start_epoch: 0, end_epoch: 3, lr_func: cosine, init_lr: 0.01, final_lr: 0.001}
- !SetWeightDecayModifier {start_epoch: 2, weight_decay: 0.0}
- !GMPruningModifier
  {params: ["re:backbone.*[.]0[.]weight$", proto_net.0.weight], start_epoch: 0, end_epoch: 1.5,
   init_sparsity: 0.2, final_sparsity: 0.75, update_frequency: 0.3, mask_type: unstructured}
- !QuantizationModifier
  {start_epoch: 2, disable_quantization_observer_epoch: 2.7, freeze_bn_stats_epoch: 2.7}
"""
"""Three epochs: pruning through the first half, quantization in the last."""


def tiny_config(**optim: Any) -> YolactConfig:
    """64 px, five residual blocks of a few channels."""
    return YolactConfig(
        name="tiny",
        model=ModelConfig(
            image_size=64,
            backbone=BackboneConfig(
                stem_channels=4, stage_channels=(4, 8, 8, 16, 16), stage_blocks=(1, 1, 1, 1, 1)
            ),
            fpn_channels=8,
            proto_channels=8,
            head_channels=8,
            num_prototypes=4,
            prior_scales=(6, 12, 20, 32, 48),
            prior_base_size=64,
        ),
        optim=OptimConfig(**{"lr": 0.01, "warmup_until": 2, **optim}),
    )


def tiny_resnet(**backbone: Any) -> YolactConfig:
    """The same on a ResNet whose blocks bring their input to another shape, or only add it."""
    widths: dict[str, Any] = {
        "stem_channels": 4,
        "stage_channels": (8, 16, 16, 32),
        "stage_blocks": (2, 1, 2, 1),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        **backbone,
    }
    return tiny_config().with_model(backbone=BackboneConfig(name="resnet", **widths), num_classes=3)


def make_shapes(folder: Path, *, train: int = IMAGES, seed: int = 0) -> Path:
    """Seven images to train on and three to validate on, 48 px, six classes."""
    generate_shapes(folder, train=train, val=3, image_size=48, seed=seed)
    return folder


def data_of(folder: Path, *, workers: int = 0) -> DataSettings:
    """A folder of :func:`make_shapes` as the train command sees it."""
    return DataSettings(
        train_images=folder / "images",
        train_info=folder / "annotations" / "instances_train.json",
        validation_images=folder / "images",
        validation_info=folder / "annotations" / "instances_val.json",
        num_workers=workers,
    )


def tiny_settings(data: Path, out: Path, /, **changes: Any) -> TrainSettings:
    """Two epochs of three steps on the CPU, into ``out``; nothing scaled, no validation."""
    settings = TrainSettings(
        config=tiny_config(),
        data=data_of(data),
        save=SaveSettings(folder=out / "weights", interval=1),
        log=LogSettings(folder=out / "logs"),
        batch_size=2,
        epochs=None if {"max_iter", "recipe"} & changes.keys() else 2,
        autoscale=False,
        device="cpu",
        validation_epoch=-1,
    )
    return replace(settings, **changes)


def log_lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a run's log of one type: session, train or val."""
    lines = (out / "logs" / "tiny.log").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["type"] == kind]


def losses(out: Path) -> dict[int, tuple[float, dict[str, float]]]:
    """Step -> learning rate and losses of the last session that took it."""
    return {
        line["data"]["iter"]: (line["data"]["lr"], line["data"]["loss"])
        for line in log_lines(out, "train")
    }


def differences(one: Path, other: Path) -> list[str]:
    """What two checkpoints do not share bit by bit: weights, optimizer, generators, recipe ..."""
    return unequal(load_checkpoint(one), load_checkpoint(other))


def unequal(one: Checkpoint, other: Checkpoint) -> list[str]:
    """The same of two checkpoints in memory."""
    first, second = dict(_flat(one)), dict(_flat(other))
    return sorted(
        {*first.keys() ^ second.keys()}
        | {key for key in first.keys() & second.keys() if not _same(first[key], second[key])}
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if hasattr(value, "__dataclass_fields__"):
        value = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _flat(part, f"{name}/{index}")
    else:
        yield name, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def resume(path: Path, **more: Any) -> dict[str, Any]:
    """The change of :func:`tiny_settings` that continues a run."""
    return {"start": StartSettings(checkpoint=path, resume=True, **more)}


def renamed(shapes: Path, folder: Path, prefix: str) -> Path:
    """The same data with other class names."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(shapes / "images")
    for path in (shapes / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["name"] = f"{prefix} {category['name']}"
        (folder / "annotations" / path.name).write_text(json.dumps(content))
    return folder


def make_stepper(model: nn.Module, objective: Objective | None = None, **more: Any) -> Stepper:
    """A stepper with plain SGD; it minimises the usual loss unless told otherwise."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    objective = objective or Supervised(YolactLoss(tiny_config().loss))
    return Stepper(model, objective, optimizer, torch.device("cpu"), **more)


class Tampered(Supervised):
    """The usual objective, but for what a test does to it.

    Args:
        act: Gets the network, the images and what computes their losses; returns the losses.
    """

    def __init__(self, act: Callable[[nn.Module, Tensor, Callable[[Tensor], Losses]], Losses]):
        super().__init__(YolactLoss(tiny_config().loss))
        self.act = act

    def __call__(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> Losses:
        compute = super().__call__
        return self.act(model, images, lambda changed: compute(model, changed, targets))


def train_with(objective: Objective, settings: TrainSettings) -> TrainResult:
    """A training run that minimises ``objective``."""
    settings.save.folder.mkdir(parents=True)
    return carry_out(replace(prepare(settings), objective=objective))


def during_step(
    patch: pytest.MonkeyPatch, iteration: int, action: Callable[[], object], times: int = 1
) -> None:
    """Let something happen in the middle of a step."""
    apply = Stepper.apply

    def acting(self: Stepper, current: int, *rest: Any) -> bool:
        if current == iteration:
            for _ in range(times):
                action()
        return apply(self, current, *rest)

    patch.setattr(Stepper, "apply", acting)


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())
