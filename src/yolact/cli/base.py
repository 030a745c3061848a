"""What every command shares: the error boundary, spellings of options, and logging.

stdout carries results; progress, warnings and errors go to stderr. Errors that a user can fix are
raised where they are found, with the file's or the option's name. The boundary adds those that can
come from anywhere: the machine refuses memory, space or permission deep inside a library.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import click

from yolact.download.offline import OFFLINE
from yolact.errors import INTERRUPTED, ConfigError, StorageError, YolactError
from yolact.files import storage_error

FILE = click.Path(path_type=Path, dir_okay=False, readable=False)
"""A file's path; whether it can be read is found where it is read: the message can say more."""
FOLDER = click.Path(path_type=Path, file_okay=False, readable=False)
_VERBOSE = "yolact.verbose"
_HOME = re.compile(r"(?:^|(?<=:))~[^/\\:=\s]*(?=[/\\:]|$)")
"""A home folder where a path begins; one option can have two paths, as in ``IN:OUT``."""
_HELP = {"help_option_names": ["-h", "--help"]}


class Boundary(click.Command):
    """A command that ends with an ``error:`` and a ``hint:`` line where the user can mend it.

    The lines go to stderr, and the exit code is the error's (see :mod:`yolact.errors`). Any other
    exception is a bug and keeps its traceback. SIGTERM ends a command like Ctrl-C does, so that
    unfinished files are removed. Every such command has ``-h``, ``--offline`` and ``-v``. In every
    value, a ``~`` is the user's folder, and whatever is printed fits the terminal's encoding.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Add the options that every command has."""
        super().__init__(context_settings=_HELP, **kwargs)
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params += [one for one in _common_options() if not taken & set(one.opts)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; NaN and infinity are no numbers that an option could mean."""
        _print_anything()
        try:
            rest = super().parse_args(ctx, [_at_home(arg) for arg in args])
            if not ctx.resilient_parsing:
                _refuse_not_finite(ctx)
            return rest
        except click.UsageError as error:
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
                raise
            _end(ctx, _usage(ctx, error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            with _sigterm_as_ctrl_c():
                return super().invoke(ctx)
        except YolactError as error:
            _end(ctx, error)
        except click.UsageError as error:
            _end(ctx, _usage(ctx, error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except (OSError, MemoryError, RuntimeError) as error:
            flags = {_plain(flag): flag for one in self.params for flag in one.opts}
            known = as_user_error(error, flags)
            if known is None:
                raise
            _end(ctx, known)


class Numbers(click.Option):
    """An option whose value is one word, or up to ``most`` whole numbers.

    Several reach it as one word with blanks between, from a :class:`Command` only.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        """Take what click takes, and the largest count of numbers."""
        super().__init__(*args, **kwargs)
        self.most = most


class Command(Boundary):
    """A command that takes ``--some_option`` and ``--some-option`` alike, and :class:`Numbers`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Respell long options the way they are declared, then parse as click does."""
        declared = {
            _plain(name): name
            for parameter in self.get_params(ctx)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        }
        args = [_respell(arg, declared) for arg in args]
        for parameter in self.get_params(ctx):
            if isinstance(parameter, Numbers):
                args = _joined(args, parameter)
        return super().parse_args(ctx, args)


def _common_options() -> list[click.Option]:
    """Options that act by themselves: no command's function gets them as an argument."""
    return [
        click.Option(
            ["--offline"],
            is_flag=True,
            expose_value=False,
            callback=_go_offline,
            help=f"Never use the network; {OFFLINE}=1 does the same.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_be_verbose,
            help="Say more.",
        ),
    ]


def _go_offline(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """The environment is what a process hands on to those it starts."""
    if wanted:
        ctx.with_resource(_environment(OFFLINE, "1"))


def _be_verbose(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_VERBOSE] = True


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    """Set a variable until the command has ended."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _end(ctx: click.Context, error: YolactError) -> NoReturn:
    click.echo(f"error: {_one_line(str(error))}", err=True)
    if error.hint:
        click.echo(f"hint: {_one_line(error.hint)}", err=True)
    ctx.exit(error.exit_code)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def _usage(ctx: click.Context, error: click.UsageError) -> ConfigError:
    return ConfigError(
        error.format_message().removesuffix("."), hint=f"see {ctx.command_path} --help"
    )


def _refuse_not_finite(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if isinstance(value, float) and not math.isfinite(value):
            raise click.BadParameter(f"{value} is not a finite number.", ctx, parameter)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_anything() -> None:
    """Write letters that the terminal's encoding lacks as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")


def _at_home(arg: str) -> str:
    """Expand ``~`` where shells do not: in ``--option=~/a`` and ``IN:~/b``, or when quoted."""
    option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
    if "~" not in value or "\n" in value:  # lines are the text of a recipe
        return arg
    return option + equals + _HOME.sub(lambda found: os.path.expanduser(found[0]), value)


def _plain(option: str) -> str:
    return option.replace("_", "-")


def _respell(arg: str, declared: dict[str, str]) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return declared.get(_plain(name), name) + equals + value


def _joined(args: list[str], option: Numbers) -> list[str]:
    """``args`` with the numbers behind ``option`` in one word."""
    for index, arg in enumerate(args):
        if arg == "--":
            break
        numbers = takewhile(_is_number, args[index + 1 : index + 1 + option.most])
        if arg in option.opts and (words := list(numbers)):
            return [
                *args[: index + 1],
                " ".join(words),
                *_joined(args[index + 1 + len(words) :], option),
            ]
    return args


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def setup_logging(verbosity: int = 0) -> None:
    """Send this package's log lines to stderr: warnings and information, details with -v."""
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(_VERBOSE):
        verbosity = max(verbosity, 1)
    if sys.stderr is None:  # closed by the caller; progress bars need somewhere to go
        sys.stderr = open(os.devnull, "w")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("yolact")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)


_NO_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc"),
    *("can't allocate memory", "failed to allocate memory"),
)
"""Parts of what torch's and ONNX Runtime's allocators say."""
_REFUSALS = {
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
}
"""What no code can foresee; a missing file, for instance, is foreseen or a bug."""


def as_user_error(error: BaseException, flags: Mapping[str, str]) -> YolactError | None:
    """What the user can do about ``error``; None when it is no such refusal but a bug.

    Args:
        error: What has ended a command.
        flags: Spellings of the command's options, by themselves with every mark a dash.
    """
    text = str(error)
    if _is_about_memory(error):
        return ConfigError(
            f"out of memory: {_first_line(text)}",
            hint=_smaller(flags, "--batch-size", "--image-size") + "give the machine more memory",
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return ConfigError(
            f"a process that prepares images was killed: {_first_line(text)}",
            hint=_smaller(flags, "--num-workers") + "give the machine more (shared) memory",
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ConfigError(
            f"too many open files: {_first_line(text)}",
            hint=_smaller(flags, "--num-workers") + "raise the limit: ulimit -n 4096",
        )
    where = error.filename or "a file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(f"no permission to use {where}", hint="check its owner and its mode")
    if error.errno in _REFUSALS:
        return storage_error(error, Path(os.fsdecode(where)))
    return None


def _smaller(flags: Mapping[str, str], *wanted: str) -> str:
    """The beginning of a hint: those of the wanted options that the command has."""
    there = " or ".join(flags[flag] for flag in wanted if flag in flags)
    return f"use a smaller {there}, or " if there else ""


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(part in said for part in _NO_MEMORY)


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "") or "no details"
