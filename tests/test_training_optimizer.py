"""Groups of parameters that follow the first one, whoever sets its rates; AdamW; the cosine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from training import differences, losses, resume, tiny_config, tiny_settings
from yolact.checkpoint import load_checkpoint
from yolact.config import LossConfig
from yolact.errors import CheckpointError
from yolact.loss.criterion import Supervised, YolactLoss
from yolact.model.yolact import Yolact
from yolact.optim_config import OptimConfig
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry
from yolact.sparsify.recipe_engines import recipe_engine as engine_called
from yolact.training.loop import train
from yolact.training.optimizer import load_state, make_optimizer
from yolact.training.settings import SaveSettings

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

PLAIN = OptimConfig(lr=0.5, momentum=0.0, weight_decay=0.0)
PER_EPOCH = 3
LR_MODIFIERS = {
    "set": [
        Entry("SetLearningRateModifier", {"start_epoch": 0.0, "learning_rate": 0.25}),
        Entry("SetLearningRateModifier", {"start_epoch": 1.0, "learning_rate": 0.125}),
    ],
    "function": [
        Entry(
            "LearningRateFunctionModifier",
            {"start_epoch": 0.0, "end_epoch": 2.0, "lr_func": "cosine"}
            | {"init_lr": 0.5, "final_lr": 0.125},
        )
    ],
    "scheduler": [
        Entry(
            "LearningRateModifier",
            {"start_epoch": 0.0, "lr_class": "StepLR", "init_lr": 0.5}
            | {"lr_kwargs": {"gamma": 0.5, "step_size": 0.5}},
        )
    ],
    "the network's group": [
        Entry(
            "SetLearningRateModifier",
            {"start_epoch": 1.0, "learning_rate": 0.125, "param_groups": [0]},
        )
    ],
}


class Network(nn.Module):
    """One parameter of each kind, without a forward pass: tests give the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 2)


class WithMaps(Supervised):
    """An objective with a parameter of its own, as distillation between layers has."""

    def __init__(self) -> None:
        super().__init__(YolactLoss(LossConfig()))
        self.own = nn.Parameter(torch.ones(2, 2))

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        return [self.own]


