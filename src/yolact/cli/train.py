"""``sparseml.yolact.train``: options in, one training run, where its files are out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FILE, FOLDER, SEED, Command, setup_logging
from yolact.cli.inputs import LAYOUTS, USUAL, model_path, option, recipe_source
from yolact.errors import INTERRUPTED, ConfigError, TargetMissedError

if TYPE_CHECKING:
    from yolact.config import YolactConfig
    from yolact.training.settings import DataSettings, StartSettings, TrainSettings

_OPTIONS = [
    click.option(
        "--config",
        default="yolact_darknet53_config",
        show_default=True,
        help="Network and schedule: yolact_darknet53_config or yolact_darknet_small_config.",
    ),
    click.option("--image_size", type=int, help="Side of the network input.  [default: config's]"),
    click.option(
        "--dataset",
        type=click.Choice([name for name, layout in LAYOUTS.items() if layout.training]),
        default=USUAL,
        show_default=True,
        help="Data in its usual folder; the four options below name any other.",
    ),
    click.option("--train_info", type=FILE, help="COCO-format annotations to train on."),
    click.option("--train_images", type=FOLDER, help="Folder of the training images."),
    click.option("--validation_info", type=FILE, help="Annotations to validate on."),
    click.option("--validation_images", type=FOLDER, help="Folder of the validation images."),
    click.option(
        "--resume",
        help="Continue the run that wrote this checkpoint: a path, zoo: stub, latest or interrupt "
        "(looked for in --save_folder), or True with --ckpt. With another --recipe, a new run "
        "begins from its weights.",
    ),
    click.option(
        "--ckpt",
        help="Begin a new run with this checkpoint's weights. Other classes: all but theirs.",
    ),
    click.option(
        "--backbone",
        is_flag=True,
        help="The file given to --resume or --ckpt holds an ImageNet backbone only.",
    ),
    click.option(
        "--start_iter",
        type=click.IntRange(-1),
        default=0,
        show_default=True,
        help="First step for a checkpoint that does not know it; -1 reads it from the name.",
    ),
    click.option(
        "--use_checkpoint_epoch",
        is_flag=True,
        help="Begin at the epoch stored in a checkpoint of another tool.",
    ),
    click.option("--recipe", "-r", help="Recipe: a path, a packaged name, a zoo: stub, or YAML."),
    click.option(
        "--recipe_args",
        multiple=True,
        help="Set a variable of the recipe, as name=value or JSON; may be repeated.",
    ),
    click.option(
        "--distill_teacher",
        help="Whom a recipe with distillation learns from: a checkpoint, self (the weights the "
        "run begins with) or disable. Give it again on --resume.",
    ),
    click.option("--cont", is_flag=True, help="Go on with the recipe stored in the checkpoint."),
    click.option(
        "--batch_size",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Images per batch.",
    ),
    click.option(
        "--accumulate",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Batches per optimizer step: the effective batch is batch_size times this.",
    ),
    click.option("--epochs", type=float, help="Length of the run.  [default: --max_iter]"),
    click.option("--max_iter", type=int, help="Length in steps.  [default: config's, autoscaled]"),
    click.option("--lr", "--learning_rate", type=float, help="Learning rate.  [default: config's]"),
    click.option("--no_augment", is_flag=True, help="Only resize the training images."),
    click.option("--momentum", type=float, help="Momentum of SGD.  [default: config's]"),
    click.option(
        "--decay", "--weight_decay", "decay", type=float, help="Weight decay.  [default: config's]"
    ),
    click.option("--gamma", type=float, help="Factor at each lr step.  [default: config's]"),
    click.option("--clip_grad", type=float, help="Largest gradient norm.  [default: config's]"),
    click.option(
        "--no_autoscale",
        is_flag=True,
        help="Do not scale learning rate and schedule with the batch size (they are for 8).",
    ),
    click.option(
        "--fp16",
        is_flag=True,
        help="Mixed precision: float16 on CUDA, bfloat16 on the CPU; off once QAT begins.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    option("--cuda", default=True, help="Use a GPU if there is one."),
    click.option("--batch_alloc", help="Images of a batch for each GPU, for instance 4,4."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random choice."),
    click.option(
        "--num_workers",
        type=click.IntRange(0, 256),
        default=4,
        show_default=True,
        help="Processes that prepare images.",
    ),
    click.option(
        "--save_folder",
        type=FOLDER,
        default="weights/",
        show_default=True,
        help="Where checkpoints go, as <config>_<epoch>_<iter>.pth.",
    ),
    click.option(
        "--save_interval", type=int, default=10_000, show_default=True, help="Steps between them."
    ),
    click.option("--keep_latest", is_flag=True, help="Delete the previous one on saving."),
    click.option(
        "--keep_latest_interval",
        type=int,
        default=100_000,
        show_default=True,
        help="With --keep_latest, keep those at multiples of this many steps.",
    ),
    click.option("--no_interrupt", is_flag=True, help="Do not save on Ctrl-C or SIGTERM."),
    click.option(
        "--validation_epoch",
        type=int,
        default=2,
        show_default=True,
        help="Epochs between validations; -1 turns them off.",
    ),
    click.option(
        "--validation_size",
        type=click.IntRange(1),
        default=5000,
        show_default=True,
        help="Images to validate on.",
    ),
    click.option(
        "--log_folder",
        type=FOLDER,
        default="logs/",
        show_default=True,
        help="Where <config>.log and TensorBoard events go.",
    ),
    click.option("--no_log", is_flag=True, help="Write neither."),
    click.option("--log_gpu", is_flag=True, help="Add GPU memory to the log."),
    click.option("--wandb", is_flag=True, help="Also send losses and mAP to Weights & Biases."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Check data, checkpoint and recipe, print the plan, and stop.",
    ),
    click.option("--verbose", "-v", is_flag=True, help="Say more."),
]


def _options(function: Any) -> Any:
    for one in reversed(_OPTIONS):
        function = one(function)
    return function


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.train --resume weights/model.pth --recipe yolact.pruned",
)
@_options
def train(**given: Any) -> None:
    """Train, prune and quantize a model; what the run leaves behind is printed at its end."""
    setup_logging(int(given["verbose"]))
    settings = _settings(given)
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
        from yolact.sparsify.report.report import report_path
        from yolact.sparsify.report.table import table

        click.echo(f"{table(result.report)}\nreport: {report_path(result.checkpoint)}")
    if result.missed:
        more = f"; and {len(result.missed) - 3} more" if len(result.missed) > 3 else ""
        raise TargetMissedError(
            f"the recipe's targets were missed: {'; '.join(result.missed[:3])}{more}",
            hint="the report names every layer; the run may have ended before the recipe did",
        )


def _settings(given: dict[str, Any]) -> TrainSettings:
    from yolact.sparsify.variables import parse_recipe_args
    from yolact.training.settings import LogSettings, SaveSettings, TrainSettings

    config = _config(given)
    settings = TrainSettings(
        config=config,
        data=_data(given),
        start=_start(given, config.name),
        save=SaveSettings(
            folder=given["save_folder"],
            interval=given["save_interval"],
            keep_latest=given["keep_latest"],
            keep_latest_interval=given["keep_latest_interval"],
            interrupt=not given["no_interrupt"],
        ),
        log=LogSettings(
            folder=None if given["no_log"] else given["log_folder"],
            gpu=given["log_gpu"],
            wandb=given["wandb"],
        ),
        batch_size=given["batch_size"],
        accumulate=given["accumulate"],
        device=given["device"] if given["cuda"] else "cpu",
        batch_alloc=_allocation(given["batch_alloc"]),
        seed=given["seed"],
        epochs=given["epochs"],
        max_iter=given["max_iter"],
        autoscale=not given["no_autoscale"],
        recipe=given["recipe"],
        recipe_args=parse_recipe_args(given["recipe_args"]),
        distill_teacher=_teacher(given, config.name),
        half=given["fp16"],
        validation_epoch=given["validation_epoch"],
        validation_size=given["validation_size"],
    )
    if settings.recipe is None:
        return settings
    # Last, since a stub may have to be fetched: contradicting options were refused before.
    recipe, label = recipe_source(settings.recipe)
    return replace(settings, recipe=recipe, recipe_label=label)


def _config(given: dict[str, Any]) -> YolactConfig:
    from yolact.config import AugmentConfig, named_config

    config = named_config(given["config"])
    if given["no_augment"]:
        off = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False)
        config = replace(config, augment=off)
    if given["image_size"] is not None:
        config = config.with_model(image_size=given["image_size"])
    wishes = {
        "lr": given["lr"],
        "momentum": given["momentum"],
        "weight_decay": given["decay"],
        "gamma": given["gamma"],
        "max_grad_norm": given["clip_grad"],
    }
    changes = {name: value for name, value in wishes.items() if value is not None}
    return replace(config, optim=replace(config.optim, **changes))


def _data(given: dict[str, Any]) -> DataSettings:
    from yolact.training.settings import DataSettings

    folder, validation, training = LAYOUTS[given["dataset"]]
    assert training is not None  # the option offers no others
    return DataSettings(
        train_images=given["train_images"] or folder / "images",
        train_info=given["train_info"] or folder / "annotations" / training,
        validation_images=given["validation_images"] or folder / "images",
        validation_info=given["validation_info"] or folder / "annotations" / validation,
        num_workers=given["num_workers"],
    )


def _start(given: dict[str, Any], name: str) -> StartSettings:
    from yolact.training.settings import StartSettings

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
    full = name == "yolact_darknet53"  # the network that darknet53.pth fits
    backbone = _backbone(given, path, full=full)
    if path is None and backbone is None and full:
        click.echo(
            f"warning: no {folder / 'darknet53.pth'} and no --resume: training from random weights",
            err=True,
        )
    return StartSettings(
        checkpoint=None if given["backbone"] else path,
        resume=continues,
        backbone=backbone,
        start_iter=given["start_iter"],
        use_checkpoint_epoch=given["use_checkpoint_epoch"],
        continue_recipe=given["cont"],
    )


def _backbone(given: dict[str, Any], path: Path | None, *, full: bool) -> Path | None:
    usual: Path = given["save_folder"] / "darknet53.pth"
    if given["backbone"]:
        if path is None and not usual.exists():
            raise ConfigError(
                f"--backbone without a file, and there is no {usual}",
                hint="give the ImageNet weights: --resume weights/darknet53.pth --backbone",
            )
        return path or usual
    return usual if path is None and full and usual.exists() else None


def _teacher(given: dict[str, Any], name: str) -> str | None:
    wish: str | None = given["distill_teacher"]
    if wish in (None, "self", "disable"):
        return wish
    return str(model_path(wish, given["save_folder"], name))


def _allocation(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--batch_alloc {text!r} is not a list of whole numbers", hint="for instance 4,4"
        ) from error
