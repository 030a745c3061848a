"""What every command shares: the error boundary, option spellings and logging.

stdout carries results; progress, warnings and errors go to stderr.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from yolact.errors import INTERRUPTED, YolactError

FILE = click.Path(path_type=Path, dir_okay=False)
"""A file's path; existence is checked where it is read, so that the message can say more."""
FOLDER = click.Path(path_type=Path, file_okay=False)


class Command(click.Command):
    """A command that accepts ``--some_option`` and ``--some-option`` alike.

    A YolactError ends it with ``error:`` and ``hint:`` lines on stderr and the error's exit code;
    any other exception is a bug and keeps its traceback.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Respell long options the way they are declared, then parse as click does."""
        declared = {
            _plain(name): name
            for parameter in self.get_params(ctx)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        }
        return super().parse_args(ctx, [_respell(arg, declared) for arg in args])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return super().invoke(ctx)
        except YolactError as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _plain(option: str) -> str:
    return option.replace("_", "-")


def _respell(arg: str, declared: dict[str, str]) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return declared.get(_plain(name), name) + equals + value


def setup_logging(verbosity: int = 0) -> None:
    """Send this package's log lines to stderr: warnings and information, details with -v."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("yolact")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)
