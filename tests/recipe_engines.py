"""Which recipe engines can be tested here: sparseml installs on some Pythons only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

import pytest

from yolact.sparsify.catalog import EngineName
from yolact.sparsify.native.engine import NativeEngine

HAVE_SPARSEML = find_spec("sparseml") is not None

ENGINES_HERE: tuple[EngineName, ...] = ("sparseml", "native") if HAVE_SPARSEML else ("native",)


def engines_of(recipes: Mapping[str, str]) -> list[tuple[EngineName, str]]:
    """Each engine with the key of each recipe whose modifiers it has."""
    native = NativeEngine().fields().keys()
    return [
        (engine, name)
        for engine in ENGINES_HERE
        for name, text in recipes.items()
        if engine == "sparseml" or set(re.findall(r"!(\w+)", text)) <= native
    ]


by_sparseml = pytest.mark.parametrize("recipe_engine", ["sparseml"][:HAVE_SPARSEML], indirect=True)
"""Of tests of modifiers that only sparseml has."""

needs_sparseml = pytest.mark.skipif(not HAVE_SPARSEML, reason="sparseml is not installed")
"""Of tests that compare with sparseml, or are about it."""
