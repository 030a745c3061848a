"""A recipe's variables: listing, overriding and resolving them, and what ``--recipe_args`` accepts.

Variables are the entries of a document, or of one of its stages, that are not modifier lists.
``eval(expression)`` may stand for any value and compute with numeric variables; ``eval(name)``
stands for that variable whatever its type. Expressions are arithmetic, numbers, variables and a few
functions, no code: sparseml has an evaluator, but it cannot negate a number and lets ``9**9**9``
compute for hours.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

from yolact.errors import RecipeError
from yolact.sparsify.document import Document, Entry, entry_lists, is_stage, parse_value, stages

_INFORMATION = ("version", "__metadata__", "recipe_metadata")

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

_HINT = "write num_epochs=2 init_lr=1e-3, or {num_epochs: 2, init_lr: 1e-3}"


class UnknownName(Exception):
    """An expression uses a variable that is not defined."""

    def __init__(self, name: str) -> None:
        """Keep the variable's name."""
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Variable:
    """A variable of a recipe, as it is used and as it was written."""

    name: str
    """With the name of its stage in front, if it belongs to one."""
    value: Any
    written: Any
    """Its value in the recipe's file: an ``eval(...)``, or what an override replaced."""


def listing(written: Document, used: Document, label: str) -> list[Variable]:
    """Every variable of a recipe with its value, in the order of the file.

    Args:
        written: The document as read.
        used: The same after :func:`override`; its ``eval(...)`` need not be resolved.
        label: What messages call it.

    Raises:
        RecipeError: As for :func:`resolve`.
    """
    shared = _resolved(_variables(used), {}, label)
    found = [Variable(name, shared[name], value) for name, value in _variables(written).items()]
    for stage, content in stages(used).items():
        if stage:
            own = _resolved(_variables(content), shared, label)
            before = _variables(written[stage]).items()
            found += [Variable(f"{stage}.{name}", own[name], value) for name, value in before]
    return found


def override(document: Document, values: Mapping[str, Any], label: str) -> Document:
    """A copy with other values of variables, wherever a stage or the document defines them.

    Raises:
        RecipeError: A name is no variable of the recipe; the hint has the nearest one.
    """
    changed = {key: dict(value) if is_stage(value) else value for key, value in document.items()}
    scopes = [changed, *(stage for name, stage in stages(changed).items() if name)]
    for name, value in values.items():
        holders = [scope for scope in scopes if name in _variables(scope)]
        if not holders:
            known = sorted({key for scope in scopes for key in _variables(scope)})
            raise RecipeError(f"{label} has no variable {name!r}", hint=_suggest(name, known))
        for scope in holders:
            scope[name] = value
    return changed


def resolve(document: Document, label: str) -> Document:
    """A document of modifiers only, with every ``eval(...)`` replaced by its value.

    Raises:
        RecipeError: An expression is malformed, or uses a variable that is not defined or depends
            on itself; or modifiers stand where they would be taken for a variable, or beside
            stages.
    """
    for scope in (document, *stages(document).values()):
        _refuse_stray_modifiers(_variables(scope), label)
    _refuse_half_staged(document, label)
    shared = _resolved(_variables(document), {}, label)
    if (only := stages(document)).keys() == {""}:
        return _substituted(only[""], shared, label)
    return {
        name: _substituted(stage, _resolved(_variables(stage), shared, label), label)
        for name, stage in only.items()
    }


def parse_recipe_args(texts: Sequence[str]) -> dict[str, Any]:
    """Overrides of a recipe's variables.

    Args:
        texts: Each is ``key=value``, several of them separated by commas, or a mapping in JSON,
            YAML or Python spelling (``{"num_epochs": 2}``). Values are read as YAML. A later
            mention of a key wins.

    Returns:
        Variable name to value.

    Raises:
        RecipeError: A text is none of these.
    """
    values: dict[str, Any] = {}
    for text in texts:
        values.update(_mapping(text) if text.lstrip().startswith("{") else _pairs(text))
    return values


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


def _variables(scope: Document) -> dict[str, Any]:
    return {
        key: value
        for key, value in scope.items()
        if key not in entry_lists(scope) and key not in _INFORMATION and not is_stage(value)
    }


