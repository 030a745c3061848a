"""The pages for contributors name what there is: files, functions, folders, links."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from test_architecture import ENTRY_POINTS, LAYERS

PACKAGE = ROOT / "src" / "yolact"
ARCHITECTURE = PACKAGE / "README.md"
GITHUB = ROOT / ".github"
CONTRIBUTORS = [
    ARCHITECTURE,
    *(GITHUB / f"{name}.md" for name in ("CONTRIBUTING", "DECISIONS", "SECURITY", "CHANGELOG")),
]
PAGES = [*CONTRIBUTORS, ROOT / "README.md", *sorted((ROOT / "recipes").glob("*.md"))]
TOP = ("src/", "tests/", "scripts/", "recipes/", ".github/", ".ci/")


def marked(name: str) -> list[str]:
    """Lines of the code block between ``<!-- name -->`` and its end, without the fences."""
    text = ARCHITECTURE.read_text("utf-8")
    found = re.search(rf"<!-- {name} -->\n```text\n(.*?)```\n<!-- end of {name} -->", text, re.S)
    assert found, name
    return found[1].splitlines()


def named_in_the_tree() -> dict[str, str]:
    """Captions of the tree's folders and files by path below the package; folders end in /."""
    captions: dict[str, str] = {}
    above: list[str] = []
    for line in marked("tree")[1:]:
        found = re.fullmatch(r"((?:  )+)(\S+)(?: {2,}(\S.*))?", line)
        assert found, f"a line of the tree that is none: {line!r}"
        indent, name, caption = found.groups()
        depth = len(indent) // 2 - 1
        assert depth <= len(above), f"indented too far: {line!r}"
        above = [*above[:depth], name]
        path = "".join(above)
        assert path not in captions, f"{path} stands twice in the tree"
        captions[path] = caption or ""
        if not name.endswith("/"):
            above.pop()
    return captions


def on_disk() -> set[str]:
    """Folders and modules as the tree has them: the line of a folder covers its __init__.py."""
    found = {"__init__.py"}
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        found.update(f"{folder}/" for folder in relative.parents if folder.name)
        if path.name != "__init__.py":
            found.add(str(relative))
    return found


def test_the_tree_names_every_folder_and_file_and_nothing_else() -> None:
    named = set(named_in_the_tree())
    gone, new = sorted(named - on_disk()), sorted(on_disk() - named)
    assert (gone, new) == ([], []), f"take out of src/yolact/README.md: {gone}; add to it: {new}"


def test_every_line_of_the_tree_has_a_caption() -> None:
    assert [path for path, caption in named_in_the_tree().items() if not caption] == []


def test_the_layers_are_those_that_imports_are_held_to() -> None:
    listed = [name for line in marked("layers") for name in line.split()]
    assert listed == [*LAYERS, *ENTRY_POINTS]


@cache
def definitions(path: Path) -> frozenset[str]:
    """Names of the classes and functions of a file, methods too."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in nodes if isinstance(node, kinds))


def quoted(page: Path) -> list[str]:
    """What stands between single backticks, outside of code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("page", CONTRIBUTORS, ids=lambda page: page.name)
def test_every_file_and_function_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for words in quoted(page):
        path, _, name = words.partition("::")
        if not re.fullmatch(r"[\w./-]+", path) or "/" not in path and not path.endswith(".py"):
            continue  # prose, an option, a command, a name without its file
        file = ROOT / path if path.startswith(TOP) else PACKAGE / path
        if not file.exists() or (name and name not in definitions(file)):
            missing.append(words)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    text = re.sub(r"```.*?```|\A---\n.*?\n---\n", "", page.read_text("utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [name for name in files if name and not (page.parent / name).exists()] == []


def test_the_readme_leads_to_every_page_for_contributors() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for page in CONTRIBUTORS:
        assert f"({page.relative_to(ROOT)})" in text


def test_continuous_integration_runs_what_contributors_run() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert "scripts/test" in [step.get("run") for step in job["steps"]]
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_continuous_integration_covers_every_python_that_is_supported() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    classifiers = (ROOT / "pyproject.toml").read_text("utf-8")
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', classifiers)
    assert job["strategy"]["matrix"]["python"] == supported
