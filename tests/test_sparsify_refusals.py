"""What sparseml would ignore, or fail on in the middle of training, is refused beforehand."""

from __future__ import annotations

import pytest

from yolact.errors import RecipeError
from yolact.sparsify.recipe import load_recipe

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
            "LearningRateFunctionModifier {lr_func: cyclic_linear, cycle_epochs: 0, "
            "init_lr: 0.1, final_lr: 0.0, start_epoch: 0, end_epoch: 1}",
            "cycle_epochs is 0",
            "give the epochs of a cycle, above 0",
        ),
        (
            "LearningRateModifier {lr_class: CosineAnnealingWarmRestarts, init_lr: 0.1, "
            "start_epoch: 0, lr_kwargs: {cycle_epochs: 1.5, lr_min: 0.0}}",
            THEIRS,
            "check lr_kwargs, now {'cycle_epochs': 1.5, 'lr_min': 0.0}",
        ),
        (
            "LearningRateModifier {lr_class: StepLR, init_lr: 0.1, start_epoch: 0, "
            "lr_kwargs: {gamma: 0.5, step_size: 1, steps: 2}}",
            THEIRS,
            "check lr_kwargs, now {'gamma': 0.5, 'step_size': 1, 'steps': 2}",
        ),
        (
            f"RigLPruningModifier {{final_sparsity: 0.5, {WINDOW}, sparsity_strategy: even}}",
            THEIRS,
            "check its fields; it has start_epoch 0, end_epoch 2, which may follow from the "
            "recipe's variables",
        ),
    ],
)
def test_values_that_would_fail_later(entry: str, message: str | None, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"- !{entry}\n")
    name = entry.split(" ")[0]
    begin, words = f"the recipe: {name}: ", str(caught.value)
    assert words.startswith(begin)
    assert message in (THEIRS, words.removeprefix(begin))
    assert caught.value.hint == hint
