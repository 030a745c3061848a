"""Sizes of the network input: square or not, as users write them and as settings hold them."""

from __future__ import annotations

import re
from typing import Any

from yolact.errors import ConfigError
from yolact.setting import setting

ImageSize = int | tuple[int, int]
"""In pixels: the side of a square, or (height, width)."""
SMALLEST, LARGEST = 64, 4096
"""Pixels of a side."""
_HINT = "give the side of a square, such as 550, or height and width, such as 384 640"


def image_size_setting(*, default: int | None = None) -> Any:
    """The field of a settings class that says how large the network input is.

    Args:
        default: None for the size that weights were trained at.
    """
    shown = "" if default is not None else "  [default: that of training]"
    return setting(
        default=default,
        words=str,
        read=read_image_size,
        numbers=2,
        metavar="SIDE | H W",
        help=f"Network input in pixels: a square, or height and width.{shown}",
    )


def prior_base_size_setting(otherwise: str = "as many pixels as in training") -> Any:
    """The field of a settings class that says how large the priors of trained weights are.

    Args:
        otherwise: What priors have when it is None, the default, in words.
    """
    return setting(
        default=None,
        at_least=1,  # what is no size of a picture is a mistake, such as a ratio of two sizes
        at_most=100_000,
        metavar="SIDE",
        help="Side of the square images whose pixels prior scales are.  [default: at another "
        f"--image_size than that of training, priors have {otherwise}]",
    )


def read_image_size(text: str) -> ImageSize:
    """What ``550``, ``384x640``, ``384,640`` or ``384 640`` means.

    Raises:
        ConfigError: It is something else.
    """
    found = re.fullmatch(r"(-?\d+)(?:(?:\s*[xX,]\s*|\s+)(-?\d+))?", text.strip())
    if found is None:
        raise ConfigError(f"image size {text!r} cannot be read", hint=_HINT)
    first, second = found.groups()
    return int(first) if second is None else (int(first), int(second))


def checked_size(size: Any) -> ImageSize:
    """``size``, whose pair may be a list, as settings hold it: one number where sides are equal.

    Raises:
        ConfigError: It is no size, or none that a network can have.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size,)
    if len(sides) not in (1, 2) or not all(type(side) is int for side in sides):
        raise ConfigError(f"image size {size!r} cannot be read", hint=_HINT)
    if min(sides) < SMALLEST:
        raise ConfigError(
            f"image size {size_words(sides)} is too small",
            hint=f"use at least {SMALLEST}: P7 is 128 times smaller than the image",
        )
    if max(sides) > LARGEST:
        raise ConfigError(
            f"image size {size_words(sides)} is too large",
            hint=f"use at most {LARGEST}: the memory needed grows with its square",
        )
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def sides_of(size: ImageSize) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def size_words(size: ImageSize) -> str:
    """A size for people.

    >>> size_words(550), size_words((384, 640))
    ('550', '384 x 640')
    """
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))
