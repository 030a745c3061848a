"""``sparseml.yolact recipe``: look at a recipe before a long run follows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FILE, Boundary, Command, setup_logging
from yolact.cli.inputs import local_path, recipe_source
from yolact.download.stubs import Kind
from yolact.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from yolact.config import YolactConfig
    from yolact.model.yolact import Yolact
    from yolact.sparsify.check.examine import Draft, Outlook, RecipeReport
    from yolact.sparsify.recipe import Recipe


@dataclass(frozen=True)
class _Subject:
    """What a recipe is checked against."""

    name: str
    """In words."""
    config: YolactConfig
    model: Yolact
    earlier: Recipe | None
    """The recipes that its weights went through."""


class RecipeGroup(Boundary, click.Group):
    """A group inside the error boundary."""


@click.group(
    cls=RecipeGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.recipe check yolact.pruned",
)
def recipe() -> None:
    """Work with recipes."""


@recipe.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.recipe check yolact.pruned_quant --plot schedule.png",
)
@click.argument("source", metavar="RECIPE")
@click.option(
    "--checkpoint", type=FILE, help="Check against this model, its classes and its zeros."
)
@click.option(
    "--config",
    help="Check against this network.  [default: the checkpoint's, or yolact_darknet53_config]",
)
@click.option(
    "--recipe_args",
    multiple=True,
    help="Set a variable of the recipe, as name=value or JSON; may be repeated.",
)
@click.option("--image_size", type=int, help="Side of the network input.  [default: config's]")
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    help="Length of the run, for recipes that do not set it.",
)
@click.option("--plot", type=FILE, help="Draw the schedule into this PNG file.")
@click.option("--json", "json_file", type=FILE, help="Write everything into this JSON file.")
@click.option("--strict", is_flag=True, help="Fail on warnings, too.")
@click.option("--verbose", "-v", is_flag=True, help="Name every parameter and layer.")
def check(source: str, **given: Any) -> None:
    """Say what RECIPE will do to a network, and everything that is wrong with it.

    RECIPE is a path, a packaged name, a zoo: stub, or YAML text. Exit code 5 means that it has
    errors.
    """
    setup_logging(int(given["verbose"]))
    from yolact.files import require_writable_file, write_text
    from yolact.sparsify.check.examine import read_draft
    from yolact.sparsify.check.plot import plot_schedule
    from yolact.sparsify.check.words import check_json, describe_check
    from yolact.sparsify.variables import parse_recipe_args

    for path in (given["plot"], given["json_file"]):
        if path is not None:
            require_writable_file(path)
    recipe_args = parse_recipe_args(given["recipe_args"])
    source, label = recipe_source(source)
    draft = read_draft(source, recipe_args, label)
    subject = _subject(given)
    report, outlook = _look(draft, subject, given["epochs"])
    click.echo(f"{report.label}, for {subject.name}\n")
    if subject.earlier is not None:
        click.echo(f"the checkpoint went through {_history(subject.earlier)}\n")
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


def _subject(given: dict[str, Any]) -> _Subject:
    import torch

    from yolact.config import named_config
    from yolact.model.yolact import Yolact

    if given["checkpoint"] is not None:
        return _checkpoint(given)
    config = named_config(given["config"] or "yolact_darknet53_config")
    config = _sized(config, given["image_size"])
    with torch.device("meta"):  # layers and shapes are all that is looked at
        model = Yolact(config.model)
    return _Subject(config.name, config, model, None)


def _checkpoint(given: dict[str, Any]) -> _Subject:
    from yolact.checkpoint import load_checkpoint
    from yolact.config import YolactConfig, named_config
    from yolact.restore import build_model
    from yolact.sparsify.recipe import Recipe

    path = given["checkpoint"]
    checkpoint = load_checkpoint(local_path(path, Kind.CHECKPOINT))
    stored, wanted = checkpoint.config, given["config"]
    config = named_config(wanted) if wanted else stored or YolactConfig()
    if stored is not None and stored.name != config.name:
        raise CheckpointError(
            f"{path} is of {stored.name}_config, not {config.name}_config",
            hint=f"add --config {stored.name}_config, or leave --config out",
        )
    config = _sized(config, given["image_size"])
    text = checkpoint.recipe
    earlier = Recipe.of_text(text, "the checkpoint's recipe") if text is not None else None
    return _Subject(str(path), config, build_model(checkpoint, config), earlier)


def _sized(config: YolactConfig, image_size: int | None) -> YolactConfig:
    return config if image_size is None else config.with_model(image_size=image_size)


def _look(
    draft: Draft, subject: _Subject, epochs: float | None
) -> tuple[RecipeReport, Outlook | None]:
    """The report with every problem in it, and what the recipe will do."""
    from dataclasses import replace

    from yolact.sparsify.check.examine import PlannedRun, examine, look_ahead

    report = examine(draft.recipe, subject.model, PlannedRun(epochs))
    if draft.problem is not None and not report.errors:
        report = replace(report, problems=(draft.problem, *report.problems))
    config = subject.config
    outlook, problem = look_ahead(report, subject.model, config.optim, config.model.image_size)
    if problem is not None:
        report = replace(report, problems=(*report.problems, problem))
    return report, outlook


def _history(earlier: Recipe) -> str:
    from yolact.sparsify.stages import last_epoch

    count, staged = len(earlier.entries), len(earlier.stages)
    recipes = f"{staged} recipe" + "s" * (staged != 1)
    return f"{recipes} before: {count} modifiers, {last_epoch(earlier):g} epochs"


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
