"""Sparse transfer: other classes, the same zeros; and every checkpoint on the way is of use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training import (
    RECIPE,
    data_of,
    differences,
    log_lines,
    losses,
    renamed,
    resume,
    tiny_settings,
)
from yolact.checkpoint import classes_of, load_checkpoint
from yolact.data.coco import CocoInstances
from yolact.data.loader import EpochBatches
from yolact.data.transforms import EvalTransform
from yolact.engines.onnxruntime import OrtEngine
from yolact.exporter.export import export
from yolact.model.weights import is_quantized
from yolact.predict.evaluate import evaluate
from yolact.predict.pipeline import Selection
from yolact.restore import CLASS_LAYERS, build_model
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import entries, parse
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.report import report, report_path
from yolact.sparsify.sparsity import convolutions, layer_sparsity
from yolact.sparsify.stages import compose, forget_layers
from yolact.training.loop import TrainResult, train
from yolact.training.settings import SaveSettings, StartSettings
from yolact.training.start import make_plan, prepare

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

PRUNE = """
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: 2}
- !GMPruningModifier
  {params: __ALL_PRUNABLE__, start_epoch: 0, end_epoch: 1, init_sparsity: 0.2,
   final_sparsity: 0.75, update_frequency: 0.3, mask_type: unstructured}
"""
"""All layers, those of the classes too."""
PRUNE_QUANT = (
    PRUNE
    + "- !QuantizationModifier {start_epoch: 1, freeze_bn_stats_epoch: 1.5,\n"
    + ("    disable_quantization_observer_epoch: 1.5}\n")
)
FIRST = {"pruned": PRUNE, "pruned and quantized": PRUNE_QUANT}
SECOND = {
    "yolact.transfer": {"num_epochs": 1},
    "yolact.transfer_quant": {"num_epochs": 2, "num_quantization_epochs": 1},
}


def fewer_classes(shapes: Path, folder: Path) -> Path:
    """The same images with two classes only, whose names are new."""
    other = renamed(shapes, folder, "my")
    for path in (other / "annotations").iterdir():
        content = json.loads(path.read_text())
        keep = [category["id"] for category in content["categories"]][:2]
        content["categories"] = content["categories"][:2]
        for annotation in content["annotations"]:
            annotation["category_id"] = keep[annotation["category_id"] % 2]
        path.write_text(json.dumps(content))
    return other


@dataclass(frozen=True)
class Transfer:
    """A checkpoint, and what a second run on other classes made of it."""

    first: TrainResult
    second: TrainResult
    data: Path
    out: Path
    recipe: dict[str, Any]
    settings: dict[str, Any]

    @property
    def end(self) -> Path:
        assert self.second.checkpoint is not None
        return self.second.checkpoint


@pytest.fixture(scope="module")
def mine(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fewer_classes(tiny_shapes, tmp_path_factory.mktemp("mine") / "data")


@pytest.fixture(scope="module", params=list(FIRST))
def first(
    recipe_engine: EngineName,
    request: pytest.FixtureRequest,
    tiny_shapes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    out = tmp_path_factory.mktemp("first")
    return train(tiny_settings(tiny_shapes, out, recipe=FIRST[request.param]))


@pytest.fixture(scope="module", params=list(SECOND))
def transfer(
    request: pytest.FixtureRequest,
    first: TrainResult,
    mine: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Transfer:
    out = tmp_path_factory.mktemp("second")
    recipe = {"recipe": request.param, "recipe_args": SECOND[request.param]}
    start = {"start": StartSettings(checkpoint=first.checkpoint)}
    result = train(tiny_settings(mine, out, **recipe, **start))
    return Transfer(first, result, mine, out, recipe, start)


def weights_of(path: Path) -> dict[str, Tensor]:
    model = build_model(load_checkpoint(path))
    return {name: conv.weight.detach() for name, conv in convolutions(model).items()}


@pytest.mark.slow
def test_every_zero_stays_where_it_was_and_class_layers_are_new_and_dense(
    transfer: Transfer,
) -> None:
    assert transfer.first.checkpoint is not None and transfer.first.missed == ()
    before, after = weights_of(transfer.first.checkpoint), weights_of(transfer.end)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        if name.startswith(CLASS_LAYERS):
            assert weight.count_nonzero() == weight.numel(), name
            assert len(weight) < len(before[name]), name
        else:
            assert torch.equal(weight == 0, before[name] == 0), name
            assert not torch.equal(weight, before[name]), f"{name} was not trained"


def test_the_report_counts_class_layers_as_dense_and_all_others_as_pruned(
    transfer: Transfer,
) -> None:
    assert transfer.second.missed == () and transfer.second.report is not None
    targets = {layer.name: layer.target for layer in transfer.second.report.layers}
    for name, target in targets.items():
        assert target == (None if name.startswith(CLASS_LAYERS) else 0.75), name
    content = json.loads(report_path(transfer.end).read_text())
    assert content["met"] and content["checkpoint"] == transfer.end.name


@pytest.mark.slow
def test_what_is_quantized_stays_so_and_what_is_to_be_becomes_so(transfer: Transfer) -> None:
    checkpoint = load_checkpoint(transfer.end)
    was = load_checkpoint(transfer.first.checkpoint or Path()).quantized
    assert checkpoint.quantized == (was or transfer.recipe["recipe"].endswith("quant"))
    result = transfer.second.report
    assert result is not None
    assert result.quantized == (len(result.layers) if checkpoint.quantized else 0)
    problems = [layer.weight_quantizer.problem for layer in result.layers if layer.weight_quantizer]
    assert not any(problems)


@pytest.mark.slow
def test_a_resumed_transfer_ends_bit_equal(transfer: Transfer, tmp_path: Path) -> None:
    steps = sorted(losses(transfer.out))
    ways, cont = [transfer.recipe, {"epochs": None}], [{}, {"continue_recipe": True}]
    for step in steps[1:-1:2]:
        way, more = ways[step // 2 % 2], cont[step // 2 % 2]
        (path,) = (transfer.out / "weights").glob(f"tiny_*_{step}.pth")
        save = SaveSettings(folder=tmp_path / str(step), interval=1000)
        again = train(
            tiny_settings(transfer.data, tmp_path, **way, **resume(path, **more), save=save)
        )
        assert again.checkpoint is not None
        assert differences(again.checkpoint, transfer.end) == []


@pytest.mark.slow
def test_a_transferred_model_exports_and_finds_its_own_classes(
    transfer: Transfer, tmp_path: Path
) -> None:
    assert_useful(transfer.end, transfer.data, tmp_path)


def assert_useful(path: Path, data: Path, out: Path) -> None:
    """A checkpoint validates, exports, and its export validates."""
    checkpoint = load_checkpoint(path)
    model, classes = build_model(checkpoint), classes_of(checkpoint)
    result = export(model, classes, out / f"{path.stem}.onnx")
    assert result.quantized == checkpoint.quantized
    images, config = data_of(data), checkpoint.config
    assert config is not None
    validation = CocoInstances(
        images.validation_images, images.validation_info, EvalTransform(config.model.image_size)
    )
    assert len(classes) == len(validation.classes)
    engine = OrtEngine(result.path)
    assert evaluate(engine, validation, Selection(detect=config.detect)).mask["all"] >= 0


@pytest.mark.slow
def test_a_second_transfer_keeps_the_zeros_of_the_first(
    transfer: Transfer, tiny_shapes: Path, tmp_path: Path
) -> None:
    start = StartSettings(checkpoint=transfer.end)
    args = {"recipe": "yolact.transfer", "recipe_args": {"num_epochs": 1}}
    third = train(tiny_settings(tiny_shapes, tmp_path, start=start, **args))
    assert third.missed == () and third.checkpoint is not None
    before, after = weights_of(transfer.end), weights_of(third.checkpoint)
    for name, weight in after.items():
        if not name.startswith(CLASS_LAYERS):
            assert torch.equal(weight == 0, before[name] == 0), name


@pytest.mark.slow
def test_without_a_recipe_zeros_are_not_held_and_nothing_is_promised(
    first: TrainResult, mine: Path, tmp_path: Path
) -> None:
    start = StartSettings(checkpoint=first.checkpoint)
    result = train(tiny_settings(mine, tmp_path, epochs=1, start=start))
    assert result.report is None and result.missed == () and result.checkpoint is not None
    assert not report_path(result.checkpoint).exists()


# Which promises move along


MIXED = """
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: 2}
- !GMPruningModifier
  {params: [a.weight, c.weight], init_sparsity: 0.1, final_sparsity: 0.5,
   start_epoch: 0, end_epoch: 1, update_frequency: 1}
