"""The catalog of modifiers: complete, true to sparseml, and the only place that lists names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import yolact
from modifier_cases.table import cases
from recipe_engines import needs_sparseml
from yolact.sparsify.catalog import CATALOG, facts_of
from yolact.sparsify.native.thinning import ChannelThinningModifier
from yolact.sparsify.recipe import Recipe

SOURCE = Path(str(yolact.__file__)).parent


def subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


Classes = dict[str, list[Any]]


@pytest.fixture(scope="module")
def classes() -> Classes:
    """Sparseml's modifiers and ours by name, which several may share."""
    from yolact.sparsify.sparseml import Modifier
    from yolact.sparsify.sparseml.engine import SparsemlEngine

    SparsemlEngine()  # has a modifier of ours, too
    found: Classes = {}
    for kind in subclasses(Modifier):
        found.setdefault(kind.__name__, []).append(kind)
    return found


def fields(kinds: list[Any]) -> set[str]:
    """What their constructors take."""
    return {field for kind in kinds for field in inspect.signature(kind.__init__).parameters}


@needs_sparseml
def test_every_modifier_that_recipes_can_name_has_a_row(classes: Classes) -> None:
    tags = yaml.SafeLoader.yaml_constructors
    registered = {name for name in classes if f"!pytorch.{name}" in tags}
    assert ChannelThinningModifier.__name__ in registered
    assert registered - CATALOG.keys() == set()


@needs_sparseml
def test_every_row_is_of_a_modifier_and_of_fields_that_exist(classes: Classes) -> None:
    for name, facts in CATALOG.items():
        assert facts.name == name in classes
        known = fields(classes[name])
        assert set(facts.sparsities) <= known, name
        assert facts.final is None or facts.final in facts.sparsities
        assert facts.final is not None or facts.kind != "pruning", name
        if facts.shared == "unless told":
            default = inspect.signature(classes[name][-1].__init__).parameters["global_sparsity"]
            assert default.default is True
        assert ("grad_sampler_kwargs" in known) == facts.samples, name


@needs_sparseml
def test_all_sparsities_of_a_modifier_are_known(classes: Classes) -> None:
    for name, facts in CATALOG.items():
        mentioned = {field for field in fields(classes[name]) if field.endswith("sparsity")}
        assert mentioned - {"global_sparsity"} == set(facts.sparsities), name


@needs_sparseml
@pytest.mark.parametrize("case", [c for c in cases() if c.verdict != "cannot"], ids=str)
def test_the_kind_of_a_modifier_is_the_one_sparseml_has_it_for(case: Any) -> None:
    from yolact.sparsify.sparseml import (
        BasePruningModifier,
        ConstantPruningModifier,
        ScheduledModifierManager,
    )
    from yolact.sparsify.sparseml.engine import SparsemlEngine

    recipe = Recipe.of_text(case.recipe, "the recipe")
    for entry in recipe.entries:
        modifier = SparsemlEngine().build(entry)
        manager = ScheduledModifierManager([modifier])
        kind = facts_of(entry.name).kind
        assert (kind == "constant") == isinstance(modifier, ConstantPruningModifier)
        assert (kind in ("pruning", "constant")) == isinstance(modifier, BasePruningModifier)
        assert (kind == "length") == bool(manager.epoch_modifiers)
        assert (kind == "lr") == bool(manager.learning_rate_modifiers)
        assert (kind == "quantization") == bool(manager.quantization_modifiers)
        assert (kind in ("pruning", "constant", "thinning")) == bool(manager.pruning_modifiers)
        assert bool(facts_of(entry.name).distils) == bool(manager.distillation_modifiers)


def test_a_name_that_nothing_has_promises_nothing() -> None:
    facts = facts_of("GMPrunningModifier")
    assert (facts.kind, facts.final, facts.refused) == ("other", None, None)


def test_no_other_file_tells_modifiers_apart_by_their_names() -> None:
    """Messages and hints may mention them; a text that is nothing but a name is a comparison."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "sparsify" / "catalog.py" and path.parent.name != "sparseml"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in CATALOG
    ]
    assert found == []


def test_names_are_not_recognized_by_their_ends_either() -> None:
    ends = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("endswith", "startswith")
        and any(isinstance(a, ast.Constant) and "Modifier" in str(a.value) for a in node.args)
    ]
    assert ends == []
