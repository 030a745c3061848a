"""What the scripts share: running this package's commands, and saying where that was."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def call(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Print and run one command; its stdout. Its stderr goes to the terminal.

    After a Ctrl-C it gets the time to save what it has; it ends when the script is killed.

    Raises:
        SystemExit: It failed or was interrupted; with its exit code.
    """
    words = [str(argument) for argument in arguments]
    print(f"\n$ sparseml.yolact.{name} {shlex.join(words)}", flush=True)
    program = [sys.executable, "-c", "from yolact.cli import main; main()", name]
    process = subprocess.Popen(
        [*program, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=partial(_end_with, os.getpid()),
    )
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:  # a terminal sends it to the command, too
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        process.terminate()
        process.communicate()
        raise SystemExit(process.returncode) from None
    print(output, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return output


def _end_with(parent: int) -> None:
    """Let Linux send this process a SIGTERM when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def validate(
    folder: Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> tuple[float, float]:
    """Mask and box mAP in percent, as ``validation`` measures them; its files go to ``folder``."""
    report = folder / "validation.json"
    files = ("--ap_data_file", folder / "ap_data.json", "--json", report)
    call("validation", *arguments, *files, "--no_bar", environment=environment)
    measured = json.loads(report.read_text())
    return measured["mask"]["ap"]["all"], measured["box"]["ap"]["all"]


def machine(*more: str) -> str:
    """Processor and versions that numbers belong to; ``more`` names packages besides the usual."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = f"{len(models)} x {models[0]}" if models else processor
    names = ("torch", *(["sparseml"] if find_spec("sparseml") else []), "onnxruntime", *more)
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{processor}; Python {platform.python_version()}, {packages}"
