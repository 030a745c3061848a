"""Training runs: their length, difficult data, and reaching the recipe's targets."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from training import (
    IMAGES,
    RECIPE,
    STEPS,
    data_of,
    log_lines,
    losses,
    names,
    renamed,
    resume,
    tiny_config,
    tiny_settings,
)
from yolact.checkpoint import load_checkpoint
from yolact.data.loader import EpochBatches
from yolact.errors import DataError
from yolact.restore import build_model
from yolact.sparsify.sparsity import layer_sparsity
from yolact.training.loop import train
from yolact.training.settings import SaveSettings
from yolact.training.start import prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        ({"batch_size": 2, "epochs": 2}, 6, 2),
        ({"batch_size": 3, "epochs": 2}, 4, 2),
        ({"batch_size": 2, "accumulate": 2, "epochs": 2}, 4, 2),
        ({"batch_size": IMAGES, "epochs": 2}, 2, 2),
        ({"batch_size": IMAGES + 5, "epochs": 2}, 2, 2),
        ({"batch_size": 2, "epochs": 1.5}, 4, 2),
        ({"batch_size": 2, "max_iter": 4}, 4, 2),
        ({"batch_size": 2, "max_iter": 1}, 1, 1),
    ],
)
def test_a_run_takes_the_steps_it_was_asked_for(
    tiny_shapes: Path, tmp_path: Path, changes: dict[str, Any], steps: int, epochs: int
) -> None:
    result = train(tiny_settings(tiny_shapes, tmp_path, **changes))
    lines = log_lines(tmp_path, "train")
    assert [line["data"]["iter"] for line in lines] == list(range(1, steps + 1))
    assert lines[-1]["data"]["epoch"] == epochs - 1
    assert result.checkpoint is not None
    assert result.checkpoint.name == f"tiny_{epochs - 1}_{steps}.pth"


def test_the_schedule_is_scaled_to_the_effective_batch(tiny_shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(warmup_until=0)
    for accumulate, lr in ((1, 0.0025), (2, 0.005), (4, 0.01)):
        settings = tiny_settings(
            tiny_shapes, tmp_path, config=config, accumulate=accumulate, autoscale=True
        )
        assert prepare(settings).optim.lr == pytest.approx(lr)


@pytest.mark.slow
def test_a_recipe_sets_the_length_and_the_learning_rate(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    rates = [lr for lr, _ in losses(tmp_path).values()]
    assert len(rates) == 3 * STEPS
    assert rates[0] == pytest.approx(0.01) and rates == sorted(rates, reverse=True)


def special_shapes(tiny_shapes: Path, folder: Path) -> Path:
    """The same images: the first three with nothing, the next three with crowds only."""
    data = renamed(tiny_shapes, folder, "")
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    kept = []
    for annotation in content["annotations"]:
        place = [image["id"] for image in content["images"]].index(annotation["image_id"])
        if place >= 3:
            crowd = np.int64(place < 6).item()
            kept.append(annotation | {"iscrowd": crowd})
    content["annotations"] = kept
    path.write_text(json.dumps(content))
    return data


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_images_without_objects_or_with_crowds_only_train(
    tiny_shapes: Path, tmp_path: Path, recipe: str | None
) -> None:
    data = special_shapes(tiny_shapes, tmp_path / "data")
    changes: dict[str, Any] = {"recipe": recipe} if recipe else {"epochs": 3}
    result = train(tiny_settings(data, tmp_path, batch_size=1, **changes))
    assert result.skipped_steps == 0
    totals = [loss["T"] for _, loss in losses(tmp_path).values()]
    assert len(totals) == 3 * IMAGES and all(np.isfinite(totals))
    assert sum(loss["B"] == loss["M"] == 0 for _, loss in losses(tmp_path).values()) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_and_the_run_can_go_on(
    tiny_shapes: Path, tmp_path: Path, workers: int
) -> None:
    data = renamed(tiny_shapes, tmp_path / "data", "")
    (data / "images").unlink()
    shutil.copytree(tiny_shapes / "images", data / "images")
    order = list(EpochBatches(IMAGES, 2, seed=0))
    broken = data / "images" / f"train_{order[2][0][1]:06}.jpg"  # in the third batch
    whole = broken.read_bytes()
    shape = np.asarray(cv2.imread(str(broken))).shape
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = bytearray(cv2.imencode(".png", noise)[1].tobytes())
    content[len(content) // 2] ^= 0xFF  # seen only when it is decoded
    broken.write_bytes(content)
    settings = tiny_settings(
        data,
        tmp_path,
        data=data_of(data, workers=workers),
        save=SaveSettings(folder=tmp_path / "weights"),
    )
    with pytest.raises(DataError, match=broken.name):
        train(settings)
    assert names(tmp_path / "weights") == ["tiny_0_2_interrupt.pth"]
    broken.write_bytes(whole)
    again = replace(settings, **resume(tmp_path / "weights" / "tiny_0_2_interrupt.pth"))
    result = train(again)
    assert result.checkpoint is not None and result.checkpoint.name == "tiny_1_6.pth"


def test_an_image_that_fails_the_first_step_leaves_no_checkpoint(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    data = renamed(tiny_shapes, tmp_path / "data", "")
    (data / "images").unlink()
    (data / "images").mkdir()
    for path in (tiny_shapes / "images").iterdir():
        (data / "images" / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError):
        train(tiny_settings(data, tmp_path))
    assert names(tmp_path / "weights") == []


def test_training_works_outside_the_main_thread(tiny_shapes: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, tiny_settings(tiny_shapes, tmp_path)).result()
    assert result.checkpoint is not None and result.checkpoint.name == "tiny_1_6.pth"


@pytest.mark.slow
def test_a_recipe_reaches_its_sparsity_and_bits(tiny_shapes: Path, tmp_path: Path) -> None:
    result = train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    assert result.missed == () and result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.quantized
    for layer in layer_sparsity(build_model(checkpoint)):
        pruned = layer.name.startswith("backbone.") or layer.name == "proto_net.0.weight"
        assert layer.sparsity == pytest.approx(0.75 if pruned else 0, abs=0.02), layer.name


def test_a_run_that_ends_too_early_says_which_targets_it_missed(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = "\n".join(line for line in RECIPE.splitlines() if "EpochRange" not in line)
    result = train(tiny_settings(tiny_shapes, tmp_path, recipe=recipe, epochs=1))
    assert len(result.missed) > 5
    assert "has sparsity" in result.missed[0] and "instead of 0.7500" in result.missed[0]
