"""The moving average of the weights: its arithmetic, what it follows, and what is saved of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import RECIPE, STEPS, differences, resume, tiny_config, tiny_settings
from yolact.checkpoint import load_checkpoint
from yolact.model.channel_groups import channel_groups
from yolact.model.channels import remove_channels
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.yolact import Yolact
from yolact.predict.evaluate import Evaluation, evaluate
from yolact.sparsify.recipe import load_recipe
from yolact.sparsify.structure import apply_structure
from yolact.training import loop as train_module
from yolact.training.average import WeightAverage
from yolact.training.loop import carry_out, train
from yolact.training.settings import SaveSettings
from yolact.training.start import prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]

QUANTIZED = "modifiers:\n- !QuantizationModifier {start_epoch: 0}\n"


def moved(model: nn.Module, by: float) -> None:
    """Change all weights and statistics of batch norms."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(by)


def network() -> Yolact:
    torch.manual_seed(0)
    return Yolact(tiny_config().model).train()


def test_it_moves_quickly_at_first_and_then_as_it_was_told() -> None:
    model = nn.Linear(1, 1, bias=False)
    average, expected = WeightAverage(model, 0.5), model.weight.item()
    for updates, value in enumerate((2.0, 4.0, 8.0, 16.0, 1.0, 3.0, 5.0, 7.0, 9.0, 2.0), 1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * value
        assert float(average.weights()["weight"]) == pytest.approx(expected, rel=1e-6)
    assert decay == 0.5


def test_weights_that_do_not_move_are_their_own_average() -> None:
    model = network()
    average = WeightAverage(model, 0.999)
    for _ in range(20):
        average.update()
    assert all(torch.equal(average.weights()[n], t) for n, t in model.state_dict().items())


def test_without_a_decay_the_weights_themselves_are_saved() -> None:
    model = network()
    average = WeightAverage(model, None)
    moved(model, 1.0)
    average.update()
    with average.applied():
        assert all(torch.equal(average.weights()[n], t) for n, t in model.state_dict().items())
    assert average.state() is None


def test_what_is_zero_in_the_network_is_zero_in_its_average() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    weight = model.get_parameter("proto_net.0.weight")
    mask = torch.rand_like(weight) < 0.5
    with torch.no_grad():
        weight.mul_(mask)
    average.update()
    assert torch.equal(average.weights()["proto_net.0.weight"] != 0, mask)
    with torch.no_grad():
        weight.zero_()
    average.follow()
    assert not average.weights()["proto_net.0.weight"].any()


def test_it_is_in_the_network_only_inside() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    moved(model, 1.0)
    average.update()
    mine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = average.weights()
    with pytest.raises(KeyboardInterrupt), average.applied():
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        raise KeyboardInterrupt
    outside = model.state_dict()
    assert all(torch.equal(mine[name], outside[name]) for name in mine)
    changed = {name for name in mine if not torch.equal(mine[name], inside[name])}
    assert changed == {name for name in saved if not torch.equal(mine[name], saved[name])} != set()


def test_it_follows_into_quantized_layers_whose_ranges_are_the_networks(
    recipe_engine: Any,
) -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    moved(model, 0.5)
    average.update()
    before = average.weights()["proto_net.0.weight"].clone()
    apply_structure(model, load_recipe(QUANTIZED), engine=recipe_engine)
    average.follow()
    state, saved = model.state_dict(), average.weights()
    assert saved.keys() == state.keys() and any(fake_quantizers(model))
    name = next(n for n in saved if n.startswith("proto_net.0.") and n.endswith("weight"))
    assert torch.equal(saved[name], before)
    for name, tensor in saved.items():
        averaged = name in dict(model.named_parameters()) or "running_" in name
        assert averaged or torch.equal(tensor, state[name]), name
    means = [name for name in saved if name.endswith("running_mean")]
    assert means and not any(torch.equal(saved[name], state[name]) for name in means)


def test_it_begins_again_when_channels_are_gone() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    moved(model, 1.0)
    average.update()
    group = next(g for g in channel_groups(model.config) if g.width > 2)
    remove_channels(model, group, torch.arange(2))
    average.update()
    assert average.updates == 1
    assert all(torch.equal(average.weights()[n], t) for n, t in model.state_dict().items())


def test_what_is_saved_and_validated_is_the_average(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = tiny_config(ema_decay=0.2), list[dict[str, Tensor]]()
    run = prepare(tiny_settings(tiny_shapes, tmp_path, config=config, epochs=1, validation_epoch=1))

    def watching(*rest: Any, **more: Any) -> Evaluation:
        seen.append({n: t.clone() for n, t in run.model.state_dict().items()})
        return evaluate(*rest, **more)

    monkeypatch.setattr(train_module, "evaluate", watching)
    run.settings.save.folder.mkdir()
    result = carry_out(run)
    checkpoints = [load_checkpoint(tmp_path / "weights" / f"tiny_0_{i}.pth") for i in (1, 2, 3)]
    trained = []
    for updates, checkpoint in enumerate(checkpoints, 1):
        assert checkpoint.training and checkpoint.training.average
        count, weights = checkpoint.training.average
        assert count == updates
        trained.append(weights)
    name = "proto_net.0.weight"
    expected = checkpoints[0].model_state[name]
    for updates in (2, 3):
        decay = min(0.2, (1 + updates) / (10 + updates))
        expected = expected.lerp(trained[updates - 1][name], 1 - decay)
    torch.testing.assert_close(checkpoints[-1].model_state[name], expected)
    assert not torch.equal(expected, trained[-1][name])
    (validated,) = seen
    best = load_checkpoint(tmp_path / "weights" / "tiny_best.pth")
    assert result.best_checkpoint is not None
    for name, tensor in validated.items():
        assert torch.equal(tensor, best.model_state[name]), name


def test_sparsity_that_a_recipe_reaches_in_the_last_step_is_in_what_is_saved(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    prune = (
        "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n"
        "- !GMPruningModifier {params: __ALL_PRUNABLE__, init_sparsity: 0.2, final_sparsity: 0.75,"
        " start_epoch: 0, end_epoch: 1, update_frequency: 0.3}\n"
    )
    config = tiny_config(ema_decay=0.99)
    result = train(tiny_settings(tiny_shapes, tmp_path, config=config, recipe=prune))
    assert result.checkpoint is not None and result.missed == ()
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.training and checkpoint.training.average
    _, trained = checkpoint.training.average
    weight, live = (s["proto_net.0.weight"] for s in (checkpoint.model_state, trained))
    assert torch.equal(weight == 0, live == 0)
    assert float((weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(weight, live)


@pytest.mark.slow
def test_a_run_by_a_recipe_goes_on_exactly(
    tiny_shapes: Path, tmp_path: Path, recipe_engine: Any
) -> None:
    optim: dict[str, Any] = {"ema_decay": 0.9, "optimizer": "adamw", "backbone_lr": 0.3}
    changes = {"config": tiny_config(**optim), "recipe": RECIPE}
    whole = train(tiny_settings(tiny_shapes, tmp_path / "whole", **changes))
    assert whole.checkpoint is not None and whole.missed == ()
    for step in (STEPS + 1, 2 * STEPS + 1):  # pruned, then quantized
        (path,) = (tmp_path / "whole" / "weights").glob(f"tiny_*_{step}.pth")
        out = tmp_path / str(step)
        save = SaveSettings(folder=out / "weights", interval=1000)
        result = train(tiny_settings(tiny_shapes, out, **changes, **resume(path), save=save))
        assert result.checkpoint is not None
        assert differences(result.checkpoint, whole.checkpoint) == []
