"""Every modifier of sparseml against YOLACT: the table in the documentation, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from modifier_cases import Case
from modifier_cases.practice import practice, run_by
from modifier_cases.table import PATH, cases, native_verdict, render
from recipe_engines import needs_sparseml
from yolact.errors import RecipeError
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.recipe import load_recipe, packaged_recipes

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


BY_NATIVE = [case for case in cases() if native_verdict(case) != "sparseml only"]


@pytest.mark.slow
@needs_sparseml
@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_modifier_does_to_the_network_what_its_row_says(case: Case) -> None:
    with run_by("sparseml"):
        case.check(case.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("case", BY_NATIVE, ids=str)
def test_the_native_engine_does_what_the_row_says(case: Case) -> None:
    with run_by("native"):
        if facts_of(case.modifier).refused:
            with pytest.raises(RecipeError):
                practice(case.recipe)
        else:
            case.check(case.recipe)


@pytest.mark.parametrize("case", [case for case in cases() if case not in BY_NATIVE], ids=str)
def test_what_only_sparseml_does_the_native_engine_refuses(case: Case) -> None:
    with pytest.raises(RecipeError, match=f"{case.modifier} is a modifier that only sparseml has"):
        load_recipe(case.recipe, engine="native")


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
