"""``sparseml.yolact.train``: options in, one training run, where its files are out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from yolact.cli.base import Command, setup_logging
from yolact.cli.inputs import LAYOUTS, USUAL, model_path, recipe_source
from yolact.cli.options import changes, options, options_of, read
from yolact.config import AugmentConfig, ModelConfig, YolactConfig
from yolact.errors import INTERRUPTED, ConfigError, TargetMissedError
from yolact.optim_config import OptimConfig
from yolact.presets import BACKBONE_FILES, named_config
from yolact.training.settings import (
    DataSettings,
    LogSettings,
    SaveSettings,
    StartSettings,
    TrainSettings,
)

TRAINING_DATA = ("train_info", "train_images")
VALIDATION_DATA = ("validation_info", "validation_images")
DATA_SETS = tuple(name for name, layout in LAYOUTS.items() if layout.training)


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.train --resume weights/model.pth --recipe yolact.pruned",
)
@options(
    click.option(
        "--config",
        default="yolact_darknet53_config",
        show_default=True,
        help="Network and schedule; sparseml.yolact.configs lists them.",
    ),
    *options_of(ModelConfig, "image_size", otherwise="config's"),
    click.option(
        "--dataset",
        metavar=f"[{'|'.join(DATA_SETS)}]",
        help="Data in its usual folder; the four options below name any other."
        f"  [default: {USUAL}]",
    ),
    *options_of(DataSettings, *TRAINING_DATA, *VALIDATION_DATA, otherwise=""),
    *options_of(DataSettings, "strict"),
    click.option(
        "--resume",
        help="Continue the run that wrote this checkpoint: a path, zoo: stub, latest or interrupt "
        "(looked for in --save_folder), or True with --ckpt. With another --recipe, a new run "
        "begins from its weights.",
    ),
    click.option(
        "--ckpt",
        help="Begin a new run with this checkpoint's weights; of class layers, what both have.",
    ),
    click.option(
        "--backbone",
        is_flag=True,
        help="The file given to --resume or --ckpt holds an ImageNet backbone only.",
    ),
    *options_of(
        StartSettings, "pretrained", "prior_base_size", "start_iter", "use_checkpoint_epoch"
    ),
    *options_of(TrainSettings, "recipe", "recipe_args", "recipe_engine", "distill_teacher"),
    *options_of(StartSettings, "continue_recipe"),
    *options_of(TrainSettings, "batch_size", "accumulate", "epochs", "max_iter"),
    *options_of(OptimConfig, "lr", "backbone_lr", "schedule", "optimizer", otherwise="config's"),
    click.option("--no_augment", is_flag=True, help="Only resize the training images."),
    *options_of(AugmentConfig, "mosaic", "copy_paste", otherwise="config's"),
    *options_of(
        OptimConfig,
        *("momentum", "weight_decay", "gamma", "max_grad_norm", "ema_decay"),
        otherwise="config's",
    ),
    *options_of(TrainSettings, "autoscale", "half", "freeze_bn", "device"),
    click.option(
        "--cuda",
        type=bool,
        is_flag=False,
        default=True,
        show_default=True,
        help="Use a GPU if there is one.",
    ),
    *options_of(TrainSettings, "batch_alloc", "seed"),
    *options_of(DataSettings, "on_bad_image", "num_workers"),
    *options_of(SaveSettings),
    *options_of(TrainSettings, "validation_epoch", "validation_size", "patience"),
    *options_of(LogSettings, "folder"),
    click.option("--no_log", is_flag=True, help="Write neither."),
    *options_of(LogSettings, "gpu", "wandb"),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Check data, checkpoint and recipe, print the plan, and stop.",
    ),
    click.option("--verbose", "-v", is_flag=True, help="Say more."),
)
def train(**given: Any) -> None:
    """Train, prune and quantize a model; what the run leaves behind is printed at its end."""
    setup_logging(int(given["verbose"]))
    settings = train_settings(given)
    if given["dry_run"]:
        from yolact.training.start import describe, prepare

        click.echo(describe(prepare(settings)))
        return
    from yolact.training.loop import train as run

    result = run(settings)
    if result.checkpoint is not None:
        click.echo(f"checkpoint: {result.checkpoint}")
    if result.interrupted:
        saved = result.checkpoint is not None and result.checkpoint.stem.endswith("_interrupt")
        click.echo("interrupted" + "; continue with --resume interrupt" * saved, err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if result.best_checkpoint is not None:
        click.echo(f"best checkpoint: {result.best_checkpoint}")
    if result.skipped_steps:
        click.echo(f"skipped steps: {result.skipped_steps}", err=True)
    if result.evaluation is not None:
        click.echo(result.evaluation.table())
    if result.report is not None and result.checkpoint is not None:
        from yolact.sparsify.report import report_path, table

        click.echo(f"{table(result.report)}\nreport: {report_path(result.checkpoint)}")
    if result.missed:
        more = f"; and {len(result.missed) - 3} more" if len(result.missed) > 3 else ""
        raise TargetMissedError(
            f"the recipe's targets were missed: {'; '.join(result.missed[:3])}{more}",
            hint="the report names every layer; the run may have ended before the recipe did",
        )


def train_settings(given: Mapping[str, Any]) -> TrainSettings:
    """What a run is asked to do.

    Args:
        given: Parsed values of the command's options.

    Raises:
        YolactError: They contradict each other, or a file that they name is not there.
    """
    from yolact.sparsify.variables import parse_recipe_args

    config = _config(given)
    log = read(LogSettings, given)
    settings = read(
        TrainSettings,
        given,
        config=config,
        data=_data(given),
        start=_start(given, config.name),
        save=read(SaveSettings, given),
        log=replace(log, folder=None) if given["no_log"] else log,
        device=given["device"] if given["cuda"] else "cpu",
        recipe_args=parse_recipe_args(given["recipe_args"]),
        distill_teacher=_teacher(given, config.name),
    )
    if settings.recipe is None:
        return settings
    # Last, since a stub may have to be fetched: contradicting options were refused before.
    recipe, label = recipe_source(settings.recipe)
    return replace(settings, recipe=recipe, recipe_label=label)


def _config(given: Mapping[str, Any]) -> YolactConfig:
    config = named_config(given["config"])
    augment = replace(config.augment, **changes(AugmentConfig, given))
    if given["no_augment"]:
        augment = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False)
    config = replace(config, augment=augment)
    config = config.with_model(**changes(ModelConfig, given))
    optim = replace(config.optim, **changes(OptimConfig, given))
    _require_effect(given, optim)
    return replace(config, optim=optim)


def _require_effect(given: Mapping[str, Any], optim: OptimConfig) -> None:
    """Refuse a number of a schedule or an optimizer that this run does not have."""
    for name, part, its in (("gamma", "schedule", "steps"), ("momentum", "optimizer", "sgd")):
        if given[name] is not None and getattr(optim, part) != its:
            raise ConfigError(
                f"--{name} {given[name]:g} without effect: the {part} is {getattr(optim, part)}",
                hint=f"leave it out, or add --{part} {its}",
            )


def _data(given: Mapping[str, Any]) -> DataSettings:
    name = given["dataset"] or USUAL
    if name not in DATA_SETS:
        raise ConfigError(
            f"no data set called {name!r}, only {', '.join(DATA_SETS)}",
            hint="own data: --train_info, --train_images, --validation_info, --validation_images",
        )
    if given["dataset"] is None:
        _require_all_data(given)
    folder, validation, training = LAYOUTS[name]
    assert training is not None  # the option offers no others
    usual = DataSettings(
        train_info=folder / "annotations" / training,
        train_images=folder / "images",
        validation_info=folder / "annotations" / validation,
        validation_images=folder / "images",
    )
    return replace(usual, **changes(DataSettings, given))


def _require_all_data(given: Mapping[str, Any]) -> None:
    """Refuse data of the user's own of which a part would come from elsewhere, unasked."""
    named = [name for name in (*TRAINING_DATA, *VALIDATION_DATA) if given[name] is not None]
    validates = given["validation_epoch"] > 0
    needed = (*TRAINING_DATA, *VALIDATION_DATA) if validates else TRAINING_DATA
    missing = [name for name in needed if given[name] is None]
    if not named or not missing:
        return
    hint = f"name all of your data, or the data set that has the rest: --dataset {USUAL}"
    if not set(missing) & set(TRAINING_DATA):
        hint = "name the data to validate on, also if it is the same; or use --validation_epoch -1"
    raise ConfigError(f"{_listed(named)} without {_listed(missing)}", hint=hint)


