"""Pruning by the native engine: step by step what sparseml does, and the same after a stop."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipe_engines import needs_sparseml
from yolact.sparsify.engine import EngineName, Manager
from yolact.sparsify.native.masks import pattern_of
from yolact.sparsify.recipe import Recipe

STEPS = 3
"""Of an epoch."""
LENGTH = 10
"""Steps of a run."""

A, B, C = "0.weight", "3.weight", "5.weight"
ALL = f"params: [{A}, {B}, {C}]"
WINDOW = "start_epoch: 0.5, end_epoch: 2.2, update_frequency: 0.4"
GRADUAL = f"init_sparsity: 0.2, final_sparsity: 0.8, {WINDOW}"
HALF = f"init_sparsity: 0.5, final_sparsity: 0.5, {WINDOW}"
PHASES = "start_epoch: 0, end_epoch: 3, update_frequency: 1, compression_sparsity: 0.75"


def network(sparsity: float = 0.0) -> nn.Sequential:
    """Convolutions, batch norm and a fully connected layer, with the same weights each time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU()),
        *(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 4, 4)),
    )
    for name in (A, B, C):
        weight = model.get_parameter(name)
        (mask,) = pattern_of("unstructured").masks([weight.detach().abs()], [sparsity])
        weight.data.mul_(mask)
    return model


