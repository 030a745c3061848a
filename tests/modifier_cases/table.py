"""The table of modifiers in ``recipes/modifiers.md``, rendered from the cases."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import modifier_cases
from modifier_cases import Case
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.recipe_engines import recipe_engine

PATH = Path(__file__).resolve().parents[2] / "recipes" / "modifiers.md"

HEAD = """\
# What each modifier does to YOLACT

Every training-aware modifier of sparseml 1.8, run by sparseml on the version of PyTorch that this
package pins, and by this package's own engine (`--recipe_engine native`).
**works**: as sparseml has it. **patched**: this package corrects a fault of sparseml's on the way,
named here; the native engine has none of these. **cannot**: refused before training, with this
reason and what to use instead. **sparseml only**: the native engine refuses it.

Each row is a test (`tests/test_sparsify_modifiers.py`): it trains a small network with the modifier
and looks at what the modifier is for. `python tests/modifier_table.py` writes this file anew.

| modifier | | sparseml | native | |
|---|---|---|---|---|
"""


def cases() -> list[Case]:
    """The ``CASES`` of every module here, by modifier; variants as they are written."""
    modules = [
        import_module(f"modifier_cases.{m.name}")
        for m in iter_modules(modifier_cases.__path__)
        if m.name != "table"
    ]
    found = [case for module in modules for case in getattr(module, "CASES", ())]
    return sorted(found, key=lambda case: case.modifier)


def native_verdict(case: Case) -> str:
    """What this package's own engine makes of it."""
    if case.verdict == "cannot" and facts_of(case.modifier).refused:
        return "cannot"
    if case.modifier not in recipe_engine("native").fields():
        return "sparseml only"
    return "cannot" if case.verdict == "cannot" else "works"


def render() -> str:
    """The whole file."""
    rows = [
        f"| {c.modifier} | {c.variant} | {c.verdict} | {native_verdict(c)} | {c.why} |"
        for c in cases()
    ]
    return HEAD + "\n".join(rows) + "\n"