def _listed(names: Sequence[str]) -> str:
    """As options."""
    return " and ".join(f"--{name}" for name in names)


def _start(given: Mapping[str, Any], name: str) -> StartSettings:
    resume, wanted, folder = given["resume"], given["ckpt"], given["save_folder"]
    continues = resume is not None and resume.lower() not in ("no", "false", "f", "0")
    if continues and resume.lower() not in ("yes", "true", "t", "1"):
        if wanted is not None:
            raise ConfigError(
                "--resume and --ckpt name two checkpoints",
                hint="--resume continues a run, --ckpt begins a new one from its weights",
            )
        wanted = resume
    if continues and wanted is None:
        raise ConfigError("--resume True needs --ckpt", hint="give the checkpoint to continue")
    path = None if wanted is None else model_path(wanted, folder, name)
    usual = folder / BACKBONE_FILES.get(name, "darknet53.pth")
    taken = name in BACKBONE_FILES and path is None and not given["no_pretrained"]
    backbone = _backbone(given, path, usual, unasked=taken)
    if taken and backbone is None:
        click.echo(f"warning: no {usual} and no --resume: training from random weights", err=True)
    return read(
        StartSettings,
        given,
        checkpoint=None if given["backbone"] else path,
        resume=continues,
        backbone=backbone,
    )


def _backbone(
    given: Mapping[str, Any], path: Path | None, usual: Path, *, unasked: bool
) -> Path | None:
    if not given["backbone"]:
        return usual if unasked and usual.exists() else None
    if path is None and not usual.exists():
        raise ConfigError(
            f"--backbone without a file, and there is no {usual}",
            hint=f"give the ImageNet weights: --resume {usual} --backbone",
        )
    return path or usual


def _teacher(given: Mapping[str, Any], name: str) -> str | None:
    wish: str | None = given["distill_teacher"]
    if wish in (None, "self", "disable"):
        return wish
    return str(model_path(wish, given["save_folder"], name))
