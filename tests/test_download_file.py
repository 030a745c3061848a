"""A download is resumed, verified and never half-finished, whatever the server does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from loopback import PAGE, Fault, Loopback, serving
from yolact.download.connections import Effort
from yolact.download.file import Digest, Source, accept, digest_of, fetch
from yolact.download.http import Answer, Patience
from yolact.download.part import Origin, Part, clamp, cut, gaps, total, union
from yolact.errors import ConfigError, DownloadError, StorageError

QUICK = Patience(attempts=3, first_wait=0.005, connect=2, stall=0.3, save_every=0.01)
DATA = random.Random(0).randbytes(100_000)
PIECE = 16_384
NAME = "some/file.zip"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as server:
        server.files[NAME] = DATA
        yield server


def digest(data: bytes, algorithm: str = "md5") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def known(server: Loopback, **changes: Any) -> Source:
    values = {"urls": (server.url(NAME),), "size": len(DATA), "digest": digest(DATA)}
    return Source(**{**values, **changes})


def unknown(server: Loopback) -> Source:
    return Source((server.url(NAME),))


def get(source: Source, folder: Path, **options: Any) -> str | None:
    effort = Effort(**{"patience": QUICK, "piece": PIECE, "connections": 1, **options})
    return fetch(source, folder / "file.zip", effort)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(folder: Path) -> bool:
    """Whether the file, and nothing but the file, is there."""
    return names(folder) == {"file.zip"} and (folder / "file.zip").read_bytes() == DATA


@pytest.mark.parametrize("connections", [1, 3, 50])
@pytest.mark.parametrize("piece", [1000, PIECE, 10**9])
@pytest.mark.parametrize("make", [known, unknown])
def test_a_file_arrives_whole(
    server: Loopback, tmp_path: Path, make: Any, piece: int, connections: int
) -> None:
    url = get(make(server), tmp_path, piece=piece, connections=connections)
    assert whole(tmp_path)
    assert url == server.url(NAME)


def test_pieces_are_asked_for_in_the_order_of_the_file(server: Loopback, tmp_path: Path) -> None:
    get(known(server), tmp_path)
    first, *rest = server.ranges(NAME)
    assert first == f"bytes=0-{PIECE - 1}"
    assert rest == [
        f"bytes={start}-{min(start + PIECE, len(DATA)) - 1}"
        for start in range(PIECE, len(DATA), PIECE)
    ]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=7000),
        Fault(reset=7000),
        Fault(stall=7000),
        Fault(reset=0),
        Fault(status=503),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(headers={"Content-Length": "9000"}),
        Fault(headers={"Content-Length": "99000"}, cut=PIECE),
    ],
)
def test_what_passes_is_waited_for(
    server: Loopback, tmp_path: Path, fault: Fault, connections: int
) -> None:
    server.plan(NAME, *[Fault(), fault] * 3)
    get(unknown(server), tmp_path, connections=connections)
    assert whole(tmp_path)


def test_a_broken_connection_goes_on_where_it_ended(server: Loopback, tmp_path: Path) -> None:
    server.plan(NAME, *[Fault(cut=30_000)] * 3)
    get(unknown(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == [
        *("bytes=0-999999", "bytes=30000-99999", "bytes=60000-99999", "bytes=90000-99999")
    ]
    assert whole(tmp_path)


@pytest.mark.parametrize("make", [known, unknown])
@pytest.mark.parametrize("connections", [1, 3])
def test_an_interrupted_run_is_gone_on_with(
    server: Loopback, tmp_path: Path, make: Any, connections: int
) -> None:
    server.plan(NAME, Fault(), Fault(), *[Fault(status=503)] * 100)
    options = {"connections": connections}
    with pytest.raises(DownloadError, match="503 Service Unavailable") as error:
        get(make(server), tmp_path, **options)
    assert error.value.hint == (
        "check the connection and run the command again; it goes on from here"
    )
    assert names(tmp_path) == {"file.zip.part", "file.zip.part.json", ".file.zip.lock"}
    server.faults.clear()
    server.log.clear()
    get(make(server), tmp_path, **options)
    assert whole(tmp_path)
    assert len(server.log) == 5, "of seven pieces two were there"


def test_ctrl_c_loses_nothing(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Part.save

    def interrupt(part: Part) -> None:
        monkeypatch.setattr(Part, "save", save)
        raise KeyboardInterrupt

    server.plan(NAME, Fault(stall=50_000))
    monkeypatch.setattr(Part, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(unknown(server), tmp_path, piece=10**6)
    server.log.clear()
    get(unknown(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == ["bytes=50000-99999"]
    assert whole(tmp_path)


def test_a_part_of_another_tool_is_adopted_when_the_digest_can_tell(
    server: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA[:60_000])
    get(known(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == ["bytes=60000-99999"]
    assert whole(tmp_path)


def test_a_part_of_another_tool_is_dropped_when_nothing_can_tell(
    server: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA[:60_000])
    get(unknown(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == ["bytes=0-999999"]
    assert whole(tmp_path)


@pytest.mark.parametrize("part", [b"x" * 60_000, DATA[:99_999] + b"x", b"x" * 100_000, DATA + b"x"])
@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_damaged_part_costs_a_second_start(
    server: Loopback, tmp_path: Path, part: bytes, size: int | None
) -> None:
    (tmp_path / "file.zip.part").write_bytes(part)
    get(known(server, size=size), tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"origin": {}, "spans": [[0, 9]]}'])
def test_an_unreadable_record_counts_as_none(server: Loopback, tmp_path: Path, record: str) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA[:60_000])
    (tmp_path / "file.zip.part.json").write_text(record)
    get(unknown(server), tmp_path)
    assert whole(tmp_path)


def test_a_record_never_counts_on_bytes_that_are_not_there(
    server: Loopback, tmp_path: Path
) -> None:
    origin = {"url": server.url(NAME), "size": len(DATA), "validator": None}
    record = {"origin": origin, "spans": [[0, 10_000], [20_000, 90_000]]}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(record))
    (tmp_path / "file.zip.part").write_bytes(DATA[:50_000])
    get(unknown(server), tmp_path, piece=10**6)
    assert server.ranges(NAME) == ["bytes=10000-19999", "bytes=50000-99999"]
    assert whole(tmp_path)


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("connections", [1, 3])
def test_a_file_that_changes_midway_is_fetched_anew(
    server: Loopback, tmp_path: Path, etags: bool, connections: int
) -> None:
    server.etags = etags
    other = DATA[::-1] if etags else DATA + b"more"
    server.plan(NAME, Fault(), Fault(), Fault(replace=other))
    get(unknown(server), tmp_path, connections=connections)
    assert (tmp_path / "file.zip").read_bytes() == other


def test_a_file_that_changed_between_two_runs_is_fetched_anew(
    server: Loopback, tmp_path: Path
) -> None:
    server.plan(NAME, Fault(), *[Fault(status=503)] * 3)
    with pytest.raises(DownloadError):
        get(unknown(server), tmp_path)
    server.files[NAME] = DATA[::-1]
    get(unknown(server), tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == DATA[::-1]


def test_a_file_that_never_stops_changing_is_given_up(server: Loopback, tmp_path: Path) -> None:
    server.plan(NAME, *(Fault(replace=bytes([i]) * 100_000) for i in range(100)))
    with pytest.raises(DownloadError, match="the file has changed") as error:
        get(unknown(server), tmp_path)
    assert str(error.value).startswith(f"cannot download {server.url(NAME)}: ")
    assert len(server.log) < 20


def test_a_server_without_ranges_starts_over(server: Loopback, tmp_path: Path) -> None:
    server.always[NAME] = Fault(ignore_range=True)
    server.plan(NAME, Fault(ignore_range=True, cut=60_000), Fault(ignore_range=True, cut=70_000))
    (tmp_path / "file.zip.part").write_bytes(b"x" * 50_000)
    get(known(server), tmp_path, connections=3)
    assert whole(tmp_path)


def test_a_server_without_ranges_that_always_breaks_is_given_up(
    server: Loopback, tmp_path: Path
) -> None:
    server.always[NAME] = Fault(ignore_range=True, cut=60_000)
    with pytest.raises(DownloadError) as error:
        get(unknown(server), tmp_path)
    url = server.url(NAME)
    assert str(error.value).startswith(f"cannot download {url}: the connection ")
    assert len(server.log) == 3, "the same bytes again are no progress"


def test_a_file_of_unstated_length_arrives(server: Loopback, tmp_path: Path) -> None:
    server.always[NAME] = Fault(ignore_range=True, headers={"Content-Length": None})
    get(known(server, size=None), tmp_path)
    assert whole(tmp_path)


def test_a_file_of_unstated_length_that_breaks_off_is_not_taken_for_whole(
    server: Loopback, tmp_path: Path
) -> None:
    server.always[NAME] = Fault(ignore_range=True, headers={"Content-Length": None}, cut=50_000)
    with pytest.raises(DownloadError) as error:
        get(unknown(server), tmp_path)
    assert str(error.value) == (
        f"{server.url(NAME)} does not say how long it is, so that nobody can tell whether all came"
    )
    with pytest.raises(DownloadError, match="has 50000 bytes instead of 100000"):
        get(known(server), tmp_path)


def test_more_than_was_asked_for_is_not_written(server: Loopback, tmp_path: Path) -> None:
    server.plan(NAME, Fault(headers={"Content-Range": "bytes 0-99/100000"}))
    get(unknown(server), tmp_path)
    assert server.ranges(NAME)[:2] == ["bytes=0-16383", "bytes=0-99"]
    assert whole(tmp_path)


@pytest.mark.parametrize("text", ["bytes 5-99/100000", "bytes 0-99999/100", "gibberish", None])
def test_other_ranges_than_asked_for_are_refused(
    server: Loopback, tmp_path: Path, text: str | None
) -> None:
    server.always[NAME] = Fault(headers={"Content-Range": text})
    with pytest.raises(DownloadError) as error:
        get(unknown(server), tmp_path)
    assert str(error.value) == (
        f"{server.url(NAME)} was asked for bytes 0-16383 and sends {text or 'others'!r}"
    )


@pytest.mark.parametrize("make", [known, unknown])
def test_a_web_page_with_status_200_is_refused(server: Loopback, tmp_path: Path, make: Any) -> None:
    page = Fault(body=PAGE, headers={"Content-Type": "text/html; charset=utf-8"})
    server.always[NAME] = page
    with pytest.raises(DownloadError) as error:
        get(make(server), tmp_path)
    url = server.url(NAME)
    assert str(error.value) == f"{url} answered with a web page instead of the file"
    assert "open it in a browser" in str(error.value.hint)
    assert not (tmp_path / "file.zip").exists()


def test_a_web_page_in_disguise_is_known_by_its_size_or_its_first_bytes(
    server: Loopback, tmp_path: Path
) -> None:
    server.always[NAME] = Fault(body=PAGE)
    url = server.url(NAME)
    with pytest.raises(DownloadError) as error:
        get(known(server), tmp_path)
    assert str(error.value) == f"{url} has {len(PAGE)} bytes instead of 100000"
    source = Source((url,), begins=(b"PK\3\4", b"\x80"))
    with pytest.raises(DownloadError) as error:
        get(source, tmp_path)
    assert str(error.value) == f"{url} is not the expected file: it begins with b'<htm'"
    assert not (tmp_path / "file.zip.part").exists()


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: Loopback, tmp_path: Path) -> None:
    server.files[NAME] = DATA[::-1]
    (tmp_path / "file.zip").write_bytes(b"what was there")
    with pytest.raises(DownloadError) as error:
        get(known(server), tmp_path)
    assert str(error.value) == (
        f"{server.url(NAME)} is not the expected file: it has {digest(DATA[::-1])} "
        f"instead of {digest(DATA)}"
    )
    assert (tmp_path / "file.zip").read_bytes() == b"what was there"
    assert not (tmp_path / "file.zip.part").exists()


def test_what_is_there_already_is_hashed_and_kept(server: Loopback, tmp_path: Path) -> None:
    get(known(server), tmp_path)
    (tmp_path / "file.zip.part.json").write_text("left by a killed process")
    server.log.clear()
    assert get(known(server), tmp_path) is None
    assert get(unknown(server), tmp_path) is None
    assert server.log == []
    assert whole(tmp_path)


def test_what_is_there_but_is_not_the_source_is_replaced(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(DATA[:-1] + b"x")
    get(known(server), tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_answer_that_would_not_change_is_asked_for_once(
    server: Loopback, tmp_path: Path, status: int
) -> None:
    server.always[NAME] = Fault(status=status)
    with pytest.raises(DownloadError, match=rf"{NAME} answered {status} "):
        get(known(server), tmp_path)
    assert len(server.log) == 1


def test_patience_ends(server: Loopback, tmp_path: Path) -> None:
    server.always[NAME] = Fault(status=503)
    with pytest.raises(DownloadError) as error:
        get(known(server), tmp_path)
    assert str(error.value) == (
        f"cannot download {server.url(NAME)}: the server answers 503 Service Unavailable"
    )
    assert len(server.log) == 3


def test_a_server_that_stalls_forever_is_given_up(server: Loopback, tmp_path: Path) -> None:
    server.always[NAME] = Fault(stall=0)
    with pytest.raises(DownloadError, match="no byte has come for too long"):
        get(known(server), tmp_path, patience=Patience(2, 0.01, stall=0.1))


def test_mirrors_are_tried_in_turn_and_share_what_has_arrived(
    server: Loopback, tmp_path: Path
) -> None:
    server.files["b"] = DATA
    server.plan(NAME, Fault(), Fault(status=404))
    get(known(server, urls=(server.url(NAME), server.url("b"))), tmp_path)
    assert whole(tmp_path)
    assert server.ranges("b")[0] == f"bytes={PIECE}-{2 * PIECE - 1}"


def test_without_a_digest_mirrors_are_not_mixed(server: Loopback, tmp_path: Path) -> None:
    server.files["b"] = DATA[::-1]
    server.plan(NAME, Fault(), Fault(status=404))
    get(Source((server.url(NAME), server.url("b"))), tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == DATA[::-1]


def test_when_all_mirrors_fail_each_says_why(server: Loopback, tmp_path: Path) -> None:
    urls = (server.url("a"), server.url("b"))
    server.always["b"] = Fault(status=403)
    with pytest.raises(DownloadError) as error:
        get(Source(urls), tmp_path)
    assert str(error.value) == (
        f"no address delivers file.zip: {urls[0]} answered 404 Not Found; "
        f"{urls[1]} answered 403 Forbidden"
    )


def test_a_redirect_is_followed(server: Loopback, tmp_path: Path) -> None:
    server.always["old"] = Fault(redirect=f"/{NAME}")
    get(Source((server.url("old"),)), tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("there", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/loop", "http://:x"])
def test_a_redirect_to_no_web_address_is_refused(
    server: Loopback, tmp_path: Path, there: str
) -> None:
    server.always["loop"] = Fault(redirect=there)
    with pytest.raises(DownloadError) as error:
        get(Source((server.url("loop"),)), tmp_path)
    assert str(error.value).startswith(f"{server.url('loop')} leads to no usable address: ")
    assert len(server.log) <= 11


def test_only_a_digest_lets_a_redirect_leave_https(tmp_path: Path) -> None:
    response: Any = SimpleNamespace(url="http://mirror/x")
    answer = Answer(response, Origin("https://home/x", 9, None), 0, 9, True)
    with pytest.raises(DownloadError) as error:
        accept(Source(("https://home/x",)), Part(tmp_path / "x"), tmp_path / "x", answer)
    assert str(error.value) == "https://home/x leads to http://mirror/x, which is not encrypted"
    source = Source(("https://home/x",), digest=digest(b""))
    accept(source, Part(tmp_path / "x"), tmp_path / "x", answer)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "ftp://a/b", "https:///a", ""]
)
def test_only_web_addresses_are_sources(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Source((url,))
    assert str(error.value) == f"{url!r} is not an address to download from"
    with pytest.raises(ConfigError, match="there is no address to download from"):
        Source(())


def test_two_processes_do_not_download_the_same_file(server: Loopback, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".file.zip.lock"), pytest.raises(DownloadError) as error:
        get(known(server), tmp_path)
    assert str(error.value) == f"another process is downloading to {tmp_path}/file.zip"
    get(known(server), tmp_path)
    assert whole(tmp_path)


def test_a_disk_without_room_is_noticed_before_the_first_byte(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(StorageError) as error:
        get(known(server), tmp_path)
    assert str(error.value) == (f"{tmp_path} has 0.1 MB free, the rest of file.zip takes 0.1 MB")
    (tmp_path / "file.zip.part").write_bytes(DATA[:60_000])
    get(known(server), tmp_path)
    assert whole(tmp_path)


def test_a_disk_that_fills_up_is_a_storage_error(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Part, "writer", full)
    with pytest.raises(StorageError, match="no space left to write"):
        get(known(server), tmp_path, connections=3)


def test_bytes_reach_the_disk_before_the_record_and_the_name(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noted_replace(source: Any, target: Any) -> None:
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    get(known(server), tmp_path)
    assert order[-2:] == ["fsync", "file.zip"]
    records = [i for i, name in enumerate(order) if name == "file.zip.part.json"]
    assert records and all(order[i - 2 : i] == ["fsync", "fsync"] for i in records)


def test_waits_double_with_jitter_up_to_a_bound() -> None:
    patience = Patience(first_wait=1, longest_wait=10)
    for failures, most in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)):
        waits = [patience.wait(failures) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert patience.wait(1, asked=5) == 5
    assert patience.wait(1, asked=500) == 10


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda s: (min(s), max(s))))


def members(spans: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in spans for byte in range(start, end)}


@given(SPANS, st.integers(1, 70), st.integers(1, 9))
def test_spans_and_gaps_divide_a_file(spans: list[tuple[int, int]], size: int, length: int) -> None:
    joined = union(spans)
    assert members(joined) == members(spans)
    assert all(a[1] < b[0] for a, b in pairwise(joined))
    there = clamp(joined, size)
    assert members(there) == members(spans) & set(range(size))
    missing = gaps(there, size)
    assert members(missing) == set(range(size)) - members(spans)
    assert total(there) + total(missing) == size
    pieces = cut(missing, length)
    assert members(pieces) == members(missing) and total(pieces) == total(missing)
    assert all(end - start <= length for start, end in pieces)


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    for algorithm in ("md5", "sha256"):
        assert digest_of(tmp_path / "x", algorithm) == digest(DATA, algorithm)
    assert str(digest(b"")) == "md5 d41d8cd98f00b204e9800998ecf8427e"
