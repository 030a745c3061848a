"""Whether the network may and can be used is found out at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback import Loopback, serving
from yolact.download.file import Source, fetch
from yolact.download.offline import is_offline, require_network, require_online, why_unreachable
from yolact.errors import DownloadError

NOBODY = "http://127.0.0.1:9/file"
"""The discard port: nobody listens."""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "YOLACT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as running:
        yield running


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("TRUE", True), ("yes", True), ("", False), ("0", False), ("No", False)],
)
def test_the_variable_is_read_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    assert is_offline() is False
    monkeypatch.setenv("YOLACT_OFFLINE", value)
    assert is_offline() is expected


def test_offline_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    require_online("the file")
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        require_online("the file")
    assert str(caught.value) == (
        "the file is not on this machine, and --offline forbids fetching it"
    )
    assert caught.value.hint == "leave out --offline (and unset YOLACT_OFFLINE)"


def test_a_server_that_can_be_reached_is_enough(server: Loopback) -> None:
    assert why_unreachable(server.url()) is None
    require_network("the file", [NOBODY, server.url("file")])
    assert not server.log


def test_no_server_that_can_be_reached_is_an_error_that_names_them() -> None:
    with pytest.raises(DownloadError) as caught:
        require_network("the file", [NOBODY, NOBODY, "http://127.0.0.1:13/file"])
    reason = "127.0.0.1 cannot be reached: Connection refused"
    assert str(caught.value) == f"the file cannot be fetched: {reason}"
    assert caught.value.hint == (
        "check the connection, or fetch http://127.0.0.1:13/file on another machine"
    )


def test_names_without_an_address_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert why_unreachable("https://nowhere.invalid/x") == (
        "nowhere.invalid cannot be reached: Name or service not known"
    )


def test_a_proxy_is_what_must_be_reached(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", server.url())
    assert why_unreachable("https://nowhere.invalid/x") is None
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    assert why_unreachable("https://nowhere.invalid/x") == (
        "127.0.0.1 cannot be reached: Connection refused"
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert why_unreachable(server.url()) is None


def test_a_transfer_does_not_wait_for_a_network_to_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Loopback
) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError, match="file cannot be fetched: 127.0.0.1 cannot be reached"):
        fetch(Source((NOBODY,)), tmp_path / "file")
    assert time.monotonic() - began < 1
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="--offline forbids fetching it"):
        fetch(Source((server.url("file"),)), tmp_path / "file")
    assert not server.log
