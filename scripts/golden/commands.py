"""cli_options.json: the options of the original's commands, read from their parsers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from golden.reference import Reference
from golden.store import origin, save_json

COMMANDS = {"train": "train", "export_onnx": "export", "validation": "eval"}
"""This project's commands, and the files of the original that they stand for."""


class _Parsed(Exception):
    """Carries a parser out of the program that is about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def write_options(reference: Reference, folder: Path) -> None:
    """Write cli_options.json."""
    content = {
        f"sparseml.yolact.{ours}": {
            "options": [
                described(action)
                for action in parser_of(reference, theirs)._actions
                if not isinstance(action, argparse._HelpAction)
            ]
        }
        for ours, theirs in COMMANDS.items()
    }
    save_json(folder / "cli_options.json", {**origin(reference), **content})


def parser_of(reference: Reference, name: str) -> argparse.ArgumentParser:
    """The parser that a command makes, caught when it is to parse."""

    def caught(self: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise _Parsed(self)

    with patch.object(argparse.ArgumentParser, "parse_args", caught):
        try:
            reference.command(name).parse_args()
        except _Parsed as found:
            return found.parser
    raise AssertionError(f"{name} parses nothing")


def described(action: argparse.Action) -> dict[str, Any]:
    """Flags and default of one option, as a Python expression."""
    entry = {"flags": list(action.option_strings), "default": repr(action.default)}
    if action.nargs == 0:
        entry["action"] = "store_true" if action.const else "store_false"
    if action.required:
        entry["required"] = "True"
    return entry
