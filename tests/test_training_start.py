"""How a run begins: weights, classes, recipes, and what is refused before the first step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import (
    IMAGES,
    RECIPE,
    STEPS,
    data_of,
    differences,
    names,
    renamed,
    resume,
    tiny_config,
    tiny_settings,
)
from yolact.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError, RecipeError, StorageError
from yolact.model.weights import init_weights, is_quantized
from yolact.model.yolact import Yolact
from yolact.presets import yolact_darknet_small
from yolact.restore import CLASS_LAYERS, build_model
from yolact.sparsify.sparsity import layer_sparsity
from yolact.training.loop import train
from yolact.training.origin import Origin
from yolact.training.settings import SaveSettings, StartSettings
from yolact.training.start import prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


def random_model(config: YolactConfig, classes: int = 6) -> Yolact:
    torch.manual_seed(1)
    model = Yolact(config.with_model(num_classes=classes).model)
    init_weights(model)
    return model


def test_a_bare_state_dict_begins_at_the_step_in_its_name(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny_1_4.pth"
    model = random_model(tiny_config())
    torch.save(model.state_dict(), path)
    start = StartSettings(checkpoint=path, resume=True, start_iter=-1)
    run = prepare(tiny_settings(tiny_shapes, tmp_path, start=start))
    assert (run.iteration, run.resumed, run.origin) == (4, None, f"checkpoint {path}")
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    result = train(tiny_settings(tiny_shapes, tmp_path, start=start))
    assert result.checkpoint is not None and result.checkpoint.name == "tiny_1_6.pth"


@pytest.mark.parametrize(
    ("start", "step"),
    [
        ({"resume": True}, 0),
        ({"resume": True, "start_iter": 5}, 5),
        ({"resume": True, "use_checkpoint_epoch": True}, 3),
        ({"resume": False}, 0),
        ({"resume": False, "start_iter": 2}, 2),
        ({"resume": False, "start_iter": -1}, 4),
        ({"resume": False, "use_checkpoint_epoch": True}, 3),
    ],
)
def test_a_checkpoint_of_another_tool_begins_where_it_is_told_to(
    tiny_shapes: Path, tmp_path: Path, start: dict[str, Any], step: int
) -> None:
    path = tmp_path / "theirs_1_4.pth"
    state = random_model(tiny_config()).state_dict()
    torch.save({"epoch": 1, "model_state_dict": state, "checkpoint_recipe": None}, path)
    run = prepare(
        tiny_settings(tiny_shapes, tmp_path, start=StartSettings(checkpoint=path, **start))
    )
    assert run.iteration == step


def test_a_name_without_a_step_cannot_give_one(tiny_shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(random_model(tiny_config()).state_dict(), path)
    start = StartSettings(checkpoint=path, resume=True, start_iter=-1)
    with pytest.raises(CheckpointError, match=r"weights.pth does not end in _<epoch>_<iter>"):
        prepare(tiny_settings(tiny_shapes, tmp_path, start=start))


def test_a_backbone_file_fills_the_backbone_only(tiny_shapes: Path, tmp_path: Path) -> None:
    model = random_model(tiny_config())
    path = tmp_path / "darknet.pth"
    torch.save(model.backbone.state_dict(), path)
    run = prepare(tiny_settings(tiny_shapes, tmp_path, start=StartSettings(backbone=path)))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, run.model.backbone.state_dict()[name])
    name = "proto_net.0.weight"
    assert not torch.equal(run.model.state_dict()[name], model.state_dict()[name])
    assert run.origin == f"backbone {path}, the rest random" and run.iteration == 0


@pytest.mark.parametrize("count", [6, 4])
def test_weights_for_other_classes_are_taken_but_for_the_class_layers(
    tiny_shapes: Path, tmp_path: Path, count: int
) -> None:
    other = Classes(tuple(f"thing {i}" for i in range(count)), tuple(range(count)))
    model, path = random_model(tiny_config(), count), tmp_path / "other.pth"
    save_checkpoint(path, Checkpoint(model_state=model.state_dict(), classes=other))
    run = prepare(tiny_settings(tiny_shapes, tmp_path, start=StartSettings(checkpoint=path)))
    assert run.origin.endswith("class layers new: other classes")
    for name, value in model.state_dict().items():
        same = torch.equal(value, run.model.state_dict()[name]) if count == 6 else None
        if not name.startswith(CLASS_LAYERS):
            assert torch.equal(value, run.model.state_dict()[name]), name
        elif name.endswith("weight") and same is not None:
            assert not same, name
    assert len(run.model.semantic_seg_conv.weight) == 6


def rows_of(state: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Class layers by parameter: [priors, background and classes, ...] or [classes, ...]."""
    return {
        name: value.reshape(-1, classes + ("conf" in name), *value.shape[1:])
        for name, value in state.items()
        if name.startswith(CLASS_LAYERS) and name.endswith(("weight", "bias"))
    }


