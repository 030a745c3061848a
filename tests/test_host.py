"""Which CPUs a process may use, and packages that must not report to their makers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolact.host import (
    available_cpus,
    not_importable,
    numa_cpus,
    parse_cpu_list,
    physical_cores,
    pinned,
)


def test_packages_are_as_if_not_installed_and_then_there_again() -> None:
    sys.modules.pop("colorsys", None)
    with not_importable("colorsys"), pytest.raises(ImportError):
        import colorsys  # noqa: F401
    import colorsys as again

    assert again.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_packages_that_are_imported_already_stay() -> None:
    with not_importable("os"):
        assert sys.modules["os"] is os


@pytest.mark.slow
def test_openvino_is_not_imported_with_sparseml_and_never_reports(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import sys
import yolact.sparsify
print("openvino" in sys.modules)
from pathlib import Path
from yolact.errors import YolactError
from yolact.engines.openvino import OpenVinoEngine
Path("model.onnx").write_bytes(b"no model")
try:
    OpenVinoEngine(Path("model.onnx"))
except YolactError:
    print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["False", "True", "False"], result.stderr
    assert not (tmp_path / "home" / "intel").exists()


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpu_list("0-2,8,10-11\n") == [0, 1, 2, 8, 10, 11]
    assert parse_cpu_list("") == []


def test_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    cpus = available_cpus()
    for cpu in cpus:
        topology = tmp_path / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("all of them\n")
    assert physical_cores(tmp_path) == [cpus]
    assert physical_cores(tmp_path / "nowhere") == [[cpu] for cpu in cpus]


def test_the_memory_node_with_most_cpus_is_taken(tmp_path: Path) -> None:
    cpus = available_cpus()
    for node, members in enumerate(["1000-1003", f"{cpus[0]}"]):
        folder = tmp_path / f"node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(members)
    assert numa_cpus(tmp_path) == [cpus[0]]
    assert numa_cpus(tmp_path / "nowhere") == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin threads")
def test_pinning_ends_with_the_block() -> None:
    before = available_cpus()
    with pinned(before[:1]):
        assert available_cpus() == before[:1]
    assert available_cpus() == before
