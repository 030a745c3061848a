"""Archives are unpacked whole or not at all, and never outside their folder."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.download.unzip import Rules, Unpacked, unpack
from yolact.errors import DownloadError, StorageError

RULES = Rules("val2017", ".jpg", 10_000)
FILES = {f"{number}.jpg": bytes([number]) * (100 + number) for number in range(1, 20)}
REFUSED = (
    "it is not the archive that was expected: remove it and download it again, from another network"
)


def zipped(
    members: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def good(compression: int = zipfile.ZIP_STORED) -> bytes:
    members: list[tuple[str | zipfile.ZipInfo, bytes]] = [("val2017/", b"")]
    return zipped([*members, *((f"val2017/{n}", d) for n, d in FILES.items())], compression)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def put(tmp_path: Path, data: bytes) -> tuple[Path, Path]:
    (tmp_path / "a.zip").write_bytes(data)
    return tmp_path / "a.zip", tmp_path / "images"


def refusal(tmp_path: Path, data: bytes, rules: Rules = RULES) -> str:
    """What unpacking says, after making sure that nothing was written anywhere."""
    path, folder = put(tmp_path, data)
    with pytest.raises(DownloadError) as error:
        unpack(path, folder, rules)
    assert {p.name for p in tmp_path.rglob("*")} <= {"a.zip", "images"}
    assert error.value.hint in (REFUSED, "remove it and run the command again")
    return str(error.value).replace(str(path), "a.zip")


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("batch", [1, 500, 1 << 22])
def test_files_come_out_without_their_folder(
    tmp_path: Path, workers: int, compression: int, batch: int
) -> None:
    path, folder = put(tmp_path, good(compression))
    got = unpack(path, folder, RULES, workers=workers, batch=batch)
    assert files(folder) == FILES
    assert got == [Unpacked(name, len(data), zlib.crc32(data)) for name, data in FILES.items()]


@pytest.mark.parametrize(
    "member",
    [
        *("../evil.jpg", "val2017/../../evil.jpg", "/etc/evil.jpg", "C:\\evil.jpg", "C:evil.jpg"),
        *("val2017\\..\\evil.jpg", "\\evil.jpg", "val2017/a\nb.jpg", "val2017/..", "../evil/"),
        *("val2017/x.jpg\0.exe", "//host/share/evil.jpg", "val2017/con|.jpg"),
    ],
)
def test_a_member_that_would_leave_the_folder_stops_everything(tmp_path: Path, member: str) -> None:
    place = "val2017/" + "x" * (len(member.encode()) - 8) if len(member) > 8 else "x" * len(member)
    data = zipped([("val2017/fine.jpg", b"fine"), (place, b"evil")])
    data = data.replace(place.encode(), member.encode())  # zipfile would write a tamer name
    said = refusal(tmp_path, data)
    assert said == f"a.zip holds {member!r}, which would be written outside its folder"


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    link = special("val2017/link.jpg", kind | 0o777)
    said = refusal(tmp_path, zipped([("val2017/fine.jpg", b"fine"), (link, b"/etc/passwd")]))
    assert said == "a.zip holds 'val2017/link.jpg', which is a link or a device"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["val2017/x.jpg", "val2017/X.jpg"])
def test_names_that_are_there_twice_are_refused(tmp_path: Path, second: str) -> None:
    said = refusal(tmp_path, zipped([("val2017/x.jpg", b"one"), (second, b"two")]))
    assert said == f"a.zip holds {second!r}, which is there twice"


@pytest.mark.parametrize(
    "member",
    ["train2017/x.jpg", "x.jpg", "val2017/sub/x.jpg", "val2017/x.exe", "val2017/.hidden.jpg"],
)
def test_other_files_than_expected_are_refused(tmp_path: Path, member: str) -> None:
    said = refusal(tmp_path, zipped([("val2017/fine.jpg", b"fine"), (member, b"x")]))
    assert said == f"a.zip holds {member!r}, which is not of the form val2017/*.jpg"


def test_an_archive_that_unpacks_to_more_than_allowed_is_refused(tmp_path: Path) -> None:
    bomb = zipped([("val2017/bomb.jpg", bytes(10_001))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 300
    said = refusal(tmp_path, bomb)
    assert said == "a.zip would unpack to 10001 bytes instead of at most 10000"


def test_a_bomb_that_states_a_small_size_is_cut_and_refused(tmp_path: Path) -> None:
    """The central directory says 100 bytes; the stream goes on for a hundred megabytes."""
    bomb = zipped([("val2017/bomb.jpg", bytes(10**8))], zipfile.ZIP_DEFLATED)
    said = refusal(tmp_path, bomb.replace(struct.pack("<L", 10**8), struct.pack("<L", 100)))
    assert said.startswith("a.zip is damaged: ") and "bomb.jpg" in said


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many entries that share one stream: how small archives unpack to terabytes."""
    data = bytearray(zipped([("val2017/a.jpg", b"x" * 50), ("val2017/a.jpg", b"x" * 50)]))
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    data = data.replace(b"val2017/a.jpg", b"val2017/b.jpg")
    data[first + 46 : first + 59] = b"val2017/a.jpg"
    assert "damaged" in refusal(tmp_path, bytes(data))


