"""Write ``recipes/modifiers.md`` anew: ``python tests/modifier_table.py``."""

from __future__ import annotations

from modifier_cases.table import PATH, render

if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
