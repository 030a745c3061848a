"""Recipes without training: masks at once, and ranges of INT8 found on images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnx_models import CLASSES, QUANTIZATION, noise, outputs_of, prune, small_model
from yolact.data.images import read_rgb
from yolact.data.sources import calibration_images, spread
from yolact.data.transforms import preprocess
from yolact.errors import CheckpointError, ConfigError, DataError, RecipeError, TargetMissedError
from yolact.exporter.export import export
from yolact.exporter.graph import conv_weights
from yolact.model.fake_quantize import FakeQuantize, is_fake_quantize
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.sparsify import one_shot
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.check.examine import read_draft
from yolact.sparsify.one_shot import apply_at_once, calibrate
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.sparsity import overall_sparsity
from yolact.sparsify.structure import apply_structure
from yolact.training.start import NoRecipe

pytestmark = pytest.mark.usefixtures("recipe_engine")

IMAGES = [noise(1, seed) for seed in range(3)]

PRUNING = """
pruning_modifiers:
  - !GMPruningModifier
      params: ["re:proto_net[.][0-9]+[.]weight$"]
      init_sparsity: 0.2
      final_sparsity: 0.75
      start_epoch: 1.0
      end_epoch: 7.5
      update_frequency: 0.5
      mask_type: [1, 4]
