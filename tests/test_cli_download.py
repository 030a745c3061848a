"""The download command: shapes from start to end, COCO from a mirror on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from loopback import Loopback, serving
from yolact.cli.download import download
from yolact.download.coco_archives import DATASETS, Archive
from yolact.download.options import COCO_NAMES
from yolact.download.stubs import WEIGHTS, Weights
from yolact.download.unzip import Rules
from yolact.errors import ConfigError, DataError, DownloadError, StorageError
from yolact.model_files import read_once


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
    ("args", "message", "hint"),
    [
        (["--seed", "1"], "--seed is for shapes", "add --dataset shapes"),
        (["--train_size", "1"], "--train_size is for shapes", "add --dataset shapes"),
        (
            ["--dataset", "none", "--val_size", "1", "--weights", "base"],
            "--val_size is for shapes",
            "add --dataset shapes",
        ),
        (
            ["--dataset", "shapes", "--test"],
            "--test is for COCO",
            "leave it out with --dataset shapes",
        ),
        (
            ["--dataset", "shapes", "--verify"],
            "--verify is for COCO",
            "leave it out with --dataset shapes",
        ),
        (
            ["--dataset", "shapes", "--mirror", "https://a"],
            "--mirror is for COCO",
            "leave it out with --dataset shapes",
        ),
        (
            ["--dataset", "none", "--weights", "base", "--keep_archives"],
            "--keep_archives is for COCO",
            "leave it out with --dataset none",
        ),
        (["--dataset", "none"], "there is nothing to download", "add --weights base or backbone"),
        (
            ["--dataset", "none", "--weights", "base", "--data_dir", "x"],
            "--data_dir is for a data set",
            "leave it or --dataset none out",
        ),
        (
            ["--verify", "--weights", "base"],
            "--verify is for COCO; weights are checked whenever they are used",
            "leave --weights out",
        ),
        (
            ["--verify", "--dry-run"],
            "--verify and --dry-run exclude each other",
            "leave one of them out",
        ),
        (
            ["--mirror", "ftp://a/b"],
            "'ftp://a/b' is not an address to download from",
            "give one that starts with https:// or http://",
        ),
        (
            ["--dataset", "shapes", "--train_size", "0"],
            "the sample set needs at least one image per part, of 32 pixels or more",
            "raise --train_size, --val_size or the image size",
        ),
    ],
)
def test_options_that_cannot_apply_are_refused(args: list[str], message: str, hint: str) -> None:
    result = call(*args)
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == f"error: {message}\nhint: {hint}\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A mirror of data sets so small that they are called COCO here."""
    split = "annotations"
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    info = b'{"images": [{"file_name": "1.jpg"}]}'
    parts = {
        "annotations": {"instances_val2017.json": info},
        **{split: {f"{n}.jpg": jpeg} for n, split in enumerate(("val2017", "train2017"), 1)},
    }
    archives = {}
    with serving() as server:
        for split, files in parts.items():
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, data in files.items():
                    archive.writestr(f"{split}/{name}", data)
            data = buffer.getvalue()
            suffix, folder = (".json", split) if split == "annotations" else (".jpg", "images")
            md5 = hashlib.md5(data).hexdigest()
            archives[split] = Archive(
                f"zips/{split}.zip", md5, len(data), Rules(split, suffix, 10**5), folder, 1
            )
            server.files[f"zips/{split}.zip"] = data
        monkeypatch.setitem(DATASETS, "coco2017", tuple(archives.values()))
        monkeypatch.setitem(
            DATASETS, "coco2017-val", (archives["annotations"], archives["val2017"])
        )
        monkeypatch.setattr("yolact.download.coco_archives.MIRRORS", ("http://127.0.0.1:9/",))
        yield server