SHAPES = ("disc", "ring", "triangle", "square", "star", "cross")
"""The classes of the data."""


@pytest.mark.parametrize(
    ("known", "kept", "words"),
    [
        (SHAPES[:4], 4, "4 of 6 classes kept (disc, ring, triangle, square), 2 new (star, cross)"),
        (SHAPES[::-1], 6, "6 of 6 classes kept (disc, ring, triangle, square, star, ...)"),
        (("moon", *SHAPES), 6, "star, ...), 1 left out (moon)"),
        (("a", "star", "b"), 1, "1 of 6 classes kept (star), 5 new (disc, ring, triangle, square,"),
        ((" Disc", "RING", "Ｔriangle"), 3, "3 of 6 classes kept (disc, ring, triangle), 3 new"),
    ],
)
def test_classes_of_the_same_names_keep_what_is_known_of_them(
    tiny_shapes: Path,
    tmp_path: Path,
    package_log: pytest.LogCaptureFixture,
    known: tuple[str, ...],
    kept: int,
    words: str,
) -> None:
    model, path = random_model(tiny_config(), len(known)), tmp_path / "other.pth"
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 1, 2)  # no new weight is as large
    other = Classes(known, tuple(range(len(known))))
    save_checkpoint(path, Checkpoint(model_state=model.state_dict(), classes=other))
    run = prepare(tiny_settings(tiny_shapes, tmp_path, start=StartSettings(checkpoint=path)))
    assert words in run.origin and run.iteration == 0 and run.resumed is None
    plain = [unicodedata.normalize("NFKC", name).strip().casefold() for name in known]
    before, after = rows_of(model.state_dict(), len(known)), rows_of(run.model.state_dict(), 6)
    for name, value in after.items():
        first = int("conf" in name)
        if first:
            assert torch.equal(value[:, 0], before[name][:, 0]), "the background"
        for i, one in enumerate(SHAPES):
            if one in plain:
                assert torch.equal(value[:, first + i], before[name][:, first + plain.index(one)])
            else:
                assert float(value[:, first + i].abs().max()) < 1, (name, one)
    assert sum(one in plain for one in SHAPES) == kept
    assert ("written otherwise" in package_log.text) == (plain != [*known])


@pytest.mark.parametrize("count", [80, 6])
def test_weights_without_class_names_are_of_coco_if_they_are_for_80(
    tiny_shapes: Path, tmp_path: Path, count: int
) -> None:
    path = tmp_path / "unnamed.pth"
    torch.save(random_model(tiny_config(), count).state_dict(), path)
    coco = relabelled(tiny_shapes, tmp_path / "coco", {"disc": "person", "ring": "Stop_sign"})
    run = prepare(tiny_settings(coco, tmp_path, start=StartSettings(checkpoint=path)))
    expected = "2 of 6 classes kept (person, Stop_sign)" if count == 80 else f"checkpoint {path}"
    assert expected in run.origin and ("class layers" in run.origin) == (count == 80)


