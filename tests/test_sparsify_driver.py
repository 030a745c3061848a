"""Recipes in a training run: schedules, masks, quantization, and exact continuation."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipe_engines import by_sparseml, needs_sparseml
from yolact.config import ModelConfig
from yolact.errors import RecipeError
from yolact.model.fake_quantize import fake_quantizers, is_fake_quantize
from yolact.model.quantized_layers import ConvBn2d, is_quant_wrapper
from yolact.model.weights import is_quantized, load_weights
from yolact.model.yolact import InferenceModel, Yolact
from yolact.presets import yolact_darknet_small
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.engine import GradientSamples
from yolact.sparsify.recipe import Recipe, load_recipe
from yolact.sparsify.sparsity import overall_sparsity, sparsity_targets
from yolact.sparsify.structure import apply_structure

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

STEPS = 4
"""Of one epoch."""

FULL = """
- !EpochRangeModifier {start_epoch: 0, end_epoch: 8}
- !SetWeightDecayModifier {start_epoch: 2, weight_decay: 0.001}
- !LearningRateFunctionModifier
  {start_epoch: 0, end_epoch: 4, lr_func: cosine, init_lr: 0.05, final_lr: 0.01}
- !LearningRateModifier {start_epoch: 4.0, end_epoch: 8.0, lr_class: StepLR,
                         lr_kwargs: {step_size: 1, gamma: 0.8}, init_lr: 0.01}
- !TrainableParamsModifier {params: [b.bias], trainable: false, start_epoch: 1, end_epoch: 3}
- !GMPruningModifier {params: [a.0.weight, b.weight], start_epoch: 0.5, end_epoch: 3.5,
                      init_sparsity: 0.3, final_sparsity: 0.8, update_frequency: 0.4,
                      mask_type: [1, 4]}
- !QuantizationModifier {start_epoch: 5, disable_quantization_observer_epoch: 6.5,
                         freeze_bn_stats_epoch: 7}
"""


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.a = nn.Sequential(conv, nn.BatchNorm2d(8), nn.LeakyReLU(0.1, inplace=True))
        self.b = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 4, 6, 6, generator=generator)
    return images, torch.randn(6, 4, 6, 6, generator=generator)


@dataclass
class Snapshot:
    """What a checkpoint holds."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: Tensor


@dataclass
class Training:
    """A small training loop that uses a driver as the real one does."""

    recipe: str
    earlier: Recipe | None = None
    model: Any = field(default_factory=Tiny)
    losses: list[tuple[float, ...]] = field(default_factory=list)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.driver = RecipeDriver(load_recipe(self.recipe), self.earlier)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )

    def run(self, first: int, last: int, *, start: bool = True) -> Training:
        if start:
            self.driver.start(self.model, self.optimizer, first / STEPS, STEPS)
        for step in range(first, last):
            self.snapshots[step] = self.snapshot()
            self._step(step)
        self.snapshots[last] = self.snapshot()
        return self

    def _step(self, step: int) -> None:
        model, optimizer, epoch = self.model, self.optimizer, step / STEPS
        self.driver.before_forward(model, optimizer, epoch)
        images, target = batch(step)
        optimizer.zero_grad()
        loss = (model(images) - target).square().mean()
        loss.backward()
        self.driver.before_step(model, optimizer, epoch)
        if step not in self.skip:
            optimizer.step()
        self.driver.after_step(model, optimizer, epoch)
        group = optimizer.param_groups[0]
        self.losses.append((loss.item(), group["lr"], group["weight_decay"]))

    def snapshot(self) -> Snapshot:
        return copy.deepcopy(
            Snapshot(self.model.state_dict(), self.optimizer.state_dict(), torch.get_rng_state())
        )


def resume(whole: Training, step: int, start: dict[str, Tensor] | None = None) -> Training:
    """A new process' view of ``whole`` at ``step``: only what a checkpoint holds."""
    saved = whole.snapshots[step]
    torch.manual_seed(999)
    again = Training(whole.recipe, whole.earlier, skip=whole.skip)
    if any(name.endswith("zero_point") for name in saved.model):
        engine = again.driver.recipe.engine_name
        apply_structure(again.model, again.driver.composed, step / STEPS, engine)
    again.model.load_state_dict(saved.model)
    again.driver.start(again.model, again.optimizer, step / STEPS, STEPS)
    again.optimizer.load_state_dict(copy.deepcopy(saved.optimizer))
    torch.set_rng_state(saved.rng)
    return again


