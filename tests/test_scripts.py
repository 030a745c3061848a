"""Scripts that begin with whatever Python a machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working tree with these scripts, and a folder for the programs that its PATH has."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "grep", "ln", "mkdir", "mktemp", "paste", "rm", "sort", "cat"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def add_python(checkout: Path, name: str, version: str, *, venv: bool = True) -> Path:
    """A program that says it is that Python, makes environments, and finds everything right."""
    path = checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/bash\n"
        'case "$*" in\n'
        f"    *version_info*) echo {version} ;;\n"
        f"    *ensurepip*) {'true' if venv else 'false'} ;;\n"
        '    "-m venv"*) mkdir -p "${!#}/bin" && ln -sf "$0" "${!#}/bin/python" ;;\n'
        f"    *pytest*) echo '7 passed in {version}' ;;\n"
        "esac\n"
    )
    path.chmod(0o755)
    return path


def run(checkout: Path, script: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", f"scripts/{script}", *words],
        cwd=checkout,
        env={"PATH": str(checkout / "bin"), "HOME": str(checkout), **more},
        capture_output=True,
        text=True,
    )


PYENV = ".pyenv/versions/{0}/bin/{1}"


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"bin/python3": "3.13.0"}, "bin/python3"),
        ({"bin/python3": "3.9.2", "bin/python3.12": "3.12.1"}, "bin/python3.12"),
        ({"bin/python3.13": "3.13.0", "bin/python3.11": "3.11.7"}, "bin/python3.11"),
        ({"bin/python3.10": "3.10.13", "bin/python3.14": "3.14.0"}, "bin/python3.14"),
        ({"bin/python3": "3.9.2", PYENV.format("3.13.0", "python3.13"): "3.13.0"}, ".pyenv"),
    ],
)
def test_the_quickstart_takes_a_python_that_fits(
    checkout: Path, there: dict[str, str], taken: str
) -> None:
    for name, version in there.items():
        add_python(checkout, name, version)
    done = run(checkout, "quickstart")
    assert (done.returncode, done.stderr) == (0, "")
    assert taken in str((checkout / ".venv" / "bin" / "python").readlink())


def test_a_python_may_be_named(checkout: Path) -> None:
    add_python(checkout, "bin/python3.11", "3.11.7")
    mine = add_python(checkout, "my own/python", "3.12.1")
    assert run(checkout, "quickstart", PYTHON=str(mine)).returncode == 0
    assert (checkout / ".venv" / "bin" / "python").readlink() == mine


def test_pythons_that_do_not_fit_are_named_with_the_reason(checkout: Path) -> None:
    hint = "hint: install one, or name it: PYTHON=/path/to/python3.13 scripts/quickstart\n"
    done = run(checkout, "quickstart")
    assert done.returncode == 2
    assert done.stderr == "error: no Python from 3.10 to 3.14 found\n" + hint
    old = add_python(checkout, "bin/python3", "3.9.2")
    new = add_python(checkout, "bin/python3.12", "3.12.1", venv=False)
    done = run(checkout, "quickstart")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: no Python from 3.10 to 3.14 found: {old} is 3.9.2; {new} cannot make environments "
        f"(on Debian: apt install python3-venv)\n{hint}",
    )
    assert not (checkout / ".venv").exists()
    done = run(checkout, "quickstart", PYTHON=str(old))
    assert f"found: {old} is 3.9.2\n" in done.stderr


def test_a_python_that_is_none_is_not_looked_for_elsewhere(checkout: Path) -> None:
    add_python(checkout, PYENV.format("3.12.1", "python"), "3.12.1")
    done = run(checkout, "quickstart", PYTHON="./python")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: no Python from 3.10 to 3.14 found: ./python is no Python\n"
    )


@pytest.mark.parametrize("version", ["", "3.9.2"])
def test_an_environment_that_cannot_be_used_is_named(checkout: Path, version: str) -> None:
    add_python(checkout, "bin/python3", "3.12.1")
    if version:
        add_python(checkout, ".venv/bin/python", version)
    else:
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to("/gone/python3.12")
    done = run(checkout, "quickstart")
    but = f", but {version}" if version else ""
    assert (done.returncode, done.stderr) == (
        2,
        f"error: .venv has no Python from 3.10 to 3.14 with pip{but}\n"
        "hint: remove it to have it made anew: rm -r .venv\n",
    )


def test_an_environment_of_another_python_than_the_named_one_is_said(checkout: Path) -> None:
    add_python(checkout, ".venv/bin/python", "3.11.7")
    wanted = add_python(checkout, "bin/python3.12", "3.12.1")
    done = run(checkout, "quickstart", PYTHON=str(wanted))
    note = f"note: .venv has Python 3.11.7 and is taken; remove it to use {wanted}\n"
    assert (done.returncode, done.stderr) == (0, note)
    assert run(checkout, "quickstart").stderr == ""


@pytest.mark.parametrize("words", [["--nonsense"], ["-h"]])
def test_an_option_that_is_none_is_no_python_to_test_on(checkout: Path, words: list[str]) -> None:
    done = run(checkout, "test-pythons", *words)
    usage = "usage: scripts/test-pythons [--newest | PYTHON...]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", usage)


def test_the_fast_tests_run_on_each_python_with_a_line_of_result(checkout: Path) -> None:
    for name, version in {
        "python3.10": "3.10.13",
        "python3.13": "3.13.0",
        "python3": "3.9",
    }.items():
        add_python(checkout, f"bin/{name}", version)
    done = run(checkout, "test-pythons")
    older, newer = done.stdout.splitlines()
    assert done.returncode == 0
    assert "python3.10: 7 passed in 3.10.13; " in older
    assert "python3.13: 7 passed in 3.13.0; " in newer
    assert run(checkout, "test-pythons", "--newest").stdout.startswith(newer.split(";")[0])
    named = run(checkout, "test-pythons", "python3.10", "python3")
    assert named.returncode == 1
    assert "python3.10: 7 passed" in named.stdout and "python3: failed" in named.stdout


def test_without_any_python_there_are_no_tests_and_an_error(checkout: Path) -> None:
    done = run(checkout, "test-pythons")
    assert (done.returncode, done.stderr) == (2, "error: no Python from 3.10 to 3.14 found\n")