- !GMPruningModifier
  {params: ["re:c.*"], init_sparsity: 0.1, final_sparsity: 0.5,
   start_epoch: 0, end_epoch: 1, update_frequency: 1}
- !GMPruningModifier
  {params: [], init_sparsity: 0.1, final_sparsity: {0.5: [a.weight], 0.9: [c.weight]},
   start_epoch: 0, end_epoch: 1, update_frequency: 1}
- !ConstantPruningModifier {params: __ALL_PRUNABLE__}
- !ConstantPruningModifier {params: [b.weight]}
- !TrainableParamsModifier {params: [c.weight], trainable: false, start_epoch: 0}
"""


def test_pruning_of_layers_that_begin_anew_is_forgotten() -> None:
    recipe = forget_layers(load_recipe(MIXED), ["a.weight", "b.weight", "c.weight"], ["c."])
    assert recipe is not None
    found = [(e.name, e.fields.get("params"), e.fields) for e in recipe.entries][1:]
    assert [(name, params) for name, params, _ in found] == [
        ("GMPruningModifier", ["a.weight"]),
        ("GMPruningModifier", []),
        ("ConstantPruningModifier", ["a.weight", "b.weight"]),
        ("ConstantPruningModifier", ["b.weight"]),
        ("TrainableParamsModifier", ["c.weight"]),
    ]
    assert found[1][2]["final_sparsity"] == {0.5: ["a.weight"]}


def test_a_recipe_that_only_made_the_forgotten_leaves_nothing() -> None:
    recipe = load_recipe("- !ConstantPruningModifier {params: [c.weight]}\n")
    assert forget_layers(recipe, ["a.weight", "c.weight"], ["c."]) is None
    left = forget_layers(compose(recipe, load_recipe(MIXED)), ["a.weight", "c.weight"], ["c."])
    assert left is not None and "stage_0" in left.stages
    left.manager()  # whose first stage is empty


# Checkpoints before, during and after quantization


@pytest.fixture(scope="module")
def whole(
    recipe_engine: EngineName, tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three epochs of three steps, quantized from step 6 on, ranges fixed from step 8.1 on."""
    out = tmp_path_factory.mktemp("whole")
    train(tiny_settings(tiny_shapes, out, recipe=RECIPE))
    return out / "weights"


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 6, 7, 8, 9])
def test_checkpoints_around_quantization_export_and_validate(
    whole: Path, tiny_shapes: Path, tmp_path: Path, step: int
) -> None:
    (path,) = whole.glob(f"tiny_*_{step}.pth")
    assert load_checkpoint(path).quantized == (step > 6)
    assert_useful(path, tiny_shapes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 6, 7, 9])
