"""Packages that report to their makers when they are imported are kept from doing so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolact.host import hidden


def test_hidden_packages_are_as_if_not_installed_and_then_there_again() -> None:
    sys.modules.pop("colorsys", None)
    with hidden("colorsys"), pytest.raises(ImportError):
        import colorsys  # noqa: F401
    import colorsys as again

    assert again.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_packages_that_are_imported_already_stay() -> None:
    with hidden("os"):
        assert sys.modules["os"] is os


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
