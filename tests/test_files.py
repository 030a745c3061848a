"""Files are written in one step, and refusals of the system read as errors."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from yolact.errors import ConfigError, StorageError
from yolact.files import (
    atomic_folder,
    atomic_path,
    distinct_names,
    require_own_places,
    require_writable,
    storage_errors,
    write_text,
)


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "old")
    write_text(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_lies_beside_the_target_with_its_ending(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.onnx") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".onnx"
        assert not (tmp_path / "model.onnx").exists()
    assert (tmp_path / "model.onnx").exists()


def test_a_folder_appears_as_a_whole_in_place_of_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    for name in ("old.txt", "new.txt"):
        with atomic_folder(target) as folder:
            (folder / name).write_text("")
            assert folder.parent.parent == target.parent
        assert [path.name for path in target.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), atomic_folder(target):
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert list(target.parent.iterdir()) == [target]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with (
        pytest.raises(StorageError, match="a file or folder of that name is in the way"),
        atomic_folder(tmp_path / "file"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_is_that_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file.txt", "")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == mode


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = "a file or folder of that name is in the way"
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt"):
        with pytest.raises(StorageError, match=message):
            write_text(path, "")
    with pytest.raises(StorageError, match=message):
        require_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_way_of_a_file_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write .*folder: a file or folder"):
        write_text(tmp_path / "folder", "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("number", "message", "hint"),
    [
        (errno.EACCES, "no permission to write out/a", "choose a folder you can write to"),
        (errno.EROFS, "no permission to write out/a", "choose a folder you can write to"),
        (errno.ENOSPC, "no space left to write out/a", "free some space or choose another disk"),
        (errno.EDQUOT, "no space left to write out/a", "free some space or choose another disk"),
    ],
)
def test_refusals_become_storage_errors(number: int, message: str, hint: str) -> None:
    with pytest.raises(StorageError) as error, storage_errors(Path("out/a")):
        raise OSError(number, os.strerror(number))
    assert (str(error.value), error.value.hint) == (message, hint)
    assert error.value.exit_code == 8


def test_other_system_errors_are_not_disguised() -> None:
    with pytest.raises(ConnectionResetError), storage_errors(Path("a")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_before_long_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission to write"):
        require_writable(tmp_path)


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_limit_reached_in_mid_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from yolact.errors import StorageError\n"
        "from yolact.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_text(Path(sys.argv[1]), 5000 * 'x')\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"no space left to write {path}\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["itself", "spelling", "symlink", "hard link", "folder"])
def test_a_result_never_takes_the_place_of_what_is_read(tmp_path: Path, kind: str) -> None:
    read = tmp_path / "in" / "a.png"
    read.parent.mkdir()
    read.write_bytes(b"mine")
    output = {
        "itself": read,
        "spelling": tmp_path / "in" / ".." / "in" / "a.png",
        "symlink": tmp_path / "b.png",
        "hard link": tmp_path / "b.png",
        "folder": tmp_path / "other" / "a.png",
    }[kind]
    if kind == "symlink":
        output.symlink_to(read)
    elif kind == "hard link":
        output.hardlink_to(read)
    elif kind == "folder":
        output.parent.symlink_to(read.parent)
    with pytest.raises(ConfigError, match="would replace a file that is read"):
        require_own_places([None, tmp_path / "new", output], [None, tmp_path / "no", read])


def test_two_results_need_two_places(tmp_path: Path) -> None:
    twice = [tmp_path / "a.json", tmp_path / "x" / ".." / "a.json"]
    with pytest.raises(ConfigError, match="two results would go to"):
        require_own_places(twice, [])
    require_own_places([tmp_path / "a.json", tmp_path / "b.json"], [tmp_path])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a_jpg", "a_png", "b"]),
        (["A.jpg", "a.jpg"], ["A_jpg", "a_jpg_001"]),
        (["x/1.jpg", "y/1.jpg"], ["x_1_jpg", "y_1_jpg"]),
        (["p/x/1.jpg", "q/x/1.jpg"], ["x_1_jpg", "x_1_jpg_001"]),
        (["x/1.jpg", "q/x/1.jpg", "x_1_jpg_001.jpg"], ["x_1_jpg", "x_1_jpg_002", "x_1_jpg_001"]),
        (["日" * 80 + ".jpg"], ["日" * 60]),
        ([], []),
    ],
)
def test_no_two_files_get_one_name(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names


@pytest.mark.parametrize("name", [os.fsdecode(b"b\xff.jpg"), "\ud800", "螺母"])
def test_any_text_can_be_written_and_json_reads_it_back(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "names.json", json.dumps([name], ensure_ascii=False))
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [name]


def test_a_result_behind_a_folder_that_is_still_to_be_made_is_compared(tmp_path: Path) -> None:
    read = tmp_path / "a.jpg"
    read.touch()
    with pytest.raises(ConfigError, match="would replace a file that is read"):
        require_own_places([tmp_path / "new" / ".." / "a.jpg"], [read])


def test_letters_that_names_of_files_cannot_have_here_are_an_error() -> None:
    refusal = UnicodeEncodeError(sys.getfilesystemencoding(), "日", 0, 1, "not in range")
    with pytest.raises(StorageError, match="without these letters"), storage_errors(Path("日")):
        raise refusal
    with pytest.raises(UnicodeEncodeError), storage_errors(Path("日")):
        raise UnicodeEncodeError("koi8-r", "日", 0, 1, "not in range")
