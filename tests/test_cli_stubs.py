"""Stubs, --offline and -v on the commands; nothing else ever touches the network."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from onnx_models import save, small_model
from oracle import ANNOTATIONS, write_dataset
from training import data_of, tiny_config
from yolact import presets
from yolact.cli import COMMANDS, main
from zoo import BASE, PRUNED, QUANT, RECIPE, ROOT, new_user, put

TRACE = f"{PRUNED}: no checkpoint in the mirror map: there is no "


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.CONFIGS, "tiny_config", tiny_config)
    put(tmp_path / "a.jpg")
    return new_user(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as SparseZoo's client leaves it."""
    folder = tmp_path_factory.mktemp("cached")
    checkpoint = save(small_model(), folder / "training" / "model.pth")
    result = run("export_onnx", "--checkpoint", checkpoint, "--name", folder / "model.onnx")
    assert result.exit_code == 0, result.output
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def lines(result: Result) -> list[str]:
    return result.stderr.splitlines()


@pytest.mark.slow
def test_a_stub_is_exported_into_the_current_folder(home: Path, cached: Path) -> None:
    shutil.copytree(cached / "training", home / "zoo" / ROOT / "pruned90-none" / "training")
    result = run("export_onnx", "--checkpoint", f"{PRUNED}/")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("wrote pruned90-none.onnx\n")
    assert Path("pruned90-none.onnx").stat().st_size == (cached / "model.onnx").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--recipe", "--one-shot"])
def test_export_takes_the_stub_of_a_recipe(home: Path, cached: Path, option: str) -> None:
    shutil.copytree(cached, home / "zoo" / ROOT / "pruned90-none")
    recipe = put(home / "zoo" / ROOT / "pruned82_quant-none" / "recipe.md", RECIPE)
    result = run("export_onnx", "--checkpoint", PRUNED, option, QUANT)
    assert result.exit_code == 0, result.output
    assert f"{QUANT}: the recipe is {recipe} (the local cache)" in lines(result)


def test_the_engine_decides_which_file_of_a_stub_runs(home: Path, cached: Path) -> None:
    shutil.copytree(cached, home / "zoo" / ROOT / "pruned90-none")
    folder = home / "zoo" / ROOT / "pruned90-none"
    quick = ["-t", "0.01", "-w", "0", "-ncores", "1"]
    for engine, file in (([], "model.onnx"), (["-e", "torch"], "training/model.pth")):
        result = run("benchmark", PRUNED, *quick, *engine)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"Original Model Path: {folder / file}\n")
    shutil.copytree(cached, home / "zoo" / ROOT / "base-none")
    result = run("benchmark", PRUNED, "--vs", BASE, *quick)
    assert f"Original Model Path: {home / 'zoo' / ROOT / 'base-none'}/model.onnx" in result.stdout


def test_validation_and_annotate_take_stubs(home: Path, cached: Path) -> None:
    shutil.copytree(cached, home / "zoo" / ROOT / "pruned90-none")
    write_dataset(home / "data", ANNOTATIONS)
    image = "data/images/0009.png"
    result = run("validation", "--trained_model", PRUNED, "--image", f"{image}:out.png")
    assert result.exit_code == 0, result.output
    assert Path("out.png").is_file()
    result = run("annotate", "--model_filepath", PRUNED, "--source", image, "--engine", "torch")
    assert result.exit_code == 0, result.output
    assert "training/model.pth (the local cache)" in result.stderr


def train(folder: Path, *words: str | Path) -> Result:
    data = data_of(folder)
    return run(
        *("train", "--config", "tiny", "--device", "cpu", "--batch_size", "2", "--no_log"),
        *("--train_info", data.train_info, "--train_images", data.train_images),
        *("--validation_epoch", "-1", "--num_workers", "0", *words),
    )


