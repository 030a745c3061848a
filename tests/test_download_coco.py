"""COCO's archives become the tutorial's layout, whatever interrupts them on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from loopback import Fault, Loopback, serving
from yolact.download.coco import Options, bytes_needed, download
from yolact.download.coco_archives import (
    DATASETS,
    MIRRORS,
    Archive,
    DataFolder,
    check_sense,
    mirrors_with,
    verify,
)
from yolact.download.http import Patience
from yolact.download.unzip import Rules
from yolact.errors import ConfigError, DataError, DownloadError, StorageError

QUICK = Patience(attempts=3, first_wait=0.005, connect=2, stall=0.5, save_every=0.01)


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def jpeg(value: int) -> bytes:
    picture = np.full((8, 8, 3), value, np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1].tobytes())


IMAGES = {f"{number:012}.jpg": jpeg(number) for number in range(5)}
INFO = json.dumps({"images": [{"file_name": name} for name in IMAGES]}).encode()
INFOS = {"instances_val2017.json": INFO, "captions_train2017.json": b'{"images": []}'}
VAL_ZIP = zipped({"val2017/": b"", **{f"val2017/{name}": data for name, data in IMAGES.items()}})
INFO_ZIP = zipped({f"annotations/{name}": data for name, data in INFOS.items()})


def archive(data: bytes, split: str, files: int, suffix: str, folder: str) -> Archive:
    rules = Rules(split, suffix, 10**6)
    md5 = hashlib.md5(data).hexdigest()
    return Archive(f"zips/{split}.zip", md5, len(data), rules, folder, files)


VAL = archive(VAL_ZIP, "val2017", 5, ".jpg", "images")
INFO_ARCHIVE = archive(INFO_ZIP, "annotations", 2, ".json", "annotations")
ALL = (INFO_ARCHIVE, VAL)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as server:
        server.files = {VAL.path: VAL_ZIP, INFO_ARCHIVE.path: INFO_ZIP}
        yield server


def get(server: Loopback, folder: Path, *archives: Archive, **options: Any) -> list[Archive]:
    settings = {"mirrors": (server.url(),), "patience": QUICK, **options}
    return download(archives or ALL, folder, Options(**settings))


def tree(folder: Path) -> dict[str, bytes]:
    """Everything that a user sees below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".downloaded" not in path.parts
    }


WHOLE = {
    **{f"images/{name}": data for name, data in IMAGES.items()},
    **{f"annotations/{name}": data for name, data in INFOS.items()},
}


def test_the_archives_become_the_tutorials_layout(server: Loopback, tmp_path: Path) -> None:
    assert get(server, tmp_path / "data" / "coco") == list(ALL)
    assert tree(tmp_path / "data" / "coco") == WHOLE
    check_sense(ALL, tmp_path / "data" / "coco")
    assert verify(ALL, tmp_path / "data" / "coco") == []


def test_a_second_run_asks_the_server_nothing_and_writes_nothing(
    server: Loopback, tmp_path: Path
) -> None:
    get(server, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    asked = len(server.log)
    assert get(server, tmp_path) == []
    assert len(server.log) == asked
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_second_run_finds_a_data_set_of_full_size_in_no_time(tmp_path: Path) -> None:
    train = DATASETS["coco2017"][2]
    names = [f"{number:012}.jpg" for number in range(train.files)]
    record = {"md5": train.md5, "kept": False, "names": names}
    record |= {"sizes": [0] * train.files, "crcs": [0] * train.files}
    (tmp_path / ".downloaded").mkdir()
    (tmp_path / ".downloaded" / "train2017.zip.json").write_text(json.dumps(record))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / names[0]).touch()
    began = os.times()
    assert not DataFolder(tmp_path).holds(train)
    ended = os.times()
    assert ended.user - began.user < 0.5


def test_only_what_is_missing_is_fetched(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path, INFO_ARCHIVE)
    assert get(server, tmp_path) == [VAL]
    assert tree(tmp_path) == WHOLE


