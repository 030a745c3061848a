"""How the numbers are written: subsampled arrays, packed masks, and files that never differ."""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conftest import SEED
from golden.reference import Reference

PACKAGES = ("torch", "numpy", "opencv-python", "pycocotools")
STATS = ("sum", "mean", "absmax", "l2", "min", "max")

Array = NDArray[Any]


def generator(name: str) -> np.random.Generator:
    """Random numbers that depend on a name alone."""
    return np.random.Generator(np.random.PCG64((SEED, zlib.crc32(name.encode()))))


def origin(reference: Reference) -> dict[str, Any]:
    """Who computed the numbers: the original's commit, and the versions it ran with."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "reference": {"repository": "neuralmagic/yolact", "commit": reference.commit},
        "versions": versions,
        "seed": SEED,
    }


def plain(value: Any) -> Any:
    """A tensor or number as what NumPy and JSON write."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return value


class Arrays:
    """The arrays of one file."""

    def __init__(self) -> None:
        """Start with none."""
        self.stored: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Store all of an array."""
        assert key not in self.stored, key
        self.stored[key] = np.ascontiguousarray(plain(value)).reshape(np.shape(plain(value)))

    def update(self, prefix: str, values: dict[str, Any]) -> None:
        """Store several arrays whose names begin alike."""
        for name, value in values.items():
            self.put(f"{prefix}.{name}", value)

    def sample(self, key: str, value: Any, count: int = 2000) -> None:
        """Store about ``count`` elements, the largest among them, and six numbers over all."""
        array = np.asarray(plain(value), np.float32)
        flat = array.reshape(-1)
        if flat.size <= count:
            index = np.arange(flat.size)
        else:
            largest = np.argsort(-np.abs(flat), kind="stable")[: count // 20]
            drawn = generator(key).choice(flat.size, count - len(largest), replace=False)
            index = np.unique(np.concatenate([drawn, largest, [0, flat.size - 1]]))
        wide = flat.astype(np.float64)
        magnitude = np.abs(wide).max()
        norm = np.sqrt(np.square(wide).sum())  # not BLAS, whose sums depend on its threads
        self.put(f"{key}.shape", np.array(array.shape, np.int64))
        self.put(f"{key}.idx", index.astype(np.int32))
        self.put(f"{key}.val", flat[index])
        self.put(
            f"{key}.stats",
            np.array([wide.sum(), wide.mean(), magnitude, norm, wide.min(), wide.max()]),
        )

    def masks(self, key: str, masks: Any, index: str = "") -> None:
        """Store masks [n, height, width] of 0 and 1, eight pixels a byte."""
        array = np.asarray(plain(masks), np.uint8)
        self.put(f"{key}_packed{index}", np.packbits(array.reshape(len(array), -1), axis=1))
        self.put(f"{key}_shape{index}", np.array(array.shape, np.int64))

    def save(self, path: Path, reference: Reference, meta: dict[str, Any]) -> None:
        """Write the file; NumPy dates every entry 1980, so that equal arrays are equal bytes."""
        meta = {**origin(reference), "stats_order": STATS, **meta}
        self.put("meta", np.array(json.dumps(meta, sort_keys=True)))
        np.savez_compressed(path, **self.stored)


def save_json(path: Path, content: Any) -> None:
    """Write a JSON file, one line for each of its entries."""
    if isinstance(content, dict):
        rows: Iterable[str] = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items())
        text = "{\n" + ",\n".join(rows) + "\n}\n"
    else:
        text = "[\n" + ",\n".join(json.dumps(entry) for entry in content) + "\n]\n"
    path.write_text(text, encoding="utf-8")
