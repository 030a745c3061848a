"""What sparseml would ignore, or fail on in the middle of training, is refused beforehand."""

from __future__ import annotations

import pytest

from recipe_engines import by_sparseml
from yolact.errors import RecipeError
from yolact.sparsify.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("recipe_engine")

WINDOW = "start_epoch: 0, end_epoch: 2, update_frequency: 1, params: [a]"
GRADUAL = f"init_sparsity: 0.1, final_sparsity: 0.5, {WINDOW}"
THEIRS = None
"""The words are those of sparseml or torch."""
MASKS = "use unstructured, block4, N:M such as 2:4, or a block such as [1, 4]"


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        (
            f"GMPruningModifier {{{GRADUAL}, mask_type: blocks}}",
            THEIRS,
            MASKS,
        ),
        (
            f'GMPruningModifier {{{GRADUAL}, mask_type: "4:2"}}',
            "4:2 keeps 4 of 2 weights",
            "write for instance 2:4",
        ),
        (
            f'ACDCPruningModifier {{compression_sparsity: 0.9, {WINDOW}, mask_type: "2:4"}}',
            "compression_sparsity 0.9 does not go with 2:4 masks",
            "they are always 0.5 sparse: give 0.5 everywhere",
        ),
        (
            f"ACDCPruningModifier {{compression_sparsity: 0.9, {WINDOW.replace('1', '0')}}}",
            "update_frequency, the epochs of a phase, is 0",
            "give a whole number of epochs, at least 1",
        ),
        (
            f"GlobalMagnitudePruningModifier {{{GRADUAL.replace('0.1', '__FROM_PARAM__')}}}",
            "init_sparsity __FROM_PARAM__ has a value for each layer, not a global one",
            "give a number as init_sparsity",
        ),
        (
            "LearningRateFunctionModifier {lr_func: cyclic_linear, cycle_epochs: 0, "
            "init_lr: 0.1, final_lr: 0.0, start_epoch: 0, end_epoch: 1}",
            "cycle_epochs is 0",
            "give the epochs of a cycle, above 0",
        ),
        (
            "LearningRateModifier {lr_class: CosineAnnealingWarmRestarts, init_lr: 0.1, "
            "start_epoch: 0, lr_kwargs: {cycle_epochs: 1.5, lr_min: 0.0}}",
            THEIRS,
            "check its fields; it has start_epoch 0, which may follow from the recipe's variables",
        ),
        (
            "LearningRateModifier {lr_class: StepLR, init_lr: 0.1, start_epoch: 0, "
            "lr_kwargs: {gamma: 0.5, step_size: 1, steps: 2}}",
            THEIRS,
            "check its fields; it has start_epoch 0, which may follow from the recipe's variables",
        ),
    ],
)
def test_values_that_would_fail_later(entry: str, message: str | None, hint: str) -> None:
    refused(entry, message, hint)


@by_sparseml
@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        (
            f"OBSPruningModifier {{{GRADUAL}, grad_sampler_kwargs: {{shuffle: true}}}}",
            "grad_sampler_kwargs has no 'shuffle'",
            "it has batch_size only",
        ),
        (
            f"MFACPruningModifier {{{GRADUAL}, num_grads: {{0.5: 8}}}}",
            "num_grads has no entry for sparsity 0.0",
            "add one, such as {0.0: 64, 0.9: 256}",
        ),
        (
            f"RigLPruningModifier {{final_sparsity: 0.5, {WINDOW}, sparsity_strategy: even}}",
            THEIRS,
            "check its fields; it has start_epoch 0, end_epoch 2, which may follow from the "
            "recipe's variables",
        ),
    ],
)
def test_values_that_would_fail_sparseml_later(entry: str, message: str | None, hint: str) -> None:
    refused(entry, message, hint)


def refused(entry: str, message: str | None, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"- !{entry}\n")
    name = entry.split(" ")[0]
    begin, words = f"the recipe: {name}: ", str(caught.value)
    assert words.startswith(begin)
    assert message in (THEIRS, words.removeprefix(begin))
    assert caught.value.hint == hint


NUMBER = "give a number up to 100000"
WHOLE = "give a whole number, at least 1"
FRACTION = "give a fraction such as 0.9"
GROUPS = f"{FRACTION}, or {{0.9: [names of parameters]}}"
RATE = "SetLearningRateModifier {start_epoch: 0, learning_rate: 0.1}"
MFAC = f"MFACPruningModifier {{{GRADUAL}, num_grads: 8, damp: 1e-5, available_devices: [cpu]}}"
GM = f"GMPruningModifier {{{GRADUAL}, mask_type: x}}"
OBS = f"OBSPruningModifier {{{GRADUAL}, num_grads: 8, fisher_block_size: 4}}"


@pytest.mark.parametrize(
    ("entry", "good", "bad", "message", "hint"),
    [
        (RATE, "0.1", "true", "learning_rate is True", NUMBER),
        (RATE, "0.1", "'0.1'", "learning_rate is '0.1'", f"{NUMBER}, without quotes"),
        (RATE, "0.1", ".nan", "learning_rate is nan", NUMBER),
        (RATE, "0.1", "-0.1", "learning_rate is -0.1", "give a number from 0 on"),
        (RATE, ": 0,", ": 0, end_epoch: null,", "end_epoch is None", NUMBER),
        (RATE, ": 0,", ": -0.5,", "start_epoch is -0.5", "give a number from 0 on"),
        (RATE, ": 0,", ": 1e9,", "start_epoch is 1000000000.0", NUMBER),
        (GM, "0.5,", "[0.5],", "final_sparsity is [0.5]", GROUPS),
        (GM, "0.5,", "{},", "final_sparsity is {}", GROUPS),
        (GM, "0.5,", "'half',", "final_sparsity is 'half'", GROUPS),
        (GM, "0.1,", "__PARAM__,", "init_sparsity is '__PARAM__'", FRACTION),
        (GM, "x", "null", "mask_type is None", MASKS),
    ],
)
def test_values_of_a_kind_that_cannot_be(
    entry: str, good: str, bad: str, message: str, hint: str
) -> None:
    refused(entry.replace(good, bad, 1), message, hint)


@by_sparseml
@pytest.mark.parametrize(
    ("entry", "good", "bad", "message", "hint"),
    [
        (MFAC, "grads: 8", "grads: 0", "num_grads is 0", WHOLE),
        (MFAC, "grads: 8", "grads: {0.0: few}", "num_grads is 'few'", WHOLE),
        (OBS, "grads: 8", "grads: 0.5", "num_grads is 0.5", WHOLE),
        (OBS, "size: 4", "size: null", "fisher_block_size is None", WHOLE),
        (
            *(OBS, "grads: 8", "grads: {0.0: 8}", "num_grads is {0.0: 8}"),
            "give one number; MFAC may have several",
        ),
        (MFAC, "1e-5", "0", "damp is 0", "give a number above 0"),
        (
            *(MFAC, "[cpu]", "gpu", "available_devices is 'gpu'"),
            "give a list such as [cpu] or [cuda:0]",
        ),
    ],
)
def test_values_of_a_kind_that_sparseml_cannot_have(
    entry: str, good: str, bad: str, message: str, hint: str
) -> None:
    refused(entry.replace(good, bad, 1), message, hint)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_run_of_no_epochs_is_refused(epoch: int) -> None:
    with pytest.raises(RecipeError, match=f"ends at epoch {epoch}, but starts at {epoch}"):
        load_recipe(f"- !EpochRangeModifier {{start_epoch: {epoch}, end_epoch: {epoch}}}\n")
