"""Pruning by the native engine: step by step what sparseml does, and the same after a stop."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipe_engines import ENGINES_HERE, needs_sparseml
from yolact.errors import RecipeError
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Entry, dump, parse
from yolact.sparsify.native.masks import pattern_of
from yolact.sparsify.recipe import Recipe
from yolact.sparsify.recipe_engines import recipe_engine

STEPS = 3
"""Of an epoch."""
LENGTH = 10
"""Steps of a run."""

A, B, C = "0.weight", "3.weight", "5.weight"
ALL = f"params: [{A}, {B}, {C}]"
WINDOW = "start_epoch: 0.5, end_epoch: 2.2, update_frequency: 0.4"
GRADUAL = f"init_sparsity: 0.2, final_sparsity: 0.8, {WINDOW}"
HALF = f"init_sparsity: 0.5, final_sparsity: 0.5, {WINDOW}"
PHASES = "start_epoch: 0, end_epoch: 4, update_frequency: 1, compression_sparsity: 0.75"


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
        speeds = [(s["momentum_buffer"], its[n]["momentum_buffer"]) for n, s in mine.items()]
        pairs += [(one, two) for one, two in speeds if one is not None]
        pairs += [
            (value, theirs)
            for name, value in self.gradients.items()
            if value is not None and (theirs := other.gradients[name]) is not None
        ]
        return all(torch.equal(one, two) for one, two in pairs)


class Practice:
    """A run of :func:`network`, taken step by step as the training loop does.

    Args:
        text: The recipe.
        engine: Who runs it.
        at: What an earlier run left; the network's own weights if there was none.
        steps: That it took.
        model: The network, if it is not the usual one.
        momentum: Of the optimizer.
        meanwhile: Called with this before each step.
        others: More recipes in the same run, by the engines that run them.
    """

    def __init__(
        self,
        text: str,
        engine: EngineName,
        at: Moment | None = None,
        steps: int = 0,
        *,
        model: nn.Module | None = None,
        momentum: float = 0.9,
        meanwhile: Callable[[Practice], None] = lambda _: None,
        others: Mapping[EngineName, str] | None = None,
    ) -> None:
        self.model = model or network()
        self.steps = steps
        self.meanwhile = meanwhile
        recipes = [(name, other) for name, other in (others or {}).items()]
        self.managers = [
            Recipe.of_text(text, "the recipe", name).manager()
            for name, text in [*recipes, (engine, text)]
        ]
        if at is not None:
            self.model.load_state_dict(at.weights)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=momentum, weight_decay=0.01
        )
        for manager in self.managers:
            manager.start(self.model, self.optimizer, steps, STEPS, None)
        if at is not None:
            self.optimizer.load_state_dict(copy.deepcopy(at.optimizer))

    def step(self) -> Moment:
        self.meanwhile(self)
        now = self.model, self.optimizer, self.steps / STEPS
        for manager in self.managers:
            manager.before_forward(*now)
        self.optimizer.zero_grad()
        self.backward(self.steps)
        for manager in self.managers:
            manager.before_step(*now)
        self.optimizer.step()
        for manager in self.managers:
            manager.after_step(*now)
        self.steps += 1
        return self.moment()

    def backward(self, seed: int) -> None:
        inputs = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.model(inputs).square().sum().backward()

    def finish(self) -> Moment:
        for manager in self.managers:
            manager.finish(self.model, self.steps / STEPS)
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
    "phases, momentum kept": (
        f"ACDCPruningModifier {{{PHASES}, {ALL}, momentum_buffer_reset: false}}"
    ),
    "phases, let go": (
        f"ACDCPruningModifier {{{PHASES.replace('4,', '2,')}, {ALL}, leave_enabled: false}}"
    ),
    "phases, late": f"ACDCPruningModifier {{{PHASES.replace('h: 0', 'h: 1')}, {ALL}}}",
    "phases, 1 x 4": f"ACDCPruningModifier {{{PHASES}, {ALL}, mask_type: [1, 4]}}",
    "phases, 1:4": f"ACDCPruningModifier {{{PHASES}, {ALL}, mask_type: '1:4'}}",
}
KEPT = {
    "constant": f"ConstantPruningModifier {{start_epoch: 0, {ALL}}}",
    "constant, from before": f"ConstantPruningModifier {{{ALL}}}",
    "constant, for a while": f"ConstantPruningModifier {{start_epoch: 0, end_epoch: 1.7, {ALL}}}",
    "constant, then more": (
        f"ConstantPruningModifier {{start_epoch: 0, end_epoch: 0.5, {ALL}}}\n"
        f"- !GMPruningModifier {{{GRADUAL.replace('0.2', '0.4')}, {ALL}}}"
    ),
    "less than there is": f"GMPruningModifier {{{GRADUAL}, {ALL}}}",
    "frozen meanwhile": (
        f"GMPruningModifier {{{GRADUAL}, {ALL}}}\n- !TrainableParamsModifier "
        f"{{params: [{A}, {B}], trainable: false, start_epoch: 0, end_epoch: 1.5}}"
    ),
    "set meanwhile": (
        f"GMPruningModifier {{{GRADUAL}, params: [3.bias, {A}]}}\n- !SetParamModifier "
        "{params: [3.bias], val: [0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4], start_epoch: 1.6}"
    ),
    "from what there is": (
        f"GMPruningModifier {{{GRADUAL.replace('0.2', '__FROM_PARAM__')}, {ALL}}}"
    ),
}
QUICK = (
    *("cubic", "every step", "let go", "begins with the end", "several levels", "together"),
    *("1 x 4", "2:4", "phases", "phases, late", "constant", "constant, then more"),
    *("frozen meanwhile", "set meanwhile", "from what there is"),
)
CASES = [
    pytest.param(
        *(recipe(text), 0.4 if name in KEPT else 0.0),
        id=name,
        marks=[] if name in QUICK else [pytest.mark.slow],
    )
    for name, text in (SCHEDULES | KEPT).items()
]
KNOWN = [case for case in CASES if "__FROM_PARAM__" not in str(case.values[0])]
"""Those that a run can go on with as if it had not stopped."""


def assert_same(some: Sequence[Moment], others: Sequence[Moment]) -> None:
    equal = [one.same_as(other) for one, other in zip(some, others, strict=True)]
    assert equal == [True] * len(equal)


def assert_goes_on(
    text: str, whole: Sequence[Moment], engine: EngineName, steps: Iterable[int]
) -> None:
    """Whether a run that goes on after any of these numbers of steps is as the whole run."""
    for taken in steps:
        assert_same(Practice(text, engine, whole[taken - 1], taken).run(), whole[taken:])


@needs_sparseml
@pytest.mark.parametrize(("text", "sparsity"), CASES)
def test_every_step_is_that_of_sparseml(text: str, sparsity: float) -> None:
    mine = Practice(text, "native", model=network(sparsity)).run()
    assert_same(mine, Practice(text, "sparseml", model=network(sparsity)).run())
    assert max(zeros(moment, A) for moment in mine[1:]) > 0.2


@pytest.mark.parametrize(
    "name", ["cubic", "1 x 4", "let go", "together", "phases", "ends with the run"]
)
def test_a_run_that_goes_on_is_one_that_never_stopped(name: str) -> None:
    text = recipe(SCHEDULES[name])
    assert_goes_on(text, Practice(text, "native").run(), "native", (1, 5))


def test_weights_that_may_grow_again_do_so_after_a_stop() -> None:
    text = recipe(SCHEDULES["phases"])
    whole = Practice(text, "native", momentum=0.0).run()
    assert zeros(whole[6], A) > 0.5 > zeros(whole[7], A)
    assert_same(Practice(text, "native", whole[6], 7, momentum=0.0).run(), whole[7:])


@pytest.mark.slow
@pytest.mark.parametrize(("text", "sparsity"), KNOWN)
def test_a_run_may_stop_after_any_step(text: str, sparsity: float) -> None:
    whole = Practice(text, "native", model=network(sparsity)).run()
    assert_goes_on(text, whole, "native", range(1, LENGTH))


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize(("text", "sparsity"), KNOWN)
def test_a_run_may_go_on_with_the_other_engine(text: str, sparsity: float) -> None:
    theirs = Practice(text, "sparseml", model=network(sparsity)).run()
    assert_goes_on(text, theirs, "native", (2, 5, 9))
    assert_goes_on(text, theirs, "sparseml", (4,))  # which are also those of native


moments = st.floats(0, 4).map(lambda epoch: round(epoch, 2))


@needs_sparseml
@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(moments, st.floats(0.01, 3), st.floats(0.05, 2), st.data())
def test_any_window_is_that_of_sparseml(
    start: float, length: float, frequency: float, data: st.DataObject
) -> None:
    fields = {
        "start_epoch": start,
        "end_epoch": start + length,
        "update_frequency": data.draw(st.sampled_from((frequency, -1.0))),
        "init_sparsity": data.draw(st.floats(0, 1)),
        "final_sparsity": data.draw(st.floats(0.01, 0.99)),
        "inter_func": data.draw(st.sampled_from(("linear", "cubic", "inverse_cubic"))),
        "leave_enabled": data.draw(st.booleans()),
        "mask_type": data.draw(st.sampled_from(("unstructured", [2, 4]))),
        "params": [A, B, C],
    }
    kind = data.draw(st.sampled_from(("GMPruningModifier", "GlobalMagnitudePruningModifier")))
    text = dump({"modifiers": [Entry(kind, fields)]})
    mine = Practice(text, "native").run()
    assert_same(mine, Practice(text, "sparseml").run())
    assert_goes_on(text, mine, "native", (data.draw(st.integers(1, LENGTH - 1)),))


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_momentum_does_not_move_masked_weights(engine: EngineName) -> None:
    run = Practice(recipe(SCHEDULES["cubic"]), engine)
    moments = [run.step() for _ in range(6)]
    masked = moments[2].weights[A] == 0
    assert masked.any()
    for moment in moments[3:]:
        gradient = moment.gradients[A]
        assert gradient is not None
        assert not gradient[masked].any() and not moment.weights[A][masked].any()


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_nothing_is_masked_after_the_run(engine: EngineName) -> None:
    run = Practice(recipe(SCHEDULES["cubic"]), engine)
    masked = run.run()[-1].weights[A] == 0
    run.optimizer.zero_grad()
    run.backward(0)
    gradient = run.model.get_parameter(A).grad
    assert masked.any() and gradient is not None and gradient[masked].any()


@needs_sparseml
@pytest.mark.parametrize("name", ["cubic", "phases", "2 x 2"])
def test_masks_outlive_layers_that_quantization_fuses_and_wraps(name: str) -> None:
    quantization = recipe("QuantizationModifier {start_epoch: 1.6, freeze_bn_stats_epoch: 2.5}")
    text = recipe(SCHEDULES[name])
    mine = Practice(text, "native", others={"sparseml": quantization}).run()
    assert_same(mine, Practice(text, "sparseml", others={"sparseml": quantization}).run())
    assert mine[-1].weights.keys() != mine[0].weights.keys()


class QuantWrapper(nn.Module):
    """What quantization puts around a layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return output


