"""Modifiers of lengths, learning rates, weight decay and single parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import yaml

from modifier_cases import Case
from modifier_cases.practice import in_turn, lr, modifier_class, practice, recipe, refused, zeros
from training import tiny_config
from yolact.model.yolact import Yolact

BIAS = "proto_net.10.bias"


def rates(*expected: float) -> Callable[[str], None]:
    """Checks the learning rate of every step."""

    def check(text: str) -> None:
        assert practice(text, lr).seen == pytest.approx(expected, abs=1e-6)

    return check


def lasts(steps: int) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert len(practice(text).seen) == steps

    return check


def decays(text: str) -> None:
    seen = practice(text, lambda run: run.optimizer.param_groups[0]["weight_decay"]).seen
    assert seen == [5e-4] * 3 + [0.01] * 3


def freezes(text: str) -> None:
    """Frozen in epoch 1 of three, momentum and weight decay notwithstanding; trained around it."""
    names = ["backbone.layers.1.0.0.weight", "proto_net.0.weight"]
    done = practice(text, lambda run: [run.model.get_parameter(n).detach().clone() for n in names])
    moved = [
        [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        for before, after in zip([[done.first[n] for n in names], *done.seen], done.seen)  # noqa: B905
    ]
    assert moved == [[True, True]] * 3 + [[False, True]] * 3 + [[True, True]] * 3


def freezes_and_prunes(text: str) -> None:
    done = practice(text)
    assert zeros(done.weight("proto_net.2.weight")) == pytest.approx(0.75, abs=0.01)
    assert not done.missed


def freezes_all(text: str) -> None:
    with pytest.raises(Exception, match="freezes every parameter: nothing is left to train"):
        practice(text)


def sets(text: str) -> None:
    seen = practice(text, lambda run: run.model.get_parameter(BIAS).detach().clone()).seen
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    far = [float((bias - value).abs().max()) for bias in seen]
    assert min(far[:3]) > 1 and 0 < far[3] < 0.1 and far[5] > far[3]  # set once, then trained on


def interpolates(text: str) -> None:
    """Lr is 0, so nothing but the modifier moves the bias."""
    seen = practice(text, lambda run: run.model.get_parameter(BIAS).detach().clone()).seen
    course = [float(bias[0]) for bias in seen]
    cubic = [1 - (1 - epoch / 3 / 1.5) ** 3 for epoch in range(5)]
    assert course == pytest.approx([*cubic, 1.0], abs=1e-6)
    assert torch.equal(seen[5], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def logs(text: str) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("yolact.sparsify")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        practice(text)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    totals = [
        "SparsificationSummaries/QuantizedOperations/percent 0.0",
        "SparsificationSummaries/PrunedParameters/percent 0.0",
    ]
    assert [line for line in lines if line.startswith("Sparsification")] == totals * 2


def has_no_tag(text: str) -> None:
    """And is undefined: before its first epoch there is nothing to add to the loss."""
    from yolact.sparsify.sparseml import quiet_loggers

    assert "!pytorch.ASRegModifier" not in yaml.SafeLoader.yaml_constructors
    model = Yolact(tiny_config().model)
    modifier = modifier_class("ASRegModifier")(layers=["proto_net.0"], alpha=0.1, start_epoch=1.0)
    modifier.initialize(model, 0, quiet_loggers())
    with pytest.raises(KeyError):
        modifier.loss_update(torch.zeros(()), model, None, 0.0, 3)


NO_LR = "!LearningRateFunctionModifier {lr_func: linear, init_lr: 0.0, final_lr: 0.0, "
NO_LR += "start_epoch: 0, end_epoch: 2}"

CASES = (
    Case(
        "EpochRangeModifier",
        "whole epochs",
        recipe(epochs=2),
        "works",
        "",
        lasts(6),
    ),
    Case(
        "EpochRangeModifier",
        "fractional epochs",
        recipe(epochs=1.5),
        "works",
        "rounded to whole steps",
        lasts(4),
    ),
    Case(
        "SetLearningRateModifier",
        "",
        recipe(
            "!SetLearningRateModifier {learning_rate: 0.02}",
            "!SetLearningRateModifier {start_epoch: 1.3, learning_rate: 0.001}",
        ),
        "works",
        "",
        rates(0.02, 0.02, 0.02, 0.02, 0.001, 0.001),
    ),
    Case(
        "LearningRateModifier",
        "StepLR",
        recipe(
            "!LearningRateModifier {lr_class: StepLR, lr_kwargs: {gamma: 0.5, step_size: 0.1}, "
            "init_lr: 0.01, start_epoch: 0, end_epoch: 1}"
        ),
        "patched",
        "a step_size below one step divided by zero in training; it is one step now",
        rates(0.01, 0.005, 0.0025, 0.0025, 0.0025, 0.0025),
    ),
    Case(
        "LearningRateModifier",
        "MultiStepLR",
        recipe(
            "!LearningRateModifier {lr_class: MultiStepLR, lr_kwargs: {gamma: 0.5, "
            "milestones: [0.67, 1.34]}, init_lr: 0.01, start_epoch: 0}"
        ),
        "works",
        "milestones outside of the window are refused before training",
        rates(0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025),
    ),
    Case(
        "LearningRateModifier",
        "MultiStepLR, milestone before its start",
        recipe(
            "!LearningRateModifier {lr_class: MultiStepLR, lr_kwargs: {gamma: 0.5, "
            "milestones: [1]}, init_lr: 0.01, start_epoch: 1}"
        ),
        "cannot",
        "sparseml raises ValueError when epoch 1 comes; refused before training",
        refused(
            "LearningRateModifier: lr_kwargs {'gamma': 0.5, 'milestones': [1]}: "
            "milestones have to be after epoch 1",
            "check its fields; it has start_epoch 1, which may follow from the recipe's variables",
        ),
    ),
    Case(
        "LearningRateModifier",
        "ExponentialLR",
        recipe(
            "!LearningRateModifier {lr_class: ExponentialLR, lr_kwargs: {gamma: 0.5}, "
            "init_lr: 0.01, start_epoch: 0}"
        ),
        "works",
        "",
        rates(0.01, 0.01, 0.01, 0.005, 0.005, 0.005),
    ),
    Case(
        "LearningRateModifier",
        "CosineAnnealingWarmRestarts",
        recipe(
            "!LearningRateModifier {lr_class: StepLR, lr_kwargs: {gamma: 0.5, step_size: 1}, "
            "init_lr: 0.01, start_epoch: 0, end_epoch: 1}",
            "!LearningRateModifier {lr_class: CosineAnnealingWarmRestarts, "
            "lr_kwargs: {lr_min: 0.001, cycle_epochs: 1.0}, init_lr: 0.1, start_epoch: 1}",
        ),
        "patched",
        "cycles of 1.0 epochs failed in training, and after another LearningRateModifier restarts "
        "went to that one's init_lr; fractions of epochs are refused before training",
        rates(0.01, 0.01, 0.01, 0.1, 0.07525, 0.02575),
    ),
    Case(
        "LearningRateFunctionModifier",
        "linear",
        recipe(
            "!LearningRateFunctionModifier {lr_func: linear, init_lr: 0.014, final_lr: 0.0, "
            "start_epoch: 0, end_epoch: 1.4}"
        ),
        "patched",
        "the step after end_epoch, which need not fall on a step, had a negative learning rate",
        rates(0.014, 0.014 - 0.01 / 3, 0.014 - 0.02 / 3, 0.004, 0.002 / 3, 0.0),
    ),
    Case(
        "LearningRateFunctionModifier",
        "cosine",
        recipe(
            "!LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.01, final_lr: 0.002, "
            "start_epoch: 0, end_epoch: 1.3}"
        ),
        "patched",
        "the learning rate rose again in the step after end_epoch",
        rates(0.01, 0.0087707, 0.0058396, 0.0030050, 0.002, 0.002),
    ),
    Case(
        "LearningRateFunctionModifier",
        "cyclic_linear",
        recipe(
            "!LearningRateFunctionModifier {lr_func: cyclic_linear, cycle_epochs: 1, "
            "init_lr: 0.01, final_lr: 0.001, start_epoch: 0, end_epoch: 1.7}"
        ),
        "patched",
        "a last cycle that is shorter went below final_lr, down to negative learning rates; "
        "cycle_epochs 0 is refused before training",
        rates(0.01, 0.0055, 0.001, 0.01, 0.01 - 0.009 / 1.1, 0.001),
    ),
    Case(
        "SetWeightDecayModifier",
        "",
        recipe("!SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.01}"),
        "works",
        "",
        decays,
    ),
    Case(
        "TrainableParamsModifier",
        "",
        recipe(
            '!TrainableParamsModifier {params: ["re:backbone[.].*"], trainable: false, '
            "start_epoch: 1, end_epoch: 2}",
            epochs=3,
        ),
        "works",
        "batch norms whose scale and bias are frozen keep their statistics, too",
        freezes,
    ),
    Case(
        "TrainableParamsModifier",
        "while its parameters are pruned",
        recipe(
            '!TrainableParamsModifier {params: ["re:proto_net.*"], trainable: false}',
            "!GMPruningModifier {params: [proto_net.2.weight], init_sparsity: 0.25, "
            "final_sparsity: 0.75, start_epoch: 0, end_epoch: 1, update_frequency: 0.5}",
        ),
        "patched",
        "masks could not be put on frozen parameters: RuntimeError when pruning began; movement "
        "and RigL pruning, which need weights that move, are refused before training",
        freezes_and_prunes,
    ),
    Case(
        "TrainableParamsModifier",
        "every parameter",
        recipe("!TrainableParamsModifier {params: __ALL__, trainable: false, start_epoch: 1}"),
        "cannot",
        "nothing is left to train: torch raises RuntimeError at the first backward pass; refused "
        "before training",
        freezes_all,
    ),
    Case(
        "SetParamModifier",
        "",
        recipe(f"!SetParamModifier {{params: [{BIAS}], val: [1, 2, 3, 4], start_epoch: 1}}"),
        "works",
        "",
        sets,
    ),
    Case(
        "GradualParamModifier",
        "",
        recipe(
            f"!GradualParamModifier {{params: [{BIAS}], init_val: [0.0, 0.0, 0.0, 0.0], "
            "final_val: [1.0, 2.0, 3.0, 4.0], start_epoch: 0, end_epoch: 1.5, "
            "update_frequency: 0.3, inter_func: cubic}",
            NO_LR,
        ),
        "patched",
        "inter_func had no effect: values always went linearly",
        interpolates,
    ),
    Case(
        "SparsificationLoggingModifier",
        "",
        recipe("!SparsificationLoggingModifier {start_epoch: 0, update_frequency: 1}"),
        "patched",
        "it writes totals to this program's log instead of a folder sparse_logs; the report beside "
        "a checkpoint lists the layers",
        logs,
    ),
    Case(
        "ASRegModifier",
        "",
        recipe("!ASRegModifier {layers: [proto_net.0], alpha: 0.1}"),
        "cannot",
        "sparseml registers no tag for it, and before its first epoch it raises KeyError; no "
        "engine here is faster with zeros among the activations",
        in_turn(
            has_no_tag,
            refused(
                "ASRegModifier has no tag in sparseml, and its penalty is undefined before its "
                "first epoch",
                "remove it: no engine here is faster with zeros among the activations",
            ),
        ),
    ),
)
