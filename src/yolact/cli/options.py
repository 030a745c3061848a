"""Options of commands: made of the settings that core packages declare, and read back into them.

A settings class says once how each of its fields is spelled (:mod:`yolact.setting`). A command
lists its options in the order of its help, and hands the parsed values on::

    @click.command(cls=Command)
    @options(*options_of(SaveSettings), click.option("--dry-run", is_flag=True))
    def train(**given):
        settings = read(SaveSettings, given)
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from yolact.cli.base import FILE, FOLDER, Numbers
from yolact.setting import Option, option_of

_PATHS = {"file": FILE, "folder": FOLDER, "any": click.Path(path_type=Path)}

Decorator = Callable[[Any], Any]
T = TypeVar("T")


def options(*decorators: Decorator) -> Decorator:
    """Decorate a command's function with options and arguments, in the order of its help."""

    def decorate(function: Any) -> Any:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate


def options_of(settings: type, *names: str, otherwise: str | None = None) -> list[Decorator]:
    """The options of a settings class, as decorators.

    Args:
        settings: A dataclass with fields made by :func:`yolact.setting.setting`.
        names: The fields wanted, in this order; all that are options when none is named.
        otherwise: What holds without an option, in words for the help ("" for none), where that
            is not the class's default: the option is then None.
    """
    hints = get_type_hints(settings)
    found = {part.name: (part, option) for part, option in _spelled(settings)}
    return [_click_option(*found[name], hints[name], otherwise) for name in names or found]


def read(settings: type[T], given: Mapping[str, Any], /, **known: Any) -> T:
    """A settings object of what a command was given.

    Args:
        settings: The class whose options the command has.
        given: The command's parsed values.
        known: Fields that the command sets itself.

    Raises:
        YolactError: A value cannot be read or is impossible.
    """
    return settings(**changes(settings, given, *known), **known)


def changes(settings: type, given: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The fields of a settings class that the user gave a value for, or that have a default.

    Args:
        settings: The class; the command may have only some of its options.
        given: The command's parsed values.
        but: Fields to leave out.
    """
    values = {}
    for part, option in _spelled(settings):
        value = given.get(_parameter(part, option))
        if part.name not in but and value is not None:
            values[part.name] = _value(part, option, value)
    return values


def _spelled(settings: type) -> Iterator[tuple[Field[Any], Option]]:
    for part in fields(settings):
        option = option_of(part)
        if option is not None:
            yield part, option


def _flags(part: Field[Any], option: Option) -> tuple[str, ...]:
    return option.flags or (f"--{part.name}",)


def _parameter(part: Field[Any], option: Option) -> str:
    """The name that click gives the parsed value."""
    long = next(flag for flag in _flags(part, option) if flag.startswith("--"))
    return long.removeprefix("--").replace("-", "_")


def _value(part: Field[Any], option: Option, given: Any) -> Any:
    if part.default is True and not option.spoken:  # a switch that turns the setting off
        return not given
    return given if option.read is None else option.read(given)


def _click_option(part: Field[Any], option: Option, hint: Any, otherwise: str | None) -> Decorator:
    words = _without_none(hint if option.words is None else option.words)
    more: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if words is bool and not option.spoken:
        return click.option(*_flags(part, option), is_flag=True, **more)
    if option.spoken:
        more["is_flag"] = False
    if option.numbers > 1:
        more |= {"cls": Numbers, "most": option.numbers}
    if otherwise:
        more["help"] += f"  [default: {otherwise}]"
    elif otherwise is None:
        more |= _default(part, option)
    if get_origin(words) is tuple:
        words, *others = get_args(words)
        more |= {"multiple": True} if others == [...] else {"nargs": 1 + len(others)}
    return click.option(*_flags(part, option), type=_type(option, words), **more)


def _default(part: Field[Any], option: Option) -> dict[str, Any]:
    if part.default is MISSING:
        return {"required": part.default_factory is MISSING}
    if part.default in (None, ()):
        return {}
    return {"default": option.shown or part.default, "show_default": True}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    return hint


def _type(option: Option, words: Any) -> Any:
    """What click checks and converts a single word with."""
    if get_origin(words) is Literal:
        return click.Choice(get_args(words))
    if option.choices:
        return click.Choice(option.choices)
    if words is Path:
        return _PATHS[option.path]
    least: Any = option.at_least if option.above is None else option.above
    most: Any = option.at_most
    if least is None and most is None:
        return words
    if words is int:
        return click.IntRange(least, most)
    return click.FloatRange(least, most, min_open=option.above is not None)
