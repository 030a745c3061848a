"""A checked recipe in words, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yolact.sizes import size_words
from yolact.sparsify.check.examine import Outlook, RecipeReport
from yolact.sparsify.check.forecast import Forecast, Totals
from yolact.sparsify.check.parameters import Problem
from yolact.sparsify.check.plot import group_label
from yolact.sparsify.check.timetable import ModifierRow
from yolact.sparsify.variables import Variable
from yolact.tables import columns

_SCHEMA = 1
_NAMES = 12
"""Names of layers that are listed unless all are asked for."""


def describe_check(
    variables: Sequence[Variable],
    report: RecipeReport,
    outlook: Outlook | None,
    *,
    verbose: bool = False,
) -> str:
    """Everything that is known of a recipe, in aligned columns.

    Args:
        variables: Of the recipe.
        report: Of the recipe and a model.
        outlook: What it will do; None leaves that out.
        verbose: Also name every parameter that a modifier is for.
    """
    parts = [_variables(variables), _modifiers(report.rows, verbose), _unpruned(report, verbose)]
    if outlook is not None:
        if any(problem.number for problem in report.errors):
            parts.append("without the modifiers that have errors:")
        parts += [_groups(outlook), _forecast(outlook.forecast)]
    found = [line for problem in report.problems for line in problem_lines(problem)]
    parts.append("\n".join(found) or "no problems found")
    return "\n\n".join(part for part in parts if part)


def problem_lines(problem: Problem) -> list[str]:
    """A problem and its hint, as errors are printed."""
    place = f"no. {problem.number}: " if problem.number else ""
    return [f"{problem.severity}: {place}{problem}", f"hint: {problem.hint}"]


def check_json(
    variables: Sequence[Variable], report: RecipeReport, outlook: Outlook | None
) -> dict[str, Any]:
    """The same as plain values.

    | key | value |
    |---|---|
    | ``schema`` | 1 |
    | ``recipe`` | where it came from |
    | ``ok`` | whether there are no errors |
    | ``problems`` | severity, sentence, hint, modifier, number |
    | ``length`` | epochs, or null |
    | ``variables`` | name, value, written |
    | ``modifiers`` | number, name, kind, begin, end, frequency, fields, parameters |
    | ``unpruned`` | names of weights |
    | ``schedule`` | epochs, lr, lr_by_recipe, weight_decay, groups, phases; or null |
    | ``prediction`` | image_size, before, after, layers; or null |
    """
    return {
        "schema": _SCHEMA,
        "recipe": report.label,
        "ok": not report.errors,
        "problems": [asdict(problem) for problem in report.problems],
        "length": report.length,
        "variables": [asdict(variable) for variable in variables],
        "modifiers": [asdict(row) for row in report.rows],
        "unpruned": list(report.unpruned),
        "schedule": None if outlook is None else asdict(outlook.curves),
        "prediction": None if outlook is None else asdict(outlook.forecast),
    }


def _variables(variables: Sequence[Variable]) -> str:
    rows = [
        [v.name, _plain(v.value), "" if v.written == v.value else f"from {_plain(v.written)}"]
        for v in variables
    ]
    return columns([["variable", "value", ""], *rows], "<<<") if rows else ""


def _modifiers(rows: Sequence[ModifierRow], verbose: bool) -> str:
    cells = []
    for row in rows:
        cells.append(
            [
                str(row.number),
                row.name,
                f"{row.begin:g}",
                "end of run" if row.end is None else f"{row.end:g}",
                "" if row.frequency is None else f"{row.frequency:g}",
                str(len(row.parameters) or ""),
                _what(row),
            ]
        )
        if verbose:
            cells += [["", f"  {name}", "", "", "", "", ""] for name in row.parameters]
    header = ["", "modifier", "begins", "ends", "every", "parameters", ""]
    return columns([header, *cells], "><>>>><")


def _what(row: ModifierRow) -> str:
    """What a modifier aims at, in a word or two."""
    final = row.fields.get("final_sparsity")
    if isinstance(final, int | float):
        return f"sparsity {row.fields.get('init_sparsity', 0)} to {final:g}"
    if row.kind == "quantization":
        return _quantization(row.fields)
    for name in ("learning_rate", "weight_decay", "final_width"):
        if name in row.fields:
            return f"{name} {row.fields[name]}"
    if "final_lr" in row.fields:
        first, last = (row.fields.get(name) for name in ("init_lr", "final_lr"))
        return f"{row.fields.get('lr_func')} from {_plain(first)} to {_plain(last)}"
    return ""


def _quantization(fields: dict[str, Any]) -> str:
    epochs = {
        "ranges fixed": fields.get("disable_quantization_observer_epoch"),
        "batch norms frozen": fields.get("freeze_bn_stats_epoch"),
    }
    return ", ".join(f"{what} at {when:g}" for what, when in epochs.items() if when is not None)


def _unpruned(report: RecipeReport, verbose: bool) -> str:
    if not any(row.kind in ("pruning", "thinning") for row in report.rows):
        return "no modifier prunes"
    names = report.unpruned
    if not names:
        return "every convolution is pruned"
    shown = names if verbose else names[:_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"not pruned ({len(names)}): {', '.join(shown)}{more}"


def _groups(outlook: Outlook) -> str:
    weights = {layer.name: layer.weights for layer in outlook.forecast.layers}
    cells = [
        [
            str(group.number),
            group_label(group.names),
            str(len(group.names)),
            f"{sum(weights.get(name, 0) for name in group.names):,}",
            f"{group.final:.4f}",
            "zeros" if group.what == "zeros" else "channels gone",
        ]
        for group in outlook.curves.groups
    ]
    header = ["", "group", "layers", "weights", "pruned", ""]
    return columns([header, *cells], "><>>><") if cells else ""


def _forecast(forecast: Forecast) -> str:
    labels = [
        "zeros in convolutions",
        "parameters",
        "MACs",
        "MACs on weights that are not zero",
        "weights",
        "file",
        "file, gzip (estimate)",
    ]
    totals = [_totals(totals) for totals in (forecast.before, forecast.after)]
    header = [f"at {size_words(forecast.image_size)} px", "before", "after"]
    return columns([header, *zip(labels, *totals, strict=True)], "<>>")


def _totals(totals: Totals) -> list[str]:
    return [
        f"{totals.sparsity:.4f}",
        _scaled(totals.parameters),
        _scaled(totals.macs),
        _scaled(totals.nonzero_macs),
        "INT8" if totals.int8 else "FP32",
        f"{_scaled(totals.size)}B",
        f"{_scaled(totals.compressed)}B",
    ]


def _scaled(number: float) -> str:
    """A number with its thousands in a letter.

    >>> _scaled(77_354_652_032), _scaled(1_200)
    ('77.4 G', '1.2 k')
    """
    for letter, factor in (("G", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:.1f} {letter}"
    return f"{number / 1e3:.1f} k"


def _plain(value: Any) -> str:
    """A value as a recipe would spell it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
