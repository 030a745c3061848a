"""What all commands share: spellings, the options of the reference, errors and exit codes."""

from __future__ import annotations

import ast
import errno
import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import yolact
from conftest import OWN_GOLDEN, PUBLISHED
from yolact import errors
from yolact.cli import COMMANDS, command, main
from yolact.cli.base import Command, setup_logging
from yolact.errors import YolactError

OPTIONS = [
    pytest.param(name, parameter, spelling, id=f"{name} {spelling}")
    for name in COMMANDS
    for parameter in command(name).params
    if isinstance(parameter, click.Option)
    for spelling in parameter.opts
    if spelling.startswith("--")
]


def sample(option: click.Option) -> list[str]:
    """A value that the option accepts, as words of the command line."""
    kind = option.type
    if option.is_flag:
        return []
    if isinstance(kind, click.Choice):
        return [str(kind.choices[0])]
    words = {"boolean": "True", "integer": "3", "integer range": "3", "float": "0.5"}
    return [words.get(kind.name, "some_thing-else")] * option.nargs


def parsed(name: str, *args: str) -> dict[str, Any]:
    """Values of a command's parameters; what is required may be missing."""
    context = click.Context(command(name), info_name=name, resilient_parsing=True)
    command(name).parse_args(context, list(args))
    return context.params


@pytest.mark.parametrize(("name", "option", "spelling"), OPTIONS)
def test_options_may_be_spelled_with_either_mark(
    name: str, option: click.Option, spelling: str
) -> None:
    assert option.name is not None
    if not option.expose_value:  # --help, --offline and --verbose act by themselves
        return
    words = sample(option)
    expected = parsed(name, spelling, *words)
    assert expected[option.name] != parsed(name)[option.name] or words != []
    body = spelling.removeprefix("--")
    for other in {body.replace("_", "-"), body.replace("-", "_")}:
        assert parsed(name, f"--{other}", *words) == expected
        if len(words) == 1:
            assert parsed(name, f"--{other}={words[0]}") == expected


def test_values_keep_their_marks() -> None:
    values = parsed("train", "--save-folder=run_1/a-b", "--recipe", "--- {a_b: 1}", "--ckpt=a=b_c")
    assert values["save_folder"] == Path("run_1/a-b")
    assert (values["recipe"], values["ckpt"]) == ("--- {a_b: 1}", "a=b_c")


def places() -> list[Any]:
    """The options that take a path, or text that may be one."""
    return [
        pytest.param(name, parameter, spelling, id=f"{name} {spelling}")
        for name in COMMANDS
        for parameter in command(name).params
        if isinstance(parameter, click.Option) and parameter.expose_value
        if parameter.type.name in ("file", "directory", "path", "text")
        for spelling in parameter.opts
        if spelling.startswith("--")
    ]