def relabelled(data: Path, folder: Path, names: dict[str, str]) -> Path:
    """A copy of ``data`` in which some classes have other names."""
    shutil.copytree(data, folder)
    for path in folder.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for each in content["categories"]:
            each["name"] = names.get(each["name"], each["name"])
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("known", "trained"),
    [(SHAPES, True), (SHAPES[::-1], True), ((*SHAPES, "moon"), True), (SHAPES[:5], False)],
)
def test_a_run_begins_trained_if_no_class_is_new(known: tuple[str, ...], trained: bool) -> None:
    ours = Classes(SHAPES, tuple(range(6)))
    theirs = Classes(known, tuple(range(len(known))))
    state = random_model(tiny_config(), len(known)).state_dict()
    checkpoint = Checkpoint(model_state=state, classes=theirs)
    origin = Origin(start=StartSettings(checkpoint=Path("a")), seed=0, checkpoint=checkpoint)
    assert origin.begins_trained(ours) == trained
    assert origin.changes_class_layers(ours) == (known != SHAPES)


def test_a_config_that_does_not_fit_the_weights_is_named_beside_that_which_does(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "yolact_darknet_small_9_300.pth"
    torch.save(random_model(yolact_darknet_small(), 80).state_dict(), path)
    for goes_on in (False, True):
        start = StartSettings(checkpoint=path, resume=goes_on)
        with pytest.raises(CheckpointError) as error:
            prepare(tiny_settings(tiny_shapes, tmp_path, start=start))
        assert f"{path} does not fit tiny_config: it has backbone DarkNet-23, not DarkNet-17" in (
            str(error.value)
        )
        assert error.value.hint == "add --config yolact_darknet_small_config"
    with pytest.raises(CheckpointError) as error:
        prepare(tiny_settings(tiny_shapes, tmp_path, start=StartSettings(backbone=path)))
    assert error.value.hint == "it is a whole model: load it without --backbone"


@pytest.mark.slow
def test_new_classes_of_a_pruned_quantized_checkpoint_keep_the_rows_of_the_others(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    first = train(tiny_settings(tiny_shapes, tmp_path / "first", recipe=RECIPE))
    assert first.checkpoint is not None
    before = load_checkpoint(first.checkpoint).model_state
    other = relabelled(tiny_shapes, tmp_path / "other", {"ring": "moon"})
    start = StartSettings(checkpoint=first.checkpoint)
    settings = tiny_settings(other, tmp_path, epochs=1, start=start)
    run = prepare(settings)
    assert is_quantized(run.model) and run.iteration == 0 and "1 new (moon)" in run.origin
    after = run.model.state_dict()
    wrapped = [name for name in rows_of(after, 6) if name.endswith(("weight", "bias"))]
    assert len(wrapped) == 4
    for name, rows in rows_of(after, 6).items():
        moon = 1 + ("conf" in name)
        known = rows_of(before, 6)[name]
        same = [torch.equal(rows[:, i], known[:, i]) for i in range(rows.shape[1])]
        assert [i for i, one in enumerate(same) if not one] in ([moon], []), name
    inputs = [n for n in after if n.startswith(CLASS_LAYERS) and n.endswith("scale")]
    assert inputs and all(torch.equal(after[n], before[n]) for n in inputs)
    result = train(settings)
    assert result.checkpoint is not None and load_checkpoint(result.checkpoint).quantized


def test_a_run_on_other_classes_cannot_be_resumed(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=1))
    other = renamed(tiny_shapes, tmp_path / "other", "shape")
    with pytest.raises(CheckpointError, match=r"other classes \(disc, ring, .*shape disc") as e:
        prepare(tiny_settings(other, tmp_path, **resume(tmp_path / "weights/tiny_0_1.pth")))
    assert e.value.hint is not None and e.value.hint.startswith("--ckpt instead of --resume")


@pytest.mark.parametrize("resuming", [True, False])
def test_a_checkpoint_of_another_config_is_refused(
    tiny_shapes: Path, tmp_path: Path, resuming: bool
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, max_iter=1))
    path = tmp_path / "weights" / "tiny_0_1.pth"
    config = replace(tiny_config(), name="large")
    start = StartSettings(checkpoint=path, resume=resuming)
    with pytest.raises(CheckpointError, match="is of tiny_config, not large_config") as error:
        prepare(tiny_settings(tiny_shapes, tmp_path, config=config, start=start))
    assert error.value.hint == "add --config tiny_config"