def test_any_of_them_can_be_transferred(whole: Path, mine: Path, tmp_path: Path, step: int) -> None:
    (path,) = whole.glob(f"tiny_*_{step}.pth")
    args = {"recipe": "yolact.transfer_quant"}
    short = {"num_epochs": 1, "num_quantization_epochs": 0.5}
    start = StartSettings(checkpoint=path)
    result = train(tiny_settings(mine, tmp_path, start=start, recipe_args=short, **args))
    assert result.missed == () and result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.recipe is not None
    model = build_model(checkpoint)
    assert is_quantized(model)
    assert report(model, load_recipe(checkpoint.recipe)).missed == ()
    sparsity = {layer.name: layer.sparsity for layer in layer_sparsity(model)}
    assert sparsity["proto_net.0.weight"] == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_a_checkpoint_of_the_reference_is_transferred_by_its_stored_recipe(
    whole: Path, mine: Path, tmp_path: Path
) -> None:
    """Such files hold weights, epoch and recipe only."""
    (path,) = whole.glob("tiny_*_9.pth")
    state = load_checkpoint(path)
    bare = tmp_path / "theirs.pth"
    content = {"epoch": 2, "model_state_dict": dict(state.model_state)}
    torch.save(content | {"checkpoint_recipe": state.recipe}, bare)
    args = {"recipe": "yolact.transfer", "recipe_args": {"num_epochs": 1}}
    start = StartSettings(checkpoint=bare)
    result = train(tiny_settings(mine, tmp_path, start=start, **args))
    assert result.missed == () and result.report is not None
    assert result.report.quantized == len(result.report.layers)
    before, after = weights_of(path), weights_of(result.checkpoint or Path())
    name = "proto_net.0.weight"
    assert torch.equal(before[name] == 0, after[name] == 0)


# The clock


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 9), st.floats(0.01, 50))
def test_loop_and_recipe_agree_on_every_epoch(
    images: int, batch_size: int, accumulate: int, epochs: float
) -> None:
    batches = len(EpochBatches(images, batch_size))
    plan = make_plan(batches_per_epoch=batches, accumulate=accumulate, max_iter=1, epochs=epochs)
    steps = plan.steps_per_epoch
    assert abs(plan.total_steps - epochs * steps) <= 0.5 or plan.total_steps == 1
    for epoch in range(min(plan.epochs, 5)):
        assert plan.batch_of(epoch * steps) == (epoch, 0)
        assert epoch * steps / steps == epoch, "an epoch begins at a whole number"


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 3), (3, 1), (4, 1), (7, 1), (5, 4)])
def test_a_recipe_keeps_its_promises_at_awkward_sizes(
    tiny_shapes: Path, tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    changes = {"batch_size": batch_size, "accumulate": accumulate, "recipe": RECIPE}
    save = SaveSettings(folder=tmp_path / "weights")
    result = train(tiny_settings(tiny_shapes, tmp_path, save=save, **changes))
    run = prepare(tiny_settings(tiny_shapes, tmp_path, **changes))
    assert result.missed == () and result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.iteration == 3 * run.plan.steps_per_epoch == run.plan.total_steps
    assert checkpoint.position == 3 and checkpoint.epoch == 2 and checkpoint.quantized
    epochs = [line["data"]["epoch"] for line in log_lines(tmp_path, "train")]
    assert epochs == [epoch for epoch in range(3) for _ in range(run.plan.steps_per_epoch)]


@pytest.mark.parametrize("name", list(SECOND))
def test_transfer_recipes_only_hold_zeros(name: str) -> None:
    recipe = parse(load_recipe(name).text, name)
    pruning = [e for e in entries(recipe) if e.name.endswith("PruningModifier")]
    assert [(e.name, e.fields["params"]) for e in pruning] == [
        ("ConstantPruningModifier", "__ALL_PRUNABLE__")
    ]
