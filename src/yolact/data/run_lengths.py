"""COCO's compressed run lengths, read in order to check them.

pycocotools trusts them: where they cover less than the image, what it decodes is unset memory.
Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, ``rleFrString``.
"""

from __future__ import annotations

_FIRST = 48
"""The character that stands for 0; each holds five bits of a number and one that says: more."""


def decode_runs(counts: str) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn; from the fourth on they are stored as differences.

    Raises:
        ValueError: ``counts`` is not of this format.

    >>> decode_runs("021")
    [0, 2, 1]
    >>> decode_runs("0442")
    [0, 4, 4, 6]
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - _FIRST
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} does not occur in run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift  # the sign bit
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the last number is cut short")
    return runs