@pytest.mark.parametrize("option", ["--resume", "--ckpt"])
def test_training_takes_stubs(home: Path, tiny_shapes: Path, option: str) -> None:
    assert train(tiny_shapes, "--max_iter", "1").exit_code == 0
    (trained,) = Path("weights").glob("tiny_*_1.pth")
    stored = put(home / "zoo" / ROOT / "base-none" / "training/model.pth", trained.read_bytes())
    put(home / "zoo" / ROOT / "pruned90-none" / "recipe_transfer_learn.md", RECIPE)
    stub = f"{PRUNED}?recipe=transfer_learn"
    result = train(tiny_shapes, option, BASE, "--recipe", stub, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"checkpoint {stored}" in result.stdout


CALLS: dict[str, list[str | Path]] = {
    "resume": ["train", "--config", "tiny", "--resume", PRUNED],
    "ckpt": ["train", "--config", "tiny", "--ckpt", PRUNED],
    "teacher": ["train", "--config", "tiny", "--distill_teacher", PRUNED],
    "validation": ["validation", "--trained_model", PRUNED, "--engine", "torch"],
    "export_onnx": ["export_onnx", "--checkpoint", PRUNED],
    "benchmark": ["benchmark", PRUNED, "-e", "torch"],
    "annotate": ["annotate", "--model_filepath", PRUNED, "--source", "a.jpg", "--engine", "torch"],
    "check": ["recipe", "check", "yolact.pruned", "--checkpoint", PRUNED],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_file_that_is_gone_ends_every_command_the_same_way(call: list[str | Path]) -> None:
    quiet, verbose = run(*call), run(*call, "-v")
    for result in (quiet, verbose):
        assert result.exit_code == 4, result.output
        assert lines(result)[-2].startswith(f"error: the checkpoint of {PRUNED} is gone: Sparse")
        assert lines(result)[-1].startswith("hint: train one: sparseml.yolact.train --resume wei")
    assert not any(line.startswith(TRACE) for line in lines(quiet))
    assert any(line.startswith(TRACE) for line in lines(verbose))


@pytest.mark.parametrize("where", ["group", "command", "environment"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_offline_is_an_option_of_the_group_of_each_command_and_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, call: list[str | Path], where: str
) -> None:
    before, after = (["--offline"] if where == place else [] for place in ("group", "command"))
    if where == "environment":
        monkeypatch.setenv("YOLACT_OFFLINE", "true")
    result = run(*before, *(BASE if word == PRUNED else word for word in call), *after)
    assert result.exit_code == 4, result.output
    assert lines(result)[-2] == (
        f"error: the checkpoint of {BASE} is not on this machine, and --offline forbids fetching it"
    )
    assert ("YOLACT_OFFLINE" in os.environ) == (where == "environment")


def test_download_refuses_at_once_offline(home: Path) -> None:
    result = run("download", "--offline", "--dataset", "coco2017-val")
    assert result.exit_code == 7, result.output
    assert "--offline forbids fetching it" in result.stderr


@pytest.mark.slow
def test_nothing_but_fetching_touches_the_network(
    home: Path, tiny_shapes: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def refuse(*call: Any, **_: Any) -> None:
        seen.append(call)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    model = shutil.copy(cached / "training" / "model.pth", "model.pth")
    write_dataset(home / "data", ANNOTATIONS)
    image = "data/images/0009.png"
    calls: list[list[str | Path]] = [[name, "--help"] for name in COMMANDS]
    calls += [["recipe", "check", PRUNED, "--offline"]]
    calls += [
        ["download", "--dataset", "shapes", "--train_size", "2", "--val_size", "1"],
        ["export_onnx", "--checkpoint", model],
        ["validation", "--trained_model", model, "--image", f"{image}:out.png"],
        ["annotate", "--model_filepath", "model.onnx", "--source", image],
        ["benchmark", "model.onnx", "-t", "0.01", "-w", "0", "-ncores", "1"],
    ]
    for words in calls:
        assert run(*words).exit_code == 0, words
    assert train(tiny_shapes, "--max_iter", "1").exit_code == 0
    assert train(tiny_shapes, "--ckpt", "latest", "--recipe", RECIPE.strip("-\n")).exit_code == 0
    assert not seen
