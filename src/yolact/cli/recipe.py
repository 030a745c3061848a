"""``sparseml.yolact recipe``: look at a recipe before a long run follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FILE, Boundary, Command, setup_logging
from yolact.cli.inputs import local_path, recipe_source
from yolact.cli.options import changes, options, options_of
from yolact.config import ModelConfig, YolactConfig
from yolact.download.stubs import Kind
from yolact.errors import RecipeError
from yolact.presets import named_config
from yolact.training.settings import TrainSettings

if TYPE_CHECKING:
    from yolact.restore import Subject
    from yolact.sparsify.check.examine import RecipeReport


class RecipeGroup(Boundary, click.Group):
    """A group inside the error boundary."""


@click.group(
    cls=RecipeGroup,
    epilog="Example: sparseml.yolact.recipe check yolact.pruned",
)
def recipe() -> None:
    """Work with recipes."""


@recipe.command(
    cls=Command,
    epilog="Example: sparseml.yolact.recipe check yolact.pruned_quant --plot schedule.png",
)
@options(
    click.argument("source", metavar="RECIPE"),
    click.option(
        "--checkpoint", type=FILE, help="Check against this model, its classes and its zeros."
    ),
    click.option(
        "--config",
        help="Check against this network.  [default: the checkpoint's, or yolact_darknet53_config]",
    ),
    *options_of(TrainSettings, "recipe_args", "recipe_engine"),
    *options_of(ModelConfig, "image_size", otherwise="config's"),
    click.option(
        "--epochs",
        type=click.FloatRange(0, min_open=True),
        help="Length of the run, for recipes that do not set it.",
    ),
    click.option("--plot", type=FILE, help="Draw the schedule into this PNG file."),
    click.option("--json", "json_file", type=FILE, help="Write everything into this JSON file."),
    click.option("--strict", is_flag=True, help="Fail on warnings, too."),
    click.option("--verbose", "-v", is_flag=True, help="Name every parameter and layer."),
)
def check(source: str, **given: Any) -> None:
    """Say what RECIPE will do to a network, and everything that is wrong with it.

    RECIPE is a path, a packaged name, a zoo: stub, or YAML text. Exit code 5 means that it has
    errors.
    """
    setup_logging(int(given["verbose"]))
    from yolact.files import require_own_places, require_writable_file, write_text
    from yolact.sparsify.check.examine import check_draft, read_draft
    from yolact.sparsify.check.plot import plot_schedule
    from yolact.sparsify.check.words import check_json, describe_check
    from yolact.sparsify.variables import parse_recipe_args

    read = [None if "\n" in source else Path(source), given["checkpoint"]]
    require_own_places([given["plot"], given["json_file"]], read)
    for path in (given["plot"], given["json_file"]):
        if path is not None:
            require_writable_file(path)
    recipe_args = parse_recipe_args(given["recipe_args"])
    source, label = recipe_source(source)
    draft = read_draft(source, recipe_args, label, given["recipe_engine"])
    subject = _subject(given)
    report, outlook = check_draft(draft, subject.model, subject.config, given["epochs"])
    click.echo(f"{report.label}, for {subject.name}\n")
    if subject.recipe is not None:
        click.echo(f"the checkpoint went through {_history(subject.recipe)}\n")
    click.echo(describe_check(draft.variables, report, outlook, verbose=given["verbose"]))
    wrote = []
    if given["plot"] is not None and outlook is not None:
        plot_schedule(outlook.curves, f"{report.label}, for {subject.name}", given["plot"])
        wrote.append(given["plot"])
    if given["json_file"] is not None:
        content = check_json(draft.variables, report, outlook)
        write_text(given["json_file"], json.dumps(content, indent=1) + "\n")
        wrote.append(given["json_file"])
    if wrote:
        click.echo("\n" + "\n".join(f"wrote {path}" for path in wrote))
    _end(report, strict=given["strict"])


def _subject(given: dict[str, Any]) -> Subject:
    from yolact.restore import bare_subject, load_subject

    config = named_config(given["config"]) if given["config"] else None
    size = changes(ModelConfig, given).get("image_size")
    if given["checkpoint"] is None:
        return bare_subject(config or YolactConfig(), size)
    path = local_path(given["checkpoint"], Kind.CHECKPOINT)
    return load_subject(path, str(given["checkpoint"]), config, size)


def _history(earlier: str) -> str:
    from yolact.sparsify.recipe import Recipe
    from yolact.sparsify.stages import last_epoch

    recipe = Recipe.of_text(earlier, "the checkpoint's recipe")
    count, staged = len(recipe.entries), len(recipe.stages)
    recipes = f"{staged} recipe" + "s" * (staged != 1)
    return f"{recipes} before: {count} modifiers, {last_epoch(recipe):g} epochs"


def _end(report: RecipeReport, *, strict: bool) -> None:
    """Raise a RecipeError that counts the problems, so that the command fails with its code."""
    errors, warnings = len(report.errors), len(report.warnings)
    if errors:
        raise RecipeError(
            f"{report.label} has {_plural(errors, 'error')} and {_plural(warnings, 'warning')}",
            hint="each is named above, with what to do about it",
        )
    if warnings and strict:
        raise RecipeError(
            f"{report.label} has {_plural(warnings, 'warning')}",
            hint="each is named above; without --strict they are accepted",
        )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + "s" * (count != 1)