@pytest.mark.parametrize(("name", "option", "spelling"), places())
def test_every_path_may_begin_at_home(
    name: str, option: click.Option, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    expected = parsed(name, spelling, *["/home/me/a b"] * option.nargs)
    assert parsed(name, spelling, *["~/a b"] * option.nargs) == expected
    if option.nargs == 1:
        assert parsed(name, f"{spelling}=~/a b") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/a:~/b", "/home/me/a:/home/me/b"),
        ("a.jpg:~/b.png", "a.jpg:/home/me/b.png"),
        ("~", "/home/me"),
        ("~/in/*.jpg", "/home/me/in/*.jpg"),
        ("a~/b", "a~/b"),
        ("./~", "./~"),
        ("https://me.org/~you/a", "https://me.org/~you/a"),
        ("~no_such_user/a", "~no_such_user/a"),
        ("text: of\n~/a", "text: of\n~/a"),
    ],
)
def test_a_home_is_expanded_where_a_path_begins(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert parsed("validation", "--images", given)["images"] == expected
    assert parsed("validation", f"--images={given}")["images"] == expected


def mirrored(name: str) -> list[Any]:
    """(flags, default) of every option of a mirrored command."""
    lists = (OWN_GOLDEN / "cli_options.json", PUBLISHED / "commands.json")
    contents = [json.loads(path.read_text()) for path in lists]
    return [
        pytest.param(command_of(name), entry, id=entry["flags"][0])
        for content in contents
        if name in content
        for entry in content[name]["options"]
    ]


def command_of(name: str) -> str:
    return name.removeprefix("sparseml.yolact.")


MIRRORED = [
    *mirrored("sparseml.yolact.train"),
    *mirrored("sparseml.yolact.export_onnx"),
    *mirrored("sparseml.yolact.download"),
]
OTHER_DEFAULTS = {
    ("export_onnx", "--config"): None,  # the checkpoint's own
    ("export_onnx", "--image-shape"): None,  # the checkpoint's own
    ("download", "--test"): False,
}


def test_the_mirrored_options_are_at_hand() -> None:
    assert {parameters.values[0] for parameters in MIRRORED} == {"train", "export_onnx", "download"}


@pytest.mark.parametrize(("name", "entry"), MIRRORED)
def test_every_option_of_the_reference_exists_with_its_default(
    name: str, entry: dict[str, Any]
) -> None:
    options = {spelling: p for p in command(name).params for spelling in p.opts}
    flags = entry["flags"]
    assert set(flags) <= options.keys()
    assert len({options[flag].name for flag in flags}) == 1
    option = options[flags[0]]
    assert isinstance(option, click.Option)
    if "store" in entry.get("action", ""):
        assert option.is_flag
    default = parsed(name)[str(option.name)]
    default = default.as_posix() if isinstance(default, Path) else default
    if (name, flags[0]) in OTHER_DEFAULTS:
        assert default == OTHER_DEFAULTS[name, flags[0]]
    elif option.is_flag:
        assert default is False
    else:
        expected = ast.literal_eval(entry.get("default", "None"))
        if isinstance(expected, str) and expected.endswith("/"):
            expected = expected.removesuffix("/")
        assert default == expected
    assert option.required == (entry.get("required") == "True")


def failing(error: BaseException) -> click.Command:
    @click.command(cls=Command)
    def fail() -> None:
        raise error

    return fail


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, YolactError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_two_lines_on_stderr_and_an_exit_code(kind: type[YolactError]) -> None:
    result = CliRunner().invoke(failing(kind("what is wrong", hint="what to do")))
    assert (result.exit_code, result.stdout) == (kind.exit_code, "")
    assert result.stderr == "error: what is wrong\nhint: what to do\n"


def test_an_error_without_a_hint_is_one_line() -> None:
    result = CliRunner().invoke(failing(errors.DataError("what is wrong")))
    assert result.stderr == "error: what is wrong\n"


def test_exit_codes_are_distinct_and_documented() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS if kind is not YolactError}
    assert len(set(codes.values())) == len(codes) and not {0, 1} & set(codes.values())
    table = dict(re.findall(r"\| (\d+) \| (\w+)? *\|", str(errors.__doc__)))
    assert {name: int(code) for code, name in table.items() if name.endswith("Error")} == codes
    assert str(errors.INTERRUPTED) in table


def test_a_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("a bug")))
    assert isinstance(result.exception, ZeroDivisionError) and result.stderr == ""


