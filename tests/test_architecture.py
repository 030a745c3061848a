"""The arrangement of src/yolact: layers, doors and sizes, read from the imports of every file."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import yolact

ROOT = Path(str(yolact.__file__)).parent

LAYERS = (
    *("errors", "files", "host", "tables", "types", "setting", "sizes", "optim_config", "config"),
    *("ops", "model", "presets", "loss", "data", "checkpoint", "download"),
    *("sparsify", "restore", "engines", "model_files", "distill", "predict", "exporter"),
    *("training", "bench", "api", "cli"),
)
"""Files and folders of src/yolact from the bottom to the top: each may import those before it."""

ENTRY_POINTS = ("train", "eval", "export")
"""Files that only hand on to the command line, under the names that sparseml's scripts call."""

DOORS = {
    "sparsify/sparseml/": ("sparseml", "torch.ao", "torch.quantization"),
    "engines/onnxruntime.py": ("onnxruntime",),
    "model/backbones/timm.py": ("timm",),
    "engines/openvino.py": ("openvino",),
}
"""The packages that only one place may import, by that place."""

STANDALONE = "exporter/deployed_run.py"
"""Copied beside exported models; it must run where this package is not installed."""

MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_MODULES = 197


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("yolact", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported_names(path: Path, *, loaded: bool = False) -> frozenset[str]:
    """Dotted names that a file imports, at its top and inside functions.

    Args:
        path: The file.
        loaded: Leave out what only type checkers import.
    """
    names = set()
    tree = ast.parse(path.read_text("utf-8"))
    unseen = {
        inside
        for node in ast.walk(tree)
        if loaded and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inside in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def imports(*, loaded: bool = False) -> dict[str, frozenset[str]]:
    """The modules of the package that each module imports; see :func:`imported_names`."""
    return {
        name: frozenset(_module_of(found) for found in _ours(imported_names(path, loaded=loaded)))
        for name, path in modules().items()
    }


def _ours(names: frozenset[str]) -> Iterator[str]:
    return (name for name in names if name.split(".")[0] == "yolact")


def _module_of(name: str) -> str:
    """``yolact.files`` of ``yolact.files.atomic_path``."""
    return name if name in modules() else name.rpartition(".")[0]


def reach(start: str) -> set[str]:
    """Every module of the package that importing ``start`` may end up importing."""
    found: set[str] = set()
    rest = [start]
    while rest:
        new = imports(loaded=True)[rest.pop()] - found
        found |= new
        rest += new
    return found


def longest_chain() -> int:
    """Modules on the longest way from one import to the next."""

    @cache
    def length(name: str) -> int:
        return 1 + max(map(length, imports(loaded=True)[name]), default=0)

    return max(map(length, modules()))


def layer(name: str) -> str:
    """The file or folder of src/yolact that a module belongs to."""
    return name.split(".")[1] if "." in name else ""


def test_every_file_and_folder_has_its_layer() -> None:
    there = {layer(name) for name in modules()} - {"", *ENTRY_POINTS}
    assert there == set(LAYERS)


def test_no_file_imports_upward() -> None:
    order = {name: place for place, name in enumerate(LAYERS)}
    upward = [
        f"{name} -> {other}"
        for name, found in imports().items()
        for other in found
        if layer(name) in order and layer(other) in order
        if order[layer(other)] > order[layer(name)]
    ]
    assert not upward


def test_entry_points_only_hand_on_to_the_command_line() -> None:
    for name in ENTRY_POINTS:
        assert imports()[f"yolact.{name}"] == {"yolact.cli"}


def test_no_module_reaches_itself() -> None:
    assert not [name for name in modules() if name in reach(name)]


def test_no_two_rooms_import_each_other() -> None:
    pairs = {(layer(a), layer(b)) for a, found in imports().items() for b in found}
    assert not [(a, b) for a, b in pairs if a < b and (b, a) in pairs and a]


@pytest.mark.parametrize("door", DOORS)
def test_some_packages_are_imported_in_one_place_only(door: str) -> None:
    inside = tuple(f"{package}." for package in DOORS[door])
    places = [
        path.relative_to(ROOT).as_posix()
        for path in modules().values()
        if any(f"{name}.".startswith(inside) for name in imported_names(path))
    ]
    others = [place for place in places if not place.startswith(door)]
    assert places and set(others) <= {STANDALONE}


@pytest.mark.parametrize(("name", "most"), [("checkpoint", 15), ("cli.download", 43)])
def test_a_module_reaches_few_others(
    name: str, most: int, record_property: Callable[[str, object], None]
) -> None:
    reached = reach(f"yolact.{name}")
    record_property("figure", f"{name} reaches {len(reached)} modules (at most {most})")
    assert len(reached) <= most, sorted(reached)


def test_files_and_functions_are_short(record_property: Callable[[str, object], None]) -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in modules().values()}
    record_property(
        "figure",
        f"{len(lines)} modules, {sum(lines.values())} lines, longest file {max(lines.values())}, "
        f"longest chain of imports {longest_chain()}",
    )
    assert len(lines) <= MOST_MODULES
    assert not [f"{path}: {count}" for path, count in lines.items() if count > MOST_LINES]
    long = [
        f"{path}: {node.name}"
        for path in lines
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    ]
    assert not long