def assert_equal_from(whole: Training, again: Training, step: int, last: int) -> None:
    again.run(step, last, start=False)
    assert again.losses == whole.losses[step:], step
    expected = whole.snapshots[last].model
    actual = again.snapshots[last].model
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), (step, name)


@pytest.fixture(scope="module")
def whole(recipe_engine: EngineName) -> Training:
    torch.manual_seed(0)
    return Training(FULL).run(0, 8 * STEPS)


# 2, 14: pruning begins and ends; 20: quantization begins; 26, 28: ranges, batch norms are fixed.
@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 13, 14, 15, 16, 18, 20, 21, 22, 26, 27, 28, 29])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(whole: Training, step: int) -> None:
    assert_equal_from(whole, resume(whole, step), step, 8 * STEPS)


def test_a_skipped_step_does_not_stop_the_clock() -> None:
    torch.manual_seed(0)
    skipping = Training(FULL, skip=(2, 6, 14, 20)).run(0, 8 * STEPS)
    assert not any(t.missed for t in sparsity_targets(skipping.model, skipping.driver.composed))
    assert is_quantized(skipping.model)
    assert skipping.losses[15][1:] == pytest.approx((0.01 + 0.04 * 0.009607, 0.001), rel=1e-3)
    assert_equal_from(skipping, resume(skipping, 15), 15, 8 * STEPS)


def test_the_schedule_is_the_recipes(whole: Training) -> None:
    lr, decay = (torch.tensor([row[i] for row in whole.losses]) for i in (1, 2))
    assert lr[0] == pytest.approx(0.05)
    assert lr[8] == pytest.approx(0.03)  # a cosine is half way down in the middle
    assert lr[[16, 20, 24, 28]].tolist() == pytest.approx([0.01, 0.008, 0.0064, 0.00512])
    assert decay[7] == pytest.approx(5e-4) and decay[8] == pytest.approx(1e-3)


def test_what_the_loop_asks_of_a_recipe() -> None:
    driver = RecipeDriver(load_recipe(FULL))
    assert driver.max_epochs == 8
    assert driver.controls_lr
    assert not driver.quantizes_by(4.99) and driver.quantizes_by(5)
    assert 5 < driver.settles_at < 5.001
    other = RecipeDriver(load_recipe("- !SetWeightDecayModifier {weight_decay: 0.0}\n"))
    assert other.max_epochs is None and not other.controls_lr and not other.quantizes_by(99)


def test_fractional_lengths_are_kept() -> None:
    driver = RecipeDriver(load_recipe("- !EpochRangeModifier {start_epoch: 0, end_epoch: 1.5}\n"))
    assert driver.max_epochs == 1.5


PRUNE = """
- !EpochRangeModifier {start_epoch: 0, end_epoch: 2}
- !GMPruningModifier {params: ["re:.*[.]0[.]weight", b.weight], start_epoch: 0, end_epoch: 1,
                      init_sparsity: 0.3, final_sparsity: 0.75, update_frequency: 0.25}
"""


def test_pruned_weights_stay_zero_under_momentum() -> None:
    torch.manual_seed(0)
    training = Training(PRUNE).run(0, 5)
    zero = [p.detach().eq(0) for p in (training.model.a[0].weight, training.model.b.weight)]
    assert overall_sparsity(training.model) == pytest.approx(0.75, abs=0.01)
    training.run(5, 8, start=False)
    after = [p.detach().eq(0) for p in (training.model.a[0].weight, training.model.b.weight)]
    assert all(torch.equal(x, y) for x, y in zip(zero, after, strict=True))
    momentum = training.optimizer.state[training.model.b.weight]["momentum_buffer"]
    assert momentum[zero[1]].abs().max() > 0  # the optimizer alone would have moved them