def _refuse_stray_modifiers(variables: Mapping[str, Any], label: str) -> None:
    """Else a misspelled key would silently leave its modifiers out."""
    for key, value in variables.items():
        if _holds_modifier(value):
            raise RecipeError(
                f"{label}: {key} holds modifiers, but is no list of them",
                hint="list them with dashes under a key that contains the word modifiers, "
                "like pruning_modifiers",
            )


def _refuse_half_staged(document: Document, label: str) -> None:
    """Else one of both kinds would silently be left out."""
    names, lists = [name for name in stages(document) if name], list(entry_lists(document))
    if names and lists:
        raise RecipeError(
            f"{label} has stages ({', '.join(names)}) and modifiers outside of them "
            f"({', '.join(lists)})",
            hint="move these lists into a stage, or take all lists out of the stages",
        )


def _holds_modifier(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Entry) or (
        isinstance(value, list) and any(_holds_modifier(item) for item in value)
    )


def _resolved(pending: dict[str, Any], outer: dict[str, Any], label: str) -> dict[str, Any]:
    """Values of the variables, which may refer to each other in any order."""
    known = {**outer, **{k: v for k, v in pending.items() if not _is_eval(v)}}
    waiting = {k: v for k, v in pending.items() if _is_eval(v)}
    unknown = ""
    while waiting:
        progress = False
        for name, value in list(waiting.items()):
            try:
                usable = {k: known[k] for k in known if k not in waiting}
                known[name] = _evaluate(value, usable, label)
            except UnknownName as error:
                unknown = error.name
                continue
            del waiting[name]
            progress = True
        if not progress:
            raise _unresolved(label, waiting, unknown, known)
    return known


def _substituted(stage: Document, variables: dict[str, Any], label: str) -> Document:
    return {
        key: [_replace(entry, variables, label) for entry in items]
        for key, items in entry_lists(stage).items()
    }


def _replace(value: Any, variables: dict[str, Any], label: str) -> Any:
    if isinstance(value, Entry):
        return Entry(value.name, _replace(value.fields, variables, label))
    if isinstance(value, list):
        return [_replace(item, variables, label) for item in value]
    if isinstance(value, dict):
        return {key: _replace(item, variables, label) for key, item in value.items()}
    if not _is_eval(value):
        return value
    try:
        return _evaluate(value, variables, label)
    except UnknownName as error:
        raise _unresolved(label, {"": value}, error.name, variables) from error


def _is_eval(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("eval(") and value.endswith(")")


def _evaluate(value: str, variables: dict[str, Any], label: str) -> Any:
    expression = value[len("eval(") : -1].strip()
    if expression in variables:
        return variables[expression]
    try:
        return evaluate(expression, variables)
    except ValueError as error:
        raise RecipeError(
            f"{label}: cannot compute {value}: {error}",
            hint="numbers, variables, + - * / // % **, abs min max round int float are understood",
        ) from error


def _unresolved(
    label: str, waiting: Mapping[str, str], unknown: str, known: Mapping[str, Any]
) -> RecipeError:
    if unknown in waiting:
        names = ", ".join(sorted(waiting))
        return RecipeError(
            f"{label}: the variables {names} depend on each other",
            hint="give one of them a number",
        )
    value = next(v for v in waiting.values() if unknown in v)
    return RecipeError(
        f"{label}: {value} uses {unknown!r}, which is not defined",
        hint=_suggest(unknown, sorted(known)),
    )


def _suggest(name: str, known: list[str]) -> str:
    if not known:
        return "the recipe defines no variables"
    near = get_close_matches(name, known, n=1) or known
    return f"try: {', '.join(near)}"


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


def _mapping(text: str) -> dict[str, Any]:
    found = _argument(text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise RecipeError(f"recipe argument {text!r} does not map names to values", hint=_HINT)
    return found


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    for part in _split(text):
        name, separator, value = part.partition("=" if "=" in part else ":")
        if not separator or not name.strip().isidentifier():
            raise RecipeError(f"recipe argument {part.strip()!r} is not name=value", hint=_HINT)
        yield name.strip(), _argument(value)


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that are not inside brackets."""
    part, depth = "", 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            yield part
            part = ""
        else:
            part += character
    if part.strip():
        yield part


def _argument(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe argument {text!r} cannot be read", hint=_HINT) from error
