"""Recipes compute with numbers, and with nothing else."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.sparsify.variables import UnknownName, evaluate

VARIABLES: dict[str, Any] = {"a": 4, "b": 0.5, "name": "unstructured"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3", 3),
        ("a", 4),
        ("-a + 1", -3),
        ("+b", 0.5),
        ("a / 8 * (b - 2)", -0.75),
        ("a // 3 % 2", 1),
        ("2 ** a", 16.0),
        ("max(a, 7, b) - min(1, 2)", 6),
        ("round(b * 5, 1)", 2.5),
        ("int(abs(-2.7)) + float(1)", 3.0),
        ("name", "unstructured"),
    ],
)
def test_values(expression: str, value: Any) -> None:
    assert evaluate(expression, VARIABLES) == value


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from("+-*/"))
def test_numbers_are_combined_as_in_python(a: float, b: float, sign: str) -> None:
    if sign == "/" and b == 0:
        b = 1.0
    assert evaluate(f"x {sign} y", {"x": a, "y": b}) == eval(f"a {sign} b", {"a": a, "b": b})


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("a +", "invalid syntax"),
        ("(", r"'\(' was never closed"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "Numerical result out of range"),
        ("name * 3", "'unstructured' is not a number"),
        ("-name", "'unstructured' is not a number"),
        ("'x' * 3", "'x' is not arithmetic"),
        ("a.real", "a.real is not arithmetic"),
        ("[a]", r"\[a\] is not arithmetic"),
        ("a if a else b", "a if a else b is not arithmetic"),
        ("open(a)", r"open\(a\) is not arithmetic"),
        ("__import__('os').system('true')", "is not arithmetic"),
        ("min()", "min expected at least 1 argument, got 0"),
        ("(" * 300 + "1" + ")" * 300, "too many nested parentheses"),
    ],
)
def test_everything_else_is_refused_at_once(expression: str, reason: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match=reason):
        evaluate(expression, VARIABLES)
    assert time.perf_counter() - began < 1


def test_unknown_names_are_named() -> None:
    with pytest.raises(UnknownName) as error:
        evaluate("a * lr", VARIABLES)
    assert error.value.name == "lr"