def test_sparsity_grows_within_an_epoch() -> None:
    torch.manual_seed(0)
    training = Training(PRUNE)
    training.driver.start(training.model, training.optimizer, 0, STEPS)
    course = []
    for step in range(6):
        training._step(step)
        course.append(round(overall_sparsity(training.model), 2))
    # 0.75 - 0.45 (1 - t)^3 at t = 0, 1/4, 1/2, 3/4, 1
    assert course == [0.3, 0.56, 0.69, 0.74, 0.75, 0.75]


def test_pruning_that_ends_with_the_run_reaches_its_target() -> None:
    torch.manual_seed(0)
    training = Training(PRUNE.replace("end_epoch: 1,", "end_epoch: 2, inter_func: linear,"))
    training.run(0, 8)
    assert any(t.missed for t in sparsity_targets(training.model, training.driver.composed))
    training.driver.finish(training.model)
    assert not any(t.missed for t in sparsity_targets(training.model, training.driver.composed))


def test_blocks_are_pruned_whole(whole: Training) -> None:
    weight = whole.snapshots[16].model["a.0.weight"]
    zeros = weight.reshape(8, 1, 4, 9).eq(0).sum(2)
    assert set(torch.unique(zeros).tolist()) == {0, 4}


def test_constant_pruning_keeps_the_zeros_there_are() -> None:
    torch.manual_seed(0)
    model = Tiny()
    with torch.no_grad():
        model.b.weight[:2] = 0
    recipe = "- !ConstantPruningModifier {params: __ALL_PRUNABLE__}\n"
    training = Training(recipe, model=model).run(0, 6)
    assert model.b.weight[:2].abs().max() == 0 and model.b.weight[2:].abs().min() > 0
    assert_equal_from(training, resume(training, 3), 3, 6)


def test_quantization_keeps_the_optimizers_parameters(whole: Training) -> None:
    held = {id(p) for group in whole.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in whole.model.parameters()} == held


def test_quantizing_twice_gives_the_same_network() -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        training = Training("- !QuantizationModifier {start_epoch: 0.5}\n").run(0, 6)
        training.model.eval()
        outputs.append(training.model(batch(99)[0]))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("step", [19, 21, 27, 32])
def test_weights_fit_the_structure_before_during_and_after_quantization(
    whole: Training, step: int
) -> None:
    saved, model = whole.snapshots[step].model, Tiny().eval()
    apply_structure(model, whole.driver.composed, (step - 1) / STEPS)
    model.load_state_dict(saved, strict=True)
    assert not model.training
    assert is_quantized(model) == (step > 20)
    if step == 32:
        whole.model.eval()
        assert torch.equal(model(batch(99)[0]), whole.model(batch(99)[0]))


def test_validation_changes_nothing_in_a_quantized_model(whole: Training) -> None:
    again = resume(whole, 22)  # ranges are still learned
    before = again.snapshot().model
    again.model.eval()
    with torch.no_grad():
        again.model(batch(99)[0] * 100)
    again.model.train()
    assert all(torch.equal(before[name], value) for name, value in again.model.state_dict().items())


def test_fixed_ranges_and_batch_norms_survive_switching_modes(whole: Training) -> None:
    again = resume(whole, 29)
    before = again.snapshot().model
    again.model.eval()
    again.model.train()
    again.model(batch(99)[0] * 100)
    assert all(torch.equal(before[name], value) for name, value in again.model.state_dict().items())


def test_a_second_stage_goes_on_from_a_quantized_model() -> None:
    torch.manual_seed(0)
    first = Training(
        "- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n"
        "- !QuantizationModifier {start_epoch: 0, disable_quantization_observer_epoch: 0.5}\n"
    ).run(0, 4)
    model = Tiny()
    apply_structure(model, first.driver.composed, engine=first.driver.recipe.engine_name)
    model.load_state_dict(first.model.state_dict())
    recipe = PRUNE + "- !QuantizationModifier {start_epoch: 1, freeze_bn_stats_epoch: 1.5}\n"
    second = Training(recipe, first.driver.composed, model=model).run(0, 8)
    assert not any(t.missed for t in sparsity_targets(second.model, second.driver.composed))
    assert sum(is_quant_wrapper(m) for m in second.model.modules()) == 3
    scale = "b.quant.activation_post_process.scale"
    assert not torch.equal(second.snapshots[8].model[scale], second.snapshots[0].model[scale])
    for step in (1, 4, 5, 7):
        assert_equal_from(second, resume(second, step), step, 8)


