"""Refusals of the machine, and signals, in the user's words."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import click
import pytest
from click.testing import CliRunner

from yolact.cli import main
from yolact.cli.base import Command, as_user_error
from yolact.errors import ConfigError, StorageError

FLAGS = {flag.replace("_", "-"): flag for flag in ("--batch_size", "--image_size", "--num_workers")}
FEWER = "use a smaller --batch_size or --image_size, or give the machine more memory"


def refusal(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes\nstack"),
            ConfigError,
            "out of memory: DefaultCPUAllocator: can't allocate memory: 5 bytes",
            FEWER,
        ),
        (
            RuntimeError("CUDA out of memory."),
            ConfigError,
            "out of memory: CUDA out of memory.",
            FEWER,
        ),
        (MemoryError(), ConfigError, "out of memory: no details", FEWER),
        (
            refusal(errno.ENOMEM),
            ConfigError,
            "out of memory: [Errno 12] Cannot allocate memory",
            FEWER,
        ),
        (
            refusal(errno.EMFILE),
            ConfigError,
            "too many open files: [Errno 24] Too many open files",
            "use a smaller --num_workers, or raise the limit: ulimit -n 4096",
        ),
        (
            refusal(errno.EACCES, "data/x"),
            StorageError,
            "no permission to use data/x",
            "check its owner and its mode",
        ),
        (
            refusal(errno.ENOSPC, "data/x"),
            StorageError,
            "no space left to write data/x",
            "free some space or choose another disk",
        ),
        (
            refusal(errno.EIO),
            StorageError,
            "cannot write a file: Input/output error",
            "choose another name or folder",
        ),
    ],
)
def test_what_the_machine_refuses_is_told(
    error: BaseException, kind: type[Exception], message: str, hint: str
) -> None:
    known = as_user_error(error, FLAGS)
    assert known is not None and type(known) is kind
    assert (str(known), known.hint) == (message, hint)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a must match the size of tensor b"),
        refusal(errno.ENOENT, "data/x"),
        refusal(errno.EISDIR, "data/x"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ],
)
def test_bugs_and_closed_pipes_are_left_alone(error: BaseException) -> None:
    assert as_user_error(error, FLAGS) is None


@click.command(cls=Command)
@click.option("--number", type=float)
def example(number: float | None) -> None:
    if number == 1:
        raise RuntimeError("out of memory")
    if number == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_refusal_from_anywhere_ends_a_command_with_two_lines() -> None:
    result = CliRunner().invoke(example, ["--number", "1"])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: out of memory: out of memory\nhint: give the machine more memory\n",
    )


def test_sigterm_ends_a_command_like_ctrl_c_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(example, ["--number", "2"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_commands_run_outside_the_main_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(CliRunner().invoke(example, []).exit_code)
    )
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            ["--number", "nan"],
            "Invalid value for '--number': nan is not a finite number",
            "example",
        ),
        (["--number", "-inf"], "Invalid value for '--number': -inf is not a finite", "example"),
        (["--number", "x"], "Invalid value for '--number': 'x' is not a valid float", "example"),
        (["--number"], "Option '--number' requires an argument", "example"),
        (["--nummer", "1"], "No such option '--nummer'", "example"),
        (["more"], "Got unexpected extra argument (more)", "example"),
    ],
)
def test_usage_errors_are_two_lines(words: list[str], error: str, hint: str) -> None:
    result = CliRunner().invoke(example, words)
    first, second = result.stderr.splitlines()
    assert result.exit_code == 2
    assert first.startswith(f"error: {error}") and not first.endswith(".")
    assert second == f"hint: see {hint} --help"


def test_the_group_speaks_the_same_way() -> None:
    result = CliRunner().invoke(main, ["no-such"])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: No such command 'no-such'\nhint: see main --help\n",
    )
    assert "Commands:" in CliRunner().invoke(main, []).output


def test_a_closed_stderr_is_survived() -> None:
    code = (
        "import os, sys; os.close(2); sys.stderr = None\n"
        "from yolact.cli.base import setup_logging\n"
        "setup_logging(); print('x', file=sys.stderr); print('fine')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert (result.returncode, result.stdout) == (0, "fine\n")
