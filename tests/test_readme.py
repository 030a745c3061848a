"""The README's commands and Python run as they are written; only the runs are shortened."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from conftest import ROOT
from yolact.cli import COMMANDS, command
from yolact.sparsify.recipe_engines import INSTALL_SPARSEML

README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "recipes" / "README.md").read_text()
ONNX = (ROOT / "recipes" / "onnx.md").read_text()
SHORTER = {
    "download": ["--train_size", "8", "--val_size", "4"],
    "benchmark": ["-t", "0.2", "-w", "0"],
}
"""What the test adds to a command of the tour so that it takes seconds."""
SHORT_RUN = ["--max_iter", "4", "--num_workers", "0"]
SHORT_RECIPE = [
    *("--recipe_args", "num_epochs=10"),
    *("--num_workers", "0"),
]


def blocks(language: str, text: str = README) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each ``sparseml.yolact.*`` line of a block, continuation lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(x, comments=True) for x in lines if x.startswith("sparseml.yolact")]


def tour() -> list[list[str]]:
    """The commands of "A first model"."""
    (block,) = re.findall(r"<!-- tour.*?```bash\n(.*?)```", README, flags=re.DOTALL)
    return commands(block)


def shortened(words: list[str]) -> list[str]:
    """A command of the tour, made quick."""
    name = words[0].rpartition(".")[2]
    extra = SHORTER.get(name, [])
    if name == "train":
        extra = SHORT_RECIPE if "--recipe" in words else SHORT_RUN
    return [*words, *extra]


def test_every_command_line_in_the_readmes_parses() -> None:
    found = [
        words
        for text in (README, RECIPES, ONNX)
        for block in blocks("bash", text)
        for words in commands(block)
    ]
    assert len(found) > 8
    for program, *arguments in found:
        name = arguments.pop(0) if program == "sparseml.yolact" else program.rpartition(".")[2]
        parsed = command(name)
        with parsed.make_context(program, list(arguments)) as context:
            assert isinstance(context, click.Context)


def test_every_command_has_a_row_in_the_table() -> None:
    for name in COMMANDS:
        assert f"| `sparseml.yolact.{name}` |" in README


def test_every_exit_code_is_documented() -> None:
    from yolact import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    codes = {k.exit_code for k in kinds if issubclass(k, errors.YolactError)}
    for code in (codes - {1}) | {errors.INTERRUPTED}:
        assert re.search(rf"^\| {code} \|", README, flags=re.MULTILINE), code


def test_sparseml_is_installed_as_errors_say() -> None:
    commands = INSTALL_SPARSEML.replace(" && ", "\n")
    assert f"```bash\n{commands}\n```" in README.replace(" \\\n    ", " ")
    first, _others = commands.splitlines()
    assert "--target" in first  # else sparseml's commands of the same names replace ours


def test_every_packaged_recipe_is_listed() -> None:
    for path in sorted((ROOT / "recipes").glob("*.md")):
        assert f"(recipes/{path.name})" in README
        assert path.name == "README.md" or f"({path.name})" in RECIPES


def test_the_networks_are_those_that_configs_lists() -> None:
    (shown,) = re.findall(r"<!-- networks.*?```text\n(.*?)```", README, flags=re.DOTALL)
    assert shown == CliRunner().invoke(command("configs"), []).stdout


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tour was taken."""
    folder = tmp_path_factory.mktemp("tour")
    for words in tour():
        program = Path(sys.executable).parent / words[0]
        result = subprocess.run(
            [program, *shortened(words)[1:]], cwd=folder, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr}"
    return folder


@pytest.mark.slow
def test_the_tour_leaves_what_it_promises(toured: Path) -> None:
    assert (toured / "pruned_quant" / "yolact_darknet_small_best.onnx").is_file()
    assert list((toured / "annotation-results").rglob("*.jpg"))


@pytest.mark.slow
def test_the_python_of_the_readme_runs(toured: Path) -> None:
    (code,) = blocks("python")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=toured, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_quickstart_numbers_are_those_of_the_script() -> None:
    """The README's table has the shape that scripts/quickstart.py writes."""
    head = script("quickstart").to_markdown([]).splitlines()
    found = re.search(r"<!-- quickstart results -->\n(.*?)<!-- end", README, flags=re.DOTALL)
    assert found and found[1].strip().splitlines()[: len(head)] == head
    assert "Measured in" in found[1]


def test_the_costs_of_recipes_are_those_of_the_script() -> None:
    """The table of recipes/README.md has the rows that scripts/recovery.py writes."""
    recovery = script("recovery")
    found = re.search(r"<!-- recovery results -->\n(.*?)<!-- end", RECIPES, flags=re.DOTALL)
    assert found
    lines = found[1].strip().splitlines()
    assert lines[:2] == recovery.to_markdown([]).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:] if line.startswith("|")]
    assert names == [variant.name for variant in recovery.VARIANTS]
    assert "Measured on" in found[1]


def test_the_speeds_are_those_of_the_script() -> None:
    """The tables of recipes/onnx.md have the rows that scripts/speed.py writes."""
    speed = script("speed")
    found = re.search(r"<!-- speed results -->\n(.*?)<!-- end", ONNX, flags=re.DOTALL)
    assert found
    rows = [line.split("|")[1:3] for line in found[1].splitlines() if line.startswith("| ")]
    files = [(file.model, " ".join(file.options)) for file in speed.FILES]
    heads = [("model", "export_onnx")]
    assert [(a.strip(), b.strip(" `")) for a, b in rows] == 2 * (heads + files)
    assert found[1].count("Medians of ") == 2


def test_the_sizes_are_those_of_the_script() -> None:
    """The table of recipes/onnx.md has the rows that scripts/sizes.py writes."""
    sizes = script("sizes")
    found = re.search(r"<!-- size results -->\n(.*?)\n\n", ONNX, flags=re.DOTALL)
    empty = sizes.to_markdown([(file, ()) for file in sizes.KINDS]).splitlines()
    assert found
    for line, start in zip(found[1].splitlines(), empty, strict=True):
        assert line.startswith(start.rstrip("| ")), line


def script(name: str) -> ModuleType:
    """A script as a module."""
    if str(ROOT / "scripts") not in sys.path:  # they import each other
        sys.path.append(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
