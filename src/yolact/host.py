"""The machine and the process: torch devices, CPUs, and packages that must not be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import ConfigError

if TYPE_CHECKING:
    import torch

_SYSTEM = Path("/sys/devices/system")


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; auto takes a GPU if any.

    Raises:
        ConfigError: There is no such device here.
    """
    import torch  # here, since commands look at CPUs before anything heavy is loaded

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}", hint="use auto, cpu, cuda or cuda:0"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name} is not supported", hint="use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} is not available here",
            hint=f"{torch.cuda.device_count()} CUDA devices are visible; --device cpu always works",
        )
    return device


def available_cpus() -> list[int]:
    """Logical CPUs this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores(system: Path = _SYSTEM) -> list[list[int]]:
    """The available logical CPUs grouped by the core they share.

    Args:
        system: Linux's description of the machine; where it is absent, each CPU is a core.
    """
    cores: dict[str, list[int]] = {}
    for cpu in available_cpus():
        topology = system / f"cpu/cpu{cpu}/topology"
        try:
            name = (topology / "thread_siblings_list").read_text().strip()
        except OSError:
            name = str(cpu)
        cores.setdefault(name, []).append(cpu)
    return list(cores.values())


def numa_cpus(system: Path = _SYSTEM) -> list[int]:
    """Available CPUs of the memory node that has most of them; all, where nodes are unknown."""
    usable = set(available_cpus())
    lists = sorted(system.glob("node/node[0-9]*/cpulist"))
    nodes = [sorted(usable & set(parse_cpu_list(path.read_text()))) for path in lists]
    return max(nodes, key=len, default=[]) or sorted(usable)


@contextmanager
def pinned(cpus: list[int] | None) -> Iterator[None]:
    """Keep this thread, and threads started inside the block, on ``cpus``.

    None, or a system that cannot pin, changes nothing.
    """
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def parse_cpu_list(text: str) -> list[int]:
    """Read the kernel's notation.

    >>> parse_cpu_list("0-2,8")
    [0, 1, 2, 8]
    """
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


@contextmanager
def not_importable(*names: str) -> Iterator[None]:
    """Let imports of these packages fail inside the block, as if they were not installed.

    Packages that are imported already stay.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # what Python documents for this
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
