"""What all tests share: the golden numbers, what lies beside the checkout, and no network."""

from __future__ import annotations

import json
import logging
import socket
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipe_engines import ENGINES_HERE
from yolact.sparsify.catalog import EngineName

ROOT = Path(__file__).resolve().parents[1]
OWN_GOLDEN = ROOT / "tests" / "golden"
PUBLISHED = ROOT / "tests" / "published"
"""What other projects published as commands and recipes: flags, defaults, hyperparameters."""
SHARED = ROOT.parent / "shared"
SEED = 20240611

# Importing openvino reports to its makers: no test does, whichever way it imports it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def from_shared(name: str) -> Path:
    """A file or folder of ``../shared``: larger data that is no part of this repository.

    The only way for a test to it. A checkout with nothing beside it skips; where ``../shared`` is,
    the file must be there as well.
    """
    if not SHARED.exists():
        pytest.skip(f"needs ../shared/{name}, which is no part of the repository")
    path = SHARED / name
    assert path.exists(), f"{path} is missing"
    return path


@pytest.fixture(scope="session")
def coco_tiny() -> Path:
    """160 real COCO images in the tutorial's layout: annotations/ and images/."""
    return from_shared("data/coco-tiny")


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven generated images to train on and three to validate on."""
    from training import make_shapes

    return make_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session", params=["own", "coco"])
def pictures(request: pytest.FixtureRequest, tiny_shapes: Path) -> Path:
    """A folder of generated pictures, then one of photographs beside the checkout."""
    if request.param == "own":
        return tiny_shapes / "images"
    return from_shared("data/coco-tiny/images")


@pytest.fixture
def package_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """The package's log lines, also after a command has sent them to stderr only."""
    monkeypatch.setattr(logging.getLogger("yolact"), "propagate", True)
    caplog.set_level(logging.INFO, "yolact")
    return caplog


@pytest.fixture(scope="module", params=ENGINES_HERE)
def recipe_engine(request: pytest.FixtureRequest) -> Iterator[EngineName]:
    """Recipes are run by one engine, then by the other: what a test promises holds for both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolact.sparsify.recipe.default_engine", lambda: request.param)
        yield request.param


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        host = address[0] if isinstance(address, tuple) else ""
        if host not in ("127.0.0.1", "::1", "localhost", ""):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded, such as sizes of the package."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(str(value))


class Golden:
    """One golden .npz file; :meth:`check` compares subsampled arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays = np.load(path, allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.arrays[key]
        return array

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def check(self, key: str, actual: Any, *, atol: float, rtol: float) -> None:
        """Compare with the stored sample of ``key`` and with its norm and largest magnitude."""
        actual = np.asarray(actual)
        assert tuple(actual.shape) == tuple(self[f"{key}.shape"]), key
        values = actual.reshape(-1)[self[f"{key}.idx"]]
        np.testing.assert_allclose(values, self[f"{key}.val"], atol=atol, rtol=rtol, err_msg=key)
        _, _, largest, norm, _, _ = self[f"{key}.stats"]
        wide = actual.astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(wide), norm, rtol=1e-4, atol=1e-9, err_msg=key)
        np.testing.assert_allclose(np.abs(wide).max(), largest, rtol=1e-4, atol=atol, err_msg=key)


@dataclass(frozen=True)
class GoldenSet:
    """A folder of numbers of the original implementation; tests/golden/README.md describes it."""

    name: str
    folder: Path

    def npz(self, name: str) -> Golden:
        return Golden(self.folder / name)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="session", params=["own", "coco"])
def golden(request: pytest.FixtureRequest) -> GoldenSet:
    """The numbers on this project's own pictures, then those on photographs beside the checkout."""
    if request.param == "own":
        return GoldenSet("own", OWN_GOLDEN)
    return GoldenSet("coco", from_shared("golden"))


GAIN = {
    "backbone": 0.85,
    "fpn": 0.85,
    "proto_net": 1.3,
    "bbox_layer": 0.7,
    "semantic_seg_conv": 0.7,
}


def unit(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray[Any, Any]:
    """Uniform numbers in [-1, 1) that depend on ``name``, ``shape`` and ``seed`` only."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.PCG64(zlib.crc32(name.encode()) ^ seed).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def golden_weight(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray[Any, Any]:
    """The golden set's value of one state-dict entry (its "fill recipe")."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = unit(name, shape, seed)
    if len(shape) == 4:
        gain = next((g for part, g in GAIN.items() if part in name), 1.0)
        weight = values * gain * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        weight = 1.0 + 0.5 * values
    elif name.endswith("weight"):
        weight = 1.0 + 0.25 * values
    else:
        weight = 0.1 * values
    if name.endswith("conf_layer.bias"):
        weight[::81] += 4.0
    return np.asarray(weight, np.float32)