def test_a_deleted_image_is_put_back_and_nothing_else_is_written(
    server: Loopback, tmp_path: Path
) -> None:
    get(server, tmp_path)
    lost, *others = (tmp_path / "images" / name for name in IMAGES)
    before = [path.stat().st_ino for path in others]
    lost.unlink()
    assert get(server, tmp_path) == [VAL]
    assert tree(tmp_path) == WHOLE
    assert [path.stat().st_ino for path in others] == before


def test_archives_are_kept_on_request_and_then_left_alone(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path, keep_archives=True)
    zips = {"val2017.zip": VAL_ZIP, "annotations.zip": INFO_ZIP}
    assert tree(tmp_path) == {**WHOLE, **zips}
    get(server, tmp_path)
    assert tree(tmp_path) == {**WHOLE, **zips}


def test_an_archive_that_lies_there_is_used(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "val2017.zip").write_bytes(VAL_ZIP)
    get(server, tmp_path)
    assert tree(tmp_path) == WHOLE
    assert server.ranges(VAL.path) == []


def test_a_removal_that_a_killed_run_owes_is_made_up_for(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path)
    (tmp_path / "val2017.zip").write_bytes(VAL_ZIP)
    assert get(server, tmp_path) == []
    assert tree(tmp_path) == WHOLE


def test_a_file_of_the_users_with_the_same_name_is_replaced_others_stay(
    server: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    name = next(iter(IMAGES))
    (tmp_path / "images" / name).write_bytes(b"half an image")
    (tmp_path / "images" / "mine.jpg").write_bytes(b"mine")
    get(server, tmp_path)
    assert tree(tmp_path) == {**WHOLE, "images/mine.jpg": b"mine"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"md5": 1}', '{"md5": "x", "kept": 0}'])
def test_an_unreadable_receipt_counts_as_none(
    server: Loopback, tmp_path: Path, content: str
) -> None:
    get(server, tmp_path)
    (tmp_path / ".downloaded" / "val2017.zip.json").write_text(content)
    assert get(server, tmp_path) == [VAL]
    assert tree(tmp_path) == WHOLE


def test_the_second_mirror_helps_out(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path, mirrors=(server.url("gone"), server.url()))
    assert tree(tmp_path) == WHOLE


def test_a_failed_archive_leaves_the_others_done(server: Loopback, tmp_path: Path) -> None:
    server.always[VAL.path] = Fault(status=404)
    with pytest.raises(DownloadError, match="val2017.zip answered 404 Not Found"):
        get(server, tmp_path)
    assert DataFolder(tmp_path).holds(INFO_ARCHIVE)
    server.always.clear()
    assert get(server, tmp_path) == [VAL]


def test_an_archive_with_other_files_than_it_should_have_is_not_signed(
    server: Loopback, tmp_path: Path
) -> None:
    other = archive(VAL_ZIP, "val2017", 6, ".jpg", "images")
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path, other)
    assert str(error.value) == f"{tmp_path}/val2017.zip holds 5 files instead of 6"
    assert not DataFolder(tmp_path).holds(other)


def limit_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


@pytest.mark.parametrize(
    ("name", "free", "need", "smaller"),
    [
        ("coco2017", 39_000_000_000, "39.0 GB free, the download needs 42.4 GB", True),
        ("coco2017-val", 1_000_000_000, "1.0 GB free, the download needs 3.1 GB", False),
    ],
)
def test_a_full_disk_is_noticed_beforehand(
    server: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    free: int,
    need: str,
    smaller: bool,
) -> None:
    """Nobody is told to take the smallest set instead of itself."""
    limit_disk(monkeypatch, free)
    with pytest.raises(StorageError) as error:
        get(server, tmp_path, *DATASETS[name])
    assert str(error.value) == f"{tmp_path} has {need}"
    assert str(error.value.hint) == (
        "free some space, choose another --data_dir" + ", or take --dataset coco2017-val" * smaller
    )
    assert server.log == []


def test_offline_is_said_before_a_full_disk(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    limit_disk(monkeypatch, 0)
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path, *DATASETS["coco2017-val"])
    assert str(error.value) == (
        "annotations_trainval2017.zip is not on this machine, and --offline forbids fetching it"
    )


