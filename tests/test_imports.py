"""Importing is quick and harmless, help is instant, and the names that others call exist."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from click.testing import CliRunner

import yolact
from onnx_models import CLASSES, save, small_model
from oracle import write_dataset
from yolact.cli import COMMANDS
from yolact.cli.export_onnx import export_onnx

HEAVY = ("torch", "sparseml", "sparsezoo", "onnxruntime", "cv2", "numpy")
NO_NETWORK = (
    "import socket\n"
    "def refuse(*_, **__): raise AssertionError('a connection at import')\n"
    "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
)


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    result = python(
        "import sys\n"
        "from yolact.cli import main\n"
        f"try: main({[*arguments, '--help']}, prog_name='sparseml.yolact')\n"
        f"finally: print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)\n"
    )
    assert (result.returncode, result.stderr) == (0, "\n")
    name = " ".join(["sparseml.yolact", *arguments])
    assert result.stdout.startswith(f"Usage: {name} [OPTIONS]")
    for command in COMMANDS if not arguments else ():
        assert f"  {command} " in result.stdout


def test_help_is_instant() -> None:
    best = 60.0
    for _ in range(5):
        began = time.perf_counter()
        python("from yolact.cli import main; main(['--help'])")
        best = min(best, time.perf_counter() - began)
    assert best < 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    result = python(
        f"import sys, yolact; print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    assert result.stdout == "\n"


@pytest.mark.slow
def test_every_module_can_be_imported_without_network_and_writes_nothing(tmp_path: Path) -> None:
    result = python(
        NO_NETWORK + "import pkgutil, yolact\n"
        "from importlib import import_module\n"
        "for found in pkgutil.walk_packages(yolact.__path__, 'yolact.'):\n"
        "    import_module(found.name)\n",
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_public_names_resolve_and_are_listed() -> None:
    for name in yolact.__all__:
        assert getattr(yolact, name) is getattr(yolact, name)
    assert set(yolact.__all__) <= set(dir(yolact))


def test_a_public_name_is_not_the_name_of_a_module() -> None:
    modules = {path.stem for path in Path(str(yolact.__file__)).parent.iterdir()}
    assert not modules & set(yolact.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'yolact' has no attribute 'nothing'"):
        getattr(yolact, "nothing")  # noqa: B009 - mypy knows that there is none


def test_sparseml_finds_what_it_looks_for() -> None:
    assert yolact.NM_INTEGRATED is True
    for name in ("train", "export", "eval"):
        assert callable(import_module(f"yolact.{name}").main)


def test_console_scripts_exist_for_every_command() -> None:
    scripts = {entry.name: entry for entry in distribution("sparseml-yolact").entry_points}
    assert set(scripts) == {"sparseml.yolact", *(f"sparseml.yolact.{name}" for name in COMMANDS)}
    for entry in scripts.values():
        assert callable(entry.load())


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "export", "eval"])
def test_entry_modules_run_as_scripts(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"yolact.{module}", "--help"], capture_output=True, text=True
    )
    command = {"train": "train", "export": "export_onnx", "eval": "validation"}[module]
    assert result.stdout.startswith(f"Usage: sparseml.yolact.{command} [OPTIONS]")


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("sparseml-yolact") == yolact.__version__


def test_names_that_type_checkers_see_are_those_that_resolve() -> None:
    tree = ast.parse(Path(str(yolact.__file__)).read_text("utf-8"))
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {f"{found.module}.{found.names[0].name}" for found in imports_of(seen)}
    resolved = {f"{getattr(yolact, name).__module__}.{name}" for name in yolact.__all__[2:]}
    assert names == resolved


def imports_of(node: ast.AST) -> list[ast.ImportFrom]:
    return [found for found in ast.walk(node) if isinstance(found, ast.ImportFrom)]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, beside a picture and a data set."""
    folder = tmp_path_factory.mktemp("onnx")
    checkpoint = save(small_model(), folder / "m.pth")
    arguments = ["--checkpoint", str(checkpoint), "--name", str(folder / "m.onnx")]
    done = CliRunner().invoke(export_onnx, arguments)
    assert done.exit_code == 0, done.output
    names = dict(zip(CLASSES.ids, CLASSES.names, strict=True))
    data = write_dataset(folder / "data", [])
    info = data.images.parent / "annotations" / "instances_val2017.json"
    content = json.loads(info.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in names.items()]
    info.write_text(json.dumps(content))
    return folder / "m.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["annotate", "--model_filepath", "m.onnx", "--source", "data/images", "--save_json"],
        ["benchmark", "m.onnx", "-t", "0.1", "-w", "0"],
        ["benchmark", "m.onnx", "--vs", "m.onnx", "-t", "0.1", "-w", "0"],
        ["validation", "--trained_model", "m.onnx", "--dataset", "data", "--json", "m.json"],
        ["validation", "--trained_model", "m.onnx", "--dataset", "data", "--benchmark"],
        ["validation", "--trained_model", "m.onnx", "--images", "data/images:out"],
    ],
)
def test_running_an_onnx_file_loads_no_sparseml(onnx_file: Path, arguments: list[str]) -> None:
    result = python(
        "import sys\n"
        "from yolact.cli import main\n"
        f"try: main({arguments}, prog_name='sparseml.yolact')\n"
        "finally: print(*({'sparseml', 'sparsezoo', 'onnxruntime'} & set(sys.modules)))\n",
        cwd=onnx_file.parent,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "onnxruntime"
