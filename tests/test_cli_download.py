"""The download command: shapes from start to end, COCO up to the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from yolact.cli.download import COCO_NAMES, download
from yolact.data.archives import DATASETS
from yolact.errors import ConfigError, DownloadError, StorageError


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(download, [str(arg) for arg in args])


def shapes(folder: Path, *args: str) -> Result:
    return call("--dataset", "shapes", "--data_dir", folder, "--val_size", "2", *args)


def test_shapes_are_written_and_a_second_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    first = shapes(folder, "--train-size", "3")
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout == f"{folder}: 3 training and 2 validation images\n"
    assert len(list((folder / "images").iterdir())) == 5
    second = shapes(folder, "--train_size", "3")
    assert second.stdout == f"{folder}: 3 training and 2 validation images, already there\n"


def test_the_seed_reaches_the_pictures(tmp_path: Path) -> None:
    for seed in "12":
        shapes(tmp_path / seed, "--train_size", "1", "--seed", seed)
    one, two = ((tmp_path / seed / "images" / "train_000000.jpg").read_bytes() for seed in "12")
    assert one != two


def test_other_settings_do_not_replace_a_set(tmp_path: Path) -> None:
    shapes(tmp_path / "shapes", "--train_size", "1")
    result = shapes(tmp_path / "shapes", "--train_size", "2")
    assert result.exit_code == StorageError.exit_code
    assert result.stderr.startswith(f"error: {tmp_path}/shapes already holds something else")
    assert "\nhint: choose another --data_dir" in result.stderr


def test_a_dry_run_of_shapes_writes_nothing(tmp_path: Path) -> None:
    result = shapes(tmp_path / "shapes", "--train_size", "98", "--dry-run")
    assert result.stdout.splitlines() == [
        f"{tmp_path}/shapes/images: 100 images, 2 MB",
        f"{tmp_path}/shapes/annotations/instances_train.json",
        f"{tmp_path}/shapes/annotations/instances_val.json",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_coco_lists_urls_sizes_and_hashes(tmp_path: Path) -> None:
    result = call("--dry-run", "--data_dir", tmp_path, "--test")
    lines = result.stdout.splitlines()
    assert all(line.startswith("https://s3.amazonaws.com/") for line in lines[:5])
    assert lines[5].startswith(f"{tmp_path}: 56.3 GB needed, ")
    assert "train2017.zip" in lines[2] and "19337 MB" in lines[2]
    assert "md5 442b8da7639aecaf257c1dceb8ba8c80" in lines[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seed", "1"], "--seed is for shapes"),
        (["--train_size", "1"], "--train_size is for shapes"),
        (["--dataset", "coco2017-val", "--val_size", "1"], "--val_size is for shapes"),
        (["--dataset", "shapes", "--test"], "--test is for COCO"),
        (["--dataset", "shapes", "--train_size", "0"], "needs at least one image per part"),
    ],
)
def test_options_that_cannot_apply_are_refused(args: list[str], message: str) -> None:
    result = call(*args)
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "\nhint: " in result.stderr


def test_an_unreachable_server_reads_as_an_error_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> int:
        raise DownloadError("cannot download x", hint="check the connection")

    monkeypatch.setattr("yolact.data.download.download", unreachable)
    result = call("--data_dir", tmp_path)
    assert result.exit_code == DownloadError.exit_code
    assert result.stderr == "error: cannot download x\nhint: check the connection\n"


def test_the_command_offers_what_the_downloader_knows() -> None:
    assert set(COCO_NAMES) == set(DATASETS)


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from yolact.cli.download import download\n"
        "download(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("[]\n") and "--data_dir" in result.stdout