def wrapped() -> nn.Sequential:
    model = network()
    model[3] = QuantWrapper(model[3])
    return model


@pytest.mark.parametrize("name", ["cubic", "no names", "several levels", "phases"])
def test_a_run_goes_on_in_wrapped_layers(name: str) -> None:
    def wrap(run: Practice) -> None:
        if run.steps == 4:
            run.model.register_module("3", QuantWrapper(run.model.get_submodule("3")))

    text = recipe(SCHEDULES[name])
    whole = Practice(text, "native", meanwhile=wrap).run()
    assert_same(Practice(text, "native", whole[5], 6, model=wrapped()).run(), whole[6:])


def test_a_first_sparsity_that_nobody_saved_is_computed_from_the_zeros(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = recipe(KEPT["from what there is"])
    whole = Practice(text, "native", model=network(0.4)).run()
    for steps in (3, 4, 6):
        with caplog.at_level(logging.WARNING):
            rest = Practice(text, "native", whole[steps - 1], steps).run()
        assert "not saved" in caplog.text
        for name, size in ((A, 288), (B, 64), (C, 128)):
            course = [zeros(moment, name) for moment in whole[steps:]]
            assert [zeros(m, name) for m in rest] == pytest.approx(course, abs=1.01 / size)


@needs_sparseml
@pytest.mark.parametrize("name", ["cubic", "let go", "several levels", "together", "phases, late"])
def test_sparsities_are_known_before_a_run_as_sparseml_knows_them(name: str) -> None:
    epochs = [step / 20 for step in range(80)]
    (entry,) = parse(recipe(SCHEDULES[name]), "the recipe")["modifiers"]
    found = [
        recipe_engine(engine).sparsities(
            recipe_engine(engine).build(entry), network().to("meta"), epochs, 20
        )
        for engine in ENGINES_HERE
    ]
    assert found[0] == found[1]
    assert len(found[0][1]) == 80 and max(max(levels) for levels in found[0][1]) >= 0.5


def test_a_first_sparsity_that_weights_would_tell_is_not_known_without_them() -> None:
    (entry,) = parse(recipe(KEPT["from what there is"]), "the recipe")["modifiers"]
    native = recipe_engine("native")
    with pytest.raises(ValueError, match="__FROM_PARAM__"):
        native.sparsities(native.build(entry), network().to("meta"), [0.0], 1)


GOOD: dict[str, Any] = {
    "init_sparsity": 0.1,
    "final_sparsity": 0.8,
    "start_epoch": 0.0,
    "end_epoch": 2.0,
    "update_frequency": 0.5,
    "params": [A],
}
PHASED: dict[str, Any] = {
    "compression_sparsity": 0.8,
    "start_epoch": 0,
    "end_epoch": 4,
    "update_frequency": 1,
    "params": [A],
}


OF_KIND = {"ACDCPruningModifier": PHASED, "ConstantPruningModifier": {"params": [A]}}


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *(("GMPruningModifier", {"init_sparsity": value}) for value in (-0.1, 1.5, "x", None)),
        *(("MagnitudePruningModifier", {"final_sparsity": v}) for v in (0.0, 1.0, 1, -0.5, "x")),
        ("GMPruningModifier", {"final_sparsity": {0.5: [B]}}),
        ("GMPruningModifier", {"final_sparsity": {1.5: [B]}, "params": []}),
        ("GMPruningModifier", {"inter_func": "quadratic"}),
        ("GMPruningModifier", {"phased": True}),
        ("GMPruningModifier", {"score_type": "movement"}),
        ("GMPruningModifier", {"end_epoch": -0.5}),
        ("GlobalMagnitudePruningModifier", {"start_epoch": 3.0}),
        *(("ACDCPruningModifier", {f: 1.5}) for f in ("start_epoch", "update_frequency")),
        ("ACDCPruningModifier", {"end_epoch": -1}),
        ("ConstantPruningModifier", {"start_epoch": 3.0}),
    ],
)
def test_values_that_cannot_be_are_refused(
    engine: EngineName, kind: str, changes: dict[str, Any]
) -> None:
    fields = OF_KIND.get(kind, GOOD) | ({"end_epoch": 2.0} if "Constant" in kind else {})
    recipe_engine(engine).build(Entry(kind, fields))
    with pytest.raises((TypeError, ValueError)):
        recipe_engine(engine).build(Entry(kind, fields | changes))


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize("field", list(GOOD))
def test_fields_without_a_default_have_to_be_given(engine: EngineName, field: str) -> None:
    fields = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(TypeError, match=field):
        recipe_engine(engine).build(Entry("GMPruningModifier", fields))


