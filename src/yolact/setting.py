"""Settings that a user can give: dataclass fields that say how a command spells them, once.

A field made by :func:`setting` carries the option's spellings, range and help as plain data; its
type and its default are the field's own. :mod:`yolact.cli.options` makes options of such fields and
reads the parsed values back. Nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, Literal

LARGEST_SEED = 2**32 - 1
"""The largest number that every random generator in use accepts."""
_KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a user gives a setting on the command line."""

    flags: tuple[str, ...]
    """Its spellings, such as ``-r`` and ``--recipe``; none stands for ``--`` and the field's name.
    A switch whose setting is True by default turns it off."""
    help: str
    words: Any = None
    """Type of what the user writes, where that is not the type of the setting."""
    read: Callable[[Any], Any] | None = None
    """Makes the setting of what the user writes; raises a YolactError."""
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    """An exclusive ``at_least``."""
    choices: tuple[str, ...] = ()
    """The only values, where the setting's type does not list them."""
    path: Literal["file", "folder", "any"] = "file"
    """What a setting of type Path names."""
    spoken: bool = False
    """Whether a switch takes True or False as a word after it."""
    shown: str | None = None
    """The default as the help writes it, where not as Python does."""
    metavar: str | None = None
    """What the help calls the value."""
    numbers: int = 1
    """Most words of its value: those after the first are taken only if all are whole numbers."""


def setting(
    *flags: str,
    help: str,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    words: Any = None,
    read: Callable[[Any], Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    path: Literal["file", "folder", "any"] = "file",
    spoken: bool = False,
    shown: str | None = None,
    metavar: str | None = None,
    numbers: int = 1,
) -> Any:
    """A dataclass field that is also an option; see :class:`Option`.

    Without a ``default`` or ``default_factory`` it must be given, in Python as on the command line.
    """
    option = Option(
        flags=flags,
        help=help,
        words=words,
        read=read,
        at_least=at_least,
        at_most=at_most,
        above=above,
        choices=choices,
        path=path,
        spoken=spoken,
        shown=shown,
        metavar=metavar,
        numbers=numbers,
    )
    return field(default=default, default_factory=default_factory, metadata={_KEY: option})


def option_of(part: Field[Any]) -> Option | None:
    """How a field is spelled; None for one that commands set by themselves."""
    found: Option | None = part.metadata.get(_KEY)
    return found
