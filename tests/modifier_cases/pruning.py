"""Modifiers that set weights to zero, or take layers or channels out of the network."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modifier_cases import Case
from modifier_cases.practice import (
    in_turn,
    modifier_class,
    pattern,
    practice,
    recipe,
    refused,
    sparsity,
    zeros,
)
from training import tiny_config
from yolact.checkpoint import load_checkpoint
from yolact.errors import RecipeError
from yolact.model.yolact import Yolact
from yolact.restore import build_model
from yolact.training.settings import StartSettings
from yolact.training.start import Run

PROTO = "proto_net.2.weight"  # [8, 8, 3, 3]
INNER = "backbone.layers.2.1.conv2.0.weight"  # [8, 4, 3, 3]
POINTWISE = ("backbone.layers.2.1.conv1.0.weight", "fpn.lat_layers.0.weight")
SHARED = "prediction_layers.0.upfeature.0.weight"  # [8, 8, 3, 3], used once for each level
NAMES = (PROTO, INNER, SHARED)
PARAMS = f"params: [{', '.join(NAMES)}]"
WINDOW = "start_epoch: 0, end_epoch: 1.5, update_frequency: 0.3"
GRADUAL = f"init_sparsity: 0.2, final_sparsity: 0.8, {WINDOW}, {PARAMS}"
NO_LR = (
    "!LearningRateFunctionModifier {lr_func: linear, init_lr: 0.0, final_lr: 0.0, "
    "start_epoch: 0, end_epoch: 2}"
)
"""With it, nothing but the pruning itself moves weights."""


def curve(power: float) -> list[float]:
    """Sparsity after each of six steps, the last beyond the end at epoch 1.5."""
    return [0.8 - 0.6 * (1 - step / 4.5) ** power for step in range(5)] + [0.8]


def reaches(
    *expected: float, names: tuple[str, ...] = NAMES, zeros_stay: bool = True, **changes: Any
) -> Callable[[str], None]:
    """Checks the sparsity after each step, whether zeros stay, and that no target is missed."""

    def check(text: str) -> None:
        done = practice(text, lambda run: (sparsity(names)(run), pattern(names)(run)), **changes)
        course, masks = zip(*done.seen, strict=True)
        assert course == pytest.approx(expected, abs=0.004)
        for before, after in zip(masks, masks[1:], strict=False):
            stay = all((~x | y).all() for x, y in zip(before, after, strict=True))
            assert stay or not zeros_stay
        assert course[-1] == zeros(*(done.weight(name) for name in names))
        assert not done.missed

    return check


def layers_reach(*expected: float) -> Callable[[str], None]:
    """Checks the final sparsity of each layer of NAMES."""

    def check(text: str) -> None:
        done = practice(text)
        assert [zeros(done.weight(n)) for n in NAMES] == pytest.approx(expected, abs=0.01)
        assert not done.missed

    return check


def has_pattern(
    groups: Callable[[Tensor], Tensor], counts: set[int], names: tuple[str, ...] = NAMES
) -> Callable[[str], None]:
    """Checks the numbers of zeros in each group of weights.

    Args:
        groups: Weights to [groups, weights of one].
        counts: What may be.
        names: Of the weights.
    """

    def check(text: str) -> None:
        done = practice(text)
        for name in names:
            found = groups(done.weight(name)).eq(0).sum(1)
            assert set(found.tolist()) == counts, name

    return check


def rows_of_four(weight: Tensor) -> Tensor:
    """Groups of four neighbouring input channels."""
    return weight.permute(0, 2, 3, 1).reshape(-1, 4)


def tiles(rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Blocks of output and input channels; -1 takes all of them."""

    def groups(weight: Tensor) -> Tensor:
        out, into = weight.shape[:2]
        r, c = rows if rows > 0 else out, columns if columns > 0 else into
        split = weight.reshape(out // r, r, into // c, c, -1)
        return split.permute(0, 2, 4, 1, 3).reshape(-1, r * c)

    return groups


def whole_or_no_tiles(
    rows: int, columns: int, names: tuple[str, ...] = NAMES
) -> Callable[[str], None]:
    """Checks that blocks are zero all or none."""

    def check(text: str) -> None:
        done = practice(text)
        for name in names:
            found = tiles(rows, columns)(done.weight(name)).eq(0).float().mean(1)
            assert set(found.tolist()) <= {0.0, 1.0}, name
        assert not done.missed

    return check


def grows_back(text: str) -> None:
    seen = practice(text, sparsity(NAMES)).seen
    assert max(seen) == pytest.approx(0.64, abs=0.01) and seen[-1] < 0.1


def keeps_zeros(text: str) -> None:
    """Of a run before it, which is where constant pruning comes from."""
    before = practice(recipe(f"!GMPruningModifier {{{GRADUAL}}}"))
    zero = [before.weight(name) == 0 for name in NAMES]
    after = practice(text, start=StartSettings(checkpoint=before.checkpoint))
    for name, mask in zip(NAMES, zero, strict=True):
        assert torch.equal(after.weight(name) == 0, mask)
        assert not torch.equal(after.weight(name), before.weight(name))


def alternates(text: str) -> None:
    """Dense, sparse, dense, sparse; momentum begins anew when zeros may grow back."""

    def momentum(run: Run) -> float:
        state = run.optimizer.state[run.model.get_parameter(PROTO)]
        return float(state["momentum_buffer"].abs().max())

    done = practice(text, lambda run: (sparsity(NAMES)(run), momentum(run)))
    course, speed = zip(*done.seen, strict=True)
    dense = list(course[:3] + course[6:9])
    assert dense == pytest.approx([0.0] * 6, abs=0.05)
    assert course[3:6] + course[9:] == pytest.approx([0.8] * 6, abs=0.002)
    assert speed[6] == 0 and min(speed[:6] + speed[7:]) > 0
    assert not done.missed


def not_by_magnitude(text: str) -> None:
    """Prunes other weights than the smallest."""
    course = [0.8 - 0.6 * (1 - step / 3) ** 3 for step in range(4)]
    done = practice(text, sparsity(NAMES))
    assert done.seen == pytest.approx([*course, 0.8, 0.8], abs=0.004)
    before, after = done.first[PROTO].abs(), done.weight(PROTO)
    assert before[after == 0].max() > before[after != 0].min()
    assert not done.missed


def compensates(text: str) -> None:
    """Prunes other weights than the smallest, and moves the others to make up for it."""
    reaches(*curve(3))(text)
    done = practice(text)
    before, after = done.first[PROTO], done.weight(PROTO)
    kept = after != 0
    assert not torch.equal(after[kept], before[kept])
    assert torch.isfinite(after).all()


def moves_masks(text: str) -> None:
    """The same sparsity from the first step to the last, of other weights each time."""
    done = practice(text, pattern(NAMES))
    first, last = done.seen[0], done.seen[-1]
    assert zeros(*(done.weight(name) for name in NAMES)) == pytest.approx(0.8, abs=0.002)
    assert zeros(*(~mask for mask in first)) == pytest.approx(0.8, abs=0.002)
    assert any((x & ~y).any() for x, y in zip(first, last, strict=True))
    assert not done.missed


def sparse_forward(text: str) -> None:
    """Dense weights between steps, sparse ones when the network runs, and at the end."""

    def watch(run: Run) -> tuple[float, float, float]:
        weights = [run.model.get_parameter(name) for name in NAMES]
        between = zeros(*weights)
        gradients = zeros(*(w.grad for w in weights if w.grad is not None))
        run.model.eval()
        with torch.no_grad():
            run.model(torch.zeros(1, 3, 64, 64))
        run.model.train()
        return between, gradients, zeros(*weights)

    done = practice(text, watch)
    between, gradients, running = zip(*done.seen, strict=True)
    assert max(between[:5]) < 0.01 and between[5] == pytest.approx(0.8, abs=0.002)
    assert gradients[0] < 0.4 and min(gradients[1:5]) >= 0.5 - 0.002
    assert running == pytest.approx([0.8] * 6, abs=0.002)
    assert zeros(*(done.weight(name) for name in NAMES)) == pytest.approx(0.8, abs=0.002)
    assert not done.missed


def prunes_filters(text: str) -> None:
    names = ("backbone.layers.2.1.conv1.0.weight", "proto_net.2.weight")
    done = practice(text)
    for name in names:
        weight = done.weight(name)
        share = weight.flatten(1).eq(0).float().mean(1)
        assert set(share.tolist()) == {0.0, 1.0} and share.mean() == 0.5
    assert not done.missed


def prunes_channels(text: str) -> None:
    weight = practice(text).weight(PROTO)
    share = weight.transpose(0, 1).flatten(1).eq(0).float().mean(1)
    assert set(share.tolist()) == {0.0, 1.0} and share.mean() == 0.5


def prunes_alike(text: str) -> None:
    """The same filters in all that are added up in one residual stream."""
    done = practice(text)
    names = ("backbone.layers.2.0.0.weight", INNER)
    one, other = (done.weight(name).flatten(1).eq(0).all(1) for name in names)
    assert torch.equal(one, other) and one.sum() == 4


def removes_a_block(text: str) -> None:
    """And the checkpoint loads without it."""
    done = practice(text, lambda run: len(list(run.model.parameters())))
    assert done.seen == [84, 84, 84, 78, 78, 78]
    loaded = build_model(load_checkpoint(done.checkpoint))
    assert not list(loaded.get_submodule("backbone.layers.2.1").parameters())


def blocks_are_others(text: str) -> None:
    """The four weights with one score are not those with one mask."""
    from yolact.sparsify.sparseml import get_mask_creator_default

    creator = get_mask_creator_default("block4")
    score = torch.arange(8.0 * 4 * 9).div(4, rounding_mode="floor").reshape(8, 4, 3, 3)
    mask = creator.create_sparsity_masks([score], [0.5])[0]
    assert len({float(s) for s in score[:1, :, 0, 0].flatten()}) == 4
    assert len({float(s) for s in mask[:1, :, 0, 0].flatten()}) == 1
    with pytest.raises(RecipeError) as caught:
        practice(text)
    assert f"block4 of OBS needs kernels of 1 x 1, unlike those of {PROTO}" in str(caught.value)
    assert "use mask_type: unstructured, or GMPruningModifier" in str(caught.value.hint)


def does_not_run(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        practice(text)
    assert str(caught.value).startswith(
        "LayerPruningModifier: the network does not run without these layers: Given groups=1"
    )
    assert caught.value.hint and "for instance backbone.layers." in caught.value.hint


RESIDUAL = {
    "backbone.layers.1.0.0.weight,backbone.layers.1.1.conv2.0.weight": [
        *("backbone.layers.1.0.1.weight", "backbone.layers.1.0.1.bias"),
        *("backbone.layers.1.1.conv2.1.weight", "backbone.layers.1.1.conv2.1.bias"),
        *("backbone.layers.1.1.conv1.0.weight", "backbone.layers.2.0.0.weight"),
    ]
}
"""All that writes the channels of one residual stream, and all that reads them."""
HEAD = {
    "prediction_layers.0.upfeature.0.weight": [
        "prediction_layers.0.upfeature.0.bias",
        *(f"prediction_layers.0.{branch}_layer.weight" for branch in ("bbox", "conf", "mask")),
    ]
}
"""The same of the head that all levels share."""


def thins_but_cannot_be_rebuilt(text: str) -> None:
    """Follows residual sums and the shared head, but no recipe leads to the same shapes again."""
    from yolact.sparsify.sparseml import quiet_loggers

    thinning = modifier_class("LayerThinningModifier")
    torch.manual_seed(0)
    model = Yolact(tiny_config().model).eval()
    dependencies = {**RESIDUAL, **HEAD}
    for group, readers in dependencies.items():
        for name in [*group.split(","), *readers]:
            parameter = model.get_parameter(name)
            if name in group or parameter.ndim == 1:
                parameter.data[:2] = 0
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)
        modifier = thinning(dependencies, update_epochs=[1.0])
        modifier.apply(model, loggers=quiet_loggers())
        after = model(image)
    torch.testing.assert_close(after.proto, before.proto)
    torch.testing.assert_close(after.conf, before.conf)
    assert model.get_parameter("backbone.layers.1.0.0.weight").shape == (6, 4, 3, 3)
    again = Yolact(tiny_config().model)
    thinning(dependencies, update_epochs=[1.0]).apply_structure(again, 2.0, quiet_loggers())
    assert again.get_parameter("backbone.layers.1.0.0.weight").shape == (8, 4, 3, 3)


def removes_channels(text: str) -> None:
    done = practice(text, lambda run: len(run.model.get_parameter(PROTO)))
    assert done.seen[0] == 8 and done.seen[-1] == 4
    assert build_model(load_checkpoint(done.checkpoint)).get_parameter(PROTO).shape[0] == 4


def renames(text: str) -> None:
    """In the middle of its window, a checkpoint has names that no network has; and it prints."""
    from yolact.sparsify.sparseml import quiet_loggers

    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    modifier = modifier_class("PowerpropagationModifier")(0, 2, ["0.weight"], alpha=1.5)
    modifier.initialize(model, 0, quiet_loggers())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        modifier.scheduled_update(model, None, epoch=0, steps_per_epoch=3)
    assert set(model.state_dict()) == {"0.alpha", "0.layer.weight", "0.layer.bias"}
    assert printed.getvalue()
    weight = model.get_parameter("0.layer.weight")
    weight.data.zero_()
    model(torch.ones(1, 1, 1, 1)).sum().backward()
    assert weight.grad is not None and weight.grad.isnan().all()


def gm(*more: str) -> str:
    return recipe(f"!GMPruningModifier {{{GRADUAL}, {', '.join(more)}}}")


def nm(kind: str, ratio: str, fields: str) -> str:
    return recipe(f'!{kind} {{{fields}, {WINDOW}, mask_type: "{ratio}", {PARAMS}}}')


GM_INVALID = (
    "check its fields; it has start_epoch 0, end_epoch 1.5, which may follow from the recipe's "
    "variables"
)
NM = "init_sparsity: 0.5, final_sparsity: 0.5"
SAMPLING = (
    "gradients of training batches are taken when masks are due (fields num_grads and "
    "grad_sampler_kwargs: {batch_size}); the step's own gradients are kept"
)

CASES = (
    Case("GMPruningModifier", "unstructured", gm(), "works", "", reaches(*curve(3))),
    Case(
        "GMPruningModifier",
        "unstructured, two batches a step",
        recipe(f"!GMPruningModifier {{{GRADUAL.replace('0.3', '0.5')}}}"),
        "works",
        "",
        reaches(0.2, 0.8 - 0.6 * (2 / 3) ** 3, 0.8 - 0.6 / 27, 0.8, accumulate=2),
    ),
    Case(
        "GMPruningModifier",
        "inter_func: linear",
        gm("inter_func: linear"),
        "works",
        "",
        reaches(*curve(1)),
    ),
    Case(
        "GMPruningModifier",
        "inter_func: inverse_cubic",
        gm("inter_func: inverse_cubic"),
        "patched",
        "a step after end_epoch, which need not fall on a step, raised TypeError",
        reaches(*curve(1 / 3)),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: [1, 4]",
        gm("mask_type: [1, 4]"),
        "works",
        "blocks that do not divide a parameter are refused before training",
        whole_or_no_tiles(1, 4),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: block4",
        gm("mask_type: block4"),
        "works",
        "",
        whole_or_no_tiles(1, 4),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: [2, 2]",
        gm("mask_type: [2, 2]"),
        "patched",
        "with both sides above 1, blocks were rows of four input channels",
        whole_or_no_tiles(2, 2),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: [1, -1]",
        gm("mask_type: [1, -1]"),
        "patched",
        "-1 kept the size of the first parameter that was pruned",
        whole_or_no_tiles(1, -1),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: 2:4",
        nm("GMPruningModifier", "2:4", NM),
        "patched",
        "masks of convolutions had their dimensions in another order and raised ValueError; "
        "sparsities must be those of the ratio, and 4 must divide the input channels",
        in_turn(has_pattern(rows_of_four, {2}), reaches(*[0.5] * 6)),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: 1:4",
        nm("GMPruningModifier", "1:4", "init_sparsity: 0.75, final_sparsity: 0.75"),
        "patched",
        "as 2:4",
        has_pattern(rows_of_four, {3}),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: tensorrt",
        nm("GMPruningModifier", "tensorrt", NM),
        "patched",
        "another name of 2:4",
        has_pattern(rows_of_four, {2}),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: 2:4, growing sparsity",
        nm("GMPruningModifier", "2:4", "init_sparsity: 0.1, final_sparsity: 0.5"),
        "cannot",
        "2:4 is half of the weights, and sparseml raises ValueError in training for anything "
        "else; refused before training",
        refused(
            "GMPruningModifier: init_sparsity 0.1 does not go with 2:4 masks",
            "they are always 0.5 sparse: give 0.5 everywhere",
        ),
    ),
    Case(
        "GMPruningModifier",
        "mask_type: filter, channel",
        gm("mask_type: filter"),
        "cannot",
        "sparseml has them in StructuredPruningModifier; ChannelThinningModifier removes channels",
        refused(
            "GMPruningModifier: mask_type filter is that of StructuredPruningModifier",
            "use that, or ChannelThinningModifier to remove channels",
        ),
    ),
    Case(
        "GMPruningModifier",
        "global_sparsity",
        gm("global_sparsity: true"),
        "works",
        "sparseml prefers GlobalMagnitudePruningModifier and says so",
        reaches(*curve(3)),
    ),
    Case(
        "GMPruningModifier",
        "phased",
        gm("phased: true"),
        "cannot",
        "sparseml 1.8 refuses it: use ACDCPruningModifier",
        refused("GMPruningModifier: ", GM_INVALID, exactly=False),
    ),
    Case(
        "GMPruningModifier",
        "score_type",
        gm("score_type: movement"),
        "cannot",
        "sparseml 1.8 refuses all but magnitude: use the modifier of that method",
        refused("GMPruningModifier: ", GM_INVALID, exactly=False),
    ),
    Case(
        "GMPruningModifier",
        "final_sparsity by parameter",
        recipe(
            f"!GMPruningModifier {{init_sparsity: 0.1, {WINDOW}, params: [], "
            f"final_sparsity: {{0.5: [{PROTO}], 0.75: [{INNER}, {SHARED}]}}}}"
        ),
        "works",
        "",
        layers_reach(0.5, 0.75, 0.75),
    ),
    Case(
        "GMPruningModifier",
        "init_sparsity: __FROM_PARAM__",
        recipe(
            f"!GMPruningModifier {{init_sparsity: __FROM_PARAM__, final_sparsity: 0.8, {WINDOW}, "
            f"{PARAMS}}}"
        ),
        "works",
        "not stored in checkpoints: a resumed run may differ",
        layers_reach(0.8, 0.8, 0.8),
    ),
    Case(
        "GMPruningModifier",
        "leave_enabled: false",
        recipe(
            f"!GMPruningModifier {{{GRADUAL.replace('1.5', '1')}, leave_enabled: false}}".replace(
                "final_sparsity: 0.8", "final_sparsity: 0.66"
            )
        ),
        "works",
        "zeros grow back after end_epoch, so that the report tells of a missed target",
        grows_back,
    ),
    Case(
        "MagnitudePruningModifier",
        "",
        recipe(f"!MagnitudePruningModifier {{{GRADUAL}}}"),
        "works",
        "",
        in_turn(reaches(*curve(3)), layers_reach(0.8, 0.8, 0.8)),
    ),
    Case(
        "GlobalMagnitudePruningModifier",
        "",
        recipe(f"!GlobalMagnitudePruningModifier {{{GRADUAL}}}"),
        "works",
        "",
        reaches(*curve(3)),
    ),
    Case(
        "GlobalMagnitudePruningModifier",
        "final_sparsity by parameter",
        recipe(
            f"!GlobalMagnitudePruningModifier {{init_sparsity: 0.1, {WINDOW}, params: [], "
            f"final_sparsity: {{0.5: [{PROTO}], 0.75: [{INNER}]}}}}"
        ),
        "cannot",
        "sparseml raises ValueError when pruning begins; refused before training: use "
        "MagnitudePruningModifier",
        refused(
            "GlobalMagnitudePruningModifier: one global sparsity cannot be several",
            "give one number as final_sparsity",
        ),
    ),
    Case(
        "ConstantPruningModifier",
        "",
        recipe("!ConstantPruningModifier {params: __ALL_PRUNABLE__}"),
        "patched",
        "masks are computed once instead of in every step",
        keeps_zeros,
    ),
    Case(
        "ACDCPruningModifier",
        "",
        recipe(
            "!ACDCPruningModifier {compression_sparsity: 0.8, start_epoch: 0, end_epoch: 4, "
            f"update_frequency: 1, {PARAMS}}}",
            epochs=4,
        ),
        "works",
        "phases are whole epochs; a resumed run continues exactly",
        alternates,
    ),
    Case(
        "MovementPruningModifier",
        "",
        recipe(f"!MovementPruningModifier {{{GRADUAL.replace('1.5', '1')}}}"),
        "patched",
        "scores became NaN at the first gradient that overflowed in mixed precision; they are not "
        "stored in checkpoints: a resumed run may differ",
        not_by_magnitude,
    ),
    Case(
        "MovementPruningModifier",
        "two batches a step",
        recipe(f"!MovementPruningModifier {{{GRADUAL.replace('0.3', '0.5')}}}"),
        "works",
        "",
        # A zero keeps its score, and comes back when those of other weights fall below it.
        reaches(
            *(0.2, 0.8 - 0.6 * (2 / 3) ** 3, 0.8 - 0.6 / 27, 0.8), accumulate=2, zeros_stay=False
        ),
    ),
    Case(
        "OBSPruningModifier",
        "unstructured",
        recipe(
            f"!OBSPruningModifier {{{GRADUAL}, num_grads: 4, fisher_block_size: 4, "
            "grad_sampler_kwargs: {batch_size: 1}}",
            NO_LR,
        ),
        "patched",
        f"{SAMPLING}; it did nothing when an epoch has one step",
        compensates,
    ),
    Case(
        "OBSPruningModifier",
        "block4, kernels of 1 x 1",
        recipe(
            f"!OBSPruningModifier {{init_sparsity: 0.2, final_sparsity: 0.75, {WINDOW}, "
            f"params: {list(POINTWISE)}, num_grads: 4, fisher_block_size: 4, mask_type: block4}}",
            NO_LR,
        ),
        "patched",
        "as unstructured",
        whole_or_no_tiles(1, 4, POINTWISE),
    ),
    Case(
        "OBSPruningModifier",
        "block4, larger kernels",
        recipe(
            f"!OBSPruningModifier {{{GRADUAL}, num_grads: 4, fisher_block_size: 4, "
            "mask_type: block4}"
        ),
        "cannot",
        "sparseml masks blocks of input channels, but scores and compensates four neighbours in "
        "memory, which are others: weights grew a thousandfold in three updates, then to NaN; "
        "refused before training",
        blocks_are_others,
    ),
    Case(
        "MFACPruningModifier",
        "",
        recipe(
            f"!MFACPruningModifier {{{GRADUAL}, num_grads: 4, fisher_block_size: 16, "
            "grad_sampler_kwargs: {batch_size: 1}}",
            NO_LR,
        ),
        "patched",
        f"{SAMPLING}; it raised RuntimeError on channels-last weights, which this package trains",
        compensates,
    ),
    Case(
        "MFACPruningModifier",
        "use_gradient_buffering",
        recipe(f"!MFACPruningModifier {{{GRADUAL}, num_grads: 4, use_gradient_buffering: true}}"),
        "cannot",
        "sparseml raises RuntimeError when masks are due before num_grads steps; gradients of "
        "training batches do not need it",
        refused(
            "MFACPruningModifier: buffered gradients are too few whenever masks are due within "
            "num_grads steps",
            "leave use_gradient_buffering out: gradients of training batches are computed then",
        ),
    ),
    Case(
        "RigLPruningModifier",
        "",
        recipe(
            f"!RigLPruningModifier {{final_sparsity: 0.8, {WINDOW.replace('1.5', '1')}, {PARAMS}, "
            "num_grads: 2}"
        ),
        "patched",
        SAMPLING,
        moves_masks,
    ),
    Case(
        "TopKASTPruningModifier",
        "",
        recipe(
            f"!TopKASTPruningModifier {{forward_sparsity: 0.8, backward_sparsity: 0.5, {WINDOW}, "
            f"{PARAMS}}}"
        ),
        "patched",
        "torch refused its backward hooks on layers with in-place activations, and in the shared "
        "head they ran once for each level; checkpoints before end_epoch hold dense weights",
        sparse_forward,
    ),
    Case(
        "TopKASTPruningModifier",
        "two batches a step",
        recipe(
            "!TopKASTPruningModifier {forward_sparsity: 0.8, backward_sparsity: 0.5, "
            f"{WINDOW.replace('0.3', '0.5')}, {PARAMS}}}"
        ),
        "patched",
        "as one",
        reaches(0.0, 0.0, 0.0, 0.8, accumulate=2),
    ),
    Case(
        "StructuredPruningModifier",
        "mask_type: filter",
        recipe(
            f"!StructuredPruningModifier {{init_sparsity: 0.25, final_sparsity: 0.5, {WINDOW}, "
            "params: [backbone.layers.2.1.conv1.0.weight, proto_net.2.weight]}"
        ),
        "works",
        "filters become zero but stay in the network: ChannelThinningModifier removes them",
        prunes_filters,
    ),
    Case(
        "StructuredPruningModifier",
        "mask_type: channel",
        recipe(
            f"!StructuredPruningModifier {{init_sparsity: 0.25, final_sparsity: 0.5, {WINDOW}, "
            f"mask_type: channel, params: [{PROTO}]}}"
        ),
        "works",
        "",
        prunes_channels,
    ),
    Case(
        "StructuredPruningModifier",
        "param_groups",
        recipe(
            f"!StructuredPruningModifier {{init_sparsity: 0.25, final_sparsity: 0.5, {WINDOW}, "
            f"params: [backbone.layers.2.0.0.weight, {INNER}], "
            f"param_groups: [[backbone.layers.2.0.0.weight, {INNER}]]}}"
        ),
        "works",
        "",
        prunes_alike,
    ),
    Case(
        "LayerPruningModifier",
        "whole residual blocks",
        recipe("!LayerPruningModifier {layers: [backbone.layers.2.1], start_epoch: 1}"),
        "patched",
        "checkpoints load without the layers",
        removes_a_block,
    ),
    Case(
        "LayerPruningModifier",
        "other layers",
        recipe("!LayerPruningModifier {layers: [backbone.layers.1.0], start_epoch: 1}"),
        "cannot",
        "the next layer does not fit, and torch raises RuntimeError when epoch 1 comes; tried and "
        "refused before training",
        does_not_run,
    ),
    Case(
        "LayerPruningModifier",
        "end_epoch",
        recipe(
            "!LayerPruningModifier {layers: [backbone.layers.2.1], start_epoch: 0, end_epoch: 1}"
        ),
        "cannot",
        "checkpoints written before end_epoch lack the weights of layers that come back then",
        refused(
            "LayerPruningModifier: checkpoints written before end_epoch would lack the layers "
            "that come back then",
            "leave end_epoch out: layers that are removed stay removed",
        ),
    ),
    Case(
        "LayerThinningModifier",
        "",
        recipe("!LayerThinningModifier {param_group_dependency_map: {a: [b]}, update_epochs: [1]}"),
        "cannot",
        "with every group spelled out it follows this network, residual sums and shared head "
        "included, but neither recipe nor checkpoint says how many channels are left, so that no "
        "checkpoint loads: use ChannelThinningModifier",
        in_turn(
            thins_but_cannot_be_rebuilt,
            refused(
                "LayerThinningModifier leaves no trace in the recipe of which channels it removed: "
                "its checkpoints do not load",
                "use ChannelThinningModifier, which knows this network's channels",
            ),
        ),
    ),
    Case(
        "ChannelThinningModifier",
        "",
        recipe(
            "!ChannelThinningModifier {start_epoch: 0.3, end_epoch: 1.5, final_width: 0.5, "
            f"params: [{PROTO}]}}"
        ),
        "works",
        "this package's own: it takes the place of LayerThinningModifier",
        removes_channels,
    ),
    Case(
        "PowerpropagationModifier",
        "",
        recipe(
            "!PowerpropagationModifier {start_epoch: 0, end_epoch: 1, alpha: 1.5, "
            f"params: [{PROTO}]}}"
        ),
        "cannot",
        "it renames the layers it wraps, so that checkpoints written meanwhile do not load; it "
        "prints, and gradients of pruned weights are NaN below alpha 2: use GMPruningModifier or "
        "ACDCPruningModifier",
        in_turn(
            renames,
            refused(
                "PowerpropagationModifier renames the layers it wraps: checkpoints written "
                "meanwhile do not load",
                "use GMPruningModifier or ACDCPruningModifier",
            ),
        ),
    ),
)
