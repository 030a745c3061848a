"""What a check says of a recipe: every problem, the numbers at the end, the course of the run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe_engines import engines_of
from training import tiny_config
from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.engines.compress import compressed_size
from yolact.errors import RecipeError
from yolact.exporter.export import export
from yolact.model.weights import init_weights
from yolact.model.yolact import Yolact
from yolact.optim_config import OptimConfig
from yolact.presets import named_config
from yolact.sparsify.check.curves import meta_copy, with_values
from yolact.sparsify.check.examine import (
    Outlook,
    PlannedRun,
    RecipeReport,
    check_draft,
    examine,
    look_ahead,
    read_draft,
    require_sound,
)
from yolact.sparsify.check.plot import group_label, plot_schedule
from yolact.sparsify.check.words import check_json, describe_check
from yolact.sparsify.document import Entry
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import Recipe, load_recipe
from yolact.sparsify.sparsity import convolutions, overall_sparsity

pytestmark = pytest.mark.usefixtures("recipe_engine")

LENGTH = "- !EpochRangeModifier {start_epoch: 0, end_epoch: 10}\n"
PRUNE = (
    "- !GMPruningModifier {params: [proto_net.0.weight], start_epoch: 0, end_epoch: 4,\n"
    "    init_sparsity: 0.2, final_sparsity: 0.8, update_frequency: 0.5}\n"
)


def words_of_re(pattern: str) -> str:
    with pytest.raises(re.error) as caught:
        re.compile(pattern)
    return str(caught.value)


def without_weights(config: YolactConfig) -> Yolact:
    with torch.device("meta"):
        return Yolact(config.model)


@pytest.fixture(scope="module")
def tiny() -> Yolact:
    return without_weights(tiny_config())


def report_of(
    text: str, model: Yolact, *, epochs: float | None = None, **recipe_args: Any
) -> RecipeReport:
    draft = read_draft(text, recipe_args)
    return examine(draft.recipe, model, PlannedRun(epochs))


def outlook_of(text: str, config: YolactConfig, model: Yolact | None = None) -> Outlook:
    model = model or without_weights(config)
    report = report_of(text, model)
    outlook, problem = look_ahead(report, model, config.optim, config.model.image_size)
    assert outlook is not None, problem
    return outlook


def found(text: str, model: Yolact, **more: Any) -> list[tuple[str, int | None, str, str]]:
    problems = report_of(text, model, **more).problems
    return [(p.severity, p.number, str(p), p.hint) for p in problems]


PROBLEMS = [
    pytest.param(
        PRUNE.replace("proto_net.0", "proto_net.1"),
        "error",
        "GMPruningModifier: no parameter of the model matches 'proto_net.1.weight'",
        "did you mean 'proto_net.10.weight'?",
        id="no match",
    ),
    pytest.param(
        PRUNE.replace("proto_net.0.weight", "backbone.blocks.3.expand.0.weight"),
        "error",
        "GMPruningModifier: no parameter of the model matches 'backbone.blocks.3.expand.0.weight'",
        "use the recipe made for this --config",
        id="name of another backbone",
    ),
    *(
        pytest.param(
            f"- !{modifier}\n",
            "error",
            f"{modifier.split()[0]}: params names __ALL_PRUNABLE__, which only modifiers that "
            "prune know",
            "give names, or re: and a regular expression, such as re:backbone.*[.]0[.]weight",
            id=f"{modifier.split()[0]} of all prunable ones",
        )
        for modifier in (
            "TrainableParamsModifier {params: __ALL_PRUNABLE__, trainable: false}",
            "TrainableParamsModifier {params: [__ALL_PRUNABLE__, proto_net.0.bias],"
            " trainable: false, params_strict: false}",
        )
    ),
    *(
        pytest.param(
            f"- !LayerPruningModifier {{layers: ['{name}'], start_epoch: 1}}\n",
            "error",
            f"LayerPruningModifier: layers names '{name}', and the network has no such layer",
            hint,
            id=f"layer {name}",
        )
        for name, hint in (
            ("proto_net.99", "did you mean 'proto_net.9'?"),
            ("re:proto_net.[0-9]", "did you mean 'proto_net.9'?"),
            ("__ALL__", "give the name or the class of a layer"),
        )
    ),
    pytest.param(
        PRUNE.replace("[proto_net.0.weight]", "['re:(proto']"),
        "error",
        f"GMPruningModifier: '(proto' is not a regular expression: {words_of_re('(proto')}",
        "text after re: is a Python regular expression",
        id="expression",
    ),
    pytest.param(
        PRUNE.replace("proto_net.0.weight", "3"),
        "error",
        "GMPruningModifier: [3] are not all names of parameters",
        "give names such as proto_net.0.weight, or re: and a regular expression",
        id="not a name",
    ),
    pytest.param(
        PRUNE.replace("update_frequency", "update_frequenzy"),
        "error",
        "GMPruningModifier has no field 'update_frequenzy'",
        "try: update_frequency",
        id="unknown field",
    ),
    pytest.param(
        PRUNE.replace("GMPruning", "GMPrunning"),
        "error",
        "unknown modifier !GMPrunningModifier",
        "did you mean !GMPruningModifier?",
        id="unknown modifier",
    ),
    pytest.param(
        PRUNE.replace("end_epoch: 4", "end_epoch: 12"),
        "error",
        "GMPruningModifier: ends at epoch 12, after the run, which ends at 10",
        "lower its end_epoch, or raise the EpochRangeModifier's end_epoch",
        id="ends too late",
    ),
    pytest.param(
        "- !SetWeightDecayModifier {start_epoch: 10, weight_decay: 0.0}\n",
        "error",
        "SetWeightDecayModifier: begins at epoch 10, when the run is over: it ends at 10",
        "lower its start_epoch, or raise the EpochRangeModifier's end_epoch",
        id="begins too late",
    ),
    pytest.param(
        "- !QuantizationModifier {start_epoch: 11}\n",
        "error",
        "QuantizationModifier: begins at epoch 11, when the run is over: it ends at 10",
        "lower its start_epoch, or raise the EpochRangeModifier's end_epoch",
        id="quantizes never",
    ),
    pytest.param(
        PRUNE.replace("update_frequency: 0.5", "update_frequency: 5"),
        "warning",
        "GMPruningModifier: updates every 5 epochs, but lasts only 4: "
        "it acts at its start and at its end alone",
        "lower update_frequency",
        id="too slow",
    ),
    pytest.param(
        PRUNE.replace("proto_net.0", "backbone._preconv.0").replace(
            "0.5}", "0.5, mask_type: [1, 4]}"
        ),
        "error",
        "GMPruningModifier: blocks of [1, 4] do not divide backbone._preconv.0.weight [4, 3, 3, 3]",
        "leave that parameter out, or use mask_type: unstructured for it",
        id="blocks",
    ),
    pytest.param(
        PRUNE.replace("0.5}", "0.5, mask_type: [0, 1]}"),
        "error",
        "GMPruningModifier: mask_type [0, 1] is not a block shape",
        "give two whole numbers, output and input channels, such as [1, 4]",
        id="no block",
    ),
    pytest.param(
        "- !ACDCPruningModifier {params: [proto_net.0.weight], start_epoch: 0, end_epoch: 8,\n"
        "    update_frequency: 2, compression_sparsity: 70, momentum_buffer_reset: true}\n",
        "error",
        "ACDCPruningModifier: compression_sparsity 70 is not a fraction from 0 to below 1",
        "0.9 means that nine of ten weights become zero",
        id="percent",
    ),
    pytest.param(
        PRUNE.replace("final_sparsity: 0.8", "final_sparsity: 0.1"),
        "error",
        "GMPruningModifier: final_sparsity 0.1 is below init_sparsity 0.2",
        "pruning only ever takes weights away: lower init_sparsity",
        id="falling",
    ),
    pytest.param(
        "- !QuantizationModifier {start_epoch: 5, disable_quantization_observer_epoch: 11}\n",
        "warning",
        "QuantizationModifier: disable_quantization_observer_epoch is 11, after the run, "
        "which ends at 10",
        "set it between 5 and 10",
        id="observers",
    ),
    pytest.param(
        "- !QuantizationModifier {start_epoch: 5, freeze_bn_stats_epoch: 10.5}\n",
        "warning",
        "QuantizationModifier: freeze_bn_stats_epoch is 10.5, after the run, which ends at 10",
        "set it between 5 and 10",
        id="batch norms",
    ),
    pytest.param(
        "- !DistillationModifier {start_epoch: 0}\n",
        "warning",
        "DistillationModifier: needs a teacher",
        "give train the teacher's checkpoint with --distill_teacher",
        id="teacher",
    ),
    pytest.param(
        PRUNE.replace("[proto_net.0.weight]", '["re:proto_net[.](8|10)"]'),
        "warning",
        "GMPruningModifier: 2 of 4 parameters are biases, or scales of batch norms, whose zeros "
        "cost accuracy and save nothing (first: proto_net.8.bias, proto_net.10.bias)",
        "params: __ALL_PRUNABLE__ names the weights of convolutions alone",
        id="biases",
    ),
    pytest.param(
        "- !ConstantPruningModifier {params: [backbone._preconv.1.weight]}\n",
        "warning",
        "ConstantPruningModifier: 1 of 1 parameters are biases, or scales of batch norms, whose "
        "zeros cost accuracy and save nothing (first: backbone._preconv.1.weight)",
        "params: __ALL_PRUNABLE__ names the weights of convolutions alone",
        id="scales",
    ),
    pytest.param(
        "- !QuantizationModifier {start_epoch: 5, exclude_module_types: [Tanh]}\n",
        "warning",
        "QuantizationModifier: exclude_module_types names 'Tanh', and the network has no such "
        "layer: it excludes nothing",
        "give the name or the class of a layer",
        id="idle exclusion",
    ),
    pytest.param(
        "- !SetParamModifier {params: [proto_net.10.bias], val: [1, 2], start_epoch: 1}\n",
        "error",
        "SetParamModifier: val has the shape [2], unlike proto_net.10.bias [4]",
        "name parameters of one shape, and give values of that",
        id="shape of a value",
    ),
    *(
        pytest.param(
            f"- !{name}, param_groups: {groups}}}\n",
            "error",
            f"{name.split(' ')[0]}: param_groups is {groups}, and the optimizer has "
            "group 0 (the network)",
            "leave param_groups out, or the modifier when it is for groups of another network",
            id=f"groups {groups} of {name.split(' ')[0]}",
        )
        for name, groups in (
            ("SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.0", "[2]"),
            ("SetLearningRateModifier {start_epoch: 1, learning_rate: 0.1", "[0, 1]"),
            (
                "LearningRateFunctionModifier {start_epoch: 0, end_epoch: 2, lr_func: linear, "
                "init_lr: 0.1, final_lr: 0.0",
                "[-1]",
            ),
            ("SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.0", "0"),
            ("SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.0", "[[0]]"),
        )
    ),
]


@pytest.mark.parametrize("pattern", ["__ALL__", "re:.*"])
def test_pruning_everything_is_a_warning_that_counts(tiny: Yolact, pattern: str) -> None:
    everything = len(list(tiny.parameters()))
    text = LENGTH + PRUNE.replace("proto_net.0.weight", pattern)
    (problem,) = report_of(text, tiny).problems
    count = everything - len(convolutions(tiny))
    assert problem.sentence.startswith(f"{count} of {everything} parameters are biases, or scales")
    assert report_of(text.replace(f"[{pattern}]", "__ALL_PRUNABLE__"), tiny).problems == ()


def test_maps_to_a_teacher_are_a_group_of_parameters(tiny: Yolact) -> None:
    decay = "- !SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.0, param_groups: [1]}\n"
    layers = "- !PerLayerDistillationModifier {gain: 1.0, project_features: %s}\n"
    assert report_of(LENGTH + decay + layers % "true", tiny).errors == ()
    assert set(outlook_of(LENGTH + decay + layers % "true", tiny_config()).curves.weight_decay) == {
        OptimConfig().weight_decay
    }
    assert len(report_of(LENGTH + decay + layers % "false", tiny).errors) == 1


@pytest.mark.parametrize(("text", "severity", "sentence", "hint"), PROBLEMS)
def test_a_problem_is_named_in_these_words(
    tiny: Yolact, text: str, severity: str, sentence: str, hint: str
) -> None:
    assert found(LENGTH + text, tiny) == [(severity, 2, sentence, hint)]


def test_quantizing_before_the_start_of_quantization_is_refused_by_the_modifier(
    tiny: Yolact,
) -> None:
    text = "- !QuantizationModifier {start_epoch: 5, freeze_bn_stats_epoch: 4}\n"
    ((severity, number, sentence, _),) = found(LENGTH + text, tiny)
    assert (severity, number) == ("error", 2) and sentence.startswith("QuantizationModifier: ")


LR = "- !LearningRateFunctionModifier {start_epoch: %s, end_epoch: %s, lr_func: linear,\n"
LR += "    init_lr: 0.1, final_lr: 0.01}\n"
SET = "- !SetLearningRateModifier {start_epoch: %s, learning_rate: 0.1%s}\n"
MAPS = "- !PerLayerDistillationModifier {gain: 1.0}\n"
"""It brings a second group of parameters."""
STEP = "- !LearningRateModifier {start_epoch: %s, lr_class: ExponentialLR, init_lr: 0.1,\n"
STEP += "    lr_kwargs: {gamma: 0.9}}\n"


@pytest.mark.parametrize(
    ("text", "name", "when"),
    [
        (LR % (0, 5) + LR % (3, 8), "LearningRateFunctionModifier", "from epoch 3 to 5"),
        (LR % (0, 5) + SET % (2, ""), "LearningRateFunctionModifier", "at epoch 2"),
        (LR % (0, 5) + SET % (0, ""), "LearningRateFunctionModifier", "at epoch 0"),
        (SET % (2, "") + SET % (2, ""), "SetLearningRateModifier", "at epoch 2"),
        (STEP % 1 + LR % (3, 8), "LearningRateModifier", "from epoch 3 to 8"),
        (STEP % 1 + STEP % 4, "LearningRateModifier", "from epoch 4"),
    ],
)
def test_two_learning_rates_at_once_are_an_error(
    tiny: Yolact, text: str, name: str, when: str
) -> None:
    ((severity, number, sentence, hint),) = found(LENGTH + text, tiny)
    assert (severity, number) == ("error", 3)
    assert sentence.endswith(f": sets the learning rate {when}, and so does {name} (no. 2)")
    assert hint == "let one end where the other begins"


@pytest.mark.parametrize(
    "text",
    [
        LR % (0, 5) + LR % (5, 8),
        LR % (0, 0.1 + 0.2) + LR % (0.3, 8),  # which is a hair less
        LR % (0, 5) + SET % (5, ""),
        SET % (0, "") + LR % (1, 5),
        SET % (2, ", param_groups: [0]") + SET % (2, ", param_groups: [1]") + MAPS,
    ],
)
def test_learning_rates_after_each_other_or_of_other_groups_are_none(
    tiny: Yolact, text: str
) -> None:
    assert [problem for problem in found(LENGTH + text, tiny) if problem[0] == "error"] == []


def test_two_modifiers_that_prune_one_parameter_at_once_are_an_error(tiny: Yolact) -> None:
    other = PRUNE.replace("proto_net.0.weight", "'re:proto_net.*weight'")
    later = other.replace("start_epoch: 0, end_epoch: 4", "start_epoch: 4, end_epoch: 6")
    assert found(LENGTH + PRUNE + later, tiny) == []
    assert found(LENGTH + PRUNE + other.replace("start_epoch: 0", "start_epoch: 3"), tiny) == [
        (
            "error",
            3,
            "GMPruningModifier: prunes proto_net.0.weight from epoch 3 to 4, "
            "and so does GMPruningModifier (no. 2)",
            "name each parameter in one of them, or let one end where the other begins",
        )
    ]
    ((_, _, sentence, _),) = found(LENGTH + other + other, tiny)
    assert sentence.startswith("GMPruningModifier: prunes proto_net.0.weight and 4 more from")


def test_holding_zeros_while_pruning_is_fine(tiny: Yolact) -> None:
    hold = "- !ConstantPruningModifier {params: __ALL_PRUNABLE__}\n"
    assert found(LENGTH + PRUNE + hold, tiny) == []


def test_quantizing_before_pruning_ends_is_a_warning(tiny: Yolact) -> None:
    quantize = "- !QuantizationModifier {start_epoch: %s}\n"
    assert found(LENGTH + PRUNE + quantize % 4, tiny) == []
    assert found(LENGTH + PRUNE + quantize % 3, tiny) == [
        (
            "warning",
            3,
            "QuantizationModifier: begins at epoch 3, before pruning ends at 4",
            "ranges settle on weights that stay: let it begin when pruning has ended",
        )
    ]


def test_a_recipe_without_a_length_is_a_warning_unless_the_run_has_one(tiny: Yolact) -> None:
    assert found(PRUNE, tiny) == [
        (
            "warning",
            None,
            "no EpochRangeModifier says how long the run is",
            "add one, or give train --epochs or --max_iter",
        )
    ]
    assert found(PRUNE, tiny, epochs=4) == []


def test_a_run_cut_short_by_the_command_line_is_a_warning(tiny: Yolact) -> None:
    assert found(PRUNE, tiny, epochs=3) == [
        (
            "warning",
            1,
            "GMPruningModifier: ends at epoch 4, after the run, which ends at 3",
            "lower its end_epoch, or raise --epochs",
        )
    ]


def test_zeros_that_no_modifier_keeps_are_a_warning() -> None:
    model = Yolact(tiny_config().model)
    with torch.no_grad():
        model.get_parameter("proto_net.0.weight").zero_()
        model.get_parameter("proto_net.2.weight").zero_()
    assert found(LENGTH, model) == [
        (
            "warning",
            None,
            "proto_net.0.weight and 1 more have zeros that training will fill",
            "to keep them, add - !ConstantPruningModifier {params: __ALL_PRUNABLE__}",
        )
    ]
    hold = "- !ConstantPruningModifier {params: __ALL_PRUNABLE__}\n"
    assert found(LENGTH + hold, model) == []


def test_the_zeros_that_pretrained_weights_come_with_are_none_to_keep() -> None:
    model = Yolact(tiny_config().model)
    with torch.no_grad():
        weight = model.get_parameter("proto_net.0.weight").view(-1)
        weight[: len(weight) // 7].zero_()
    assert found(LENGTH, model) == []


def test_all_problems_are_found_at_once_and_in_order(tiny: Yolact) -> None:
    texts = [str(case.values[0]) for case in PROBLEMS]
    numbers = [number for _, number, _, _ in found(LENGTH + "".join(texts), tiny)]
    assert set(range(2, 2 + len(texts))) <= set(numbers)
    assert numbers == sorted(numbers, key=lambda number: number or 0)


@pytest.mark.parametrize("layer", ["backbone._preconv.0", "backbone.layers.1.0"])
def test_layers_that_others_need_are_a_problem_told_once(tiny: Yolact, layer: str) -> None:
    text = f"modifiers:\n{LENGTH}- !LayerPruningModifier {{layers: [{layer}], start_epoch: 1}}\n"
    report, outlook = check_draft(read_draft(text), tiny, YolactConfig())
    assert outlook is None
    (error,) = report.errors
    assert "the network does not run without these layers" in str(error)
    assert error.hint == "remove whole residual blocks, for instance backbone.layers.4.1"


def test_errors_stop_a_run_and_warnings_are_returned(tiny: Yolact) -> None:
    slow = PRUNE.replace("update_frequency: 0.5", "update_frequency: 5")
    (warning,) = require_sound(load_recipe(LENGTH + slow), tiny, PlannedRun(10))
    assert warning.severity == "warning"
    late = slow.replace("end_epoch: 4", "end_epoch: 12").replace("net.0.", "net.1.")
    with pytest.raises(RecipeError) as caught:
        require_sound(load_recipe(LENGTH + late), tiny, PlannedRun(10))
    assert str(caught.value) == (
        "the recipe has 2 problems: "
        "GMPruningModifier: no parameter of the model matches 'proto_net.1.weight'; "
        "GMPruningModifier: ends at epoch 12, after the run, which ends at 10"
    )
    assert caught.value.hint == (
        "did you mean 'proto_net.10.weight'?; "
        "lower its end_epoch, or raise the EpochRangeModifier's end_epoch"
    )


QUANTIZE = "- !QuantizationModifier {start_epoch: 60}\n"


def test_what_would_fail_when_quantization_begins_fails_before_the_run(tiny: Yolact) -> None:
    recipe = load_recipe(QUANTIZE.replace("60", "60, ignore: [nothing]"))
    with pytest.raises(RecipeError, match="ignore names 'nothing', and the network has no such"):
        require_sound(recipe, tiny, PlannedRun(90))


def test_a_rehearsal_leaves_model_and_random_numbers_alone() -> None:
    model = Yolact(tiny_config().model)
    before, names = torch.get_rng_state(), model.state_dict().keys()
    require_sound(load_recipe(QUANTIZE), model, PlannedRun(90))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.state_dict().keys() == names


def test_one_shot_asks_nothing_of_epochs_but_refuses_what_learns(tiny: Yolact) -> None:
    late = "- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n" + PRUNE
    with pytest.raises(RecipeError, match="ends at epoch 4, after the run"):
        require_sound(load_recipe(late), tiny, PlannedRun())
    assert require_sound(load_recipe(late), tiny, None) == ()
    moving = read_draft(late.replace("GMPruning", "MovementPruning")).recipe
    with pytest.raises(RecipeError, match="!MovementPruningModifier learns from training"):
        require_sound(moving, tiny, None)


# Numbers at the end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsity", "groups"),
    [
        ("yolact.pruned", 0.9057, [0.75, 0.83, 0.87, 0.92]),
        ("yolact.pruned_quant", 0.8316, [0.6, 0.7, 0.8, 0.85]),
        ("yolact.quantized", 0.0, []),
        ("yolact_small.pruned", 0.826, [0.6, 0.8, 0.85]),
        ("yolact_small.pruned_quant", 0.776, [0.5, 0.75, 0.8]),
    ],
)
def test_packaged_recipes_are_clean_and_end_where_they_promise(
    name: str, sparsity: float, groups: list[float]
) -> None:
    small = "small" in name
    config = named_config("yolact_darknet_small" if small else "yolact_darknet53")
    model = without_weights(config)
    report = report_of(name, model)
    assert report.problems == ()
    outlook, problem = look_ahead(report, model, config.optim, config.model.image_size)
    assert outlook is not None and problem is None
    forecast = outlook.forecast
    assert forecast.after.sparsity == pytest.approx(sparsity, abs=0.0005)
    assert [group.final for group in outlook.curves.groups] == groups
    assert forecast.after.int8 == ("quant" in name) and not forecast.before.int8
    if not small:
        assert forecast.before.macs == forecast.after.macs == 77_354_652_032
        assert forecast.before.parameters == 47_783_087
        assert 180e6 < forecast.before.size < 192e6
        assert forecast.after.size < forecast.before.size / 3.9 or "quant" not in name


def test_multiplications_with_zeros_are_counted_apart() -> None:
    config = tiny_config()
    forecast = outlook_of(LENGTH + PRUNE, config).forecast
    macs = {layer.name: layer.macs for layer in forecast.layers}
    assert macs["backbone._preconv.0.weight"] == 4 * 3 * 9 * 64 * 64
    # The head sees levels of 8, 4, 2, 1 and 1 cells a side.
    assert macs["prediction_layers.0.upfeature.0.weight"] == 8 * 8 * 9 * (64 + 16 + 4 + 1 + 1)
    assert macs["semantic_seg_conv.weight"] == 0  # only training runs it
    saved = forecast.after.macs - forecast.after.nonzero_macs
    assert saved == pytest.approx(0.8 * macs["proto_net.0.weight"])


def test_a_thinned_network_is_forecast_with_the_layers_it_will_have() -> None:
    thin = (
        "- !ChannelThinningModifier {params: [proto_net.0.weight], start_epoch: 0, end_epoch: 4,\n"
        "    final_width: 0.5, update_frequency: 1}\n"
    )
    outlook = outlook_of(LENGTH + thin, tiny_config())
    shapes = {layer.name: layer.shape for layer in outlook.forecast.layers}
    assert shapes["proto_net.0.weight"] == (4, 8, 3, 3)
    assert shapes["proto_net.2.weight"] == (8, 4, 3, 3)
    assert outlook.forecast.after.macs < outlook.forecast.before.macs
    assert outlook.forecast.after.parameters < outlook.forecast.before.parameters
    (curve,) = outlook.curves.groups
    assert (curve.what, curve.levels[0], curve.final) == ("channels", 0.0, 0.5)


def test_zeros_of_today_last_where_they_are_held() -> None:
    model = Yolact(tiny_config().model)
    with torch.no_grad():
        model.get_parameter("proto_net.0.weight")[:2] = 0
    hold = "- !ConstantPruningModifier {params: [proto_net.0.weight]}\n"
    for text, expected in ((LENGTH + hold, 0.25), (LENGTH, 0.0), (LENGTH + PRUNE, 0.8)):
        forecast = outlook_of(text, tiny_config(), model).forecast
        layers = {layer.name: layer.sparsity for layer in forecast.layers}
        assert layers["proto_net.0.weight"] == pytest.approx(expected)
    assert forecast.before.sparsity == pytest.approx(overall_sparsity(model))


def test_of_two_targets_the_one_reached_last_counts() -> None:
    later = PRUNE.replace("start_epoch: 0, end_epoch: 4", "start_epoch: 5, end_epoch: 9")
    text = LENGTH + later.replace("0.8", "0.9") + PRUNE
    layers = {x.name: x.sparsity for x in outlook_of(text, tiny_config()).forecast.layers}
    assert layers["proto_net.0.weight"] == 0.9


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["unstructured", [1, 4]])
def test_the_estimated_size_is_that_of_a_real_file(mask: str | list[int], tmp_path: Path) -> None:
    config = named_config("yolact_darknet_small").with_model(image_size=64)
    torch.manual_seed(0)
    model = Yolact(config.model)
    init_weights(model)
    recipe = load_recipe("yolact_small.pruned", {"num_epochs": 2, "mask_type": mask})
    report = report_of(recipe.text, model)
    outlook, _ = look_ahead(report, model, config.optim, 64)
    assert outlook is not None
    sizes = [_exported(model, config, tmp_path / "before.onnx")]
    _prune(model, recipe)
    sizes.append(_exported(model, config, tmp_path / "after.onnx"))
    for (size, packed), totals in zip(
        sizes, (outlook.forecast.before, outlook.forecast.after), strict=True
    ):
        assert totals.size == pytest.approx(size, rel=0.05)
        assert totals.compressed == pytest.approx(packed, rel=0.1)


def _prune(model: Yolact, recipe: Recipe) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = RecipeDriver(recipe)
    driver.start(model, optimizer, 0, steps_per_epoch=1)
    for epoch in range(2):  # no gradients: magnitudes alone decide
        driver.before_step(model, optimizer, epoch)
        driver.after_step(model, optimizer, epoch)
    driver.finish(model)


def _exported(model: Yolact, config: YolactConfig, path: Path) -> tuple[int, int]:
    export(model.eval(), Classes.assumed(config.model.num_classes), path)
    return path.stat().st_size, compressed_size(path)


# The course of a run


def at(epochs: tuple[float, ...], values: tuple[float, ...], when: float) -> float:
    return values[max(i for i, epoch in enumerate(epochs) if epoch <= when + 1e-9)]


def test_curves_are_those_of_the_modifiers() -> None:
    text = (
        LENGTH
        + PRUNE
        + "- !SetWeightDecayModifier {start_epoch: 6, weight_decay: 0.25}\n"
        + "- !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 10, lr_func: cosine,\n"
        + "    init_lr: 0.5, final_lr: 0.1}\n"
        + "- !QuantizationModifier {start_epoch: 6, disable_quantization_observer_epoch: 8,\n"
        + "    freeze_bn_stats_epoch: 9}\n"
    )
    curves = outlook_of(text, tiny_config()).curves
    assert (curves.epochs[0], curves.epochs[-1], curves.lr_by_recipe) == (0, 10, True)
    assert at(curves.epochs, curves.lr, 0) == 0.5
    assert at(curves.epochs, curves.lr, 5) == pytest.approx(0.3)
    assert curves.lr[-1] == pytest.approx(0.1)
    assert at(curves.epochs, curves.weight_decay, 5.99) == 0.0005
    assert at(curves.epochs, curves.weight_decay, 6) == 0.25
    (group,) = curves.groups
    assert (group.number, group.names) == (2, ("proto_net.0.weight",))
    # 0.8 - 0.6 (1 - t)^3, at t = 0, 1/8, 1/4, 1/2, 1; steps of half an epoch
    for epoch, level in ((0, 0.2), (0.49, 0.2), (0.5, 0.398), (1, 0.547), (2, 0.725), (4, 0.8)):
        assert at(curves.epochs, group.levels, epoch) == pytest.approx(level, abs=0.006), epoch
    assert [(phase.name, phase.begin, phase.end) for phase in curves.phases] == [
        ("ranges learned", 6, 8),
        ("ranges fixed", 8, 10),
        ("batch norms frozen", 9, 10),
    ]


def test_without_learning_rates_in_the_recipe_the_configurations_are_drawn() -> None:
    config = dataclasses.replace(
        tiny_config(), optim=OptimConfig(lr=0.01, warmup_until=0, lr_steps=(400_000,))
    )
    curves = outlook_of(LENGTH + PRUNE, config).curves
    assert not curves.lr_by_recipe
    assert at(curves.epochs, curves.lr, 4.9) == 0.01
    assert at(curves.epochs, curves.lr, 5.1) == pytest.approx(0.001)


def test_a_cosine_of_the_configuration_is_drawn_too() -> None:
    optim = OptimConfig(lr=0.01, warmup_until=0, schedule="cosine", backbone_lr=0.1)
    config = dataclasses.replace(tiny_config(), optim=optim)
    curves = outlook_of(LENGTH + PRUNE, config).curves
    assert at(curves.epochs, curves.lr, 5) == pytest.approx(0.005, rel=1e-3)
    assert curves.lr[-1] == pytest.approx(0, abs=1e-6)


OTHERS = {
    "phases": "- !ACDCPruningModifier {params: [proto_net.0.weight], start_epoch: 0, end_epoch: 8,"
    "\n    update_frequency: 2, compression_sparsity: 0.7, momentum_buffer_reset: true}\n",
    "from the weights": PRUNE.replace("0.2", "__FROM_PARAM__", 1).replace("0.8", "0.7"),
    "together": PRUNE.replace("GMPruning", "GlobalMagnitudePruning").replace("0.8", "0.7"),
    "movement": PRUNE.replace("GMPruning", "MovementPruning").replace("0.8", "0.7"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe_engine", "name"), engines_of(OTHERS), indirect=["recipe_engine"])
def test_other_pruning_ends_at_its_target_too(name: str) -> None:
    (group,) = outlook_of(LENGTH + OTHERS[name], tiny_config()).curves.groups
    assert group.final == pytest.approx(0.7)


@pytest.mark.slow
def test_the_schedule_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schedule.png"
    for text in (LENGTH + PRUNE + "- !QuantizationModifier {start_epoch: 6}\n", LENGTH):
        plot_schedule(outlook_of(text, tiny_config()).curves, "a recipe", path)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000
    assert [file.name for file in path.parent.iterdir()] == ["schedule.png"]


def test_groups_are_called_after_their_place_in_the_network() -> None:
    names = [f"backbone.layers.{stage}.0.0.weight" for stage in (0, 1, 3)]
    assert group_label(names) == "backbone 0, 1, 3"
    assert group_label(names[:2]) == "backbone 0-1"
    assert group_label(names[:1]) == "backbone 0"
    assert group_label(["fpn.a.weight", "fpn.b.weight", *names[:2]]) == "fpn, backbone 0-1"


# Copies without weights


def test_a_copy_without_weights_leaves_the_model_alone() -> None:
    model = Yolact(tiny_config().model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    meta = meta_copy(model)
    assert all(value.is_meta for value in meta.state_dict().values())
    assert {n: v.shape for n, v in meta.state_dict().items()} == {
        n: v.shape for n, v in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = with_values(meta)
    assert not any(value.is_meta for value in again.state_dict().values())
    assert all(value.is_meta for value in meta.state_dict().values())


# In words


def test_every_variable_is_listed_with_what_it_came_from() -> None:
    text = "n: 10\nhalf: eval(n / 2)\nmodifiers:\n" + LENGTH.replace("10", "eval(n)")
    draft = read_draft(text, {"n": 8})
    assert [(v.name, v.value, v.written) for v in draft.variables] == [
        ("n", 8, 10),
        ("half", 4.0, "eval(n / 2)"),
    ]
    staged = "base: 2\nfirst:\n  n: eval(base * 2)\n  first_modifiers:\n"
    staged += "  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(n)}\n"
    assert [(v.name, v.value) for v in read_draft(staged).variables] == [
        ("base", 2),
        ("first.n", 4),
    ]


def test_a_report_in_words() -> None:
    config = tiny_config()
    draft = read_draft("n: eval(5 * 2)\nmodifiers:\n" + LENGTH.replace("10", "eval(n)") + PRUNE)
    model = without_weights(config)
    report = examine(draft.recipe, model, PlannedRun())
    outlook, _ = look_ahead(report, model, config.optim, config.model.image_size)
    text = describe_check(draft.variables, report, outlook)
    assert text.startswith(
        "variable  value\n"
        "n         10     from eval(5 * 2)\n"
        "\n"
        "   modifier            begins  ends  every  parameters\n"
        "1  EpochRangeModifier       0    10\n"
        "2  GMPruningModifier        0     4    0.5           1  sparsity 0.2 to 0.8\n"
        "\n"
        "not pruned (33): "
    )
    assert (
        "\n\n   group      layers  weights  pruned\n2  proto_net       1      576  0.8000  zeros\n"
        in text
    )
    assert text.endswith("\n\nno problems found")
    verbose = describe_check(draft.variables, report, outlook, verbose=True)
    assert "\n     proto_net.0.weight\n" in verbose and "semantic_seg_conv.weight" in verbose


def test_json_holds_what_is_said() -> None:
    config = tiny_config()
    text = LENGTH + PRUNE.replace("update_frequency: 0.5", "update_frequency: 5")
    draft = read_draft(text)
    model = without_weights(config)
    report = examine(draft.recipe, model, PlannedRun())
    outlook, _ = look_ahead(report, model, config.optim, config.model.image_size)
    content = json.loads(json.dumps(check_json(draft.variables, report, outlook)))
    assert list(content) == [
        *("schema", "recipe", "ok", "problems", "length", "variables", "modifiers", "unpruned"),
        *("schedule", "prediction"),
    ]
    assert (content["schema"], content["ok"], content["length"]) == (1, True, 10)
    assert content["problems"][0]["number"] == 2
    assert content["modifiers"][1]["parameters"] == ["proto_net.0.weight"]
    assert set(content["prediction"]) == {"image_size", "before", "after", "layers"}
    assert set(content["schedule"]) == {
        *("epochs", "lr", "lr_by_recipe", "weight_decay", "groups", "phases")
    }
    assert json.loads(json.dumps(check_json((), report, None)))["prediction"] is None


# Anything

EPOCHS = st.floats(0, 12, allow_nan=False)
WINDOWS = st.tuples(EPOCHS, EPOCHS).map(lambda pair: (min(pair), max(pair)))
NAMES = st.sampled_from(
    [
        "proto_net.0.weight",
        "re:backbone.*",
        "__ALL_PRUNABLE__",
        "__ALL__",
        "nothing",
        "re:(",
        "re:fpn",
    ]
)


@st.composite
def modifiers(draw: st.DrawFn) -> Entry:
    begin, end = draw(WINDOWS)
    window = {"start_epoch": begin, "end_epoch": end}
    lr = {"init_lr": draw(st.floats(0, 1)), "final_lr": draw(st.floats(0, 1))}
    function = draw(st.sampled_from(["linear", "cosine", "cyclic_linear"]))
    pruning = {
        "params": [draw(NAMES)],
        "init_sparsity": draw(st.floats(0, 1)),
        "final_sparsity": draw(st.floats(0, 1.5)),
        "update_frequency": draw(st.floats(0.01, 20)),
        "mask_type": draw(st.sampled_from(["unstructured", [1, 4], [0, 1], "2:4", "block4"])),
    }
    kinds: dict[str, dict[str, Any]] = {
        "EpochRangeModifier": window,
        "LearningRateFunctionModifier": {**window, **lr, "lr_func": function},
        "SetLearningRateModifier": {"start_epoch": begin, "learning_rate": lr["init_lr"]},
        "SetWeightDecayModifier": {"start_epoch": begin, "weight_decay": lr["init_lr"]},
        "GMPruningModifier": {**window, **pruning},
        "ConstantPruningModifier": {**window, "params": [draw(NAMES)]},
        "TrainableParamsModifier": {**window, "params": [draw(NAMES)], "trainable": False},
        "QuantizationModifier": {"start_epoch": begin, "freeze_bn_stats_epoch": end},
    }
    name = draw(st.sampled_from(sorted(kinds)))
    return Entry(name, kinds[name])


@pytest.mark.slow
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(modifiers(), min_size=1, max_size=4), st.none() | st.floats(0.1, 20))
def test_no_recipe_crashes_the_checker(
    tiny: Yolact, entries: list[Entry], epochs: float | None
) -> None:
    report = examine(Recipe({"modifiers": entries}, "the recipe"), tiny, PlannedRun(epochs))
    outlook, problem = look_ahead(report, tiny, OptimConfig(), 64)
    assert (outlook is None) == (problem is not None)
    assert describe_check((), report, outlook)
    json.dumps(check_json((), report, outlook))
    if outlook is not None:
        assert 0 <= outlook.forecast.after.sparsity <= 1
        assert sorted(outlook.curves.epochs) == list(outlook.curves.epochs)