def test_ctrl_c_ends_a_command_with_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_options_are_usage_errors(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--no_such-option"])
    assert result.exit_code == errors.ConfigError.exit_code
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: No such option '--no_such-option'")
    assert lines[1:] == [f"hint: see main {name} --help"]


def test_commands_may_be_spelled_with_either_mark() -> None:
    for name in ("export_onnx", "export-onnx"):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0 and "--checkpoint" in result.stdout
    assert CliRunner().invoke(main, ["no-such"]).exit_code == 2


def test_the_group_tells_its_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"sparseml.yolact, version {yolact.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_an_example_and_every_option_with_an_explanation(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert "Example: sparseml.yolact." in result.stdout
    for parameter in command(name).params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


def test_log_lines_go_to_stderr_and_details_need_v(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("yolact.some.module")
    for verbosity in (0, 0, 1):  # a second call does not double the lines
        setup_logging(verbosity)
        logger.info("told")
        logger.debug("whispered")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["told", "told", "told", "whispered"]


class Console(io.TextIOWrapper):
    """A terminal of some encoding, whose bytes can be looked at."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    @property
    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


ODD_TEXT = ["Größe", "螺母", "🦊", os.fsdecode(b"bad\xff.jpg"), "\ud800"]


@pytest.mark.parametrize("text", ODD_TEXT)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_anything_can_be_printed_on_any_console(
    encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command(cls=Command)
    def say() -> None:
        setup_logging()
        click.echo(f"out {text} end")
        print(f"bare {text} end")
        logging.getLogger("yolact.some").warning("log %s end", text)
        raise errors.DataError(f"wrong {text} end", hint=f"hint {text} end")

    consoles = Console(encoding), Console(encoding)
    monkeypatch.setattr("sys.stdout", consoles[0])
    monkeypatch.setattr("sys.stderr", consoles[1])
    with pytest.raises(SystemExit) as ended:
        say.main([])
    assert ended.value.code == errors.DataError.exit_code
    written = b"".join(one.buffer.getvalue() for one in consoles)  # type: ignore[attr-defined]
    for word in (b"out ", b"bare ", b"log ", b"error: wrong ", b"hint: hint "):
        (line,) = (line for line in written.splitlines() if line.startswith(word))
        assert line.endswith(b" end") and len(line) > len(word) + 4


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(cls=Command)
    def say() -> None:
        setup_logging()
        click.echo("out")
        logging.getLogger("yolact.some").warning("log")

    monkeypatch.setattr(f"sys.{closed}", None)
    with pytest.raises(SystemExit) as ended:
        say.main([])
    assert ended.value.code == 0


def spellings(one: click.Command) -> set[str]:
    """Every long option of a command and of those below it, with either mark."""
    found = {flag for parameter in one.params for flag in parameter.opts if flag[:2] == "--"}
    found |= {"--help"}
    if isinstance(one, click.Group):
        found = found.union(*map(spellings, one.commands.values()))
    return found | {"--" + flag[2:].replace("_", "-") for flag in found}


SOURCES = Path(str(yolact.__file__)).parent
OF_ONE_COMMAND = {
    **{f"cli/{name}.py": name for name in COMMANDS},
    **dict.fromkeys(("cli/validation_options.py", "predict/evaluate.py"), "validation"),
    **dict.fromkeys(("training/", "distill/"), "train"),
    "exporter/": "export_onnx",
    "bench/benchmark.py": "benchmark",
}
"""Files, and folders, whose errors only this command can end with."""


def hints() -> list[Any]:
    """(file, commands named, options named) of every hint in the source."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        file = path.relative_to(SOURCES).as_posix()
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            parts = [part.value for part in call.keywords if part.arg == "hint"]
            text = " ".join(
                str(node.value)
                for part in parts
                for node in ast.walk(part)
                if isinstance(node, ast.Constant)
            )
            named = re.findall(r"--[a-z][\w-]*", text)
            said = re.findall(r"sparseml\.yolact\.(\w+)", text)
            if named:
                found.append(pytest.param(file, said, named, id=f"{file}:{call.lineno}"))
    return found


@pytest.mark.parametrize(("file", "said", "named"), hints())
def test_hints_name_options_that_the_command_has(
    file: str, said: list[str], named: list[str]
) -> None:
    owners = [owner for start, owner in OF_ONE_COMMAND.items() if file.startswith(start)]
    sets = [spellings(command(name)) for name in (*owners, *said) if owners]
    sets = sets or [spellings(command(name)) for name in COMMANDS]
    assert all(any(flag in known for known in sets) for flag in named)


REFUSALS = {
    "memory": MemoryError(),
    "workers": RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."),
    "files": OSError(errno.EMFILE, "Too many open files"),
}


@pytest.mark.parametrize("flags", [(), ("--batch_size",), ("--num_workers", "--image-size")])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_to_do_about_the_machine_names_options_that_are_there(
    refusal: str, flags: tuple[str, ...]
) -> None:
    one = failing(REFUSALS[refusal])
    one.params += [click.Option([flag]) for flag in flags]
    one.callback = lambda **_: (_ for _ in ()).throw(REFUSALS[refusal])
    result = CliRunner().invoke(one)
    assert result.exit_code == errors.ConfigError.exit_code
    hint = result.stderr.splitlines()[1]
    assert hint.startswith("hint: ") and set(re.findall(r"--[\w-]+", hint)) <= set(flags)