"""


def structured(recipe: str = QUANTIZATION) -> Yolact:
    """The small network with quantizers that have seen nothing."""
    model = small_model()
    apply_structure(model, load_recipe(recipe))
    return model.eval()


def quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    return {n: module for n, module in model.named_modules() if is_fake_quantize(module)}


@pytest.fixture(scope="module")
def calibrated(recipe_engine: EngineName) -> Yolact:
    model = structured()
    calibrate(model, IMAGES)
    return model


def test_every_quantizer_that_inference_passes_gets_a_range(calibrated: Yolact) -> None:
    for name, quantizer in quantizers(calibrated).items():
        own: Any = quantizer.activation_post_process
        used = not name.startswith("semantic_seg_conv")  # of training only
        assert bool(torch.isfinite(own.min_val).all()) == used, name
        assert bool((quantizer.scale != 1).all()) == used, name
        assert quantizer.fake_quant_enabled[0] == 1 and quantizer.observer_enabled[0] == 0
        assert not quantizer._forward_pre_hooks


def test_weights_batch_norms_and_their_statistics_stay_as_trained(calibrated: Yolact) -> None:
    before = structured().state_dict()
    changed = {
        name.rpartition(".")[2]
        for name, value in calibrated.state_dict().items()
        if value.shape != before[name].shape or not torch.equal(value, before[name])
    }
    assert changed == {"scale", "zero_point", "min_val", "max_val", "observer_enabled"}
    assert sum("running" in name for name in before) == 44


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    apply_structure(model, load_recipe(QUANTIZATION))
    model.train(training)
    assert calibrate(model, IMAGES) == 2
    assert model.training == training


def test_activations_have_the_range_of_the_images_and_weights_their_own(calibrated: Yolact) -> None:
    network_input = quantizers(calibrated)["backbone._preconv.0.quant.activation_post_process"]
    assert float(network_input.scale) == pytest.approx(1 / 255, rel=0.02)
    assert int(network_input.zero_point) == -128
    convolution: Any = dict(calibrated.named_modules())["proto_net.0.module"]
    largest = float(convolution.weight.detach().abs().max())
    assert float(convolution.weight_fake_quant.scale) == pytest.approx(largest / 127.5, rel=1e-5)


def test_rare_values_are_cut_off_where_all_others_gain_more() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    apply_structure(model, load_recipe(QUANTIZATION))
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(4, 1, 3, 128, 128, generator=generator) - 0.5
    values = -draws.sign() * (1 - 2 * draws.abs() + 1e-6).log()  # Laplace's distribution
    calibrate(model, list(values))
    (quantizer,) = [q for n, q in quantizers(model).items() if "weight" not in n]
    full = (float(values.max()) - float(values.min())) / 255
    assert float(quantizer.scale) < 0.95 * full
    error = (quantizer(values) - values).square().mean()
    coarse = torch.fake_quantize_per_tensor_affine(values, full, 0, -512, 511)
    assert error < (coarse - values).square().mean()


@pytest.mark.slow
def test_images_count_the_same_in_any_order() -> None:
    """Moving averages would be near the first image."""
    images = noise(1, seed=9)
    expected = outputs_of(small_model(), images).proto
    errors = []
    for order in (IMAGES, IMAGES[::-1], [*IMAGES, *IMAGES]):
        model = structured()
        calibrate(model, order)
        errors.append(float((outputs_of(model, images).proto - expected).square().mean()))
    assert max(errors) < 1.3 * min(errors)  # about 1 dB


def test_a_calibrated_model_is_close_to_the_float_one(calibrated: Yolact) -> None:
    images = noise(1, seed=9)
    expected, actual = outputs_of(small_model(), images), outputs_of(calibrated, images)
    error = (expected.proto - actual.proto).square().sum() / expected.proto.square().sum()
    assert error < 0.01  # 20 dB


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [QUANTIZATION, "yolact.one_shot_int8"])
def test_the_file_computes_what_the_calibrated_model_computes(recipe: str, tmp_path: Path) -> None:
    model = small_model()
    prune(model, 0.5)
    zeros = {name: value == 0 for name, value in model.state_dict().items() if value.ndim == 4}
    done = apply_at_once(model, load_recipe(recipe), IMAGES)
    report = export(model, CLASSES, tmp_path / "m.onnx", recipe=done.recipe.text, one_shot=done)
    assert report.quantized and report.one_shot is done
    assert all(output.floor is None or output.sqnr >= output.floor for output in report.outputs)
    graph = onnx.load(str(report.path))
    weights = conv_weights(graph)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.int8)}
    plain = {name.replace(".module.", "."): stored for name, stored in weights.items()}
    for name, mask in zeros.items():
        if not name.startswith("semantic"):
            assert not plain[f"{name}_int8"][mask.numpy()].any(), name
    props = {p.key: p.value for p in graph.metadata_props}
    assert props["one_shot"] == "one shot: 102 ranges from 3 images"
    assert props["recipe"] == done.recipe.text


def test_per_channel_ranges_are_one_per_output_channel() -> None:
    model = structured("yolact.one_shot_int8")
    calibrate(model, IMAGES[:1])
    for name, quantizer in quantizers(model).items():
        if name.endswith("weight_fake_quant") and not name.startswith("semantic"):
            convolution: Any = model.get_submodule(name.removesuffix(".weight_fake_quant"))
            assert quantizer.scale.shape == (convolution.out_channels,), name


@pytest.mark.parametrize("config", ["yolact_darknet53", "yolact_darknet_small"])
def test_the_packaged_recipe_fits_both_networks(config: str) -> None:
    with torch.device("meta"):
        model = Yolact(named_config(config).model)
        apply_structure(model, load_recipe("yolact.one_shot_int8"))
    assert quantizers(model)


def test_masks_are_applied_at_once_in_whole_blocks_and_survive_quantization() -> None:
    model = small_model()
    done = apply_at_once(model, load_recipe(PRUNING + QUANTIZATION), IMAGES[:1])
    assert str(done) == "one shot: 5 layers pruned; 102 ranges from 1 images"
    for index in (0, 2, 4, 8, 10):
        convolution: Any = model.get_submodule(f"proto_net.{index}.module")
        used = convolution.weight_fake_quant(convolution.weight)
        blocks = used.unflatten(1, (-1, 4)).eq(0).sum(2)
        assert (blocks == 4).float().mean() == pytest.approx(0.75, abs=0.002)
        pruned = convolution.weight.unflatten(1, (-1, 4)).eq(0).sum(2)
        assert set(pruned.unique().tolist()) == {0, 4}


def test_pruning_at_once_ends_where_training_without_steps_would() -> None:
    model = small_model()
    done = apply_at_once(model, load_recipe(PRUNING.replace("[1, 4]", "unstructured")))
    weight = model.get_parameter("proto_net.0.weight")
    size = small_model().get_parameter("proto_net.0.weight").detach().abs()
    assert torch.equal(weight != 0, size >= size.flatten().quantile(0.75))
    assert str(done) == "one shot: 5 layers pruned" and done.calibrated == done.images == 0


def test_a_model_that_is_sparser_already_is_no_failure() -> None:
    model = small_model()
    prune(model, 0.9)
    text = PRUNING.replace("[1, 4]", "unstructured")
    apply_at_once(model, load_recipe(text))
    assert overall_sparsity(model) == pytest.approx(0.9, abs=0.01)


def test_what_the_weights_went_through_before_stays_in_the_recipe() -> None:
    earlier = load_recipe(PRUNING.replace("0.75", "0.5"))
    done = apply_at_once(small_model(), load_recipe(PRUNING), checkpoint_recipe=earlier)
    assert list(done.recipe.stages) == ["stage_0", "stage_1"]
    assert done.recipe.text.count("final_sparsity: 0.5") == 1


@pytest.mark.slow
def test_a_model_that_is_quantized_already_finds_its_ranges_anew(calibrated: Yolact) -> None:
    model = structured()
    calibrate(model, [10 * image for image in IMAGES])
    apply_at_once(model, load_recipe(QUANTIZATION), IMAGES)
    for name, quantizer in quantizers(model).items():
        assert torch.equal(quantizer.scale, quantizers(calibrated)[name].scale), name


def test_quantizing_needs_images(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(QUANTIZATION)
    with pytest.raises(ConfigError) as caught:
        apply_at_once(small_model(), load_recipe(str(path)))
    assert str(caught.value) == (
        f"{path} quantizes, and the ranges of activations are found on images"
    )
    assert caught.value.hint == (
        "give --calibration_images a folder of about a hundred that are like those the model "
        "will see"
    )


def test_images_need_quantizing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(PRUNING)
    with pytest.raises(ConfigError) as caught:
        apply_at_once(small_model(), load_recipe(str(path)), IMAGES)
    assert str(caught.value) == f"{path} does not quantize, so calibration images have no use"
    assert caught.value.hint == (
        "leave --calibration_images out, or take a recipe with a QuantizationModifier"
    )


@pytest.mark.parametrize("name", ["Movement", "OBS", "MFAC", "ACDC", "TopKAST", "RigL"])
def test_pruning_that_watches_training_is_refused(name: str, tmp_path: Path) -> None:
    more = {
        "ACDC": "compression_sparsity: 0.5\n      global_sparsity: true",
        "TopKAST": "forward_sparsity: 0.5\n      backward_sparsity: 0.2",
        "RigL": "final_sparsity: 0.5",
    }.get(name, "init_sparsity: 0.1\n      final_sparsity: 0.5")
    path = tmp_path / "r.yaml"
    path.write_text(f"""
