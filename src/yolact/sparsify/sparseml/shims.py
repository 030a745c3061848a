"""Modules that sparseml 1.8 imports and that are gone since, for the time of its import.

Each is put in place only where it is missing, and gone again afterwards, so that nobody else takes
it for the real one:

* ``pkg_resources`` was part of setuptools before 81. sparseml asks it for versions.
* ``imghdr`` was part of Python before 3.13. sparsezoo checks with it whether a file is an image.
* ``onnx.mapping`` was part of onnx before 1.18. sparsezoo reads numpy's types of tensors from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any


@contextmanager
def shims() -> Iterator[None]:
    """Let sparseml find these modules inside the block; those that are really there stay."""
    missing = [name for name in _CONTENTS if find_spec(name) is None]
    try:
        for name in missing:
            sys.modules[name] = module_from_spec(ModuleSpec(name, loader=None))
            vars(sys.modules[name]).update(_CONTENTS[name]())
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _versions() -> dict[str, Any]:
    return {"get_distribution": distribution, "DistributionNotFound": PackageNotFoundError}


def _image_types() -> dict[str, Any]:
    return {"what": _image_type}


def _image_type(path: str | Path) -> str | None:
    """The type of an image file, such as ``jpeg``; None when it is no image."""
    from PIL import Image, UnidentifiedImageError

    with suppress(UnidentifiedImageError), Image.open(path) as image:
        return str(image.format).lower()
    return None


def _tensor_types() -> dict[str, Any]:
    from onnx import TensorProto, helper

    numbers = [number for number in TensorProto.DataType.values() if number]  # 0 is no type
    return {"TENSOR_TYPE_TO_NP_TYPE": {n: helper.tensor_dtype_to_np_dtype(n) for n in numbers}}


_CONTENTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "pkg_resources": _versions,
    "imghdr": _image_types,
    "onnx.mapping": _tensor_types,
}
