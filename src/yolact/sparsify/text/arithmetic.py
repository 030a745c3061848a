"""The arithmetic of ``eval(...)`` in recipes: numbers, variables and a few functions, no code.

sparseml has an evaluator, but it cannot negate a number and lets ``9**9**9`` compute for hours.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


class UnknownName(Exception):
    """An expression uses a variable that is not defined."""

    def __init__(self, name: str) -> None:
        """Keep the variable's name."""
        super().__init__(name)
        self.name = name


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """The value of ``expression``.

    Args:
        expression: Numbers, names of variables, ``+ - * / // % **``, parentheses, and the
            functions abs, min, max, round, int and float. Powers are floats.
        variables: Values of the names.

    Raises:
        UnknownName: A name is not among the variables.
        ValueError: It is no such expression, or cannot be computed.

    >>> evaluate("-2 * max(a, 3)", {"a": 1})
    -6
    """
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, variables)
    except SyntaxError as error:
        raise ValueError(error.msg) from error
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(error.args[-1]) from error


def _value(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in variables:
            raise UnknownName(node.id)
        return variables[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_number(_value(node.operand, variables)))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_value(part, variables) for part in (node.left, node.right))
        return _OPERATORS[type(node.op)](_number(left), _number(right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*(_value(part, variables) for part in node.args))
    raise ValueError(f"{ast.unparse(node)} is not arithmetic")


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)):  # "a" * 10**9 is Python, but no arithmetic
        raise TypeError(f"{value!r} is not a number")
    return value
