"""Whole training runs by packaged recipes: either engine leaves the same checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from recipe_engines import needs_sparseml
from training import differences, resume, tiny_config, tiny_settings
from yolact.checkpoint import load_checkpoint
from yolact.config import BackboneConfig, ModelConfig, YolactConfig
from yolact.presets import LITE0, yolact_darknet_small, yolact_resnet50
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import packaged_recipes, read_document, read_source
from yolact.training.loop import train
from yolact.training.settings import SaveSettings

PARTS = [
    f"yolact_{family}.{kind}"
    for family in ("lite0", "resnet")
    for kind in ("pruned", "pruned_quant", "quantized", "thinned")
]
"""What they do, thinned_quant of their family does too, and recipes of DarkNet."""
TRAINING = [name for name in packaged_recipes() if name not in ("yolact.one_shot_int8", *PARTS)]
LENGTH = {"num_epochs": 2, "num_quantization_epochs": 1.1, "quantization_start_target": 0.5}
"""Six steps, of which the last three are quantized where a recipe does that."""


BACKBONES = {
    "yolact_lite0": replace(
        LITE0, stem_channels=8, stage_channels=(8,) * 7, stage_blocks=(1, 2, 2, 2, 2, 2, 1)
    ),
    "yolact_resnet": replace(
        yolact_resnet50().model.backbone,
        stem_channels=8,
        stage_channels=(32, 32, 32, 64),
        stage_blocks=(2, 1, 1, 1),
    ),
}
"""Of other families than DarkNet, by the beginning of their recipes' names."""


def network(recipe: str) -> YolactConfig:
    """Few channels and few layers, but those of all the names that the recipe has."""
    narrow = tiny_config()
    other = BACKBONES.get(recipe.split(".")[0])
    if other is not None:
        return replace(narrow, model=replace(narrow.model, backbone=other))
    names_all = "backbone.layers.3.8." in read_source(recipe)[0]
    blocks = (ModelConfig() if names_all else yolact_darknet_small().model).backbone.stage_blocks
    channels = (8, 8, 8, 16, 16)  # half of them is a whole block of four
    return replace(
        narrow,
        model=replace(
            narrow.model,
            backbone=BackboneConfig(stem_channels=8, stage_blocks=blocks, stage_channels=channels),
        ),
    )


Runs = Callable[[str, EngineName], Path]
"""From a recipe and an engine to the checkpoints of a run: three on the way, one at the end."""


@pytest.fixture(scope="module")
def runs(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each run happens once, whichever tests look at it."""

    @cache
    def weights(name: str, engine: EngineName) -> Path:
        return run(name, engine, tiny_shapes, tmp_path_factory.mktemp(name) / engine)

    return weights


def run(name: str, engine: EngineName, data: Path, out: Path) -> Path:
    """Train by a packaged recipe; the folder of the checkpoints."""
    variables = read_document(name)[0]
    settings = tiny_settings(
        *(data, out),
        config=network(name),
        recipe=name,
        recipe_args={key: value for key, value in LENGTH.items() if key in variables},
        recipe_engine=engine,
        save=every(2, out),
    )
    train(settings)
    return out / "weights"


def every(steps: int, out: Path) -> SaveSettings:
    """A checkpoint after as many steps, again and again."""
    return SaveSettings(folder=out / "weights", interval=steps)


def at_step(weights: Path, step: int) -> Path:
    (path,) = [p for p in weights.glob("*.pth") if load_checkpoint(p).iteration == step]
    return path


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_both_engines_leave_the_same_checkpoints(name: str, runs: Runs) -> None:
    for step in (2, 4, 6):
        ours, theirs = (at_step(runs(name, engine), step) for engine in ("native", "sparseml"))
        assert differences(ours, theirs) == [], step


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4], ids=["before quantization", "quantized"])
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("yolact.transfer_quant", "native", "sparseml"),
        ("yolact_small.pruned_quant", "sparseml", "native"),
        ("yolact_small.thinned_quant", "native", "sparseml"),
        ("yolact_small.thinned_quant", "sparseml", "native"),
    ],
)
def test_a_run_that_one_engine_began_goes_on_with_the_other(
    name: str,
    first: EngineName,
    second: EngineName,
    step: int,
    runs: Runs,
    tiny_shapes: Path,
    tmp_path: Path,
) -> None:
    whole = runs(name, first)
    assert load_checkpoint(at_step(whole, step)).quantized == (step == 4)
    train(
        tiny_settings(
            *(tiny_shapes, tmp_path),
            config=network(name),
            recipe_engine=second,
            epochs=None,
            save=every(6, tmp_path),
            **resume(at_step(whole, step)),
        )
    )
    assert differences(at_step(tmp_path / "weights", 6), at_step(whole, 6)) == []