def test_an_empty_member_and_an_empty_archive_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, zipped([("val2017/x.jpg", b"")]))
    assert said == "a.zip holds 'val2017/x.jpg', which is empty"
    assert refusal(tmp_path, zipped([("val2017/", b"")])) == "a.zip holds no files"


def test_an_archive_without_its_beginning_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, good()[50:])
    assert said == "a.zip holds 'val2017/1.jpg', which begins before the archive does"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression_is_refused(tmp_path: Path, method: int) -> None:
    said = refusal(tmp_path, zipped([("val2017/x.jpg", b"x")], method))
    assert said == "a.zip holds 'val2017/x.jpg', which is compressed in an unusual way"


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped([("val2017/x.jpg", b"secret")]))
    data[data.index(b"PK\1\2") + 8] |= 1
    said = refusal(tmp_path, bytes(data))
    assert said == "a.zip holds 'val2017/x.jpg', which is encrypted"


def test_a_wrong_crc_is_found_and_the_file_does_not_appear(tmp_path: Path) -> None:
    path, folder = put(tmp_path, good().replace(bytes([7]) * 107, bytes([8]) * 107))
    with pytest.raises(DownloadError) as error:
        unpack(path, folder, RULES)
    assert str(error.value).startswith(f"{path} is damaged: ") and "7.jpg" in str(error.value)
    got = files(folder)
    assert "7.jpg" not in got and got.items() <= FILES.items()


@pytest.mark.parametrize("data", [b"", b"<html>", good()[:-30], good()[:1000]])
def test_what_is_no_zip_file_is_named(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data).startswith("a.zip is damaged: ")


@given(st.integers(0, len(good()) - 1), st.integers(1, 255))
def test_no_flipped_byte_gets_through(
    tmp_path_factory: pytest.TempPathFactory, at: int, mask: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("flipped")
    data = bytearray(good())
    data[at] ^= mask
    path, folder = put(tmp_path, bytes(data))
    try:
        got = unpack(path, folder, RULES)
    except DownloadError:
        got = []
    there = files(folder)
    assert {n for n in os.listdir(tmp_path)} <= {"a.zip", "images"}
    assert set(there.values()) <= set(FILES.values()), "whole files only"
    assert not got or len(got) == len(there)


def test_an_interrupted_call_is_gone_on_with(tmp_path: Path) -> None:
    path, folder = put(tmp_path, good())
    unpack(path, folder, RULES)
    kept = folder / "3.jpg"
    (folder / "1.jpg").unlink()
    (folder / "2.jpg").write_bytes(bytes(102))
    temporary = folder / ".a.zip.unpacking"
    temporary.mkdir()
    (temporary / "1.jpg").write_bytes(b"left by a killed process")
    inode = kept.stat().st_ino
    unpack(path, folder, RULES)
    assert files(folder) == FILES
    assert kept.stat().st_ino == inode


def test_it_ends_early_on_request(tmp_path: Path) -> None:
    class AfterFour(threading.Event):
        """Set as soon as four files have their names."""

        def is_set(self) -> bool:
            return len(list(folder.glob("*.jpg"))) >= 4

    path, folder = put(tmp_path, good())
    with pytest.raises(KeyboardInterrupt):
        unpack(path, folder, RULES, workers=1, stop=AfterFour())
    got = files(folder)
    assert len(got) == 4 and got.items() <= FILES.items()


def test_a_folder_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    path, folder = put(tmp_path, good())
    (folder / "5.jpg").mkdir(parents=True)
    with pytest.raises(StorageError, match="a file or folder of that name is in the way"):
        unpack(path, folder, RULES)


def test_a_link_of_the_users_is_replaced_not_followed(tmp_path: Path) -> None:
    path, folder = put(tmp_path, good())
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (folder / "5.jpg").symlink_to(tmp_path / "precious")
    unpack(path, folder, RULES)
    assert files(folder) == FILES
    assert (tmp_path / "precious").read_bytes() == b"precious"
