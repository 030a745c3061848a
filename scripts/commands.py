"""What the scripts share: running this package's commands, and saying where that was."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path


def call(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Print and run one command; its stdout. Its stderr goes to the terminal.

    Raises:
        SystemExit: It failed; with its exit code.
    """
    words = [str(argument) for argument in arguments]
    print(f"\n$ sparseml.yolact.{name} {shlex.join(words)}", flush=True)
    program = [sys.executable, "-c", "from yolact.cli import main; main()", name]
    process = subprocess.run([*program, *words], stdout=subprocess.PIPE, text=True, env=environment)
    print(process.stdout, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return process.stdout


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
    names = ("torch", "sparseml", "onnxruntime", *more)
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{processor}; Python {platform.python_version()}, {packages}"
