"""The numbers of the original that lie with the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import OWN_GOLDEN

FILES = sorted(path for path in OWN_GOLDEN.iterdir() if path.suffix in (".json", ".npz"))
LISTS = ("ap_bbox_results.json", "ap_segm_results.json")
"""In COCO's format, which has no place for more."""


def origin(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        content = json.loads(str(np.load(path)["meta"]))
    else:
        content = json.loads(path.read_text())
    found: dict[str, Any] = content.get("info", content)
    return found


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in FILES if path.name not in LISTS]
)
def test_a_file_says_where_its_numbers_come_from(path: Path) -> None:
    found = origin(path)
    assert found["reference"]["repository"] == "neuralmagic/yolact"
    assert len(found["reference"]["commit"]) == 40
    assert {"python", "torch", "numpy", "opencv-python"} <= found["versions"].keys()


def test_all_numbers_are_of_one_checkout_and_described() -> None:
    text = (OWN_GOLDEN / "README.md").read_text()
    (commit,) = {origin(path)["reference"]["commit"] for path in FILES if path.name not in LISTS}
    assert commit in text
    for path in FILES:
        assert path.name in text or path.name.startswith("ap_"), path.name


def test_the_numbers_stay_small() -> None:
    assert sum(path.stat().st_size for path in OWN_GOLDEN.iterdir()) < 8e6
