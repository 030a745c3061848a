"""Learning from a teacher: the loss's laws, exact continuation, and every refusal."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training import (
    data_of,
    differences,
    log_lines,
    make_stepper,
    renamed,
    resume,
    tiny_config,
    tiny_settings,
)
from yolact import presets
from yolact.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolact.cli.train import train as command
from yolact.config import LossConfig
from yolact.distill.loss import (
    box_distillation,
    class_distillation,
    distillation_loss,
    foreground,
    mask_distillation,
)
from yolact.distill.objective import Distillation, feature_layers, watched
from yolact.distill.teacher import Teacher, copy_as_teacher, load_teacher
from yolact.errors import YolactError
from yolact.loss.criterion import YolactLoss
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.yolact import Yolact
from yolact.restore import build_model
from yolact.sparsify.distillation import DistillationSchedule, OutputDistillation
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure
from yolact.training.loop import TrainResult, train
from yolact.training.settings import SaveSettings, StartSettings
from yolact.training.start import prepare
from yolact.types import TERMS, NetworkOutputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams"),
]

CONFIG = LossConfig()
LENGTH = "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"
RECIPE = (
    LENGTH
    + """\
- !DistillationModifier {start_epoch: 0, end_epoch: 1.5, hardness: 0.5, temperature: 2.0}
- !PerLayerDistillationModifier
  {gain: 0.1, epsilon: 1.0, student_layer_names: [fpn.pred_layers.0, backbone.layers.1.0.0]}
- !QuantizationModifier {start_epoch: 1}
"""
)


@pytest.fixture(scope="module")
def teacher(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for two epochs."""
    result = train(tiny_settings(tiny_shapes, tmp_path_factory.mktemp("teacher")))
    assert result.checkpoint is not None
    return result.checkpoint


