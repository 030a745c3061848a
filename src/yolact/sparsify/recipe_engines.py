"""Which recipe engine there is, and which one a run uses unless it is told."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from yolact.errors import RecipeError
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.engine import Engine
from yolact.sparsify.native.engine import NativeEngine

logger = logging.getLogger(__name__)

INSTALL_SPARSEML = (
    "pip install --no-deps --ignore-requires-python --target "
    '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
    "sparseml==1.8.0 sparsezoo==1.8.1 && "
    "pip install geocoder GPUtil pandas psutil py-machineid pydantic scipy toposort"
)
"""What installs sparseml on Pythons that it does not know, and what its import needs besides.

With ``--target``, its ``sparseml.yolact.train``, ``.validation`` and ``.export_onnx`` do not
replace the ones of this package: they fail, and know nothing of what keeps sparseml from reporting.
"""


@cache
def default_engine() -> EngineName:
    """Sparseml's where it can be imported, which takes seconds the first time, else our own.

    That sparseml is not there is nothing to talk about; that it is there and broken, is.
    """
    reason = why_no_sparseml()
    if reason and find_spec("sparseml") is not None:
        logger.warning("sparseml is installed and cannot be imported: %s", reason)
        logger.warning("the native engine runs the recipe; --recipe_engine native is silent")
    return "native" if reason else "sparseml"


def recipe_engine(name: EngineName) -> Engine:
    """The engine of that name.

    Raises:
        RecipeError: sparseml is wanted and cannot be imported.
    """
    if name == "native":
        return NativeEngine()
    if reason := why_no_sparseml():
        raise RecipeError(
            f"--recipe_engine sparseml, but sparseml cannot be imported: {reason}",
            hint=f"install it: {INSTALL_SPARSEML}; or let --recipe_engine native run the recipe",
        )
    from yolact.sparsify.sparseml.engine import SparsemlEngine  # takes seconds

    return SparsemlEngine()


def how_to_use_sparseml() -> str:
    """What to do about a recipe that only sparseml can run: one command, or two."""
    again = "run the same command with --recipe_engine sparseml"
    return f"{INSTALL_SPARSEML}; then {again}" if why_no_sparseml() else again


@cache
def why_no_sparseml() -> str | None:
    """Why sparseml cannot be imported, in a line; None when it can."""
    try:
        import_module("yolact.sparsify.sparseml.engine")
    except ModuleNotFoundError as error:  # the usual: it is not installed
        return _first_line(error)
    except (Exception, SystemExit) as error:  # its import runs much, on versions it never saw
        return ": ".join(filter(None, [type(error).__name__, _first_line(error)]))
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
