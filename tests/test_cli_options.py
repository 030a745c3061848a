"""Options that are made of settings, and settings that are read back from options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from yolact.cli.base import Command
from yolact.cli.options import changes, options, options_of, read
from yolact.errors import ConfigError
from yolact.setting import setting


def whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{text} is no list") from error


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: Path = setting(help="File.")
    out_dir: Path = setting(default=Path("out"), path="folder", shown="out/", help="Folder.")
    batch_size: int = setting("-b", "--batch-size", default=8, at_least=1, help="Images.")
    share: float = setting(default=0.5, above=0, at_most=1, help="Part.")
    rate: float | None = setting("--lr", "--learning_rate", default=None, help="Rate.")
    kind: Literal["one", "two"] = setting("--format", default="one", help="Kind.")
    name: str | None = setting(default=None, choices=("a", "b"), metavar="NAME", help="Name.")
    fast: bool = setting(default=False, help="Hurry.")
    scale: bool = setting("--no_scale", default=True, help="Do not scale.")
    crop: bool = setting(default=True, spoken=True, help="Crop.")
    shape: tuple[int, int] | None = setting(default=None, help="Two sides.")
    packed: tuple[Literal["gz", "xz"], ...] = setting(default=(), help="Formats.")
    parts: tuple[int, ...] | None = setting(default=None, words=str, read=whole, help="Parts.")
    values: Mapping[str, Any] = setting(default_factory=dict, words=tuple[str, ...], help="Values.")
    label: str = "set by the command"


def run(*words: str) -> Settings:
    """Settings of a command line, with ``values`` read by the command itself."""
    found: list[Settings] = []

    @click.command(cls=Command)
    @options(*options_of(Settings), click.option("--dry-run", is_flag=True, help="Only look."))
    def example(**given: Any) -> None:
        pairs = dict(text.split("=") for text in given["values"])
        found.append(read(Settings, given, values=pairs, label="known"))

    result = CliRunner().invoke(example, words)
    if result.exit_code:
        raise ConfigError(result.stderr)
    return found[0]


def test_what_is_not_given_is_the_settings_default() -> None:
    assert run("--model", "m.pth") == Settings(model=Path("m.pth"), label="known")


def test_every_kind_of_value_is_read_back() -> None:
    words = (
        "--model m --out_dir o -b 2 --share 1 --learning-rate 0.1 --format two --name b --fast "
        "--no-scale --crop False --shape 3 4 --packed gz --packed xz --parts 4,4 "
        "--values a=1 --values b=2"
    )
    assert run(*words.split()) == Settings(
        model=Path("m"),
        out_dir=Path("o"),
        batch_size=2,
        share=1,
        rate=0.1,
        kind="two",
        name="b",
        fast=True,
        scale=False,
        crop=False,
        shape=(3, 4),
        packed=("gz", "xz"),
        parts=(4, 4),
        values={"a": "1", "b": "2"},
        label="known",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Missing option '--model'"),
        ("--model m -b 0", "0 is not in the range x>=1"),
        ("--model m --share 0", "0.0 is not in the range 0<x<=1"),
        ("--model m --format three", "'three' is not one of 'one', 'two'"),
        ("--model m --name c", "'c' is not one of 'a', 'b'"),
        ("--model m --packed zip", "'zip' is not one of 'gz', 'xz'"),
        ("--model m --parts x", "x is no list"),
    ],
)
def test_what_cannot_be_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*words.split())


def help_of(*decorators: Any) -> str:
    command = click.command(cls=Command)(options(*decorators)(lambda: None))
    return command.get_help(click.Context(command))


def test_the_help_shows_spellings_ranges_and_defaults_in_the_order_of_the_fields() -> None:
    lines = [line.strip() for line in help_of(*options_of(Settings)).splitlines()]
    assert lines[3:17] == [
        "--model FILE                    File.  [required]",
        "--out_dir DIRECTORY             Folder.  [default: out/]",
        "-b, --batch-size INTEGER RANGE  Images.  [default: 8; x>=1]",
        "--share FLOAT RANGE             Part.  [default: 0.5; 0<x<=1]",
        "--lr, --learning_rate FLOAT     Rate.",
        "--format [one|two]              Kind.  [default: one]",
        "--name NAME                     Name.",
        "--fast                          Hurry.",
        "--no_scale                      Do not scale.",
        "--crop BOOLEAN                  Crop.  [default: True]",
        "--shape INTEGER...              Two sides.",
        "--packed [gz|xz]                Formats.",
        "--parts TEXT                    Parts.",
        "--values TEXT                   Values.",
    ]


def test_fields_can_be_chosen_and_be_left_open() -> None:
    chosen = help_of(*options_of(Settings, "share", "model", otherwise="config's"))
    lines = [line.strip() for line in chosen.splitlines()]
    assert lines[3:5] == [
        "--share FLOAT RANGE  Part.  [default: config's]  [0<x<=1]",
        "--model FILE         File.  [default: config's]",
    ]


def test_changes_are_what_was_given() -> None:
    given = {"share": None, "batch_size": 3, "no_scale": True, "dry_run": True}
    assert changes(Settings, given) == {"batch_size": 3, "scale": False}
    assert changes(Settings, given, "scale") == {"batch_size": 3}