def outputs(seed: int, *, prototypes: int = 4, sure: float = 3.0) -> NetworkOutputs:
    """Of an imaginary network: 2 images, 30 priors, 3 classes, 8 x 8 prototypes."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    centres = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    return NetworkOutputs(
        loc=normal(2, 30, 4),
        conf=sure * normal(2, 30, 4),
        mask=normal(2, 30, prototypes).tanh(),
        priors=torch.cat([centres, torch.full((30, 2), 0.3)], dim=1),
        proto=normal(2, 8, 8, prototypes).relu(),
        segm=None,
    )


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8))
@settings(max_examples=30, deadline=None)
def test_who_answers_like_the_teacher_has_nothing_to_learn(seed: int, temperature: float) -> None:
    answers = outputs(seed)
    loss = distillation_loss(answers, answers, CONFIG, temperature=temperature)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 1000), term=st.sampled_from(TERMS))
@settings(max_examples=30, deadline=None)
def test_every_term_is_above_zero_for_other_answers(seed: int, term: str) -> None:
    student, answers = outputs(seed), outputs(seed + 1)
    assert distillation_loss(student, answers, CONFIG, terms=[term]) > 0
    parts = [distillation_loss(student, answers, CONFIG, terms=[t]) for t in TERMS]
    whole = distillation_loss(student, answers, CONFIG)
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_gradients_reach_the_student_only() -> None:
    student, answers = outputs(0), outputs(1)
    ours = [t.requires_grad_() for t in student[:3]] + [student.proto.requires_grad_()]
    theirs = [t.requires_grad_() for t in answers[:3]] + [answers.proto.requires_grad_()]
    with torch.no_grad():
        fixed = NetworkOutputs._make(t if t is None else t.clone() for t in answers)
    distillation_loss(student, fixed, CONFIG).backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in ours)
    assert all(t.grad is None for t in theirs)


def test_masks_count_and_not_how_prototypes_make_them() -> None:
    """Prototypes in another order, scaled, and more of them: the same masks, nothing to learn."""
    answers = outputs(3)
    order, scale = torch.tensor([2, 0, 3, 1]), torch.tensor([0.5, 2.0, 4.0, 1.0])
    more = torch.rand(2, 8, 8, 2)
    student = answers._replace(
        proto=torch.cat([answers.proto[..., order] * scale, more], dim=-1),
        mask=torch.cat([answers.mask[..., order] / scale, torch.zeros(2, 30, 2)], dim=-1),
    )
    loss = distillation_loss(student, answers, CONFIG)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-5, rtol=0)


def test_background_does_not_drown_an_object() -> None:
    """One object among 99 priors of sure background: its divergence is the whole average."""
    teacher, student = torch.zeros(1, 100, 3), torch.zeros(1, 100, 3)
    teacher[..., 0] = student[..., 0] = 30.0
    teacher[0, 0], student[0, 0] = torch.tensor([-30.0, 2, 0]), torch.tensor([-30.0, 0, 2])
    alone = class_distillation(student[:, :1], teacher[:, :1], 1.0)
    assert alone > 1
    torch.testing.assert_close(class_distillation(student, teacher, 1.0), alone)


def test_an_object_that_only_the_student_sees_is_unlearned() -> None:
    teacher, student = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    teacher[..., 0] = 30.0
    student[0, :, 0], student[0, 0, 1] = 30.0, 30.0
    assert class_distillation(student, teacher, 1.0) > 0.5


def test_boxes_of_background_are_nobodys_business() -> None:
    answers = outputs(5)
    chosen = foreground(answers.conf) >= 0.5
    assert chosen.any() and not chosen.all()
    noise = torch.randn(2, 30, 4) * (~chosen)[..., None]
    assert box_distillation(answers.loc + noise, answers.loc, chosen) == 0
    moved = answers.loc + 0.5 * chosen[..., None]
    expected = 4 * 0.5**2 / 2  # smooth L1, four numbers of each prior
    assert float(box_distillation(moved, answers.loc, chosen)) == pytest.approx(expected)


def test_masks_are_compared_inside_the_box_only() -> None:
    teacher, boxes = torch.zeros(8, 8, 1), torch.tensor([[0.0, 0.0, 0.25, 0.25]])
    student = teacher.clone()
    student[4:, 4:] = 9.0
    assert mask_distillation(student, teacher, boxes) == 0
    student[0, 0] = 9.0
    assert mask_distillation(student, teacher, boxes) > 0


def test_a_teacher_that_sees_nothing_leaves_boxes_and_masks_alone() -> None:
    blind = outputs(1)
    blind.conf[..., 0] = 100.0
    student = outputs(2)
    student.loc.requires_grad_()
    loss = distillation_loss(student, blind, CONFIG, terms=["box", "mask"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0 and student.loc.grad is not None and not student.loc.grad.any()


def test_half_precision_is_computed_in_single() -> None:
    student, answers = outputs(0), outputs(1)
    half = [
        NetworkOutputs._make(t if t is None else t.half() for t in n) for n in (student, answers)
    ]
    half = [n._replace(priors=student.priors) for n in half]
    loss = distillation_loss(half[0], half[1], CONFIG)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student, answers, CONFIG), rtol=0.02, atol=0)


def test_a_convolution_stands_for_what_is_fused_with_it() -> None:
    config = tiny_config().model
    assert feature_layers(config, ["backbone._preconv.0", "proto_net.0", "fpn.pred_layers.1"]) == [
        *("backbone._preconv.2", "proto_net.1", "fpn.pred_layers.1")
    ]
    every = feature_layers(config, None)
    assert len(every) == 33 and "semantic_seg_conv" not in every


def test_features_are_the_same_layers_before_and_after_fusing() -> None:
    """Quantizers that are off change nothing, so the fused network has the same features."""
    model = Yolact(tiny_config().model)
    names = feature_layers(model.config, None)
    fused = copy.deepcopy(model)
    apply_structure(fused, load_recipe(LENGTH + "- !QuantizationModifier {start_epoch: 0}\n"))
    for quantizer in fake_quantizers(fused):
        quantizer.disable_fake_quant()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), watched(model.eval(), names) as one, watched(fused.eval(), names) as two:
        model(images)
        fused(images)
    assert len(one["prediction_layers.0.bbox_layer"]) == 5
    for name in names:
        for x, y in zip(one[name], two[name], strict=True):
            torch.testing.assert_close(x, y, msg=name)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_shapes: Path) -> None:
    run = prepare(tiny_settings(tiny_shapes, Path(), recipe=LENGTH))
    batch = next(iter_batches(run))
    phase = OutputDistillation(hardness=0.5, temperature=2.0)
    schedule = DistillationSchedule(((0.0, 1.0, phase),))
    loss = Distillation(YolactLoss(CONFIG), copy_as_teacher(run.model), schedule, run.model)
    run.model.eval()
    segm = torch.zeros(2, 6, 8, 8)
    run.model.register_forward_hook(lambda _m, _i, output: output._replace(segm=segm))
    losses = loss(run.model, batch.images, batch.targets)
    torch.testing.assert_close(losses.distillation, torch.tensor(0.0), atol=1e-5, rtol=0)
    loss.set_epoch(1.0)
    alone = loss(run.model, batch.images, batch.targets)
    assert (
        alone.distillation == 0
        and alone.total == YolactLoss(CONFIG)(run.model(batch.images), batch.targets).total
    )
    assert not any(p.requires_grad for p in loss.teacher.parameters())


def iter_batches(run: Any) -> Any:
    from yolact.data.loader import make_loader

    loader = make_loader(run.train_data, 2, 0, run.seed, pin_memory=False)
    loader.batch_sampler.set_position(0, 0)
    return iter(loader)


def test_the_teacher_may_be_wider_and_have_more_prototypes(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    wide = tiny_config().with_model(
        num_classes=6, fpn_channels=16, proto_channels=16, num_prototypes=6
    )
    path = tmp_path / "wide.pth"
    save_checkpoint(path, Checkpoint(model_state=Yolact(wide.model).state_dict(), config=wide))
    features = (
        "- !DistillationModifier {}\n"
        "- !PerLayerDistillationModifier {gain: 0.1, epsilon: 1.0, "
        "student_layer_names: [fpn.pred_layers.0, proto_net.10]}\n"
    )
    result = taught(tiny_shapes, tmp_path, path, LENGTH + features)
    assert not result.skipped_steps


def taught(
    data: Path, out: Path, teacher: Path | str, recipe: str = RECIPE, **changes: Any
) -> TrainResult:
    return train(tiny_settings(data, out, recipe=recipe, distill_teacher=str(teacher), **changes))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}], ids=["plain", "accumulate"])
def test_a_resumed_run_goes_on_bit_by_bit(
    changes: dict[str, Any], tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    whole = taught(tiny_shapes, tmp_path, teacher, **changes)
    assert whole.checkpoint is not None
    last = load_checkpoint(whole.checkpoint).iteration or 0
    for step in {2, last - 1}:
        (path,) = (tmp_path / "weights").glob(f"tiny_*_{step}.pth")
        out = tmp_path / f"from {step}"
        save = SaveSettings(folder=out / "weights", interval=1000)
        result = taught(tiny_shapes, out, teacher, **changes, **resume(path), save=save)
        assert result.checkpoint is not None
        assert differences(result.checkpoint, whole.checkpoint) == []


@pytest.mark.slow
def test_checkpoints_do_not_hold_the_teacher(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    result = taught(tiny_shapes, tmp_path, teacher)
    assert result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint)
    build_model(checkpoint)
    state = checkpoint.training
    assert state is not None and state.distillation is not None
    assert list(state.distillation) == ["0.maps.0.weight", "0.maps.1.weight"]


@pytest.mark.slow
def test_self_is_the_checkpoint_the_run_begins_with(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    start = StartSettings(checkpoint=teacher)
    ends = [
        taught(tiny_shapes, tmp_path / name, wish, start=start).checkpoint
        for name, wish in (("a", "self"), ("b", teacher))
    ]
    assert ends[0] is not None and ends[1] is not None
    assert differences(ends[0], ends[1]) == []


@pytest.mark.slow
def test_a_quantized_network_can_teach(tiny_shapes: Path, tmp_path: Path, teacher: Path) -> None:
    quantized = taught(tiny_shapes, tmp_path / "first", teacher).checkpoint
    assert quantized is not None and load_checkpoint(quantized).quantized
    result = taught(
        tiny_shapes, tmp_path / "second", quantized, LENGTH + "- !DistillationModifier {}\n"
    )
    assert not result.skipped_steps


def test_disable_trains_without(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = LENGTH + "- !DistillationModifier {}\n"
    without = taught(tiny_shapes, tmp_path / "a", "disable", recipe).checkpoint
    plain = train(tiny_settings(tiny_shapes, tmp_path / "b", recipe=LENGTH)).checkpoint
    assert without is not None and plain is not None
    changed = differences(without, plain)
    assert changed == ["/recipe", "/training/stage_recipe"]
    assert "KD" not in log_lines(tmp_path / "a", "train")[0]["data"]["loss"]


@pytest.mark.slow
def test_half_precision_works_until_quantization(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    # Steps may be skipped: torch's bfloat16 gradient of P7, one cell here, is now and then NaN.
    taught(tiny_shapes, tmp_path, teacher, half=True)
    kd = [line["data"]["loss"]["KD"] for line in log_lines(tmp_path, "train")]
    assert len(kd) == 6 and all(value > 0 for value in kd)


def test_steps_name_the_distilled_loss(tiny_shapes: Path) -> None:
    run = prepare(tiny_settings(tiny_shapes, Path(), recipe=LENGTH))
    phase = OutputDistillation(hardness=0.5, temperature=2.0)
    schedule = DistillationSchedule(((0.0, 1.0, phase),))
    other = Teacher(copy.deepcopy(run.model).eval().requires_grad_(False), "a copy")
    stepper = make_stepper(run.model)
    stepper.objective = Distillation(YolactLoss(CONFIG), other, schedule, run.model)
    losses = stepper.gradients([next(iter_batches(run))])
    assert list(losses) == ["box", "classification", "mask", "semantic", "distillation"]


def refusal(data: Path, out: Path, **changes: Any) -> tuple[int, str, str]:
    with pytest.raises(YolactError) as caught:
        prepare(tiny_settings(data, out, **changes))
    assert caught.value.hint
    return caught.value.exit_code, str(caught.value), caught.value.hint


DISTIL = LENGTH + "- !DistillationModifier {}\n"


def test_a_recipe_that_distils_needs_a_teacher(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    assert refusal(tiny_shapes, tmp_path, recipe=DISTIL) == (
        2,
        "the recipe distils, but no --distill_teacher says from which network",
        "add --distill_teacher TEACHER.pth, or disable to train without",
    )
    assert refusal(tiny_shapes, tmp_path, recipe=LENGTH, distill_teacher=str(teacher)) == (
        2,
        "--distill_teacher, but no !DistillationModifier in the recipe says how to use it",
        "add one to the recipe, with hardness and temperature",
    )


def test_a_continued_run_needs_its_teacher_again(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    taught(tiny_shapes, tmp_path, teacher, DISTIL)
    path = next((tmp_path / "weights").glob("tiny_*_2.pth"))
    again = {"recipe": DISTIL, **resume(path)}
    assert refusal(tiny_shapes, tmp_path, **again) == (
        2,
        "the run distils from a teacher, which its checkpoints do not hold",
        "give the same teacher again: --distill_teacher TEACHER.pth",
    )
    assert refusal(tiny_shapes, tmp_path, **again, distill_teacher="self") == (
        2,
        "--distill_teacher self means the weights that a run begins with, "
        "and a continued run no longer has them",
        "give the checkpoint that it began with: --distill_teacher BEGINNING.pth",
    )


def test_self_needs_trained_weights(tiny_shapes: Path, tmp_path: Path, teacher: Path) -> None:
    expected = (
        2,
        "--distill_teacher self, but layers of the network begin untrained",
        "begin with --ckpt, or give the checkpoint of a trained network",
    )
    assert refusal(tiny_shapes, tmp_path, recipe=DISTIL, distill_teacher="self") == expected
    other = renamed(tiny_shapes, tmp_path / "other", "shape")
    start = StartSettings(checkpoint=teacher)
    found = refusal(other, tmp_path, recipe=DISTIL, distill_teacher="self", start=start)
    assert found == expected


def test_a_teacher_of_other_classes_or_sizes_is_refused(
    tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    given = {"recipe": DISTIL, "distill_teacher": str(teacher)}
    other = renamed(tiny_shapes, tmp_path / "other", "a")
    code, message, hint = refusal(other, tmp_path, **given)
    first = ", ".join(load_checkpoint(teacher).classes.names[:5])  # type: ignore[union-attr]
    theirs = ", ".join(f"a {name}" for name in first.split(", "))
    assert (code, message, hint) == (
        4,
        f"{teacher} cannot be the teacher: it knows other classes ({first}) "
        f"than the data has ({theirs})",
        "a teacher has to be trained on the same categories",
    )
    config = tiny_config().with_model(image_size=96)
    assert refusal(tiny_shapes, tmp_path, config=config, **given) == (
        4,
        f"{teacher} cannot be the teacher: its image_size is 64, not 96",
        "teacher and student need the same --image_size and the same priors",
    )
    config = replace(tiny_config().with_model(prior_aspect_ratios=(1,)))
    assert refusal(tiny_shapes, tmp_path, config=config, **given) == (
        4,
        f"{teacher} cannot be the teacher: its prior_aspect_ratios is (1, 0.5, 2), not (1,)",
        "teacher and student need the same --image_size and the same priors",
    )
    config = tiny_config().with_model(prior_base_size=80)
    assert refusal(tiny_shapes, tmp_path, config=config, **given) == (
        4,
        f"{teacher} cannot be the teacher: its prior_base_size is 64, not 80",
        "teacher and student need the same --image_size and the same priors: "
        "try --prior_base_size 64",
    )
    config = tiny_config().with_model(image_size=(96, 160))
    _, message, _ = refusal(tiny_shapes, tmp_path, config=config, **given)
    assert message.endswith("its image_size is 64, not 96 x 160")
    missing = refusal(tiny_shapes, tmp_path, recipe=DISTIL, distill_teacher="no.pth")
    assert missing[:2] == (4, "checkpoint not found: no.pth")


def test_rounding_makes_no_other_priors(teacher: Path) -> None:
    checkpoint = load_checkpoint(teacher)
    assert checkpoint.classes is not None
    config = tiny_config().with_model(prior_base_size=64 * (1 + 1e-12))
    assert load_teacher(teacher, config, checkpoint.classes).origin == str(teacher)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (
            "!DistillationModifier {hardness: 1.5}",
            "DistillationModifier: hardness is 1.5",
            "give 0 to 1",
        ),
        (
            "!DistillationModifier {temperature: 0}",
            "DistillationModifier: temperature is 0",
            "give a number above 0",
        ),
        (
            "!DistillationModifier {distill_output_keys: [protos]}",
            "DistillationModifier: 'protos' in distill_output_keys is no output that can be "
            "distilled",
            "try: proto",
        ),
        (
            "!DistillationModifier {distill_output_keys: [3]}",
            "DistillationModifier: 3 in distill_output_keys is no output that can be distilled",
            "try: loc, conf, mask, proto",
        ),
        (
            "!PerLayerDistillationModifier {gain: -1.0}",
            "PerLayerDistillationModifier: gain is -1.0",
            "give a number above 0",
        ),
        (
            "!PerLayerDistillationModifier {student_layer_names: []}",
            "PerLayerDistillationModifier: student_layer_names is []",
            "give a list of names",
        ),
    ],
)
def test_impossible_fields_are_named(
    fields: str, message: str, hint: str, tiny_shapes: Path, tmp_path: Path
) -> None:
    given = {"recipe": f"{LENGTH}- {fields}\n", "distill_teacher": "no.pth"}
    assert refusal(tiny_shapes, tmp_path, **given) == (5, f"the recipe: {message}", hint)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (
            "student_layer_names: [fpn.pred_layer.0]",
            "the network has no layer 'fpn.pred_layer.0' to distil",
            "try: fpn.pred_layers.0",
        ),
        (
            "student_layer_names: [semantic_seg_conv]",
            "PerLayerDistillationModifier: semantic_seg_conv has no feature map of its own in "
            "evaluation mode",
            "name layers such as fpn.pred_layers.0",
        ),
        (
            "student_layer_names: [fpn.lat_layers.0], teacher_layer_names: [fpn.lat_layers.1]",
            "PerLayerDistillationModifier: outputs of fpn.lat_layers.0 and fpn.lat_layers.1 "
            "cannot be compared: [8, 2, 2] and [8, 4, 4] for an image of 64 pixels",
            "pair layers of the same stride; project_features: True maps channels",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_named(
    fields: str, message: str, hint: str, tiny_shapes: Path, tmp_path: Path, teacher: Path
) -> None:
    recipe = f"{LENGTH}- !PerLayerDistillationModifier {{{fields}}}\n"
    given = {"recipe": recipe, "distill_teacher": str(teacher)}
    assert refusal(tiny_shapes, tmp_path, **given) == (5, message, hint)


def test_the_command_shows_the_teacher_before_it_trains(
    tiny_shapes: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.CONFIGS, "tiny_config", tiny_config)
    data = data_of(tiny_shapes)
    words = ["--config", "tiny", "--device", "cpu", "--batch_size", "2", "--num_workers", "0"]
    words += ["--train_info", str(data.train_info), "--train_images", str(data.train_images)]
    words += ["--validation_epoch", "-1", "--recipe", DISTIL, "--dry-run"]
    result = CliRunner().invoke(command, [*words, "--distill_teacher", str(teacher)])
    assert result.exit_code == 0, result.output
    assert f"teacher     {teacher}" in result.stdout.splitlines()
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert "\nerror: the recipe distils, but no --distill_teacher says" in result.stderr