def test_a_quantized_model_trained_on_by_other_recipes_keeps_its_batch_norms() -> None:
    torch.manual_seed(0)
    first = Training("- !QuantizationModifier {start_epoch: 0}\n").run(0, 2)
    second = Training(PRUNE, first.driver.composed, model=first.model).run(0, 3)
    name = "a.0.module.bn.running_mean"
    assert torch.equal(second.snapshots[3].model[name], first.snapshots[2].model[name])


@pytest.mark.parametrize(
    "scheme",
    [
        "scheme: {weights: {strategy: channel}, input_activations: {symmetric: false}}",
        "scheme: tensorrt",
        "submodules: [a, b]",  # spelled as in recipes of 2021
    ],
)
def test_other_schemes_fit_their_checkpoints_too(scheme: str) -> None:
    torch.manual_seed(0)
    training = Training(f"- !QuantizationModifier {{start_epoch: 0, {scheme}}}\n").run(0, 2)
    model = Tiny()
    apply_structure(model, training.driver.composed)
    model.load_state_dict(training.model.state_dict(), strict=True)
    model.eval()
    training.model.eval()
    assert torch.equal(model(batch(99)[0]), training.model(batch(99)[0]))


@needs_sparseml
def test_recipes_as_sparseml_itself_stored_them_are_understood() -> None:
    from yolact.sparsify.sparseml import ScheduledModifierManager
    from yolact.sparsify.sparseml.engine import SparsemlEngine

    torch.manual_seed(0)
    training = Training("- !QuantizationModifier {start_epoch: 0}\n").run(0, 2)
    entry = training.driver.recipe.entries[-1]
    stored = str(ScheduledModifierManager([SparsemlEngine().build(entry)]))
    assert "__metadata__" not in stored and "'num_bits': 8" in stored
    model = Tiny()
    apply_structure(model, Recipe.of_text(stored, "the stored recipe"))
    model.load_state_dict(training.model.state_dict(), strict=True)


