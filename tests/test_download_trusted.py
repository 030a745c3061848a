"""The author's weights: where from, checked how, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from loopback import Fault, Loopback, serving
from yolact.download.options import DownloadOptions
from yolact.download.stubs import WEIGHTS, Weights
from yolact.download.trusted import fetch_weights
from yolact.errors import ConfigError, DownloadError, YolactError
from yolact.model_files import read_once
from yolact.presets import BACKBONE_FILES, CONFIGS
from zoo import new_user, put, weights


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return new_user(tmp_path, monkeypatch)


@pytest.fixture
def server(home: Path) -> Iterator[Loopback]:
    """Has the backbone, at the author's address and at a mirror's."""
    with serving() as running:
        content = weights(home / "original.pth").read_bytes()
        running.files = {"author/darknet53.pth": content, "mirror/darknet53.pth": content}
        yield running


@pytest.fixture
def backbone(server: Loopback) -> Weights:
    """The author's file, at the server instead of his address."""
    return replace(WEIGHTS["backbone"], url=server.url("author/darknet53.pth"))


def paths(server: Loopback) -> list[str]:
    return [path for path, _ in server.log]


def test_the_addresses_are_the_authors() -> None:
    home = "https://huggingface.co/dbolya"
    assert {name: one.url for name, one in WEIGHTS.items()} == {
        "backbone": f"{home}/yolact-initial-weights/resolve/main/darknet53.pth",
        "base": f"{home}/yolact-darknet53/resolve/main/yolact_darknet53_54_800000.pth",
        "resnet50": f"{home}/yolact-initial-weights/resolve/main/resnet50-19c8e357.pth",
        "resnet101": f"{home}/yolact-initial-weights/resolve/main/resnet101_reducedfc.pth",
        "yolact_resnet50": f"{home}/yolact-resnet50/resolve/main/yolact_resnet50_54_800000.pth",
        "yolact_base": f"{home}/yolact-base/resolve/main/yolact_base_54_800000.pth",
        "yolact_im700": f"{home}/yolact-im700/resolve/main/yolact_im700_54_800000.pth",
    }


def test_every_one_can_be_asked_for_and_is_what_training_looks_for() -> None:
    choices = get_args(get_type_hints(DownloadOptions)["weights"])
    assert set(choices) == {*WEIGHTS, "none"}
    files = {one.file for one in WEIGHTS.values()}
    assert set(BACKBONE_FILES.values()) <= files
    trained = {name for name in WEIGHTS if f"{name}_config" in CONFIGS}
    assert {WEIGHTS[name].file for name in trained} == {f"{n}_54_800000.pth" for n in trained}


def test_weights_are_fetched_once_and_checked_from_then_on(
    home: Path, server: Loopback, backbone: Weights
) -> None:
    path = fetch_weights(backbone, home / "weights", read_once)
    assert path == home / "weights" / "darknet53.pth"
    assert path.read_bytes() == server.files["author/darknet53.pth"]
    hashes = json.loads((home / "config/sparseml-yolact/known_hashes.json").read_text())
    assert list(hashes) == ["darknet53.pth"]
    assert fetch_weights(backbone, home / "weights", read_once) == path
    assert len(server.log) == 1
    weights(path, 2.0)
    with pytest.raises(DownloadError, match="is not the file that darknet53.pth was on 20"):
        fetch_weights(backbone, home / "weights", read_once)


def test_a_mirror_is_asked_first_and_must_have_the_same_bytes(
    home: Path, server: Loopback, backbone: Weights
) -> None:
    fetch_weights(backbone, home / "a", read_once, mirror=server.url("mirror/"))
    assert paths(server) == ["mirror/darknet53.pth"]
    server.files["mirror/darknet53.pth"] = weights(home / "other.pth", 2.0).read_bytes()
    with pytest.raises(DownloadError, match="is not the file that darknet53.pth was"):
        fetch_weights(backbone, home / "b", read_once, mirror=server.url("mirror"))
    assert not (home / "b" / "darknet53.pth").exists()


def test_a_mirror_without_the_file_is_passed_over(
    home: Path, server: Loopback, backbone: Weights
) -> None:
    server.always["mirror/darknet53.pth"] = Fault(status=404)
    fetch_weights(backbone, home / "a", read_once, mirror=server.url("mirror"))
    assert paths(server) == ["mirror/darknet53.pth", "author/darknet53.pth"]


def test_the_mirror_map_is_asked_before_the_author(
    home: Path, server: Loopback, backbone: Weights
) -> None:
    settings = home / "config" / "sparseml-yolact" / "mirrors.yaml"
    put(settings, f"darknet53.pth: {server.url('mirror/darknet53.pth')}\n")
    fetch_weights(backbone, home / "a", read_once)
    assert paths(server) == ["mirror/darknet53.pth"]
    shutil.copy(home / "original.pth", home / "mine.pth")
    put(settings, f"darknet53.pth: {home / 'mine.pth'}\n")
    assert fetch_weights(backbone, home / "b", read_once).read_bytes() == (
        (home / "mine.pth").read_bytes()
    )
    assert len(server.log) == 1
    put(settings, f"darknet53.pth: {put(home / 'page.pth', '<html>')}\n")
    with pytest.raises(DownloadError, match="is not the file that darknet53.pth was"):
        fetch_weights(backbone, home / "c", read_once)
    assert not (home / "c" / "darknet53.pth").exists()
    put(settings, "darknet53.pth: gone.pth\n")
    with pytest.raises(ConfigError, match=r"says that darknet53\.pth is .*gone\.pth, which is no"):
        fetch_weights(backbone, home / "c", read_once)


def test_a_published_hash_is_not_recorded(home: Path, backbone: Weights) -> None:
    with pytest.raises(DownloadError, match="is not the expected file"):
        fetch_weights(replace(backbone, sha256="0" * 64), home, read_once)
    assert not (home / "config").exists()


def test_offline_only_what_is_there_is_used(
    home: Path, server: Loopback, backbone: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    with pytest.raises(YolactError) as caught:
        fetch_weights(backbone, home / "weights", read_once)
    assert str(caught.value) == (
        "darknet53.pth is not on this machine, and --offline forbids fetching it"
    )
    assert caught.value.hint == "leave out --offline (and unset YOLACT_OFFLINE)"
    weights(home / "weights" / "darknet53.pth")
    assert fetch_weights(backbone, home / "weights", read_once).is_file()
    assert not server.log


def test_no_network_is_said_at_once(home: Path, server: Loopback, backbone: Weights) -> None:
    server.shutdown()
    server.server_close()
    url = server.url("author/darknet53.pth")
    with pytest.raises(DownloadError) as caught:
        fetch_weights(backbone, home / "weights", read_once)
    assert str(caught.value) == (
        "darknet53.pth cannot be fetched: 127.0.0.1 cannot be reached: Connection refused"
    )
    assert caught.value.hint == f"check the connection, or fetch {url} on another machine"
