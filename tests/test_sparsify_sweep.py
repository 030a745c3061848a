"""A recipe whose check is clean trains: every field of every modifier with values that are odd."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe_engines import engines_of
from training import tiny_config
from yolact.errors import YolactError
from yolact.model.yolact import Yolact
from yolact.sparsify.check.examine import PlannedRun, check_draft, examine, read_draft
from yolact.sparsify.document import Entry, dump
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.engine import GradientSamples
from yolact.sparsify.recipe import load_recipe

pytestmark = [
    pytest.mark.usefixtures("recipe_engine"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

STEPS = 3
"""Of an epoch."""
EPOCHS = 1.4
SAMPLED = 97
"""One of so many odd recipes is tried; all of them take minutes."""
PARAMS = ["proto_net.2.weight", "backbone.layers.2.1.conv2.0.weight"]
WINDOW: dict[str, Any] = {"start_epoch": 0, "end_epoch": 1, "update_frequency": 0.3}
GRADUAL = {"init_sparsity": 0.2, "final_sparsity": 0.75, "params": PARAMS, **WINDOW}
BIAS = {"params": ["proto_net.10.bias"], "params_strict": True}
VALUE = [1.0, 2.0, 3.0, 4.0]

MODIFIERS: dict[str, dict[str, Any]] = {
    "EpochRangeModifier": {"start_epoch": 0, "end_epoch": EPOCHS},
    "LearningRateFunctionModifier": {
        **{"lr_func": "linear", "init_lr": 0.01, "final_lr": 0.001, "cycle_epochs": 0.5},
        **{"start_epoch": 0, "end_epoch": 1},
    },
    "LearningRateModifier": {
        **{"lr_class": "StepLR", "lr_kwargs": {"gamma": 0.5, "step_size": 0.5}, "init_lr": 0.01},
        **{"start_epoch": 0, "end_epoch": 1, "update_frequency": -1, "constant_logging": False},
    },
    "SetLearningRateModifier": {
        **{"learning_rate": 0.01, "start_epoch": 0.5, "end_epoch": -1, "param_groups": None},
        **{"constant_logging": False},
    },
    "SetWeightDecayModifier": {
        **{"weight_decay": 0.01, "start_epoch": 0.5, "end_epoch": -1, "param_groups": None},
        **{"constant_logging": False},
    },
    "ConstantPruningModifier": {"params": PARAMS, **WINDOW, "end_epoch": -1},
    "GMPruningModifier": {
        **GRADUAL,
        **{"inter_func": "cubic", "leave_enabled": True, "global_sparsity": False},
        **{"mask_type": "unstructured"},
    },
    "MagnitudePruningModifier": {**GRADUAL, "mask_type": [1, 4]},
    "GlobalMagnitudePruningModifier": GRADUAL,
    "StructuredPruningModifier": {
        **GRADUAL,
        **{"mask_type": "filter", "param_groups": None},
    },
    "MovementPruningModifier": GRADUAL,
    "MFACPruningModifier": {
        **GRADUAL,
        **{"num_grads": 2, "fisher_block_size": 16, "damp": 1e-5, "num_pages": 1},
        **{"available_devices": ["cpu"], "grads_device": "cpu", "grad_sampler_kwargs": None},
    },
    "OBSPruningModifier": {
        **GRADUAL,
        **{"num_grads": 2, "fisher_block_size": 4, "damp": 1e-7, "num_recomputations": 1},
        **{"grad_sampler_kwargs": None, "mask_type": "unstructured"},
    },
    "RigLPruningModifier": {
        **{"final_sparsity": 0.75, "params": PARAMS, **WINDOW, "num_grads": 2},
        **{"init_update_fraction": 0.3, "sparsity_strategy": "erdos_renyi_kernel"},
    },
    "ACDCPruningModifier": {
        **{"compression_sparsity": 0.75, "params": PARAMS, **WINDOW, "update_frequency": 1},
        **{"momentum_buffer_reset": True, "global_sparsity": True, "leave_enabled": True},
    },
    "TopKASTPruningModifier": {
        **{"forward_sparsity": 0.75, "backward_sparsity": 0.5, "params": PARAMS, **WINDOW},
        **{"active_weight_decay": 0.0002, "global_sparsity": True},
    },
    "ChannelThinningModifier": {
        **{"params": ["re:proto_net.*"], "final_width": 0.5, "init_width": 0.8, **WINDOW},
        **{"multiple_of": 4},
    },
    "LayerPruningModifier": {
        **{"layers": ["backbone.layers.2.1"], "start_epoch": 0.5, "end_epoch": -1},
        **{"update_frequency": -1},
    },
    "QuantizationModifier": {
        **{"start_epoch": 0.5, "end_epoch": -1, "ignore": ["fpn"], "scheme": None},
        **{"scheme_overrides": None, "model_fuse_fn_name": "conv_bn_relus", "strict": True},
        **{"disable_quantization_observer_epoch": 1, "freeze_bn_stats_epoch": 1},
        **{"model_fuse_fn_kwargs": {}, "num_calibration_steps": None},
    },
    "QuantizationModifier of earlier versions": {
        **{"start_epoch": 0.5, "submodules": ["proto_net"], "exclude_module_types": ["LeakyReLU"]},
        **{"disable_quantization_observer_epoch": 1, "freeze_bn_stats_epoch": 1},
        **{"quantize_linear_activations": True, "quantize_conv_activations": True},
        **{"quantize_embedding_activations": False, "quantize_embeddings": True},
        **{"reduce_range": True, "activation_bits": 8, "weight_bits": 8, "tensorrt": False},
        **{"exclude_batchnorm": True, "custom_quantizable_module_types": None},
        **{"activation_qconfig_kwargs": None, "weight_qconfig_kwargs": None},
        **{"model_fuse_fn_name": "conv_bn_relus"},
    },
    "TrainableParamsModifier": {**BIAS, "trainable": False, "start_epoch": 0, "end_epoch": 1},
    "SetParamModifier": {**BIAS, "val": VALUE, "start_epoch": 0.5, "end_epoch": -1},
    "GradualParamModifier": {
        **{**BIAS, "init_val": [0.0] * 4, "final_val": VALUE, "inter_func": "cubic", **WINDOW}
    },
    "SparsificationLoggingModifier": {**WINDOW, "end_epoch": -1},
}

ODD: tuple[Any, ...] = (
    *(None, True, "abc", "0.5", [], {}, ["nothing"], [2], {"a": 1}, {0.5: PARAMS}),
    *(-1, -0.5, 0, 0.5, 2, 1e9, float("nan"), "__ALL__", "linear", "2:4"),
)


@cache
def network() -> Yolact:
    torch.manual_seed(0)
    return Yolact(tiny_config().model)


def odd_recipes(name: str) -> Iterator[tuple[str, str]]:
    """Recipes in which one field of a modifier is missing or odd, and what that is."""
    whole = MODIFIERS[name]
    variants = [("as it should be", whole)]
    for field in whole:
        variants.append((f"no {field}", {k: v for k, v in whole.items() if k != field}))
        variants += [(f"{field} {value!r}", {**whole, field: value}) for value in ODD]
    length = Entry("EpochRangeModifier", {"start_epoch": 0, "end_epoch": EPOCHS})
    for what, fields in variants:
        entry = Entry(name.split(" ")[0], fields)
        yield what, dump({"modifiers": [entry] if entry.name == length.name else [length, entry]})


def is_clean(text: str) -> bool:
    """Whether the check finds no errors; whatever it raises is one the user can read."""
    try:
        draft = read_draft(text)
        if draft.problem or examine(draft.recipe, network(), PlannedRun()).errors:
            return False
        report, _ = check_draft(draft, network(), tiny_config())
    except YolactError:
        return False
    return not report.errors


def images(_: int | None = None) -> Iterator[Tensor]:
    while True:
        yield torch.ones(2, 3, 64, 64)


def train(text: str) -> None:
    """The steps of a run as the training loop takes them, without data."""
    model = copy.deepcopy(network()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)

    def loss(batch: Tensor) -> Tensor:
        return torch.stack([x.square().mean() for x in model(batch) if x is not None]).sum()

    driver = RecipeDriver(load_recipe(text))
    driver.check(model, EPOCHS)
    samples = GradientSamples(images, loss)
    driver.start(model, optimizer, 0, STEPS, samples if driver.samples_gradients else None)
    for step in range(round((driver.max_epochs or EPOCHS) * STEPS)):
        driver.before_forward(model, optimizer, step / STEPS)
        optimizer.zero_grad()
        loss(next(images())).backward()  # type: ignore[no-untyped-call]
        driver.before_step(model, optimizer, step / STEPS)
        optimizer.step()
        driver.after_step(model, optimizer, step / STEPS)
    driver.finish(model)


def failures(recipes: Iterable[tuple[str, str]]) -> list[str]:
    """What passed the check and then ended in an error."""
    found = []
    for what, text in recipes:
        try:
            if is_clean(text):
                train(text)
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}"[:200])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe_engine", "name"),
    engines_of({name: f"!{name}" for name in MODIFIERS}),
    indirect=["recipe_engine"],
)
def test_what_the_check_finds_clean_trains(name: str) -> None:
    """Of each modifier, the recipe as it should be and a sample of the odd ones."""
    whole, *odd = odd_recipes(name)
    place = list(MODIFIERS).index(name)
    assert is_clean(whole[1])
    assert failures([whole, *odd[7 * place % SAMPLED :: SAMPLED]]) == []
