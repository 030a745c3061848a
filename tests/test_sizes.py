"""Sizes of the network input: how they are written, what they do to priors, and square or not."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from training import differences, losses, resume, tiny_config, tiny_settings
from yolact.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolact.cli.base import Command
from yolact.cli.options import options, options_of
from yolact.config import ModelConfig, YolactConfig
from yolact.data.transforms import Stretch, TrainTransform, preprocess
from yolact.engines import load_engine
from yolact.errors import ConfigError
from yolact.model.priors import make_priors
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.restore import bare_subject, config_for, config_to_train
from yolact.sizes import ImageSize, read_image_size
from yolact.sparsify.check.forecast import count_macs
from yolact.training.loop import train
from yolact.training.settings import StartSettings
from yolact.training.start import prepare

SMALL = named_config("yolact_darknet_small")
sides = st.integers(64, 900)
sizes = st.one_of(sides, st.tuples(sides, sides))


@pytest.mark.parametrize(
    ("text", "size"),
    [("550", 550), ("96 160", (96, 160)), ("96x160", (96, 160)), ("96,160", (96, 160))],
)
def test_a_size_is_a_side_or_height_and_width(text: str, size: ImageSize) -> None:
    assert read_image_size(text) == size


@pytest.mark.parametrize("text", ["", "wide", "96.5", "1e3", "96 160 3", "96x", "nan", "0x60"])
def test_what_is_no_size_is_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SMALL.with_model(image_size=read_image_size(text))
    assert "image size" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    "size", [0, -1, 63, 4097, (96, 63), (4097, 96), (96, 96, 3), (96.0, 96.0), "96", True, ()]
)
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="image size") as caught:
        ModelConfig(image_size=size)
    assert caught.value.hint


@pytest.mark.parametrize("base", [0, -1, float("nan"), float("inf")])
def test_impossible_bases_of_priors_are_refused(base: float) -> None:
    with pytest.raises(ConfigError, match="prior base size"):
        ModelConfig(prior_base_size=base)


@settings(max_examples=25)
@given(sizes)
def test_sizes_are_stored_as_one_number_where_they_are_square(size: ImageSize) -> None:
    config = SMALL.with_model(image_size=size)
    stored = json.loads(json.dumps(config.to_dict()))
    height, width = config.model.input_size
    assert stored["model"]["image_size"] == (height if height == width else [height, width])
    assert YolactConfig.from_dict(stored) == config


@pytest.mark.parametrize(
    ("words", "size", "rest"),
    [
        ("--image_size 550", 550, ()),
        ("--image-size 96 160 a", (96, 160), ("a",)),
        ("--image_size=96x160 7", (96, 160), ("7",)),
        ("--image_size 96 -- 160", 96, ("160",)),
        ("a --image_size 96 160", (96, 160), ("a",)),
        ("--image_size 550 --image_size 96 160", (96, 160), ()),
        ("-- --image_size 96", 550, ("--image_size", "96")),
    ],
)
def test_an_option_takes_one_number_or_two(
    words: str, size: ImageSize, rest: tuple[str, ...]
) -> None:
    found: list[Any] = []

    @click.command(cls=Command)
    @options(*options_of(ModelConfig, "image_size"), click.argument("rest", nargs=-1))
    def example(image_size: Any, rest: tuple[str, ...]) -> None:
        found.append((read_image_size(str(image_size)), rest))

    result = CliRunner().invoke(example, words.split())
    assert result.exit_code == 0, result.output
    assert found == [(size, rest)]


GRIDS = [(6, 10), (3, 5), (2, 3), (1, 2), (1, 1)]


@settings(deadline=None, max_examples=25)
@given(st.tuples(sides, sides))
def test_priors_are_square_in_pixels_whatever_the_shape(size: tuple[int, int]) -> None:
    height, width = size
    config = replace(SMALL.model, image_size=size)
    priors = make_priors(GRIDS, config).double().numpy()
    np.testing.assert_allclose(priors[:, 2] * width, priors[:, 3] * height, rtol=1e-6)
    square = make_priors(GRIDS, replace(config, image_size=512)).double().numpy()
    np.testing.assert_allclose(priors[:, 2:].prod(1), square[:, 2:].prod(1), rtol=1e-6)
    assert (priors[:, :2] == square[:, :2]).all()
    turned = make_priors([grid[::-1] for grid in GRIDS], replace(config, image_size=size[::-1]))
    assert {tuple(row) for row in turned[:, [1, 0, 3, 2]].tolist()} == {
        tuple(row) for row in make_priors(GRIDS, config).tolist()
    }


@settings(deadline=None, max_examples=25)
@given(sides, sides)
def test_priors_of_squares_do_not_depend_on_their_size(one: int, other: int) -> None:
    first, second = (replace(SMALL.model, image_size=size) for size in (one, other))
    assert torch.equal(make_priors(GRIDS, first), make_priors(GRIDS, second))


@settings(max_examples=25)
@given(sizes, sizes, st.floats(32, 2000))
def test_trained_weights_meet_priors_of_as_many_pixels(
    trained: ImageSize, wanted: ImageSize, base: float
) -> None:
    before = ModelConfig(image_size=trained, prior_base_size=base)
    after = ModelConfig().for_weights(before, wanted)
    assert after.input_size == ModelConfig(image_size=wanted).input_size
    assert after.pixels_per_scale == pytest.approx(before.pixels_per_scale, rel=1e-9)
    again = after.for_weights(after)
    assert again.prior_base_size == pytest.approx(after.prior_base_size, rel=1e-9)
    assert replace(again, prior_base_size=after.prior_base_size) == after
    assert before.for_weights(before).prior_base_size == pytest.approx(base, rel=1e-9)
    assert before.for_weights(before, wanted, 200).prior_base_size == 200


@pytest.mark.parametrize(
    ("model", "size", "base"),
    [
        (ModelConfig(), 700, 700),
        (ModelConfig(), 96, 96),
        (ModelConfig(image_size=300), 400, 550 * 400 / 300),  # trained with relative priors
        (SMALL.model, 96, 96),
        (SMALL.model, (64, 256), 128),
    ],
)
def test_bases_of_other_sizes(model: ModelConfig, size: ImageSize, base: float) -> None:
    assert model.for_weights(model, size).prior_base_size == pytest.approx(base)


@pytest.mark.parametrize("base", [128, 550])
@pytest.mark.parametrize("side", [64, 96, 128, 200, 550])
@pytest.mark.parametrize("between", [96, 550, (96, 160), (65, 127), (384, 640)])
def test_back_at_an_earlier_size_priors_are_what_they_were(
    side: int, base: int, between: ImageSize
) -> None:
    before = ModelConfig(image_size=side, prior_base_size=base)
    away = before.for_weights(before, between)
    back = away.for_weights(away, side)
    assert back == before
    assert isinstance(back.prior_base_size, int)


def test_other_scales_are_other_priors() -> None:
    other = replace(SMALL.model, prior_scales=(1, 2, 3, 4, 5), prior_base_size=99)
    assert other.for_weights(SMALL.model, 256).prior_base_size == 99


def checkpoint_at(size: ImageSize, base: float, config: YolactConfig = SMALL) -> Checkpoint:
    model = replace(config.model, image_size=size, prior_base_size=base)
    return Checkpoint(model_state={}, config=replace(config, model=model))


@pytest.mark.parametrize(
    ("size", "base", "words"),
    [
        (None, None, None),
        (128, 128, None),
        (96, None, "trained at 128 px, now used at 96 px: priors have as many pixels "
         "(prior_base_size 96, was 128)"),
        ((64, 256), None, "trained at 128 px, now used at 64 x 256 px: priors have as many pixels "
         "(prior_base_size 128, was 128)"),
        (256, 128, "trained at 128 px, now used at 256 px: priors have 2 times as many pixels "
         "(prior_base_size 128, was 128)"),
        (None, 64, "trained at 128 px, now used at 128 px: priors have 2 times as many pixels "
         "(prior_base_size 64, was 128)"),
    ],
)  # fmt: skip
def test_another_size_or_base_is_told_in_one_line(
    size: ImageSize | None,
    base: float | None,
    words: str | None,
    package_log: pytest.LogCaptureFixture,
) -> None:
    package_log.set_level(logging.INFO)
    config = config_for(checkpoint_at(128, 128), "m.pth", None, size, base)
    assert config.model.image_size == (128 if size is None else size)
    assert package_log.messages == ([f"m.pth: {words}"] if words else [])


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [(128, None, 128), (96, None, 96), (200, None, 128), (200, 200, 200), (96, 128, 128)],
)
def test_training_at_another_size_takes_the_larger_priors(
    size: int, base: float | None, expected: float
) -> None:
    wanted = SMALL.with_model(image_size=size)
    config = config_to_train(checkpoint_at(128, 128), "m.pth", wanted, base)
    assert (config.model.image_size, config.model.prior_base_size) == (size, expected)
    again = config_to_train(checkpoint_at(size, expected), "m.pth", wanted, None)
    assert again == config


def test_weights_of_other_tools_are_of_the_published_size() -> None:
    bare, wanted = Checkpoint(model_state={}), YolactConfig().with_model(image_size=320)
    assert config_to_train(bare, "m.pth", wanted, None).model.prior_base_size == 320
    assert config_to_train(None, None, wanted, None) == wanted
    assert config_to_train(None, None, wanted, 400).model.prior_base_size == 400


@pytest.mark.parametrize("size", [(48, 80), (80, 48), 64])
def test_stretching_gives_masks_and_boxes_the_shape_of_the_image(size: ImageSize) -> None:
    masks = torch.zeros(2, 100, 60, dtype=torch.uint8)
    masks[0, 20:60, 6:36], masks[1, 50:100, 30:60] = 1, 1
    boxes = torch.tensor([[6.0, 20, 36, 60], [30, 50, 60, 100]])
    objects = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(100, 60)),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.zeros(2, dtype=torch.int64),
        "crowd": torch.zeros(2, dtype=torch.bool),
    }
    image = tv_tensors.Image(masks.amax(0).float().expand(3, -1, -1) * 255)
    stretched, found = Stretch(size)(image, objects)
    height, width = ModelConfig(image_size=64).input_size if size == 64 else size  # type: ignore[misc]
    assert stretched.shape == (3, height, width) and found["masks"].shape == (2, height, width)
    share = found["boxes"] / torch.tensor([width, height, width, height])
    torch.testing.assert_close(share, boxes / torch.tensor([60, 100, 60, 100]))
    for mask, (x1, y1, x2, y2) in zip(found["masks"], found["boxes"].round().int(), strict=True):
        assert mask[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
        assert mask.sum() <= (y2 - y1 + 2) * (x2 - x1 + 2)
    drawn, _ = TrainTransform(size, SMALL.augment)(image.to(torch.uint8), objects)
    assert drawn.shape == (3, height, width)


def test_preprocessing_a_turned_picture_turns_the_input() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 50, 3), np.uint8)
    upright = preprocess(picture, (64, 96))
    turned = preprocess(np.ascontiguousarray(picture.transpose(1, 0, 2)), (96, 64))
    torch.testing.assert_close(turned, upright.transpose(1, 2), atol=1e-5, rtol=0)


def test_operations_follow_the_area() -> None:
    def macs(size: ImageSize) -> int:
        subject = bare_subject(tiny_config(), size)
        return count_macs(subject.model, subject.config.model.image_size)

    assert macs((128, 256)) == macs((256, 128)) == 2 * macs(128) == macs(256) / 2


def save_tiny(path: Path, size: ImageSize = 64) -> Path:
    config = tiny_config().with_model(image_size=size, num_classes=2)
    state = Yolact(config.model).state_dict()
    save_checkpoint(path, Checkpoint(model_state=state, config=config))
    return path


def test_a_checkpoint_runs_at_any_size_and_a_stored_one(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m.pth", (64, 96))
    assert load_engine(path).image_size == (64, 96)
    engine = load_engine(path, image_size=(96, 72))
    assert engine.image_size == (96, 72)
    outputs = engine(torch.zeros(1, 3, 96, 72))
    assert all(bool(value.isfinite().all()) for value in outputs)
    wide, high = (outputs.priors[:, 2:] * torch.tensor([72, 96])).unbind(1)
    torch.testing.assert_close(wide, high)
    trained = load_engine(path)(torch.zeros(1, 3, 64, 96)).priors[:, 2:] * torch.tensor([96, 64])
    assert {f"{side:.4f}" for side in wide} == {f"{side:.4f}" for side in trained[:, 0]}


@pytest.mark.slow
def test_a_run_at_another_shape_trains_validates_and_goes_on_bit_by_bit(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    config = tiny_config().with_model(image_size=(64, 96))
    whole = tiny_settings(tiny_shapes, tmp_path / "a", config=config, validation_epoch=1)
    done = train(whole)
    assert done.checkpoint is not None and done.evaluation is not None
    assert all(
        np.isfinite(list(terms.values())).all() for _, terms in losses(tmp_path / "a").values()
    )
    stored = load_checkpoint(done.checkpoint).config
    assert stored is not None and stored.model.image_size == (64, 96)
    start = resume(tmp_path / "a" / "weights" / "tiny_0_3.pth")
    again = train(replace(whole, save=replace(whole.save, folder=tmp_path / "b"), **start))
    assert again.checkpoint is not None
    assert differences(done.checkpoint, again.checkpoint) == []


@pytest.mark.slow
def test_a_run_that_goes_on_at_another_size_says_it_as_the_option_takes_it(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=3))
    going_on = resume(tmp_path / "weights" / "tiny_0_3.pth")
    wide = tiny_config().with_model(image_size=(64, 96))
    prepare(tiny_settings(tiny_shapes, tmp_path / "b", config=wide, max_iter=6, **going_on))
    assert any("image_size 64 x 96 instead of 64" in line for line in package_log.messages)


@pytest.mark.slow
def test_a_run_from_a_checkpoint_of_another_size_stores_its_priors_and_goes_on(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    first = train(tiny_settings(tiny_shapes, tmp_path / "a"))
    larger = tiny_config().with_model(image_size=96)
    start = StartSettings(checkpoint=first.checkpoint, prior_base_size=80)
    settings = tiny_settings(tiny_shapes, tmp_path / "b", config=larger, start=start)
    second = train(settings)
    assert second.checkpoint is not None
    stored = load_checkpoint(second.checkpoint).config
    assert stored is not None and stored.model.prior_base_size == 80
    going_on = resume(tmp_path / "b" / "weights" / "tiny_0_3.pth")
    run = prepare(tiny_settings(tiny_shapes, tmp_path / "c", config=larger, **going_on))
    assert run.config.model.prior_base_size == run.model.config.prior_base_size == 80
