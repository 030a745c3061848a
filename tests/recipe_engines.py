"""Which recipe engines can be tested here: sparseml installs on some Pythons only."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from yolact.sparsify.catalog import EngineName

HAVE_SPARSEML = find_spec("sparseml") is not None

ENGINES_HERE: tuple[EngineName, ...] = ("sparseml", "native") if HAVE_SPARSEML else ("native",)

needs_sparseml = pytest.mark.skipif(not HAVE_SPARSEML, reason="sparseml is not installed")
"""Of tests that compare with sparseml, or are about it."""
