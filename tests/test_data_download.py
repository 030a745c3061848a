"""Downloads resume, are verified, and never leave their folder. The server is on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from yolact.data.download import Archive, Patience, download, is_present, unpack
from yolact.errors import DownloadError, StorageError

QUICK = Patience(attempts=3, first_wait=0.01, timeout=5)


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` bytes at most per answer, ``fail`` answers of 503 first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.fail = 0
        self.ranges = True
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.fail:
            self.server.fail -= 1
            self.send_error(503)
            return
        data = self.server.files.get(self.path[1:])
        if data is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match[1])
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.cut])

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


CONTENT = zipped({"val2017/": b"", "val2017/1.jpg": b"one" * 2000, "val2017/2.jpg": b"two" * 2000})


def archive(data: bytes = CONTENT, **changes: Any) -> Archive:
    values = {"md5": hashlib.md5(data).hexdigest(), "size": len(data), "unpacked": 1000}
    return Archive(**{"path": "zips/val.zip", "folder": "images", **values, **changes})


def get(server: Server, folder: Path, *archives: Archive, mirrors: Any = None) -> int:
    return download(archives, folder, mirrors=mirrors or [server.url], patience=QUICK)


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".downloaded" not in path.parts
    }


def test_an_archive_is_fetched_verified_and_flattened(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    assert get(server, tmp_path / "coco", archive()) == 1
    assert files(tmp_path / "coco") == {"images/1.jpg", "images/2.jpg"}
    assert (tmp_path / "coco" / "images" / "2.jpg").read_bytes() == b"two" * 2000


def test_a_second_run_asks_the_server_nothing(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    get(server, tmp_path, archive())
    assert get(server, tmp_path, archive()) == 0
    assert len(server.requests) == 1


def test_a_deleted_image_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    get(server, tmp_path, archive())
    (tmp_path / "images" / "1.jpg").unlink()
    assert not is_present(archive(), tmp_path)
    assert get(server, tmp_path, archive()) == 1
    assert (tmp_path / "images" / "1.jpg").is_file()


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_broken_connection_goes_on_where_it_ended(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    server.files["zips/val.zip"] = CONTENT
    server.cut = len(CONTENT) // 6 + 1
    assert get(server, tmp_path, archive(size=size)) == 1
    steps = [None, *(f"bytes={server.cut * i}-" for i in range(1, 6))]
    assert server.requests == steps, "progress does not use up the attempts"


def test_the_next_run_goes_on_from_the_part(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    (tmp_path / "val.zip.part").write_bytes(CONTENT[:100])
    get(server, tmp_path, archive())
    assert server.requests == ["bytes=100-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    server.ranges = False
    (tmp_path / "val.zip.part").write_bytes(b"x" * 100)
    assert get(server, tmp_path, archive()) == 1


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    (tmp_path / "val.zip.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path, archive(size=None)) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = CONTENT
    server.fail = 2
    assert get(server, tmp_path, archive()) == 1
    assert len(server.requests) == 3


def test_patience_ends(server: Server, tmp_path: Path) -> None:
    server.fail = 100
    with pytest.raises(DownloadError, match=r"cannot download .*val.zip: HTTP Error 503") as error:
        get(server, tmp_path, archive())
    assert len(server.requests) == 3
    assert "run the command again; it goes on from here" in str(error.value.hint)


def test_a_missing_file_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/zips/val.zip answered 404"):
        get(server, tmp_path, archive())
    assert len(server.requests) == 1


def test_the_second_mirror_helps_out(server: Server, tmp_path: Path) -> None:
    server.files["good/zips/val.zip"] = CONTENT
    mirrors = [server.url + "bad/", server.url + "good/"]
    assert get(server, tmp_path, archive(), mirrors=mirrors) == 1


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = b"x" * len(CONTENT)
    with pytest.raises(DownloadError, match="is not the expected file: its MD5 differs"):
        get(server, tmp_path, archive())
    assert files(tmp_path) == set()


def test_a_file_of_another_size_is_not_even_read(server: Server, tmp_path: Path) -> None:
    server.files["zips/val.zip"] = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=rf"has 26 bytes instead of {len(CONTENT)}"):
        get(server, tmp_path, archive())
    assert files(tmp_path) == set()


def test_no_server_is_a_download_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot download http://127.0.0.1:9/"):
        download([archive()], tmp_path, mirrors=["http://127.0.0.1:9/"], patience=QUICK)


@pytest.mark.parametrize("member", ["../evil.txt", "a/../../evil.txt", "/etc/evil", "C:\\evil.txt"])
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(zipped({"fine.jpg": b"fine", member: b"evil"}))
    with pytest.raises(DownloadError, match="would be written outside its folder"):
        unpack(path, tmp_path / "images")
    assert files(tmp_path) == {"bad.zip"}


def test_a_damaged_zip_is_named_and_leaves_no_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(CONTENT.replace(b"twotwo", b"tXotwo", 1))
    with pytest.raises(DownloadError, match=r"bad.zip is damaged"):
        unpack(path, tmp_path / "images")
    assert files(tmp_path) == {"bad.zip"}


def test_a_full_disk_is_noticed_beforehand(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Counter(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), dict(usage))())
    with pytest.raises(StorageError, match="has 1.0 GB free, the download needs 40.0 GB") as error:
        get(server, tmp_path, archive(size=20_000_000_000, unpacked=20_000_000_000))
    assert "coco2017-val" in str(error.value.hint)
    assert server.requests == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="in the way"):
        get(server, tmp_path / "file", archive())
