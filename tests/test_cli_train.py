"""The train command: options in, files and messages out, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from training import (
    RECIPE,
    data_of,
    differences,
    during_step,
    log_lines,
    losses,
    names,
    renamed,
    tiny_config,
)
from yolact.checkpoint import load_checkpoint
from yolact.cli.train import train, train_settings
from yolact.errors import ConfigError
from yolact.model.yolact import Yolact
from yolact.presets import BACKBONE_FILES, CONFIGS
from yolact.restore import build_model
from yolact.sparsify.sparsity import overall_sparsity
from yolact.training.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CONFIGS, "tiny_config", tiny_config)


def data_options(folder: Path) -> list[str]:
    data = data_of(folder)
    return [
        *("--train_info", str(data.train_info), "--train_images", str(data.train_images)),
        *("--validation_info", str(data.validation_info)),
        *("--validation_images", str(data.validation_images), "--num_workers", "0"),
    ]


def call(folder: Path, *args: str | Path) -> Result:
    """Run the command on the tiny network; later options override."""
    words = ["--config", "tiny", "--device", "cpu", "--batch_size", "2", *data_options(folder)]
    return CliRunner().invoke(train, [*words, *(str(arg) for arg in args)])


def two_epochs(folder: Path, *args: str | Path) -> Result:
    return call(folder, "--epochs", "2", "--save_interval", "2", *args)


def settings_of(*args: str | Path) -> TrainSettings:
    """What the command asks the training loop for; later options override."""
    words = ["--config", "tiny", "--device", "cpu", *(str(arg) for arg in args)]
    return train_settings(train.make_context("train", words).params)


def test_a_run_prints_where_its_files_are_and_how_good_it_is(tiny_shapes: Path) -> None:
    result = two_epochs(tiny_shapes)
    assert result.exit_code == 0, result.output
    first, second, header, line, box, mask, _ = result.stdout.splitlines()
    assert first == "checkpoint: weights/tiny_1_6.pth"
    assert second == "best checkpoint: weights/tiny_best.pth"
    assert header.split(" | ")[1].strip() == "all" and set(line) == {"-", "+"}
    assert box.startswith("   box |") and mask.startswith("  mask |")
    assert names(Path("weights")) == [
        *("tiny_0_2.pth", "tiny_1_4.pth", "tiny_1_6.pth", "tiny_best.pth")
    ]
    assert names(Path("logs")) == ["tensorboard", "tiny.log"]
    assert len(log_lines(Path(), "train")) == 6


def test_progress_goes_to_stderr_as_greppable_lines(tiny_shapes: Path) -> None:
    result = call(tiny_shapes, "--max_iter", "10", "--no_log", "--validation_epoch", "-1")
    assert result.stdout == "checkpoint: weights/tiny_3_10.pth\n"
    lines = result.stderr.splitlines()
    assert "network     tiny, 64 px, 0.0 M parameters, on cpu" in lines
    assert any(line.startswith("epoch 3 step 10/10 lr ") for line in lines)
    assert "saved weights/tiny_3_10.pth" in lines
    assert names(Path()) == ["weights"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_shapes: Path) -> None:
    result = two_epochs(tiny_shapes, "--dry-run", "--accumulate", "2", "--lr", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "network     tiny, 64 px, 0.0 M parameters, on cpu",
        "weights     random weights",
        "data        7 images to train on, 3 to validate on, 6 classes; 24 objects and 2 crowds",
        "length      4 steps of batch 2 x 2: 2 steps an epoch, 2 epochs, beginning at step 0",
        "lr          0.25, momentum 0.9, weight decay 0.0005",
        "recipe      none",
        "checkpoints weights, every 2 steps",
    ]
    assert names(Path()) == []


def test_a_dry_run_checks_recipe_and_data(tiny_shapes: Path) -> None:
    result = call(tiny_shapes, "--dry-run", "--recipe", RECIPE)
    assert "lr          set by the recipe" in result.stdout
    assert "recipe      yes, checked against the network; " in result.stdout
    misfit = RECIPE.replace("proto_net.0.weight", "proto_net.1.weight")
    result = call(tiny_shapes, "--dry-run", "--recipe", misfit)
    assert result.exit_code == 5 and "proto_net.1.weight" in result.stderr
    result = call(tiny_shapes, "--dry-run", "--train_info", "none.json")
    assert result.exit_code == 3 and "none.json" in result.stderr
    assert names(Path()) == []


def test_options_reach_the_settings() -> None:
    settings = settings_of(
        *("--learning_rate", "0.5", "--momentum", "0.25", "--weight-decay", "0.125"),
        *("--gamma", "0.75", "--clip_grad", "3", "--image_size", "96", "--no_augment"),
        *("--batch_size", "6", "--accumulate", "2", "--epochs", "1.5", "--no-autoscale"),
        *("--fp16", "--batch_alloc", "2,4", "--seed", "7", "--save_folder", "out/w"),
        *("--save-interval", "5", "--keep_latest", "--keep-latest-interval", "50"),
        *("--no_interrupt", "--validation_epoch", "3", "--validation_size", "9"),
        *("--log_folder", "out/l", "--log_gpu", "--recipe", RECIPE, "--recipe_args", "a=1"),
    )
    optim, augment = settings.config.optim, settings.config.augment
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.5, 0.25, 0.125)
    assert (optim.gamma, optim.max_grad_norm) == (0.75, 3)
    assert settings.config.model.image_size == 96
    assert not any((augment.photometric, augment.expand, augment.crop, augment.mirror))
    assert (settings.batch_size, settings.accumulate, settings.epochs) == (6, 2, 1.5)
    assert (settings.autoscale, settings.half, settings.seed) == (False, True, 7)
    assert (settings.batch_alloc, settings.max_iter) == ((2, 4), None)
    save = settings.save
    assert (save.folder, save.interval, save.keep_latest) == (Path("out/w"), 5, True)
    assert (save.keep_latest_interval, save.interrupt) == (50, False)
    assert (settings.validation_epoch, settings.validation_size) == (3, 9)
    assert (settings.log.folder, settings.log.gpu) == (Path("out/l"), True)
    assert settings.recipe_args == {"a": 1}


def test_options_of_the_optimizer_override_those_of_the_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--optimizer", "adamw", "--schedule", "cosine", "--backbone_lr", "0.25")
    settings = settings_of(*words, "--ema-decay", "0.99", "--patience", "7")
    optim = settings.config.optim
    assert (optim.optimizer, optim.schedule) == ("adamw", "cosine")
    assert (optim.backbone_lr, optim.ema_decay, settings.patience) == (0.25, 0.99, 7)
    monkeypatch.setitem(CONFIGS, "tiny_config", lambda: replace(tiny_config(), optim=optim))
    assert settings_of().config.optim == optim
    back = ("--optimizer", "sgd", "--schedule", "steps", "--backbone_lr", "1", "--ema_decay", "0")
    assert settings_of(*back).config.optim == replace(
        optim, optimizer="sgd", schedule="steps", backbone_lr=1.0, ema_decay=None
    )


def test_the_plan_says_what_is_not_as_published(tiny_shapes: Path) -> None:
    words = ("--schedule", "cosine", "--backbone_lr", "0.3", "--ema_decay", "0.999")
    result = two_epochs(tiny_shapes, "--dry-run", *words, "--patience", "3")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("lr "))
    assert line.endswith(
        ", cosine, backbone x 0.3, momentum 0.9, weight decay 0.0005, weights averaged by 0.999"
    )
    assert lines[-1] == "patience    3 validations without a better mask mAP"
    adamw = two_epochs(tiny_shapes, "--dry-run", "--optimizer", "adamw")
    assert ", AdamW, weight decay 0.0005\n" in adamw.stdout


def test_defaults_are_those_of_the_config() -> None:
    settings = settings_of()
    assert settings.config == tiny_config()
    assert settings.device == "cpu" and settings.autoscale and settings.save.interrupt


def test_cuda_false_means_the_cpu() -> None:
    assert settings_of("--device", "auto", "--cuda", "False").device == "cpu"


def test_data_sets_have_their_usual_folders() -> None:
    coco, shapes = (settings_of("--dataset", name).data for name in ("coco2017_dataset", "shapes"))
    assert coco.train_info == Path("data/coco/annotations/instances_train2017.json")
    assert coco.validation_images == Path("data/coco/images")
    assert shapes.validation_info == Path("data/shapes/annotations/instances_val.json")


OWN = {
    "info": ("--train_info", "my/train.json"),
    "images": ("--train_images", "my"),
    "held_out": ("--validation_info", "my/val.json"),
    "held_out_images": ("--validation_images", "my"),
    "off": ("--validation_epoch", "-1"),
    "shapes": ("--dataset", "shapes"),
}


@pytest.mark.parametrize(
    ("given", "missing", "hint"),
    [
        ("info", "--train_images and --validation_info and --validation_images", "--dataset"),
        ("info images", "--validation_info and --validation_images", "--validation_epoch -1"),
        ("info images held_out", "--validation_images", "--validation_epoch -1"),
        ("info images held_out_images", "--validation_info", "--validation_epoch -1"),
        ("images held_out held_out_images", "--train_info", "--dataset"),
        ("held_out held_out_images", "--train_info and --train_images", "--dataset"),
        ("info off", "--train_images", "--dataset"),
        ("images off", "--train_info", "--dataset"),
    ],
)
def test_half_of_ones_own_data_is_no_data(given: str, missing: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(*(word for name in given.split() for word in OWN[name]))
    assert str(error.value).endswith(f" without {missing}")
    assert error.value.hint is not None and hint in error.value.hint


@pytest.mark.parametrize(
    "given", ["info images off", "info images held_out held_out_images", "shapes info", "", "off"]
)
def test_the_rest_of_the_data_may_be_left_out_where_it_is_clear(given: str) -> None:
    data = settings_of(*(word for name in given.split() for word in OWN[name])).data
    assert data.train_info.name in ("train.json", "instances_train2017.json")


# Beginning and going on


@pytest.mark.slow
def test_latest_and_paths_continue_exactly(tiny_shapes: Path) -> None:
    two_epochs(tiny_shapes)
    whole = Path("weights/tiny_1_6.pth").rename("whole.pth")
    result = two_epochs(tiny_shapes, "--resume", "latest", "--save_interval", "99")
    assert "beginning at step 4" in result.stderr
    assert differences(Path("weights/tiny_1_6.pth"), whole) == []
    for resume in (
        ("--resume", "weights/tiny_0_2.pth"),
        ("--resume=True", "--ckpt", "weights/tiny_0_2.pth"),
    ):
        result = two_epochs(tiny_shapes, *resume, "--save_folder", "again")
        assert "beginning at step 2" in result.stderr
        assert differences(Path("again/tiny_1_6.pth"), whole) == []


@pytest.mark.parametrize("words", [("False",), ("no",), ("0",)])
def test_resume_false_with_a_checkpoint_begins_anew(words: tuple[str, ...]) -> None:
    settings = settings_of("--resume", *words, "--ckpt", "a.pth")
    assert settings.start.checkpoint == Path("a.pth") and not settings.start.resume


def test_an_interrupted_run_ends_with_130_and_says_how_to_go_on(
    tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs(tiny_shapes, "--save_folder", "whole")
    with monkeypatch.context() as patch:
        during_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        result = two_epochs(tiny_shapes)
    assert result.exit_code == 130
    assert result.stdout == "checkpoint: weights/tiny_0_3_interrupt.pth\n"
    assert result.stderr.endswith("interrupted; continue with --resume interrupt\n")
    result = two_epochs(tiny_shapes, "--resume", "interrupt")
    assert result.exit_code == 0 and "beginning at step 3" in result.stderr
    assert differences(Path("weights/tiny_1_6.pth"), Path("whole/tiny_1_6.pth")) == []


def test_an_interruption_without_saving_says_no_more(
    tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    result = call(tiny_shapes, "--epochs", "2", "--no_interrupt")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("interrupted\n") and names(Path("weights")) == []


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_saves_and_the_run_goes_on_exactly(
    tiny_shapes: Path,
) -> None:
    """Job schedulers and timeout send one; the loader's workers get it, too."""
    options = [
        *("--config", "tiny", "--device", "cpu", "--batch_size", "2", "--epochs", "400"),
        *(*data_options(tiny_shapes), "--num_workers", "2", "--validation_epoch", "-1"),
        "--no_log",
    ]
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from training import tiny_config\n"
        "from yolact import presets\n"
        "presets.CONFIGS['tiny_config'] = tiny_config\n"
        "from yolact.train import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 3 step 10/"):
            break
    os.killpg(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    (saved,) = Path("weights").iterdir()
    assert stdout == f"checkpoint: {saved}\n" and saved.stem.endswith("_interrupt")
    step = load_checkpoint(saved).iteration
    assert step is not None and 10 <= step < 1000
    again = ["--resume", "interrupt", "--save_interval", str(step + 2)]
    whole = ["--save_folder", "whole", "--save_interval", str(step + 2)]
    with pytest.MonkeyPatch.context() as patch:
        during_step(patch, step + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        for words in (again, whole):
            CliRunner().invoke(train, [*options, "--num_workers", "0", *words])
    name = f"tiny_{(step + 1) // 3}_{step + 2}.pth"
    assert differences(Path("weights") / name, Path("whole") / name) == []


def test_weights_for_other_classes_begin_a_new_run(tiny_shapes: Path, tmp_path: Path) -> None:
    two_epochs(tiny_shapes)
    other = renamed(tiny_shapes, tmp_path / "other", "shape")
    result = two_epochs(other, "--resume", "latest")
    assert result.exit_code == 4 and "--ckpt instead of --resume" in result.stderr
    result = two_epochs(other, "--ckpt", "latest", "--save_folder", "weights")
    assert result.exit_code == 0, result.stderr
    assert "class layers new: other classes" in result.stderr


def test_a_backbone_file_is_used_when_named_or_in_its_usual_place(tiny_shapes: Path) -> None:
    Path("weights").mkdir()
    torch.save(Yolact(tiny_config().model).backbone.state_dict(), "weights/darknet53.pth")
    for words in (
        ("--backbone",),
        ("--backbone", "--resume", "weights/darknet53.pth"),
        ("--backbone", "--ckpt", "weights/darknet53.pth"),
    ):
        result = two_epochs(tiny_shapes, *words, "--dry-run")
        line = "weights     backbone weights/darknet53.pth, the rest random"
        assert line in result.stdout.splitlines(), result.output
    full = settings_of("--config", "yolact_darknet53_config")
    assert full.start.backbone == Path("weights/darknet53.pth")
    assert settings_of().start.backbone is None


@pytest.mark.parametrize("name", BACKBONE_FILES)
def test_random_weights_are_warned_of_where_a_file_of_the_backbone_is_known(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("weights") / BACKBONE_FILES[name]
    assert settings_of("--config", f"{name}_config").start.backbone is None
    assert capsys.readouterr().err == (
        f"warning: no {file} and no --resume: training from random weights\n"
    )
    file.parent.mkdir()
    file.touch()
    assert settings_of("--config", f"{name}_config").start.backbone == file
    assert capsys.readouterr().err == ""


# Recipes


@pytest.mark.slow
def test_a_recipe_is_followed_and_missing_it_exits_with_9(tiny_shapes: Path) -> None:
    result = call(tiny_shapes, "--recipe", RECIPE, "--validation_epoch", "-1")
    first, head, *_, summary, verdict, last = result.stdout.splitlines()
    assert (result.exit_code, first) == (0, "checkpoint: weights/tiny_2_9.pth")
    assert head.split() == [
        *("parameter", "shape", "sparsity", "target", "mask"),
        *("weights", "inputs", "batch", "norm"),
    ]
    assert "34 of 34 convolutions quantized" in summary and verdict == "all targets met"
    assert last == "report: weights/tiny_2_9.report.json"
    assert Path("weights/tiny_2_9.report.json").is_file()
    short = "\n".join(line for line in RECIPE.splitlines() if "EpochRange" not in line)
    result = two_epochs(tiny_shapes, "--recipe", short, "--epochs", "1")
    assert result.exit_code == 9 and result.stdout.startswith("checkpoint: weights/tiny_0_3.pth\n")
    assert "targets missed: " in result.stdout
    error, hint = result.stderr.splitlines()[-2:]
    assert re.fullmatch(
        "error: the recipe's targets were missed: "
        r"backbone.layers.0.0.0.weight has sparsity 0.\d{4} instead of 0.7500; "
        "the weights of backbone.layers.0.0.0.weight are not quantized; "
        r"the inputs of backbone.layers.0.0.0.weight are not quantized; and \d+ more",
        error,
    )
    assert hint == (
        "hint: the report names every layer; the run may have ended before the recipe did"
    )


def test_a_recipe_file_takes_arguments(tiny_shapes: Path) -> None:
    text = RECIPE.replace("end_epoch: 3}", "end_epoch: eval(num_epochs)}", 1)
    Path("recipe.yaml").write_text("num_epochs: 3\n" + text)
    words = ("--recipe", "recipe.yaml", "--dry-run")
    assert "length      9 steps" in call(tiny_shapes, *words).stdout
    result = call(tiny_shapes, *words, "--recipe_args", "num_epochs=5")
    assert "length      15 steps" in result.stdout
    result = call(tiny_shapes, *words, "--recipe_args", "num_epoch=5")
    assert result.exit_code == 5 and "num_epoch" in result.stderr and "hint: " in result.stderr


def test_packaged_recipes_fit_the_small_network(tiny_shapes: Path) -> None:
    for name in ("yolact_small.pruned", "yolact_small.pruned_quant"):
        result = call(
            tiny_shapes, "--config", "yolact_darknet_small", "--recipe", name, "--dry-run"
        )
        assert result.exit_code == 0, result.stderr


# Errors


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (["--epochs", "1", "--max_iter", "5"], 2, "--epochs and --max_iter", "give one"),
        (["--epochs", "0"], 2, "--epochs must be above 0, got 0.0", "length"),
        (["--max_iter", "0"], 2, "--max_iter must be above 0", "length"),
        (["--lr", "-1"], 2, "the learning rate must be above 0, got -1.0", "--lr 0.001"),
        (["--ema_decay", "1"], 2, "below 1, got 1.0", "--ema_decay 0.999"),
        (["--patience", "1", "--validation_epoch", "-1"], 2, "turns them off", "one of them"),
        (
            ["--gamma", "0.5", "--schedule", "cosine"],
            2,
            "--gamma 0.5 without effect: the schedule is cosine",
            "--schedule steps",
        ),
        (
            ["--momentum", "0.5", "--optimizer", "adamw"],
            2,
            "--momentum 0.5 without effect: the optimizer is adamw",
            "--optimizer sgd",
        ),
        (["--batch_alloc", "1,2"], 2, "adds up to 3, but the batch size is 2", "add up to"),
        (["--batch_alloc", "a"], 2, "--batch_alloc 'a' is not a list", "for instance 4,4"),
        (["--device", "tpu9"], 2, "unknown device 'tpu9'", "use auto, cpu, cuda"),
        (["--config", "yolact_darknet35"], 2, "unknown config", "yolact_darknet53_config"),
        (["--image_size", "32"], 2, "image size 32 is too small", "at least 64"),
        (["--resume", "a.pth", "--ckpt", "b.pth"], 2, "name two checkpoints", "begins a new one"),
        (["--resume", "True"], 2, "--resume True needs --ckpt", "give the checkpoint"),
        (["--backbone"], 2, "there is no weights/darknet53.pth", "--backbone"),
        (["--cont"], 2, "--cont continues a run", "--resume latest --cont"),
        (["--recipe_args", "a=1"], 2, "--recipe_args without --recipe", "filled in already"),
        (["--resume", "latest"], 4, "no latest checkpoint of tiny in weights", "--save_folder"),
        (["--resume", "interrupt"], 4, "no interrupt checkpoint of tiny", "--save_folder"),
        (["--resume", "no.pth"], 4, "checkpoint not found: no.pth", "check the path"),
        (["--ckpt", "zoo:cv/a"], 4, "zoo:cv/a is not a model that SparseZoo had", "base-none"),
        (["--ckpt", "hf:a"], 4, "hf:a cannot be fetched: stubs begin with zoo:", "huggingface.co"),
        (["--recipe", "zoo:cv/a"], 5, "zoo:cv/a is not a model that SparseZoo had", "base-none"),
        (["--recipe", RECIPE, "--epochs", "2"], 2, "the recipe sets the length", "--recipe_args"),
        (
            ["--recipe_args", "nonsense", "--recipe", RECIPE],
            5,
            "'nonsense' is not name=value",
            "num_epochs=2",
        ),
        (["--train_images", "no_such"], 3, "no_such", ""),
        (["--log_folder", "file/logs", "--max_iter", "1"], 8, "cannot write file/logs", "another"),
        (["--save_folder", "file/weights"], 8, "cannot write file/weights", "another"),
    ],
)
def test_mistakes_read_as_an_error_and_a_hint(
    tiny_shapes: Path, words: list[str], code: int, error: str, hint: str
) -> None:
    Path("file").write_text("in the way")
    result = call(tiny_shapes, *words)
    assert result.exit_code == code, result.output
    first, second = result.stderr.splitlines()[-2:]
    assert first.startswith("error: ") and error in first
    assert second.startswith("hint: ") and hint in second
    assert not any(path.suffix == ".pth" for path in Path().rglob("*"))


def test_an_absent_gpu_is_named(tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = call(tiny_shapes, "--device", "cuda")
    assert result.exit_code == 2
    assert "device cuda is not available here" in result.stderr
    assert "--device cpu always works" in result.stderr


def test_losses_of_two_runs_with_one_seed_are_equal(tiny_shapes: Path) -> None:
    for folder in ("a", "b"):
        call(tiny_shapes, "--max_iter", "2", "--seed", "3", "--log_folder", f"{folder}/logs")
    assert losses(Path("a")) == losses(Path("b"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolact_small.pruned", "yolact_small.pruned_quant"])
def test_a_packaged_recipe_reaches_its_targets_on_the_small_network(
    tiny_shapes: Path, name: str
) -> None:
    words = ["--config", "yolact_darknet_small", "--image_size", "64", "--recipe", name]
    result = call(tiny_shapes, *words, "--recipe_args", "num_epochs=4", "--validation_epoch", "-1")
    assert result.exit_code == 0, result.stderr
    checkpoint = load_checkpoint(Path("weights/yolact_darknet_small_3_12.pth"))
    assert checkpoint.quantized == name.endswith("quant")
    assert 0.6 < overall_sparsity(build_model(checkpoint)) < 0.95


@pytest.mark.parametrize(
    "name", ["my_custom_dataset", "COCO2017_dataset", "coco2017_testdev_dataset"]
)
def test_an_unknown_data_set_ends_with_how_own_data_are_given(name: str) -> None:
    result = CliRunner().invoke(train, ["--dataset", name])
    assert result.exit_code == ConfigError.exit_code
    assert f"no data set called {name!r}, only coco2017_dataset, " in result.stderr
    assert "hint: own data: --train_info, --train_images, --validation_info" in result.stderr
