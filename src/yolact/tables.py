"""Text in aligned columns, the same on every terminal and in every file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(
    rows: Iterable[Sequence[str]],
    aligned: str,
    *,
    between: str = "  ",
    edges: tuple[str, str] = ("", ""),
    narrowest: int = 0,
) -> str:
    """Lay out rows of cells, the header among them; columns are as wide as their widest cell.

    Args:
        rows: Of as many cells each; at least one.
        aligned: ``<`` (left) or ``>`` (right) for each column.
        between: Stands between two columns.
        edges: Stand before the first and behind the last column.
        narrowest: Width of the columns whose cells are all shorter.

    Returns:
        A line per row, without spaces at its end.

    >>> print(columns([("layer", "zeros"), ("conv1", "7")], "<>"))
    layer  zeros
    conv1      7
    """
    lines = [list(row) for row in rows]
    widths = [max(narrowest, *map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{edges[0]}{between.join(_cells(line, aligned, widths))}{edges[1]}".rstrip()
        for line in lines
    )


def _cells(line: Sequence[str], aligned: str, widths: Sequence[int]) -> Iterable[str]:
    for cell, side, width in zip(line, aligned, widths, strict=True):
        yield f"{cell:{side}{width}}"