pruning_modifiers:
  - !{name}PruningModifier
      params: [proto_net.0.weight]
      start_epoch: 0.0
      end_epoch: 4.0
      update_frequency: 1.0
      {more}
""")
    with pytest.raises(RecipeError) as caught:
        apply_at_once(small_model(), read_draft(str(path)).recipe)
    assert str(caught.value) == (
        f"{path}: !{name}PruningModifier learns from training what to prune, and there is none "
        "in one shot"
    )
    assert caught.value.hint == (
        "use !GMPruningModifier, or train with sparseml.yolact.train --recipe"
    )


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = small_model()
    model.get_parameter("proto_net.0.weight").data[0] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        apply_at_once(model, load_recipe(QUANTIZATION), IMAGES)
    assert str(caught.value) == (
        "values that are not finite arrive at proto_net.0.module.weight_fake_quant: "
        "no range can hold them"
    )
    assert caught.value.hint == (
        "the weights are damaged, or training diverged; use an earlier checkpoint"
    )


def test_a_missed_target_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(one_shot, "RecipeDriver", lambda recipe: NoRecipe())  # prunes nothing
    path = tmp_path / "r.yaml"
    path.write_text(PRUNING.replace("re:proto_net[.][0-9]+[.]weight$", "proto_net.0.weight"))
    with pytest.raises(TargetMissedError) as caught:
        apply_at_once(small_model(), load_recipe(str(path)))
    assert str(caught.value) == (
        f"{path} in one shot: proto_net.0.weight has sparsity 0.0000 instead of 0.7500"
    )


def test_a_recipe_without_pruning_and_quantization_does_nothing() -> None:
    model = small_model()
    recipe = load_recipe("m_modifiers:\n  - !SetWeightDecayModifier {weight_decay: 0.1}\n")
    assert str(apply_at_once(model, recipe)) == "one shot: nothing changed"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolact.quantized", "yolact_small.pruned_quant"])
def test_recipes_for_training_work_in_one_shot_as_they_are(name: str) -> None:
    model = small_model()
    assert apply_at_once(model, load_recipe(name), IMAGES[:1]).calibrated == 102
    assert overall_sparsity(model) == pytest.approx(0.776 if "pruned" in name else 0, abs=0.003)


@pytest.mark.slow
def test_channels_go_at_once_and_the_file_is_that_much_smaller(tmp_path: Path) -> None:
    dense = export(small_model(), CLASSES, tmp_path / "dense.onnx")
    model = small_model()
    done = apply_at_once(model, load_recipe("yolact_small.thinned"))
    assert str(done) == "one shot: 0.8 M of 1.3 M parameters left"
    assert export(model, CLASSES, tmp_path / "thinned.onnx").size < 0.75 * dense.size


def write_images(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture = np.random.default_rng(ord(name[0])).integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(folder / name), picture)
    return folder


def test_images_are_chosen_by_name_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", [f"{letter}.png" for letter in "hbdacgfe"])
    (folder / "notes.txt").write_text("no image")
    chosen = [path.name for path in calibration_images(str(folder), 4, 32).paths]
    assert chosen == ["a.png", "c.png", "e.png", "g.png"]
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *path: listing(*path)[::-1])
    again = calibration_images(f"{folder}/*.png", 4, 32)
    assert [path.name for path in again.paths] == chosen and len(again) == 4
    assert len(calibration_images(str(folder), 100, 32)) == 8


def test_images_are_prepared_as_for_inference(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["a.png", "b.png"])
    images = calibration_images(str(folder), 2, 32)
    for _ in range(2):  # read anew
        inputs = list(images)
        assert torch.equal(inputs[1], preprocess(read_rgb(folder / "b.png"), 32)[None])
    assert [tuple(image.shape) for image in inputs] == [(1, 3, 32, 32)] * 2


@pytest.mark.parametrize(("there", "count"), [(5, 5), (5, 9), (7, 3), (100, 99), (1, 1)])
def test_spreading_takes_different_images_in_order(there: int, count: int) -> None:
    paths = [Path(f"{index:03}") for index in range(there)]
    chosen = spread(paths, count)
    assert len(set(chosen)) == len(chosen) == min(there, count) and chosen == sorted(chosen)
    assert chosen[0] == paths[0]


def test_images_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["a.png", "b.png", "c.jpg"])
    (folder / "a.png").write_bytes(b"not an image")
    whole = (folder / "c.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        calibration_images(str(folder), 9, 32)
    assert str(caught.value) == (
        "2 of 3 calibration images cannot be read: "
        f"cannot decode image {folder / 'a.png'}; image {folder / 'c.jpg'} is truncated or damaged"
    )
    assert caught.value.hint == "replace or remove these files"


def test_a_video_is_no_folder_of_images(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        calibration_images(str(path), 9, 32)
    assert str(caught.value) == f"{path} holds videos, not images"
    assert caught.value.hint == ("give a folder of images or a quoted pattern like 'images/*.jpg'")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"no images in {tmp_path}")):
        calibration_images(str(tmp_path), 9, 32)
