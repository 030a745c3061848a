"""Recipes that remove channels: schedule, checkpoints, quantization after it, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from training import STEPS, differences, renamed, resume, tiny_config, tiny_settings
from yolact.checkpoint import classes_of, load_checkpoint
from yolact.config import YolactConfig
from yolact.errors import RecipeError
from yolact.exporter.export import export
from yolact.model.channel_groups import channel_groups
from yolact.model.channels import width_of
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact
from yolact.presets import yolact_darknet53, yolact_darknet_small
from yolact.restore import build_model
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.check.forecast import count_macs
from yolact.sparsify.native.thinning import ChannelThinningModifier
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure
from yolact.training.loop import train
from yolact.training.settings import SaveSettings, StartSettings

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

THINNING = """
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
- !ChannelThinningModifier
  {params: ["re:backbone.*[.]0[.]weight$", "re:fpn[.].*[.]weight$"], start_epoch: 0.5,
   end_epoch: 1.5, update_frequency: 0.4, final_width: 0.5, multiple_of: 2}
- !ChannelThinningModifier
  {params: proto_net.2.weight, start_epoch: 1, end_epoch: 1, final_width: 0.25, multiple_of: 1}
"""
QUANTIZING = f"{THINNING}- !QuantizationModifier {{start_epoch: 2}}\n"


def modifier(**changes: Any) -> ChannelThinningModifier:
    fields: dict[str, Any] = {
        "params": "proto_net.0.weight",
        "start_epoch": 1.0,
        "end_epoch": 3.0,
        "update_frequency": 0.5,
        "final_width": 0.5,
    }
    return ChannelThinningModifier(**{**fields, **changes})


def widths(model: nn.Module) -> dict[str, int]:
    return {group.name: width_of(model, group) for group in channel_groups(tiny_config().model)}


def test_channels_go_quickly_at_first_and_at_the_end_of_every_interval() -> None:
    fractions = [modifier().fraction_at(epoch / 4) for epoch in range(16)]
    assert fractions[:6] == [1.0] * 6
    assert fractions[6] == fractions[7] == pytest.approx(0.5 + 0.5 * 0.75**3)
    assert fractions[12:] == [0.5] * 4
    assert fractions == sorted(fractions, reverse=True)


def test_without_an_end_all_channels_go_at_the_start() -> None:
    at_once = modifier(end_epoch=-1.0)
    assert [at_once.fraction_at(epoch) for epoch in (0.99, 1.0, 7.0)] == [1.0, 0.5, 0.5]


@pytest.fixture(scope="module")
def thinned(
    recipe_engine: EngineName, tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("thinned")
    train(tiny_settings(tiny_shapes, out, recipe=QUANTIZING))
    return out / "weights"


def at(folder: Path, step: int) -> Path:
    (path,) = folder.glob(f"tiny_*_{step}.pth")
    return path


@pytest.mark.slow
def test_widths_fall_to_what_the_recipe_wants(thinned: Path) -> None:
    last = build_model(load_checkpoint(at(thinned, 2 * STEPS)))
    assert widths(last) == {
        "backbone._preconv.0": 2,
        **{f"backbone.layers.{i}.1.conv1.0": width for i, width in enumerate((2, 2, 2, 4, 4))},
        **{f"backbone.layers.{i}.0.0": width for i, width in enumerate((2, 4, 4, 8, 8))},
        **{"fpn.lat_layers.0": 4, "fpn.pred_layers.0": 4, "prediction_layers.0.upfeature.0": 8},
        **{"proto_net.0": 8, "proto_net.2": 2, "proto_net.4": 8, "proto_net.8": 8},
    }
    first = build_model(load_checkpoint(at(thinned, 1)))
    assert sum(widths(first).values()) > sum(widths(last).values())


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 3 * STEPS))
def test_a_run_continues_exactly_through_thinning_and_into_quantization(
    thinned: Path, tiny_shapes: Path, tmp_path: Path, step: int
) -> None:
    again = tiny_settings(tiny_shapes, tmp_path, recipe=QUANTIZING, **resume(at(thinned, step)))
    result = train(again)
    assert result.checkpoint is not None
    assert differences(result.checkpoint, at(thinned, 3 * STEPS)) == []


@pytest.mark.slow
def test_a_run_continues_exactly_before_and_after_a_layer_is_removed(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = (
        "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"
        "- !LayerPruningModifier {layers: [backbone.layers.2.1], start_epoch: 1}\n"
    )
    whole = SaveSettings(folder=tmp_path / "whole", interval=1)
    train(tiny_settings(tiny_shapes, tmp_path, recipe=recipe, epochs=None, save=whole))
    for step in (STEPS, STEPS + 1):
        begin = resume(at(whole.folder, step))
        settings = tiny_settings(tiny_shapes, tmp_path, recipe=recipe, epochs=None, **begin)
        result = train(settings)
        assert result.checkpoint is not None
        assert differences(result.checkpoint, at(whole.folder, 2 * STEPS)) == []


@pytest.mark.slow
def test_a_thinned_and_quantized_checkpoint_is_loaded_by_its_recipe_and_exported(
    thinned: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(at(thinned, 3 * STEPS))
    model = build_model(checkpoint)
    assert is_quantized(model)
    export(model, classes_of(checkpoint), tmp_path / "thinned.onnx")
    graph = onnx.load(tmp_path / "thinned.onnx").graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert max(dims[0] for dims in shapes.values() if len(dims) == 4) <= 21  # (1 + 6) x 3 classes


def test_another_run_goes_on_from_the_thinned_weights(
    thinned: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    pruning = """
    - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}
    - !GMPruningModifier
      {params: ["re:backbone.*[.]0[.]weight$"], start_epoch: 0, end_epoch: 1, init_sparsity: 0.2,
       final_sparsity: 0.5, update_frequency: 0.3, mask_type: unstructured}
    """
    start = StartSettings(checkpoint=at(thinned, 2 * STEPS))
    data = renamed(tiny_shapes, tmp_path / "data", "new")
    result = train(tiny_settings(data, tmp_path, recipe=pruning, start=start))
    assert result.checkpoint is not None and not result.missed
    checkpoint = load_checkpoint(result.checkpoint)
    assert widths(build_model(checkpoint)) == widths(
        build_model(load_checkpoint(at(thinned, 2 * STEPS)))
    )
    assert checkpoint.recipe is not None and checkpoint.recipe.index(
        "!ChannelThinningModifier"
    ) < checkpoint.recipe.index("!GMPruningModifier")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "epoch", "most"),
    [
        ("yolact.thinned", yolact_darknet53(), 20, 20e9),
        ("yolact.thinned_quant", yolact_darknet53(), 20, 20e9),
        ("yolact_small.thinned", yolact_darknet_small(), 2, 0.14e9),
        ("yolact_small.thinned_quant", yolact_darknet_small(), 2, 0.14e9),
    ],
)
def test_packaged_recipes_leave_less_work(
    name: str, config: YolactConfig, epoch: float, most: float
) -> None:
    with torch.device("meta"):
        model = Yolact(config.model).eval()
    apply_structure(model, load_recipe(name), epoch)
    assert count_macs(model, config.model.image_size) <= most


REFUSED = {
    "prunes": (
        f"{THINNING}- !GMPruningModifier {{params: [proto_net.0.weight], start_epoch: 2, "
        "end_epoch: 3, init_sparsity: 0.1, final_sparsity: 0.5, update_frequency: 0.1}\n",
        "the recipe prunes weights and removes channels in one stage",
        "remove channels in a first run, and prune its checkpoint in a second",
    ),
    "quantizes": (
        f"{THINNING}- !QuantizationModifier {{start_epoch: 1}}\n",
        "the recipe quantizes before the last channels are removed, at epoch 1.5",
        "let the QuantizationModifier start when the ChannelThinningModifier has ended",
    ),
    "wider": (
        "- !ChannelThinningModifier {params: proto_net.0.weight, final_width: 1.5}\n",
        "the recipe: ChannelThinningModifier: need 0 < final_width <= init_width <= 1, "
        "got 1.5 and 1.0",
        "check the fields of this modifier",
    ),
    "multiple": (
        "- !ChannelThinningModifier\n"
        "  {params: proto_net.0.weight, final_width: 0.5, multiple_of: 0}\n",
        "the recipe: ChannelThinningModifier: multiple_of must be at least 1, got 0",
        "check the fields of this modifier",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_recipes_are_refused(case: str) -> None:
    recipe, message, hint = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert str(caught.value) == message
    assert caught.value.hint == hint


def test_outputs_of_the_network_keep_their_channels() -> None:
    recipe = "- !ChannelThinningModifier {params: proto_net.10.weight, final_width: 0.5}\n"
    with pytest.raises(RecipeError) as caught:
        apply_structure(Yolact(tiny_config().model), load_recipe(recipe))
    assert str(caught.value) == (
        "ChannelThinningModifier cannot remove output channels of 'proto_net.10.weight'"
    )
    assert caught.value.hint == (
        "outputs of the network keep their channels; name a convolution inside it"
    )


def test_only_yolact_is_thinned() -> None:
    with pytest.raises(RecipeError, match="knows the channels of YOLACT, not of Conv2d"):
        modifier().attach(nn.Conv2d(1, 1, 1), 0)