WITHOUT = """
import sys
from pathlib import Path
from training import tiny_settings
from yolact.training.loop import train
from yolact.training.origin import Origin
train(tiny_settings(Path(sys.argv[1]), Path(sys.argv[2]), max_iter=1))
print("sparseml" in sys.modules)
"""


@pytest.mark.slow
def test_a_run_without_a_recipe_does_not_wait_for_sparseml(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tiny_shapes), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def test_a_finished_run_has_nothing_left_to_train(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path))
    with pytest.raises(ConfigError, match="nothing left to train: step 6 of 6") as error:
        prepare(tiny_settings(tiny_shapes, tmp_path, **resume(tmp_path / "weights/tiny_1_6.pth")))
    assert error.value.hint is not None and "--epochs" in error.value.hint


def test_another_batch_size_continues_at_the_same_epoch(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path))
    start = resume(tmp_path / "weights" / "tiny_0_3.pth")
    run = prepare(tiny_settings(tiny_shapes, tmp_path, batch_size=1, **start))
    assert run.iteration == IMAGES
    assert "epochs now have 7 steps instead of 3: continuing at the same epoch" in package_log.text


def test_other_settings_than_the_runs_own_are_named_and_used(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path))
    start = resume(tmp_path / "weights" / "tiny_0_3.pth")
    config = tiny_config(lr=0.5, momentum=0.5, weight_decay=0.25).with_model(image_size=96)
    run = prepare(tiny_settings(tiny_shapes, tmp_path, config=config, **start))
    assert (
        "other settings: image_size 96 instead of 64, lr 0.5 instead of 0.01, "
        "momentum 0.5 instead of 0.9, weight_decay 0.25 instead of 0.0005"
    ) in package_log.text
    group = run.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)
    package_log.clear()
    prepare(tiny_settings(tiny_shapes, tmp_path, **start))
    assert "other settings" not in package_log.text


def test_another_recipe_begins_a_new_run_from_the_weights(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path))
    start = resume(tmp_path / "weights" / "tiny_1_6.pth")
    run = prepare(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE, **start))
    assert run.iteration == 0 and run.resumed is None and run.driver.recipe
    assert "the recipe is not the checkpoint's: a new run begins" in package_log.text


@pytest.mark.slow
def test_a_stored_recipe_continues_without_being_named_again(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, recipe=RECIPE))
    (path,) = (tmp_path / "weights").glob("tiny_*_5.pth")
    for more in ({}, {"continue_recipe": True}):
        run = prepare(tiny_settings(tiny_shapes, tmp_path, epochs=None, **resume(path, **more)))
        assert run.driver.recipe and run.plan.total_steps == 9 and run.iteration == 5


