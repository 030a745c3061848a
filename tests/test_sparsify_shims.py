"""Modules that sparseml imports and that Python, setuptools or onnx have no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from onnx import TensorProto
from PIL import Image

from conftest import ROOT
from recipe_engines import needs_sparseml
from yolact.errors import RecipeError
from yolact.sparsify import recipe_engines

FILE = ROOT / "src" / "yolact" / "sparsify" / "sparseml" / "shims.py"
NAMES = ("pkg_resources", "imghdr", "onnx.mapping")


@pytest.fixture
def shims() -> Callable[[], AbstractContextManager[None]]:
    """Of the file alone: its package imports sparseml, which need not be here."""
    made: Callable[[], AbstractContextManager[None]] = run_path(str(FILE))["shims"]
    return made


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("absent", [[], *([name] for name in NAMES)])
def test_sparseml_cannot_be_imported_without_one_of_them(absent: list[str]) -> None:
    code = (
        "import os, runpy, sys, warnings\n"
        "os.environ['NM_DISABLE_ANALYTICS'] = '1'\n"
        "warnings.simplefilter('ignore')\n"
        "sys.modules['openvino'] = None\n"  # it would report that it was imported
        f"with runpy.run_path({str(FILE)!r})['shims']():\n"
        f"    sys.modules.update(dict.fromkeys({absent}))\n"
        "    from sparseml.pytorch.optim import ScheduledModifierManager\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert bool(done.returncode) == bool(absent), done.stderr
    assert not absent or absent[0] in done.stderr.splitlines()[-1]


def test_they_answer_what_sparseml_asks(
    shims: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    picture, text = tmp_path / "a.jpg", tmp_path / "a.txt"
    Image.new("RGB", (8, 8)).save(picture)
    text.write_text("no image")
    with shims():
        versions, images, tensors = map(import_module, NAMES)
    assert versions.get_distribution("torch").version == version("torch")
    with pytest.raises(versions.DistributionNotFound):
        versions.get_distribution("no-such-package")
    assert (images.what(str(picture)), images.what(str(text))) == ("jpeg", None)
    types = tensors.TENSOR_TYPE_TO_NP_TYPE
    assert {types[n] for n in (TensorProto.FLOAT, TensorProto.INT8)} == {
        np.dtype("float32"),
        np.dtype("int8"),
    }
    assert set(types) >= {n for n in TensorProto.DataType.values() if 0 < n <= TensorProto.BFLOAT16}


def test_nobody_else_sees_them(shims: Callable[[], AbstractContextManager[None]]) -> None:
    def there() -> set[str]:
        return {name for name in NAMES if find_spec(name)}

    real = there()
    with shims():
        assert set(NAMES) <= sys.modules.keys() | real
    assert there() == real
    for name in set(NAMES) - real:
        with pytest.raises(ImportError):
            import_module(name)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("module compiled for another numpy\nmore"), "compiled for another numpy"),
        (SystemExit(3), "SystemExit: 3"),
        (ImportError(), "ImportError"),
        (TypeError("no such argument"), "TypeError: no such argument"),
    ],
)
def test_an_import_that_fails_in_any_way_leaves_recipes_to_the_native_engine(
    error: BaseException, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: str) -> None:
        raise error

    monkeypatch.setattr(recipe_engines, "import_module", failing)
    for cached in (recipe_engines.why_no_sparseml, recipe_engines.default_engine):
        monkeypatch.setattr(recipe_engines, cached.__name__, cached.__wrapped__)
    assert recipe_engines.default_engine() == "native"
    with pytest.raises(RecipeError, match=reason) as caught:
        recipe_engines.recipe_engine("sparseml")
    assert "\n" not in str(caught.value)
