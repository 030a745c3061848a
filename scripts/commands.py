"""What the scripts share: running this package's commands once, and saying where that was."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolact.files import write_text


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


def final_checkpoint(printed: str) -> Path:
    """The path in what a finished training command printed."""
    (line,) = (line for line in printed.splitlines() if line.startswith("checkpoint: "))
    return Path(line.removeprefix("checkpoint: "))


def cpu_seconds() -> float:
    """User and system time of all commands that have ended, and of what they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def validate(
    folder: Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> tuple[float, float]:
    """Mask and box mAP in percent, as :func:`measure` measures them."""
    measured = measure(folder, *arguments, environment=environment)
    return measured["mask"]["ap"]["all"], measured["box"]["ap"]["all"]


def measure(
    folder: Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What ``validation --json`` writes: ``mask`` and ``box`` AP in percent, by threshold.

    Its files go to ``folder``.
    """
    report = folder / "validation.json"
    files = ("--ap_data_file", folder / "ap_data.json", "--json", report)
    call("validation", *arguments, *files, "--no_bar", environment=environment)
    measured: dict[str, Any] = json.loads(report.read_text())
    return measured


def hashed(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Stages:
    """What was done in a folder: one JSON file a stage, with its wish and, at its end, its result.

    A wish is everything that the result depends on. Files are written whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        """Remember it in ``folder``."""
        self.folder = folder

    def once(self, name: str, wish: object, work: Callable[[float | None], Any], *out: Path) -> Any:
        """The result of ``work``, which is done only if it was not done before.

        Args:
            name: Of the stage.
            wish: With another wish, or without one of the files in ``out``, it is done anew.
            work: Its argument is the time when the same stage was begun and not ended, or None.
            out: Files that it leaves behind.
        """
        record = self._read(name)
        same = record.get("wish") == json.loads(json.dumps(wish))
        if same and "result" in record and all(path.exists() for path in out):
            print(f"\n{name}: done before", flush=True)
            return record["result"]
        begun = record["began"] if same and "result" not in record else None
        began = time.time() if begun is None else begun
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(name, {"wish": wish, "began": began})
        result = work(begun)
        self._write(name, {"wish": wish, "began": began, "result": result})
        return result

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_text(self.folder / f"{name}.json", json.dumps(record, indent=1))


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