def test_pruning_with_a_memory_warns_when_resumed(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    recipe = PRUNE.replace("0.3,", "__FROM_PARAM__,")
    resume(Training(recipe).run(0, 3), 3)
    assert caplog.messages == [
        "GMPruningModifier keeps state that is not saved: "
        "the continued run may differ from an uninterrupted one"
    ]


@pytest.fixture(scope="module")
def quantized() -> Yolact:
    torch.manual_seed(0)
    config = yolact_darknet_small().with_model(image_size=96, num_classes=3).model
    model = Yolact(config)
    apply_structure(model, load_recipe("- !QuantizationModifier {start_epoch: 0}\n"), 0)
    outputs = model(torch.rand(2, 3, 96, 96))
    (outputs.conf.square().mean() + outputs.segm.square().mean()).backward()
    return model


def test_every_block_of_the_backbone_is_fused(quantized: Yolact) -> None:
    config: ModelConfig = quantized.config
    blocks = 1 + len(config.backbone.stage_blocks) + 2 * sum(config.backbone.stage_blocks)
    convolutions = [m for m in quantized.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [type(m) for m in convolutions] == [ConvBn2d] * blocks
    left = [n for n, m in quantized.named_modules() if type(m) is nn.BatchNorm2d]
    assert all(name.endswith(".module.bn") for name in left)


def test_head_and_prototypes_are_quantized(quantized: Yolact) -> None:
    for part in (quantized.proto_net, quantized.prediction_layers, quantized.fpn):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                assert is_fake_quantize(module.weight_fake_quant)
    scales = [quantizer.scale.item() for quantizer in fake_quantizers(quantized)]
    assert all(0 < scale < 1 for scale in scales)  # 1 is where they begin


def test_a_quantized_network_runs_in_evaluation_mode_and_loads_strictly(quantized: Yolact) -> None:
    again = Yolact(quantized.config)
    apply_structure(again, load_recipe("- !QuantizationModifier {start_epoch: 0}\n"))
    load_weights(again, quantized.state_dict())
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        first = InferenceModel(quantized.eval())(images)
        second = InferenceModel(again.eval())(images)
        alone = InferenceModel(Yolact(quantized.config).eval())(images)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert [t.shape for t in first] == [t.shape for t in alone]
    assert first.conf.sum(-1) == pytest.approx(torch.ones(first.conf.shape[:2]))


PHASES = """
- !EpochRangeModifier {start_epoch: 0, end_epoch: 4}
- !ACDCPruningModifier {params: [a.0.weight, b.weight], compression_sparsity: 0.5, start_epoch: 0,
                        end_epoch: 4, update_frequency: 1}
- !GradualParamModifier {params: [b.bias], init_val: [0.0, 0.0, 0.0, 0.0], start_epoch: 0,
                         final_val: [1.0, 1.0, 1.0, 1.0], end_epoch: 2, update_frequency: 0.7}
"""


# 4, 12: weights become zero; 8: they grow back, without momentum; between them, all is learned.
@pytest.mark.parametrize("step", [1, 4, 5, 8, 9, 11, 13])
def test_phases_and_set_parameters_continue_bit_for_bit(step: int) -> None:
    torch.manual_seed(0)
    whole = Training(PHASES).run(0, 4 * STEPS)
    assert_equal_from(whole, resume(whole, step), step, 4 * STEPS)


@by_sparseml
def test_top_kast_masks_gradients_again_when_resumed() -> None:
    torch.manual_seed(0)
    whole = Training(
        "- !TopKASTPruningModifier {params: [b.weight], forward_sparsity: 0.8, start_epoch: 0, "
        "backward_sparsity: 0.5, end_epoch: 3, update_frequency: 2}\n"
    ).run(0, 4)
    again = resume(whole, 4)
    again._step(4)
    assert again.model.b.weight.grad.eq(0).float().mean() == pytest.approx(0.5, abs=0.01)


@by_sparseml
@pytest.mark.parametrize("kind", ["OBSPruningModifier", "MFACPruningModifier"])
def test_pruning_by_gradients_needs_training_batches(kind: str) -> None:
    recipe = (
        f"- !{kind} {{params: [b.weight], init_sparsity: 0.1, final_sparsity: 0.5, "
        "start_epoch: 0, end_epoch: 1, update_frequency: 0.5}\n"
    )
    with pytest.raises(RecipeError) as caught:
        Training(recipe).run(0, 1)
    assert str(caught.value) == (
        "the recipe prunes by gradients of training batches, which there are only while training"
    )
    assert caught.value.hint == (
        "train with this recipe, or prune by magnitude with GMPruningModifier"
    )


@by_sparseml
def test_pruning_by_gradients_works_with_one_step_an_epoch() -> None:
    torch.manual_seed(0)
    training = Training(
        "- !OBSPruningModifier {params: [b.weight], init_sparsity: 0.5, final_sparsity: 0.8, "
        "start_epoch: 0, end_epoch: 2, update_frequency: 1, num_grads: 2}\n"
    )
    model, optimizer, driver = training.model, training.optimizer, training.driver
    model.train()

    def loss(index: int) -> Tensor:
        images, target = batch(index)
        result: Tensor = (model(images) - target).square().mean()
        return result

    samples = GradientSamples(lambda size: itertools.count(), loss)
    driver.start(model, optimizer, 0, 1, samples)
    for step in range(3):
        driver.before_forward(model, optimizer, step)
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        gradient = model.a[0].weight.grad.clone()
        driver.before_step(model, optimizer, step)
        assert torch.equal(model.a[0].weight.grad, gradient)  # samples leave the step's own alone
        assert all(module.training for module in model.modules())
        optimizer.step()
        driver.after_step(model, optimizer, step)
    driver.finish(model)
    assert float(model.b.weight.eq(0).float().mean()) == pytest.approx(0.8, abs=0.01)