@dataclass
class Moment:
    """What there is after a step."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    gradients: dict[str, Tensor | None]

    def same_as(self, other: Moment) -> bool:
        """Whether all weights, gradients and momentum are equal, bit by bit."""
        mine, its = self.optimizer["state"], other.optimizer["state"]
        pairs = [(value, other.weights[name]) for name, value in self.weights.items()]
        pairs += [(s["momentum_buffer"], its[n]["momentum_buffer"]) for n, s in mine.items()]
        pairs += [
            (value, theirs)
            for name, value in self.gradients.items()
            if value is not None and (theirs := other.gradients[name]) is not None
        ]
        return all(torch.equal(one, two) for one, two in pairs)


class Practice:
    """A run of :func:`network`, taken step by step as the training loop does."""

    def __init__(
        self, text: str, engine: EngineName, at: Moment | None = None, steps: int = 0, **of: Any
    ) -> None:
        self.model = network(**of)
        self.manager: Manager = Recipe.of_text(text, "the recipe", engine).manager()
        if at is not None:
            self.model.load_state_dict(at.weights)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01
        )
        self.steps = steps
        self.manager.start(self.model, self.optimizer, steps, STEPS, None)
        if at is not None:
            self.optimizer.load_state_dict(at.optimizer)

    def step(self) -> Moment:
        epoch = self.steps / STEPS
        self.manager.before_forward(self.model, self.optimizer, epoch)
        inputs = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(self.steps))
        self.optimizer.zero_grad()
        self.model(inputs).square().sum().backward()
        self.manager.before_step(self.model, self.optimizer, epoch)
        self.optimizer.step()
        self.manager.after_step(self.model, self.optimizer, epoch)
        self.steps += 1
        return self.moment()

    def finish(self) -> Moment:
        self.manager.finish(self.model, self.steps / STEPS)
        return self.moment()

    def moment(self) -> Moment:
        return copy.deepcopy(
            Moment(
                self.model.state_dict(),
                self.optimizer.state_dict(),
                {name: p.grad for name, p in self.model.named_parameters()},
            )
        )

    def run(self, length: int = LENGTH) -> list[Moment]:
        """After each step, and after the end."""
        return [*(self.step() for _ in range(length - self.steps)), self.finish()]


def recipe(*modifiers: str) -> str:
    return "modifiers:\n" + "\n".join(f"- !{modifier}" for modifier in modifiers)


def zeros(moment: Moment, name: str) -> float:
    return float(moment.weights[name].eq(0).double().mean())


SCHEDULES = {
    "cubic": f"GMPruningModifier {{{GRADUAL}, {ALL}}}",
    "linear": f"MagnitudePruningModifier {{{GRADUAL}, {ALL}, inter_func: linear}}",
    "inverse cubic": f"GMPruningModifier {{{GRADUAL}, {ALL}, inter_func: inverse_cubic}}",
    "from nothing": f"GMPruningModifier {{{GRADUAL.replace('0.2,', '0.0,')}, {ALL}}}",
    "falling": (f"GMPruningModifier {{init_sparsity: 0.9, final_sparsity: 0.3, {WINDOW}, {ALL}}}"),
    "every step": (
        "GMPruningModifier {init_sparsity: 0.1, final_sparsity: 0.9, start_epoch: 0, "
        f"end_epoch: 3, update_frequency: -1, {ALL}}}"
    ),
    "let go": f"GMPruningModifier {{{GRADUAL}, {ALL}, leave_enabled: false}}",
    "ends with the run": f"GMPruningModifier {{{GRADUAL.replace('2.2', '3.3333333333')}, {ALL}}}",
    "begins with the end": (
        "GMPruningModifier {init_sparsity: 0.1, final_sparsity: 0.9, start_epoch: 3.1, "
        f"end_epoch: 3.2, update_frequency: 0.1, {ALL}}}"
    ),
    "several levels": (
        f"GMPruningModifier {{init_sparsity: 0.1, {WINDOW}, params: [], "
        f"final_sparsity: {{0.5: [{C}, 're:3.*'], 0.75: ['re:.*weight']}}}}"
    ),
    "together": f"GlobalMagnitudePruningModifier {{{GRADUAL}, {ALL}}}",
    "told together": f"GMPruningModifier {{{GRADUAL}, {ALL}, global_sparsity: true}}",
    "everything": f"MagnitudePruningModifier {{{GRADUAL}, params: __ALL__}}",
    "prunable": f"GMPruningModifier {{{GRADUAL}, params: [__ALL_PRUNABLE__, {A}]}}",
    "no names": f"GMPruningModifier {{{GRADUAL}, params: []}}",
    "expressions": f"GMPruningModifier {{{GRADUAL}, params: ['re:.*[35][.]', [{A}]]}}",
    "1 x 4": f"GMPruningModifier {{{GRADUAL}, {ALL}, mask_type: [1, 4]}}",
    "1 x 4 x 1 x 1": f"GMPruningModifier {{{GRADUAL}, {ALL}, mask_type: [1, 4, 1, 1]}}",
    "2 x 2": f"GMPruningModifier {{{GRADUAL}, {ALL}, mask_type: [2, 2]}}",
    "rows": f"GMPruningModifier {{{GRADUAL}, {ALL}, mask_type: [1, -1]}}",
    "columns together": f"GlobalMagnitudePruningModifier {{{GRADUAL}, {ALL}, mask_type: [-1, 1]}}",
    "block4": f"GMPruningModifier {{{GRADUAL}, params: __ALL__, mask_type: block4}}",
    "2:4": f"GMPruningModifier {{{HALF}, {ALL}, mask_type: '2:4'}}",
    "tensorrt": f"GMPruningModifier {{{HALF}, {ALL}, mask_type: tensorrt}}",
    "phases": f"ACDCPruningModifier {{{PHASES}, {ALL}}}",
    "phases, each layer": f"ACDCPruningModifier {{{PHASES}, {ALL}, global_sparsity: false}}",
    "phases, momentum kept": f"ACDCPruningModifier {{{PHASES}, {ALL}, momentum_buffer_reset: false}}",
    "phases, let go": (
        f"ACDCPruningModifier {{{PHASES.replace('3,', '2,')}, {ALL}, leave_enabled: false}}"
    ),
    "phases, late": f"ACDCPruningModifier {{{PHASES.replace('h: 0', 'h: 1')}, {ALL}}}",
    "phases, 1 x 4": f"ACDCPruningModifier {{{PHASES}, {ALL}, mask_type: [1, 4]}}",
    "phases, 1:4": f"ACDCPruningModifier {{{PHASES}, {ALL}, mask_type: '1:4'}}",
}
KEPT = {
    "constant": f"ConstantPruningModifier {{start_epoch: 0, {ALL}}}",
    "constant, from before": f"ConstantPruningModifier {{{ALL}}}",
    "constant, for a while": f"ConstantPruningModifier {{start_epoch: 0.4, end_epoch: 1.7, {ALL}}}",
    "constant, then more": (
        f"ConstantPruningModifier {{start_epoch: 0, end_epoch: 0.5, {ALL}}}\n"
        f"- !GMPruningModifier {{{GRADUAL.replace('0.2', '0.4')}, {ALL}}}"
    ),
    "less than there is": f"GMPruningModifier {{{GRADUAL}, {ALL}}}",
    "from what there is": (
        f"GMPruningModifier {{{GRADUAL.replace('0.2', '__FROM_PARAM__')}, {ALL}}}"
    ),
}
FROZEN = (
    f"TrainableParamsModifier {{params: [{A}, {B}], trainable: false, start_epoch: 0, "
    "end_epoch: 1.5}"
)
CASES = [
    *(pytest.param(recipe(text), 0.0, id=name) for name, text in SCHEDULES.items()),
    *(pytest.param(recipe(text), 0.4, id=name) for name, text in KEPT.items()),
]


@needs_sparseml
@pytest.mark.parametrize(("text", "sparsity"), CASES)
def test_every_step_is_that_of_sparseml(text: str, sparsity: float) -> None:
    theirs = Practice(text, "sparseml", sparsity=sparsity).run()
    mine = Practice(text, "native", sparsity=sparsity).run()
    assert [one.same_as(two) for one, two in zip(mine, theirs, strict=True)] == [True] * (
        LENGTH + 1
    )
    assert zeros(mine[-1], C) > 0 or "let go" in text or "leave_enabled" in text


@pytest.mark.parametrize(("text", "sparsity"), CASES)
def test_a_run_that_goes_on_is_one_that_never_stopped(text: str, sparsity: float) -> None:
    if "__FROM_PARAM__" in text:
        pytest.skip("the sparsity that it began with is known but roughly")
    whole = Practice(text, "native", sparsity=sparsity).run()
    for steps in range(1, LENGTH):
        rest = Practice(text, "native", whole[steps - 1], steps).run()
        assert all(one.same_as(two) for one, two in zip(rest, whole[steps:], strict=True)), steps


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize(("text", "sparsity"), CASES)
@pytest.mark.parametrize("second", ["native", "sparseml"])
def test_a_run_may_go_on_with_the_other_engine(
    text: str, sparsity: float, second: EngineName
) -> None:
    if "__FROM_PARAM__" in text:
        pytest.skip("the sparsity that it began with is known but roughly")
    first: EngineName = "sparseml" if second == "native" else "native"
    whole = Practice(text, first, sparsity=sparsity).run()
    for steps in range(1, LENGTH):
        rest = Practice(text, second, whole[steps - 1], steps).run()
        assert all(one.same_as(two) for one, two in zip(rest, whole[steps:], strict=True)), steps
