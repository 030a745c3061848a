"""``sparseml.yolact recipe check``: what it prints, writes and ends with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from test_imports import python
from training import tiny_config
from yolact.checkpoint import Checkpoint, save_checkpoint
from yolact.cli import main
from yolact.model.yolact import Yolact
from yolact.sparsify.recipe import load_recipe

SMALL = ("--config", "yolact_darknet_small")
RECIPE = """\
num_epochs: 4
modifiers:
- !EpochRangeModifier {start_epoch: 0, end_epoch: eval(num_epochs)}
- !GMPruningModifier
  {params: ["re:proto_net.*[.]weight"], start_epoch: 0, end_epoch: eval(num_epochs / 2),
   init_sparsity: 0.2, final_sparsity: 0.8, update_frequency: 0.5, mask_type: unstructured}
"""
SLOW = RECIPE.replace("update_frequency: 0.5", "update_frequency: 3")
WRONG = SLOW.replace("proto_net", "protonet") + "- !SetWeightDecayModifier {weight: 0}\n"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(*words: str) -> Result:
    result = CliRunner().invoke(main, ["recipe", "check", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_packaged_recipe_is_clean_for_its_network() -> None:
    result = check("yolact_small.pruned_quant", *SMALL, "--strict")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "yolact_small.pruned_quant, for yolact_darknet_small"
    assert lines[-1] == "no problems found"
    assert "not pruned (1): backbone._preconv.0.weight" in lines
    assert any(
        line.split() == ["zeros", "in", "convolutions", "0.0000", "0.7759"] for line in lines
    )
    assert list(Path().iterdir()) == []


def test_variables_can_be_set() -> None:
    result = check(RECIPE, *SMALL, "--recipe_args", "num_epochs=6")
    assert "num_epochs  6      from 4\n" in result.stdout
    result = check(RECIPE, *SMALL, "--recipe_args", "num_epoch=6")
    assert result.exit_code == 5
    assert result.stderr == "error: the recipe has no variable 'num_epoch'\nhint: try: num_epochs\n"


def test_every_error_is_printed_and_the_exit_code_is_that_of_recipes() -> None:
    result = check(WRONG, *SMALL)
    assert result.exit_code == 5
    assert result.stdout.endswith(
        "error: no. 2: GMPruningModifier: no parameter of the model matches "
        "'re:protonet.*[.]weight'\n"
        "hint: did you mean 'proto_net.8.weight'?\n"
        "warning: no. 2: GMPruningModifier: updates every 3 epochs, but lasts only 2: "
        "it acts at its start and at its end alone\n"
        "hint: lower update_frequency\n"
        "error: no. 3: SetWeightDecayModifier has no field 'weight'\n"
        "hint: try: weight_decay\n"
    )
    assert result.stderr == (
        "error: the recipe has 2 errors and 1 warning\n"
        "hint: each is named above, with what to do about it\n"
    )


def test_warnings_fail_only_when_asked_to() -> None:
    assert check(SLOW, *SMALL).exit_code == 0
    result = check(SLOW, *SMALL, "--strict")
    assert result.exit_code == 5
    assert result.stderr == (
        "error: the recipe has 1 warning\n"
        "hint: each is named above; without --strict they are accepted\n"
    )


@pytest.mark.slow
def test_the_length_may_come_from_the_command_line() -> None:
    text = "\n".join(line for line in RECIPE.splitlines() if "EpochRange" not in line)
    assert "no EpochRangeModifier says how long the run is" in check(text, *SMALL).stdout
    assert check(text, *SMALL, "--epochs", "2", "--strict").exit_code == 0
    result = check(text, *SMALL, "--epochs", "1")
    assert "ends at epoch 2, after the run, which ends at 1" in result.stdout
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (("no.yaml",), 5, "recipe not found: no.yaml", "check the path, or use one of"),
        (("a: 1\nb: 2\n", *SMALL), 5, "the recipe has 1 error and 0 warnings", "each is named"),
        ((RECIPE, "--config", "large"), 2, "unknown config 'large'", "try: "),
        ((RECIPE, "--image_size", "3"), 2, "image size 3 is too small", "use at least 64"),
        ((RECIPE, "--epochs", "0"), 2, "Invalid value for '--epochs': 0.0", "see "),
        ((RECIPE, "--checkpoint", "no.pth"), 4, "checkpoint not found: no.pth", "check the path"),
        ((RECIPE, "--plot", "."), 2, "Invalid value for '--plot'", "see "),
        ((), 2, "Missing argument 'RECIPE'", "see main recipe check --help"),
    ],
)
def test_mistakes_are_two_lines(words: tuple[str, ...], code: int, error: str, hint: str) -> None:
    result = check(*words)
    assert result.exit_code == code
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {error}") and second.startswith(f"hint: {hint}")


@pytest.mark.parametrize("option", ["--plot", "--json"])
def test_a_result_never_replaces_the_recipe(tmp_path: Path, option: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("modifiers: []")
    result = check(str(path), option, str(path))
    assert result.exit_code == 2 and "would replace a file that is read" in result.stderr
    assert path.read_text() == "modifiers: []"


def test_an_empty_recipe_is_an_error_in_these_words() -> None:
    result = check("a: 1\nb: 2\n", *SMALL)
    assert "error: the recipe contains no modifiers\nhint: list !Modifier entries" in result.stdout


def test_the_schedule_is_drawn_and_everything_written_as_json() -> None:
    result = check(RECIPE, *SMALL, "--plot", "out/schedule.png", "--json", "out/check.json")
    assert result.exit_code == 0
    assert result.stdout.endswith("\nwrote out/schedule.png\nwrote out/check.json\n")
    assert Path("out/schedule.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    content = json.loads(Path("out/check.json").read_text())
    assert content["ok"] and content["problems"] == []
    assert content["variables"] == [{"name": "num_epochs", "value": 4, "written": 4}]
    assert [row["name"] for row in content["modifiers"]] == [
        "EpochRangeModifier",
        "GMPruningModifier",
    ]
    layers = {layer["name"]: layer["sparsity"] for layer in content["prediction"]["layers"]}
    assert layers["proto_net.0.weight"] == pytest.approx(0.8)
    check(WRONG, *SMALL, "--json", "out/check.json")
    content = json.loads(Path("out/check.json").read_text())
    assert not content["ok"] and len(content["problems"]) == 3


def test_a_checkpoint_brings_its_network_its_zeros_and_its_recipes() -> None:
    config = tiny_config().with_model(num_classes=6)
    model = Yolact(config.model)
    with torch.no_grad():
        model.get_parameter("proto_net.0.weight")[:4] = 0
    earlier = load_recipe(RECIPE).text
    save_checkpoint(
        Path("tiny.pth"), Checkpoint(model_state=model.state_dict(), config=config, recipe=earlier)
    )
    hold = "modifiers:\n- !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n"
    result = check(hold, "--checkpoint", "tiny.pth", "--json", "check.json")
    assert result.stdout.startswith(
        "the recipe, for tiny.pth\n\nthe checkpoint went through 1 recipe before: "
        "2 modifiers, 4 epochs\n"
    )
    assert "proto_net.0.weight have zeros that training will fill" in result.stdout
    prediction = json.loads(Path("check.json").read_text())["prediction"]
    assert prediction["image_size"] == 64
    assert prediction["before"]["sparsity"] > 0 and prediction["after"]["sparsity"] == 0
    other = check(hold, "--checkpoint", "tiny.pth", *SMALL)
    assert (other.exit_code, other.stderr) == (
        4,
        "error: tiny.pth is of tiny_config, not yolact_darknet_small_config\n"
        "hint: add --config tiny_config, or leave --config out\n",
    )


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from yolact.cli import main\n"
        "try: main(['recipe', 'check', '--help'], prog_name='sparseml.yolact')\n"
        "finally: print(*(n for n in ('torch', 'sparseml', 'numpy', 'matplotlib')"
        " if n in sys.modules), file=sys.stderr)\n"
    )
    best = 60.0
    for _ in range(3):
        began = time.perf_counter()
        result = python(code)
        best = min(best, time.perf_counter() - began)
    assert (result.returncode, result.stderr) == (0, "\n")
    assert "Example: sparseml.yolact.recipe check" in result.stdout
    assert best < 1