def test_cont_goes_on_with_the_recipe_of_a_checkpoint_of_the_reference(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.pth"
    state = random_model(tiny_config()).state_dict()
    torch.save({"epoch": 1, "model_state_dict": state, "checkpoint_recipe": RECIPE}, path)
    run = prepare(
        tiny_settings(tiny_shapes, tmp_path, epochs=None, **resume(path, continue_recipe=True))
    )
    assert run.driver.recipe and run.iteration == STEPS and run.plan.total_steps == 9


@pytest.mark.slow
def test_a_second_stage_keeps_what_the_first_one_pruned(tiny_shapes: Path, tmp_path: Path) -> None:
    prune, quantize = (
        "\n".join(RECIPE.split("- !")[0:1] + [f"- !{part}" for part in parts])
        for parts in split_stages(RECIPE)
    )
    first = train(tiny_settings(tiny_shapes, tmp_path / "first", recipe=prune))
    assert first.checkpoint is not None and first.missed == ()
    start = StartSettings(checkpoint=first.checkpoint)
    second = train(tiny_settings(tiny_shapes, tmp_path / "second", recipe=quantize, start=start))
    assert second.checkpoint is not None and second.missed == ()
    checkpoint = load_checkpoint(second.checkpoint)
    assert checkpoint.quantized and checkpoint.recipe is not None
    assert "GMPruningModifier" in checkpoint.recipe and "QuantizationModifier" in checkpoint.recipe
    sparsity = {x.name: x.sparsity for x in layer_sparsity(build_model(checkpoint))}
    assert sparsity["proto_net.0.weight"] == pytest.approx(0.75, abs=0.01)
    # and in the middle of it, too
    (middle,) = (tmp_path / "second" / "weights").glob("tiny_*_5.pth")
    again = train(tiny_settings(tiny_shapes, tmp_path / "again", recipe=quantize, **resume(middle)))
    assert again.checkpoint is not None
    assert differences(again.checkpoint, second.checkpoint) == []


def split_stages(recipe: str) -> tuple[list[str], list[str]]:
    """The modifiers of pruning, and those of quantization with zeros held."""
    epochs, rate, decay, pruning, quantization = recipe.split("- !")[1:]
    held = "ConstantPruningModifier {start_epoch: 0, params: __ALL_PRUNABLE__}\n"
    return [epochs, rate, pruning], [epochs, decay, held, quantization]


def test_a_quantized_checkpoint_without_its_recipe_is_refused(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quantized.pth"
    state = random_model(tiny_config()).state_dict()
    save_checkpoint(path, Checkpoint(model_state={**state, "x.zero_point": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="quantized, but holds no recipe"):
        prepare(tiny_settings(tiny_shapes, tmp_path, start=StartSettings(checkpoint=path)))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"epochs": 0}, "--epochs must be above 0, got 0", "length"),
        ({"epochs": float("nan")}, "--epochs must be above 0, got nan", "length"),
        ({"epochs": float("inf")}, "--epochs must be above 0, got inf", "length"),
        ({"epochs": None, "max_iter": 0}, "--max_iter must be above 0, got 0", "length"),
        ({"epochs": 1, "max_iter": 1}, "--epochs and --max_iter both", "one of them"),
        ({"batch_size": 0}, "--batch_size must be at least 1, got 0", "--batch_size 1"),
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0", "--batch_size 1"),
        ({"save": SaveSettings(interval=0)}, "--save_interval must be at least 1", "end only"),
        ({"batch_alloc": (1, 2)}, "--batch_alloc 1,2 adds up to 3, but", "add up to --batch_size"),
        ({"batch_alloc": (3, -1)}, "--batch_alloc 3,-1 adds up to 2", "must be at least 1"),
        ({"recipe_args": {"a": 1}}, "--recipe_args without --recipe", "filled in already"),
        (
            {"start": StartSettings(continue_recipe=True)},
            "--cont continues a run, but no --resume says which",
            "--resume latest --cont",
        ),
        (
            {
                "recipe": RECIPE,
                "start": StartSettings(checkpoint=Path("a"), resume=True, continue_recipe=True),
            },
            "--cont goes on with the stored recipe, --recipe gives another",
            "leave out one",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_settings(tmp_path, tmp_path, **changes)
    assert message in str(error.value) and error.value.hint is not None
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"device": "cuda"}, ConfigError, "device cuda is not available here"),
        ({"device": "tpu9"}, ConfigError, "unknown device 'tpu9'"),
        ({"batch_alloc": (1, 1)}, ConfigError, "--batch_alloc names 2 GPUs, but 0 are visible"),
        ({"recipe": RECIPE, "epochs": 2}, ConfigError, "the recipe sets the length of the run"),
        ({"recipe": RECIPE, "recipe_args": {"num": 1}}, RecipeError, "num"),
        ({"recipe": "no_such_recipe.md"}, RecipeError, "no_such_recipe.md"),
        ({"start": StartSettings(checkpoint=Path("no.pth"))}, CheckpointError, "not found: no.pth"),
        ({"start": StartSettings(backbone=Path("no.pth"))}, CheckpointError, "not found: no.pth"),
    ],
)
def test_what_cannot_work_fails_before_the_first_step(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(kind, match=message):
        train(tiny_settings(tiny_shapes, tmp_path, **changes))
    assert not (tmp_path / "logs").exists()


def test_cont_needs_a_stored_recipe(tiny_shapes: Path, tmp_path: Path) -> None:
    train(tiny_settings(tiny_shapes, tmp_path))
    path = tmp_path / "weights" / "tiny_0_3.pth"
    with pytest.raises(CheckpointError, match="tiny_0_3.pth holds no recipe to go on with"):
        prepare(tiny_settings(tiny_shapes, tmp_path, **resume(path, continue_recipe=True)))


def test_other_categories_in_the_validation_file_are_refused(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    other = renamed(tiny_shapes, tmp_path / "other", "shape")
    data = replace(data_of(tiny_shapes), validation_info=data_of(other).validation_info)
    with pytest.raises(
        ConfigError, match="has objects of categories that .* does not list: 'shape "
    ):
        prepare(tiny_settings(tiny_shapes, tmp_path, data=data, validation_epoch=1))
    prepare(tiny_settings(tiny_shapes, tmp_path, data=data, validation_epoch=-1))


def test_files_in_the_way_of_the_folders_are_named(tiny_shapes: Path, tmp_path: Path) -> None:
    for name in ("weights", "logs"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("in the way")
        with pytest.raises(StorageError, match=f"cannot write .*{name}.*in the way"):
            train(tiny_settings(tiny_shapes, out))


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_saved(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, iter(range(10))

    def filling(content: Any, file: Any) -> None:
        if next(calls) >= 2:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", filling)
    with pytest.raises(StorageError, match="no space left to write .*tiny_0_3.pth"):
        train(tiny_settings(tiny_shapes, tmp_path))
    assert names(tmp_path / "weights") == ["tiny_0_1.pth", "tiny_0_2.pth"]


SLOW = """
- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}
- !GMPruningModifier {params: [proto_net.0.weight], start_epoch: 0, end_epoch: 0.5,
                      init_sparsity: 0.2, final_sparsity: 0.8, update_frequency: 1}
"""
"""A recipe that gives one warning."""


def test_a_recipe_is_checked_before_the_first_step_and_warned_of_once(
    tiny_shapes: Path, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    train(tiny_settings(tiny_shapes, tmp_path, recipe=SLOW))
    warnings = [r.getMessage() for r in package_log.records if "updates every" in r.getMessage()]
    assert warnings == [
        "the recipe: GMPruningModifier: updates every 1 epochs, but lasts only 0.5: "
        "it acts at its start and at its end alone; lower update_frequency"
    ]


def test_every_error_of_a_recipe_stops_a_run_before_the_first_step(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    wrong = SLOW.replace("end_epoch: 0.5", "end_epoch: 2").replace("net.0", "net.1")
    with pytest.raises(RecipeError) as caught:
        train(tiny_settings(tiny_shapes, tmp_path, recipe=wrong))
    assert str(caught.value) == (
        "the recipe has 2 problems: "
        "GMPruningModifier: no parameter of the model matches 'proto_net.1.weight'; "
        "GMPruningModifier: ends at epoch 2, after the run, which ends at 1"
    )
    assert not list(tmp_path.rglob("*.pth"))
