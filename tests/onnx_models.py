"""Small models for the tests of export, engines and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from conftest import golden_weight
from yolact.checkpoint import Checkpoint, save_checkpoint
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import named_config
from yolact.types import RawOutputs

SIDE = 96
CLASSES = Classes(("cat", "chaise longue", "鳥"), (3, 7, 90))

QUANTIZATION = """
quantization_modifiers:
  - !QuantizationModifier
      start_epoch: 0.0
"""


def small_config() -> YolactConfig:
    """The small network for three classes and 96 px."""
    return named_config("yolact_darknet_small").with_model(image_size=SIDE, num_classes=3)


def small_model() -> Yolact:
    """The small network with weights that keep activations of order 1, in evaluation mode."""
    return with_golden_weights(Yolact(small_config().model)).eval()


def with_golden_weights(model: Yolact) -> Yolact:
    state = model.state_dict()
    for name, value in state.items():
        state[name] = torch.from_numpy(golden_weight(name, tuple(value.shape)))
    model.load_state_dict(state)
    return model


def prune(model: nn.Module, share: float = 0.8) -> None:
    """Set the smallest weights of every convolution to zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                limit = module.weight.abs().flatten().quantile(share)
                module.weight[module.weight.abs() < limit] = 0


PRUNE = partial(prune, share=0.6)


def quantized_model(pruning: Callable[[nn.Module], None] = PRUNE) -> Yolact:
    """A pruned small network whose quantizers have seen a few images, as after training."""
    from yolact.sparsify.recipe import load_recipe
    from yolact.sparsify.structure import apply_structure

    model = small_model()
    pruning(model)
    apply_structure(model, load_recipe(QUANTIZATION))
    for quantizer in fake_quantizers(model):
        quantizer.enable_observer()
    for seed in range(2):
        model.eval()(noise(2, seed))  # with gradients on: observers look at training only
    return model


def noise(count: int, seed: int) -> Tensor:
    """[count, 3, SIDE, SIDE] images."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep the running statistics, scales and shifts of all batch norms as they are.

    ``model.train()`` lets the statistics move again, so call this after it.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)


def outputs_of(model: Yolact, images: Tensor) -> RawOutputs:
    with torch.no_grad():
        outputs: RawOutputs = InferenceModel(model)(images)
    return outputs


def save(model: Yolact, path: Path, recipe: str | None = None) -> Path:
    """Write a checkpoint of a small model."""
    checkpoint = Checkpoint(
        model_state=model.state_dict(),
        epoch=1,
        iteration=10,
        recipe=recipe,
        classes=CLASSES,
        config=small_config(),
    )
    save_checkpoint(path, checkpoint)
    return path
