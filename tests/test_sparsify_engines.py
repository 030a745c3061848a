"""Whole training runs by packaged recipes: either engine leaves the same checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipe_engines import needs_sparseml
from training import differences, resume, tiny_config, tiny_settings
from yolact.checkpoint import load_checkpoint
from yolact.config import YolactConfig, yolact_darknet_small
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.recipe import packaged_recipes, read_document
from yolact.sparsify.recipe_engines import default_engine, why_no_sparseml
from yolact.training.loop import train

TRAINING = [name for name in packaged_recipes() if name != "yolact.one_shot_int8"]
LENGTH = {"num_epochs": 2, "num_quantization_epochs": 0.67}
"""Six steps, of which the last two are quantized where a recipe does that."""


def network(recipe: str) -> YolactConfig:
    """Few channels, but layers of all the names that the recipe has."""
    small = yolact_darknet_small().model
    narrow = tiny_config()
    blocks = small.stage_blocks if "small" in recipe else (1, 2, 8, 8, 4)
    channels = (8, 8, 8, 16, 16)  # half of them is a whole block of four
    return replace(
        narrow,
        model=replace(narrow.model, stem_channels=8, stage_blocks=blocks, stage_channels=channels),
    )


def run(name: str, engine: EngineName, data: Path, out: Path, **more: Any) -> Path:
    """Train by a packaged recipe; the folder of the checkpoints of every step."""
    variables = read_document(name)[0]
    settings = tiny_settings(
        *(data, out),
        config=network(name),
        recipe=name,
        recipe_args={key: value for key, value in LENGTH.items() if key in variables},
        recipe_engine=engine,
        **more,
    )
    train(settings)
    return out / "weights"


def at_step(weights: Path, step: int) -> Path:
    (path,) = [p for p in weights.glob("*.pth") if load_checkpoint(p).iteration == step]
    return path


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_both_engines_leave_the_same_checkpoints(
    name: str, tiny_shapes: Path, tmp_path: Path
) -> None:
    ours, theirs = (
        run(name, engine, tiny_shapes, tmp_path / engine) for engine in ("native", "sparseml")
    )
    for step in range(1, 7):
        assert differences(at_step(ours, step), at_step(theirs, step)) == [], step


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("first", ["native", "sparseml"])
@pytest.mark.parametrize("name", ["yolact.pruned_quant", "yolact_small.thinned_quant"])
def test_a_run_that_one_engine_began_goes_on_with_the_other(
    name: str, first: EngineName, tiny_shapes: Path, tmp_path: Path
) -> None:
    whole = run(name, first, tiny_shapes, tmp_path / "whole")
    second: EngineName = "sparseml" if first == "native" else "native"
    for step in (2, 5):  # before quantization begins, and after
        out = tmp_path / f"from {step}"
        train(
            tiny_settings(
                *(tiny_shapes, out),
                config=network(name),
                recipe_engine=second,
                epochs=None,
                **resume(at_step(whole, step)),
            )
        )
        assert differences(at_step(out / "weights", 6), at_step(whole, 6)) == [], step


class Broken(MetaPathFinder):
    """Lets the import of sparseml end with an error, as packages that do not fit it do."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "yolact.sparsify.sparseml":
            raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("no scipy\nmore"), "no scipy"),
        (ValueError("numpy.dtype size changed"), "numpy.dtype size changed"),
        (TypeError(), "TypeError"),
    ],
)
def test_a_sparseml_that_fails_in_its_import_leaves_the_native_engine(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    for name in ("yolact.sparsify.sparseml", "yolact.sparsify.sparseml.engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    why_no_sparseml.cache_clear()
    try:
        assert (default_engine(), why_no_sparseml()) == ("native", reason)
    finally:
        why_no_sparseml.cache_clear()