def test_archives_that_are_there_are_unpacked_offline(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    (tmp_path / "val2017.zip").write_bytes(VAL_ZIP)
    assert get(server, tmp_path, VAL) == [VAL]
    assert server.log == []


def test_what_is_there_needs_no_room(server: Loopback, tmp_path: Path) -> None:
    state = DataFolder(tmp_path)
    assert bytes_needed(ALL, state) == len(VAL_ZIP) + len(INFO_ZIP) + 2 * 10**6
    (tmp_path / "val2017.zip").write_bytes(VAL_ZIP)
    (tmp_path / "annotations.zip.part").write_bytes(INFO_ZIP[:100])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x" * 1000)
    assert bytes_needed(ALL, state) == len(INFO_ZIP) - 100 + 2 * 10**6 - 1000
    get(server, tmp_path, INFO_ARCHIVE)
    assert bytes_needed([VAL], DataFolder(tmp_path)) == 10**6 - 1000


def test_a_folder_that_cannot_be_made_is_a_storage_error(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="in the way"):
        get(server, tmp_path / "file")


def test_verify_lists_what_is_wrong_and_the_next_download_repairs_it(
    server: Loopback, tmp_path: Path
) -> None:
    get(server, tmp_path, keep_archives=True)
    first, second, third, *_ = (tmp_path / "images" / name for name in IMAGES)
    first.unlink()
    second.write_bytes(b"short")
    damaged = bytearray(third.read_bytes())
    damaged[-3] ^= 1
    third.write_bytes(damaged)
    (tmp_path / "val2017.zip").write_bytes(VAL_ZIP[:-1])
    assert verify(ALL, tmp_path) == [
        f"{tmp_path}/val2017.zip: its MD5 differs",
        f"{first}: is missing",
        f"{second}: has 5 bytes instead of {len(IMAGES[second.name])}",
        f"{third}: its content differs",
    ]
    assert get(server, tmp_path) == [VAL]
    assert verify(ALL, tmp_path) == []
    assert {**tree(tmp_path), **WHOLE} == tree(tmp_path)


def test_verify_says_what_was_never_downloaded(tmp_path: Path) -> None:
    assert verify(ALL, tmp_path) == [
        "annotations.zip: not downloaded, or not completely",
        "val2017.zip: not downloaded, or not completely",
    ]


def test_annotations_that_are_no_json_are_named(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{")
    with pytest.raises(DataError, match=r"captions_train2017.json is no annotation file of COCO"):
        check_sense(ALL, tmp_path)


def test_images_that_the_annotations_name_must_be_there(server: Loopback, tmp_path: Path) -> None:
    info = json.dumps({"images": [{"file_name": "lost.jpg"}, {"file_name": next(iter(IMAGES))}]})
    get(server, tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(info)
    with pytest.raises(DataError) as error:
        check_sense(ALL, tmp_path)
    assert str(error.value) == f"{path} names images that are not there (1), such as lost.jpg"
    check_sense([INFO_ARCHIVE], tmp_path)


def test_a_sample_of_the_images_is_decoded(server: Loopback, tmp_path: Path) -> None:
    get(server, tmp_path)
    (tmp_path / "images" / "000000000002.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="000000000002.jpg"):
        check_sense(ALL, tmp_path)
    check_sense(ALL, tmp_path, sample=1)


def test_the_published_archives_have_two_addresses_and_a_digest() -> None:
    for archives in DATASETS.values():
        for known in archives:
            source = known.source()
            assert source.urls == tuple(mirror + known.path for mirror in MIRRORS)
            assert source.urls[0].startswith("https://")
            assert source.digest is not None and len(source.digest.value) == 32


def test_a_mirror_of_the_users_comes_first() -> None:
    assert mirrors_with("http://nas/coco") == ("http://nas/coco", *MIRRORS)
    urls = DATASETS["coco2017"][1].source(mirrors_with("http://nas/coco/")).urls
    assert urls[0] == "http://nas/coco/zips/val2017.zip"
    with pytest.raises(ConfigError, match="'file:///mnt' is not an address to download from"):
        mirrors_with("file:///mnt")
