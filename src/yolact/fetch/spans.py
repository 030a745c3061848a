"""Which bytes of a file are there: sorted, disjoint, non-empty ranges [start, end)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[int, int]


def union(spans: Iterable[Span]) -> list[Span]:
    """Sort spans and join those that touch or overlap.

    >>> union([(4, 6), (0, 2), (2, 3), (5, 9)])
    [(0, 3), (4, 9)]
    """
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return joined


def gaps(spans: Sequence[Span], size: int) -> list[Span]:
    """What is missing of a file of ``size`` bytes.

    >>> gaps([(0, 3), (4, 9)], 12)
    [(3, 4), (9, 12)]
    """
    edges = [0, *(edge for span in spans for edge in span), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def cut(spans: Iterable[Span], length: int) -> list[Span]:
    """Divide spans into pieces of at most ``length`` bytes.

    >>> cut([(0, 5), (7, 8)], 2)
    [(0, 2), (2, 4), (4, 5), (7, 8)]
    """
    return [(at, min(at + length, b)) for a, b in spans for at in range(a, b, length)]


def clamp(spans: Iterable[Span], size: int) -> list[Span]:
    """What of some spans lies within the first ``size`` bytes.

    >>> clamp([(0, 3), (4, 9)], 5)
    [(0, 3), (4, 5)]
    """
    return [(a, min(b, size)) for a, b in spans if a < size]


def total(spans: Iterable[Span]) -> int:
    """Bytes in all spans together."""
    return sum(b - a for a, b in spans)