def test_coco_from_start_to_end(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mirror = ("--mirror", server.url())
    first = call(*mirror)
    assert (first.exit_code, first.stdout) == (
        0,
        "data/coco: 1 annotation files, 1 val2017 images, 1 train2017 images; "
        "3 of 3 archives fetched\n"
        "next: sparseml.yolact.train --resume weights/darknet53.pth --backbone\n",
    )
    assert {path.name for path in Path("data/coco/images").iterdir()} == {"1.jpg", "2.jpg"}
    assert "0 of 3 archives fetched" in call(*mirror).stdout
    announced = call(*mirror, "--dry-run").stdout.splitlines()
    assert all(line.endswith(", already there") for line in announced[:3])
    assert announced[3].startswith("data/coco: 0.0 GB needed, ")
    verified = call("--verify")
    assert (verified.exit_code, verified.stdout) == (
        0,
        "data/coco: 1 annotation files, 1 val2017 images, 1 train2017 images; all verified\n",
    )


def test_the_next_command_names_another_folder(server: Loopback, tmp_path: Path) -> None:
    where = ("--mirror", server.url(), "--data_dir", tmp_path)
    val = call("--dataset", "coco2017-val", *where).stdout.splitlines()
    assert val[1] == (
        f"next: sparseml.yolact.validation --trained_model MODEL --dataset {tmp_path}"
    )
    info, images = tmp_path / "annotations", tmp_path / "images"
    train = call(*where).stdout.splitlines()
    assert train[1] == (
        "next: sparseml.yolact.train --resume weights/darknet53.pth --backbone "
        f"--train_info {info}/instances_train2017.json --train_images {images} "
        f"--validation_info {info}/instances_val2017.json --validation_images {images}"
    )


def test_archives_are_kept_on_request(server: Loopback, tmp_path: Path) -> None:
    call("--mirror", server.url(), "--data_dir", tmp_path, "--keep-archives", "--workers", "1")
    assert len(list(tmp_path.glob("*.zip"))) == 3


def test_a_dry_run_shows_what_is_there_of_an_archive(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "val2017.zip.part").write_bytes(bytes(3_000_000))
    result = call("--mirror", server.url(), "--data_dir", tmp_path, "--dry-run")
    assert ", 3 MB of it there\n" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"val2017.zip.part"}


def test_verify_lists_what_is_wrong_and_fails(server: Loopback, tmp_path: Path) -> None:
    where = ("--mirror", server.url(), "--data_dir", tmp_path)
    call(*where)
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    (tmp_path / "images" / "2.jpg").unlink()
    result = call("--verify", "--data_dir", tmp_path)
    assert result.exit_code == DataError.exit_code
    assert [line.partition(": ")[2] for line in result.stdout.splitlines()] == [
        "has 1 bytes instead of 631",
        "is missing",
    ]
    assert result.stderr == (
        f"error: {tmp_path} is not complete: 2 findings\n"
        "hint: run sparseml.yolact.download again; it fetches what is missing or damaged\n"
    )
    assert "2 of 3 archives fetched" in call(*where).stdout
    assert call("--verify", "--data_dir", tmp_path).exit_code == 0


def test_a_long_list_of_findings_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "yolact.download.coco_archives.verify", lambda *_, **__: [f"{n}" for n in range(25)]
    )
    result = call("--verify", "--data_dir", tmp_path)
    assert result.stdout.splitlines()[-2:] == ["19", "and 5 more"]


def test_weights_go_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(file: Weights, folder: Path, validate: object, *, mirror: str | None) -> Path:
        assert validate is read_once
        asked.append((file, folder, mirror))
        return folder / "file.pth"

    monkeypatch.setattr("yolact.download.trusted.fetch_weights", fetch)
    options = ("--dataset", "none", "--weights", "backbone")
    result = call(*options, "--mirror", "http://nas")
    assert (result.exit_code, result.stdout) == (0, "weights/file.pth: backbone weights\n")
    assert asked == [(WEIGHTS["backbone"], Path("weights"), "http://nas")]
    announced = call(*options, "--dry-run").stdout
    assert re.fullmatch(r"https://\S+/darknet53.pth -> weights/darknet53.pth\n", announced)


def test_an_unreachable_server_reads_as_an_error_and_a_hint(
    server: Loopback, tmp_path: Path
) -> None:
    result = call("--data_dir", tmp_path)
    assert result.exit_code == DownloadError.exit_code
    assert result.stderr.splitlines()[-2:] == [
        "error: annotations.zip cannot be fetched: 127.0.0.1 cannot be reached: Connection refused",
        "hint: check the connection, or fetch http://127.0.0.1:9/zips/annotations.zip on another "
        "machine",
    ]


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
