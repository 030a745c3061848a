"""The table of modifiers in ``recipes/modifiers.md``, rendered from the cases."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import modifier_cases
from modifier_cases import Case

PATH = Path(__file__).resolve().parents[2] / "recipes" / "modifiers.md"

HEAD = """\
# What each modifier does to YOLACT

Every training-aware modifier of sparseml 1.8, on the version of PyTorch that this package pins.
**works**: as sparseml has it. **patched**: this package corrects a fault on the way, named here.
**cannot**: refused before training, with this reason and what to use instead.

Each row is a test (`tests/test_sparsify_modifiers.py`): it trains a small network with the modifier
and looks at what the modifier is for. `python tests/modifier_table.py` writes this file anew.

| modifier | | | |
|---|---|---|---|
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


def render() -> str:
    """The whole file."""
    rows = [f"| {c.modifier} | {c.variant} | {c.verdict} | {c.why} |" for c in cases()]
    return HEAD + "\n".join(rows) + "\n"