def step(optimizer: Optimizer, gradient: float = 1.0) -> dict[torch.Tensor, torch.Tensor]:
    """How far each parameter goes in a step in which all gradients are the same."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = {p: p.detach().clone() for p in parameters}
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return {p: before[p] - p.detach() for p in parameters}


def made(optim: OptimConfig) -> tuple[Network, WithMaps, Optimizer]:
    torch.manual_seed(0)
    model, objective = Network(), WithMaps()
    return model, objective, make_optimizer(optim, model, objective)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", LR_MODIFIERS)
def test_the_backbone_keeps_its_share_of_whatever_rate_there_is(
    recipe_engine: EngineName, name: str, optimizer: Any
) -> None:
    model, objective, steps = made(replace(PLAIN, backbone_lr=0.25, optimizer=optimizer))
    engine = engine_called(recipe_engine)
    manager = engine.manager({"": [engine.build(entry) for entry in LR_MODIFIERS[name]]})
    manager.start(model, steps, 0, PER_EPOCH, None)
    rates = set()
    for number in range(2 * PER_EPOCH):
        manager.before_forward(model, steps, number / PER_EPOCH)
        gone = step(steps)
        rate = steps.param_groups[0]["lr"]
        rates.add(round(rate, 9))
        for parameter, share in (
            (model.head.weight, 1.0),
            (model.head.bias, 1.0),
            (model.backbone.weight, 0.25),
            (model.backbone.bias, 0.25),
        ):
            expected = torch.full_like(parameter, share * rate)
            torch.testing.assert_close(gone[parameter], expected, rtol=1e-4, atol=1e-6)
        if name != "the network's group":
            assert gone[objective.own].mean() == pytest.approx(rate, rel=1e-4)
    assert len(rates) > 1


def test_weight_decay_that_a_recipe_sets_reaches_the_backbone(recipe_engine: EngineName) -> None:
    model, _, steps = made(replace(PLAIN, backbone_lr=0.25))
    engine = engine_called(recipe_engine)
    entry = Entry("SetWeightDecayModifier", {"start_epoch": 0.0, "weight_decay": 0.5})
    manager = engine.manager({"": [engine.build(entry)]})
    manager.start(model, steps, 0, PER_EPOCH, None)
    manager.before_forward(model, steps, 0.0)
    before = model.backbone.weight.detach().clone()
    gone = step(steps, gradient=0.0)
    torch.testing.assert_close(gone[model.backbone.weight], 0.5 * 0.25 * 0.5 * before)


@pytest.mark.parametrize("start", [-1.0, 1.0])
def test_layers_that_a_recipe_removes_leave_every_group(
    recipe_engine: EngineName, start: float
) -> None:
    model, objective = Yolact(tiny_config().model), WithMaps()
    steps = make_optimizer(replace(PLAIN, backbone_lr=0.25), model, objective)
    engine = engine_called(recipe_engine)
    fields = {"layers": ["backbone.layers.3.1", "proto_net.2"], "start_epoch": start}
    manager = engine.manager({"": [engine.build(Entry("LayerPruningModifier", fields))]})
    manager.start(model, steps, 0, 1, None)
    for epoch in (0, 1):
        manager.before_forward(model, steps, epoch)
    held = [p for group in steps.param_groups for p in group["params"]]
    assert set(held) == {*model.parameters(), objective.own}


def test_published_runs_have_one_group_and_the_objectives_own() -> None:
    model, objective, steps = made(OptimConfig())
    network, own = steps.param_groups
    assert network["params"] == list(model.parameters()) and own["params"] == [objective.own]
    assert network.keys() == torch.optim.SGD(model.parameters()).param_groups[0].keys()


def test_adamw_decays_weights_but_no_biases() -> None:
    model, objective, steps = made(replace(PLAIN, optimizer="adamw", weight_decay=0.1))
    before = model.head.weight.detach().clone()
    gone = step(steps, gradient=0.0)
    torch.testing.assert_close(gone[model.head.weight], 0.5 * 0.1 * before)
    assert gone[objective.own].all()
    for bias in (model.head.bias, model.backbone.bias):
        assert not gone[bias].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "now"), [(1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.25)])
def test_what_an_optimizer_knows_survives_another_share_of_the_backbone(
    before: float, now: float, optimizer: Any
) -> None:
    old = replace(PLAIN, momentum=0.9, backbone_lr=before, optimizer=optimizer)
    model, objective, earlier = made(old)
    for gradient in (1.0, -2.0, 0.5):
        step(earlier, gradient)
    earlier.param_groups[0]["lr"] = 0.0625  # as a schedule left it
    new = replace(old, backbone_lr=now)
    later = make_optimizer(new, model, objective)
    load_state(later, earlier.state_dict(), old, model, objective)
    assert later.param_groups[0]["lr"] == 0.0625
    step_of_both = [step(earlier), step(later)]
    again = [earlier.state, later.state]
    for parameter in (model.head.weight, model.backbone.weight, objective.own):
        assert again[0][parameter].keys() == again[1][parameter].keys() != set()
    head, backbone = model.head.weight, model.backbone.weight
    assert step_of_both[1][head].sign().eq(step_of_both[0][head].sign()).all()
    share = step_of_both[1][backbone] / step_of_both[1][head]
    torch.testing.assert_close(share, torch.full_like(share, now), rtol=1e-4, atol=1e-5)


def saved(out: Path) -> SaveSettings:
    return SaveSettings(folder=out / "weights", interval=1000)


ALL_OF_IT: dict[str, Any] = {"backbone_lr": 0.3, "schedule": "cosine", "ema_decay": 0.9}


@pytest.mark.parametrize(
    "optim",
    [ALL_OF_IT, pytest.param(ALL_OF_IT | {"optimizer": "adamw"}, marks=pytest.mark.slow)],
)
def test_a_run_with_all_of_it_goes_on_exactly(
    tiny_shapes: Path, tmp_path: Path, optim: dict[str, Any]
) -> None:
    config = tiny_config(**optim)
    whole = train(tiny_settings(tiny_shapes, tmp_path / "whole", config=config, max_iter=4))
    start = resume(tmp_path / "whole" / "weights" / "tiny_0_2.pth")
    again = tmp_path / "again"
    rest = train(
        tiny_settings(tiny_shapes, again, config=config, max_iter=4, save=saved(again), **start)
    )
    assert whole.checkpoint and rest.checkpoint
    assert differences(rest.checkpoint, whole.checkpoint) == []
    steps = losses(tmp_path / "whole")
    assert losses(again) == {i: steps[i] for i in (3, 4)}
    fitted = config.optim.fitted(4)
    rates = [lr for lr, _ in steps.values()]
    assert rates == pytest.approx([fitted.lr_at(i) for i in range(4)], rel=1e-6)


def test_a_run_that_began_without_it_goes_on_with_it(tiny_shapes: Path, tmp_path: Path) -> None:
    start: dict[str, Any] = {}
    for length, optim in {1: {}, 2: ALL_OF_IT, 3: {}}.items():
        config = tiny_config(**optim)
        result = train(
            tiny_settings(tiny_shapes, tmp_path, config=config, max_iter=length, **start)
        )
        assert result.checkpoint is not None
        training = load_checkpoint(result.checkpoint).training
        assert training and (training.average is not None) == ("ema_decay" in optim)
        start = resume(result.checkpoint)


def test_another_optimizer_does_not_go_on(tiny_shapes: Path, tmp_path: Path) -> None:
    result = train(tiny_settings(tiny_shapes, tmp_path, max_iter=1))
    assert result.checkpoint is not None
    settings = tiny_settings(
        tiny_shapes, tmp_path, config=tiny_config(optimizer="adamw"), **resume(result.checkpoint)
    )
    with pytest.raises(CheckpointError, match="goes on with sgd, not adamw") as error:
        train(settings)
    assert error.value.hint is not None and "--optimizer sgd" in error.value.hint