@needs_sparseml
@pytest.mark.parametrize(
    "kind",
    [
        *("ACDCPruningModifier", "ConstantPruningModifier", "GMPruningModifier"),
        *("GlobalMagnitudePruningModifier", "MagnitudePruningModifier"),
    ],
)
def test_fields_and_defaults_are_those_of_sparseml(kind: str) -> None:
    mine, theirs = (recipe_engine(name) for name in ("native", "sparseml"))
    assert mine.fields()[kind] == theirs.fields()[kind]
    entry = Entry(kind, OF_KIND.get(kind, GOOD))
    one, other = mine.build(entry), theirs.build(entry)
    shared = [f for f in mine.fields()[kind] if hasattr(other, f)]
    assert {f: getattr(one, f) for f in shared} == {f: getattr(other, f) for f in shared}
    assert "params" in shared and "end_epoch" in shared


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize(
    "fields",
    [
        {"params": ["7.weight"]},
        {"params": "weights"},
        {"params": [A, "re:nothing.*"]},
        {"params": [A, "bias"]},
        {"params": [], "final_sparsity": {0.5: [A], 0.6: ["7.weight"]}},
        {"params": [], "final_sparsity": {0.5: ["__ALL_PRUNABLE__"]}},
    ],
)
def test_names_that_match_nothing_are_refused(engine: EngineName, fields: dict[str, Any]) -> None:
    text = dump({"modifiers": [Entry("GMPruningModifier", GOOD | fields)]})
    with pytest.raises((RuntimeError, ValueError, RecipeError)):
        Practice(text, engine)
