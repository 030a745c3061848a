"""Every modifier of sparseml against YOLACT: the table in the documentation, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from modifier_cases import Case
from modifier_cases.table import PATH, cases, render
from recipe_engines import needs_sparseml
from yolact.sparsify.recipe import packaged_recipes

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_modifier_does_to_the_network_what_its_row_says(case: Case) -> None:
    case.check(case.recipe)


@needs_sparseml
def test_every_modifier_has_a_row() -> None:
    from yolact.sparsify.sparseml import Modifier

    registered = {
        kind.__name__
        for kind in subclasses(Modifier)
        if f"!pytorch.{kind.__name__}" in yaml.SafeLoader.yaml_constructors
    }
    assert registered - {case.modifier for case in cases()} == set()


def test_rows_say_which_is_which() -> None:
    rows = [(case.modifier, case.variant) for case in cases()]
    assert len(set(rows)) == len(rows)
    assert all(case.why for case in cases() if case.verdict != "works")


def test_the_documentation_is_the_table_of_these_cases() -> None:
    assert PATH.read_text("utf-8") == render(), "run python tests/modifier_table.py"


def test_the_table_is_not_a_recipe() -> None:
    assert PATH.stem not in packaged_recipes()


def subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)
