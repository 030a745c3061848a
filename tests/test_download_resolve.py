"""Where the files of stubs are found, in which order, and what is said when they are not."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from loopback import Fault, Loopback, serving
from yolact.checkpoint import Checkpoint, TrainingState, save_checkpoint
from yolact.cli.inputs import recipe_source
from yolact.download.resolve import resolve
from yolact.download.stubs import MODELS, Kind, Weights
from yolact.errors import CheckpointError, ConfigError, DownloadError, RecipeError, YolactError
from yolact.model_files import read_once
from yolact.sparsify.recipe import load_recipe
from zoo import BASE, PRUNED, QUANT, RECIPE, ROOT, new_user, put, weights

CHECKPOINT, ONNX = Kind.CHECKPOINT, Kind.ONNX


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    author = Weights("yolact_darknet53_54_800000.pth", "http://127.0.0.1:9/author.pth")
    set_author(monkeypatch, author)
    return new_user(tmp_path, monkeypatch)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as running:
        yield running


def set_author(monkeypatch: pytest.MonkeyPatch, weights: Weights) -> None:
    """Let the author's release of base-none be elsewhere."""
    monkeypatch.setitem(MODELS, "base-none", replace(MODELS["base-none"], weights=weights))


def write_map(home: Path, content: dict[str, Any]) -> Path:
    return put(home / "config" / "sparseml-yolact" / "mirrors.yaml", json.dumps(content))


def find(text: str, *kinds: Kind, offline: bool = False, **more: Any) -> Path:
    with patch.dict("os.environ", {"YOLACT_OFFLINE": "1"} if offline else {}):
        return resolve(text, *kinds, validate=read_once, **more)


def failure(text: str, *kinds: Kind, **more: Any) -> YolactError:
    with pytest.raises(YolactError) as caught:
        find(text, *kinds, **more)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("folder", [ROOT + "/{}", "neuralmagic/yolact-darknet53-coco-pruned90"])
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (CHECKPOINT, "training/model.pth"),
        (CHECKPOINT, "pytorch/model.pth"),
        (ONNX, "model.onnx"),
        (ONNX, "deployment/model.onnx"),
        (Kind.RECIPE, "recipe.md"),
        (Kind.RECIPE, "recipe_original.md"),
        (Kind.RECIPE, "recipe/original.md"),
    ],
)
def test_every_layout_of_the_cache_is_known(home: Path, folder: str, kind: Kind, file: str) -> None:
    path = put(home / "zoo" / folder.format("pruned90-none") / file)
    assert find(PRUNED, kind) == path
    assert find(f"{PRUNED}?training=default", kind) == path


@pytest.mark.parametrize(
    ("stub", "folder"),
    [
        (BASE, "9eb1f165-c111-4d33-8375-ae2db87866c1"),
        (QUANT, "099e086b-1e84-450c-ab3b-90038c591554"),
    ],
)
def test_folders_named_by_the_models_id_are_known(home: Path, stub: str, folder: str) -> None:
    path = put(home / "zoo" / folder / "training" / "model.pth")
    assert find(stub, CHECKPOINT) == path


def test_the_cache_is_in_the_home_folder_unless_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARSEZOO_MODELS_PATH")
    monkeypatch.setenv("HOME", str(home))
    path = put(home / ".cache" / "sparsezoo" / ROOT / "base-none" / "model.onnx")
    assert find(BASE, ONNX) == path


def test_transfer_is_taken_only_when_asked_for(home: Path) -> None:
    folder = home / "zoo" / ROOT / "pruned90-none"
    transfer = put(folder / "training" / "model.ckpt.pth")
    recipe = put(folder / "recipe_transfer_learn.md")
    assert "is gone" in str(failure(PRUNED, CHECKPOINT))
    assert find(PRUNED, Kind.RECIPE).name == "yolact.pruned.md"
    assert find(f"{PRUNED}?recipe=transfer", CHECKPOINT) == transfer
    assert find(f"{PRUNED}?recipe=transfer", Kind.RECIPE) == recipe
    usual = put(folder / "training" / "model.pth")
    assert find(PRUNED, CHECKPOINT) == usual
    assert find(f"{PRUNED}?recipe=transfer", CHECKPOINT) == transfer


def test_empty_files_are_no_files(home: Path) -> None:
    put(home / "zoo" / ROOT / "pruned90-none" / "model.onnx", "")
    assert "is gone" in str(failure(PRUNED, ONNX))


def test_the_preferred_kind_comes_first_in_each_place(home: Path) -> None:
    checkpoint = put(home / "zoo" / ROOT / "base-none" / "training" / "model.pth")
    assert find(BASE, ONNX, CHECKPOINT) == checkpoint
    graph = put(home / "zoo" / ROOT / "base-none" / "model.onnx")
    assert find(BASE, ONNX, CHECKPOINT) == graph
    assert find(BASE, CHECKPOINT, ONNX) == checkpoint


def test_a_map_names_files_folders_and_addresses(home: Path, server: Loopback) -> None:
    file = weights(home / "models" / "p.pth")
    folder = home / "models" / "quant"
    graph = put(folder / "deployment" / "model.onnx")
    server.files["recipe.md"] = RECIPE.encode()
    write_map(
        home,
        {
            PRUNED: {"checkpoint": str(file), "recipe": server.url("recipe.md")},
            f"{QUANT.upper()}/": "../../models/quant",
        },
    )
    assert find(PRUNED, CHECKPOINT) == file
    assert find(QUANT, ONNX).resolve() == graph
    fetched = find(PRUNED, Kind.RECIPE)
    assert fetched.read_text() == RECIPE
    assert find(PRUNED, Kind.RECIPE, offline=True) == fetched
    assert server.log == [("recipe.md", server.log[0][1])]


def test_the_map_may_be_named_by_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(home / "here" / "p.onnx")
    path = put(home / "here" / "map.yaml", f"{PRUNED}: p.onnx\n")
    monkeypatch.setenv("YOLACT_ZOO_MIRRORS", str(path))
    assert find(PRUNED, ONNX) == file
    monkeypatch.setenv("YOLACT_ZOO_MIRRORS", "no.yaml")
    error = failure(PRUNED, ONNX)
    assert isinstance(error, ConfigError)
    assert str(error) == "YOLACT_ZOO_MIRRORS names no.yaml, which is no file"


def test_an_entry_for_the_query_is_preferred(home: Path) -> None:
    plain, other = put(home / "a.md"), put(home / "b.md")
    write_map(home, {PRUNED: str(plain), f"{PRUNED}?recipe=transfer_learn": str(other)})
    assert find(PRUNED, Kind.RECIPE) == plain
    assert find(f"{PRUNED}?recipe=original", Kind.RECIPE) == plain
    assert find(f"{PRUNED}?recipe=transfer", Kind.RECIPE) == other
    write_map(home, {BASE: str(plain)})
    assert find(f"{BASE}?recipe=original", Kind.RECIPE) == plain
    assert "is gone" in str(failure(f"{BASE}?recipe=transfer", Kind.RECIPE))


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("[1, 2]", "is not a mirror map", "it maps stubs to files, folders or addresses"),
        ("a: [", "cannot be read: ", "check it"),
        ("zoo:a: b", "zoo:a is not a model that SparseZoo had for YOLACT", "there were"),
        ("darknet5.pth: a", "neither a stub nor a weights file", "did you mean darknet53.pth?"),
        ("x: a", "has an entry for 'x', which is neither", "stubs begin with zoo:"),
        (f"{PRUNED}: 3", f"has no place for {PRUNED}: 3", "give a path or address"),
        (f"{PRUNED}: {{onx: a}}", f"names 'onx' of {PRUNED}", "try: onnx"),
        (f"{PRUNED}: https://a/b", "does not say what https://a/b is", "name its kind"),
        (f"{PRUNED}: {{url: a.pth, md5: b}}", "has no place", "{url: ..., sha256: ...}"),
        (f"{PRUNED}: {{url: a.pth, sha256: b}}", "has 1 digits instead of 64", "sha256sum"),
    ],
)
def test_mistakes_in_a_map_are_named(home: Path, content: str, message: str, hint: str) -> None:
    put(home / "config" / "sparseml-yolact" / "mirrors.yaml", content)
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, ConfigError)
    assert message in str(error) and hint in str(error.hint)


def test_an_entry_that_leads_nowhere_is_warned_about(
    home: Path, package_log: pytest.LogCaptureFixture
) -> None:
    path = write_map(home, {PRUNED: {"recipe": "/no/such.md"}})
    assert find(PRUNED, Kind.RECIPE).name == "yolact.pruned.md"
    warning = [line for line in package_log.records if line.levelno == logging.WARNING]
    assert [line.getMessage() for line in warning] == [
        f"{path} names /no/such.md, which does not exist"
    ]


def test_a_file_with_another_hash_than_the_map_says_is_refused(
    home: Path, server: Loopback
) -> None:
    file = weights(home / "p.pth")
    path = write_map(home, {PRUNED: {"checkpoint": {"url": str(file), "sha256": "0" * 64}}})
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, DownloadError)
    assert str(error).startswith(f"{file} is not the file that {path} means: its SHA-256 is ")
    assert error.hint == f"do not use it, or correct the map, which says {'0' * 64}"
    server.files["p.pth"] = file.read_bytes()
    write_map(home, {PRUNED: {"checkpoint": {"url": server.url("p.pth"), "sha256": "0" * 64}}})
    assert f"{server.url('p.pth')} is not the expected file" in str(failure(PRUNED, CHECKPOINT))
    assert not list((home / "cache").rglob("*.pth"))


def test_an_unknown_hash_is_recorded_and_a_changed_one_refused(
    home: Path, server: Loopback
) -> None:
    server.files["p.pth"] = weights(home / "p.pth").read_bytes()
    url = server.url("p.pth")
    write_map(home, {PRUNED: url})
    fetched = find(PRUNED, CHECKPOINT)
    hashes = home / "config" / "sparseml-yolact" / "known_hashes.json"
    entry = json.loads(hashes.read_text())[url]
    assert entry["size"] == fetched.stat().st_size and len(entry["sha256"]) == 64

    fetched.unlink()
    server.files["p.pth"] = weights(home / "p.pth", 2.0).read_bytes()
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, DownloadError)
    assert str(error).startswith(
        f"{fetched} is not the file that {url} was on {entry['recorded']}: its SHA-256 is "
    )
    assert str(error).endswith(f", then it was {entry['sha256']}")
    assert error.hint == (f"do not use it, or, if the change is right, remove {url} from {hashes}")
    assert not fetched.exists()
    hashes.write_text("{}")
    assert find(PRUNED, CHECKPOINT) == fetched


def test_a_file_changed_behind_our_back_is_refused_and_left(home: Path, server: Loopback) -> None:
    server.files["p.pth"] = weights(home / "p.pth").read_bytes()
    write_map(home, {PRUNED: server.url("p.pth")})
    fetched = find(PRUNED, CHECKPOINT)
    weights(fetched, 3.0)
    assert f"{fetched} is not the file that" in str(failure(PRUNED, CHECKPOINT, offline=True))
    assert fetched.exists()


def test_damaged_hashes_are_an_error(home: Path, server: Loopback) -> None:
    hashes = put(home / "config" / "sparseml-yolact" / "known_hashes.json", '{"a": 1}')
    server.files["p.pth"] = weights(home / "p.pth").read_bytes()
    write_map(home, {PRUNED: server.url("p.pth")})
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, ConfigError)
    assert str(error) == f"{hashes} is not a file of recorded hashes"


class Poison:
    def __reduce__(self) -> Any:
        return (print, ("code of the file was run",))


@pytest.mark.parametrize("what", ["pickle", "page", "cut"])
def test_what_is_no_file_of_tensors_is_refused_and_not_recorded(
    home: Path, server: Loopback, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    good = weights(home / "p.pth").read_bytes()
    torch.save({"layer.weight": Poison()}, home / "poison.pth")
    contents = {
        "pickle": (home / "poison.pth").read_bytes(),
        "page": b"<html>not here any more</html>",
        "cut": good[: len(good) // 2],
    }
    server.files["p.pth"] = contents[what]
    write_map(home, {PRUNED: server.url("p.pth")})
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, CheckpointError)
    assert {
        "pickle": "is not a checkpoint of plain tensors and values",
        "page": "is not the expected file: it begins with b'<htm'",
        "cut": "cannot be read as a checkpoint",
    }[what] in str(error)
    assert "code of the file" not in capsys.readouterr().out
    assert not (home / "config" / "sparseml-yolact" / "known_hashes.json").exists()
    server.files["p.pth"] = good
    assert find(PRUNED, CHECKPOINT).read_bytes() == good


def test_a_page_is_no_recipe(home: Path, server: Loopback) -> None:
    server.files["r.md"] = b"<html>not here any more</html>"
    write_map(home, {PRUNED: server.url("r.md")})
    error = failure(PRUNED, Kind.RECIPE)
    assert isinstance(error, RecipeError) and "is not a recipe" in str(error)


def test_the_service_that_ended_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, server: Loopback
) -> None:
    monkeypatch.setenv("SPARSEZOO_API_URL", server.url())
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *call, **_: asked.append(call))
    assert "SparseZoo's service has ended" in str(failure(PRUNED, ONNX, CHECKPOINT))
    assert find(PRUNED, Kind.RECIPE).name == "yolact.pruned.md"
    assert not asked and not server.log


def test_the_authors_release_is_base_none(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "yolact_darknet53_54_800000.pth"
    server.files[name] = weights(home / "p.pth").read_bytes()
    set_author(monkeypatch, Weights(name, server.url(name)))
    found = find(BASE, ONNX, CHECKPOINT)
    assert found == home / "cache" / "sparseml-yolact" / "weights" / name
    assert name in (home / "config/sparseml-yolact/known_hashes.json").read_text()
    assert len(server.log) == 1


def test_weights_that_were_downloaded_before_are_base_none(home: Path) -> None:
    beside = weights(home / "weights" / "yolact_darknet53_54_800000.pth")
    assert find(BASE, CHECKPOINT, offline=True) == Path("weights") / beside.name


def test_the_map_may_name_the_authors_file(home: Path) -> None:
    name = "yolact_darknet53_54_800000.pth"
    mine = weights(home / "mine.pth")
    write_map(home, {name: str(mine)})
    found = find(BASE, CHECKPOINT, offline=True)
    assert found == home / "cache" / "sparseml-yolact" / "weights" / name
    assert found.read_bytes() == mine.read_bytes()


def test_a_runs_checkpoint_of_that_name_is_not_base_none(home: Path, tiny_run: Path) -> None:
    put(home / "weights" / "yolact_darknet53_54_800000.pth", tiny_run.read_bytes())
    assert "is not on this machine" in str(failure(BASE, CHECKPOINT, offline=True))


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A checkpoint that training wrote."""
    state = TrainingState(
        optimizer={},
        scaler=None,
        rng={},
        steps_per_epoch=1,
        batch_size=1,
        accumulate=1,
        seed=0,
        stage_recipe=None,
        earlier_recipe=None,
    )
    checkpoint = Checkpoint(model_state={"a.weight": torch.ones(1)}, iteration=1, training=state)
    save_checkpoint(tmp_path / "run.pth", checkpoint)
    return tmp_path / "run.pth"


@pytest.mark.parametrize(
    ("stub", "name"),
    [
        (PRUNED, "yolact.pruned"),
        (f"{PRUNED}?recipe=original", "yolact.pruned"),
        (f"{PRUNED}?recipe=transfer_learn", "yolact.transfer"),
        (f"{QUANT}?recipe=transfer_learn", "yolact.transfer_quant"),
        (QUANT, "yolact.pruned_quant"),
        (f"{QUANT}?recipe=original&deployment=default", "yolact.pruned_quant"),
    ],
)
def test_recipes_are_in_the_package(stub: str, name: str) -> None:
    assert find(stub, Kind.RECIPE).name == f"{name}.md"
    began = time.monotonic()
    find(stub, Kind.RECIPE, offline=True)
    assert time.monotonic() - began < 0.5
    source, label = recipe_source(stub)
    recipe = load_recipe(source, label=label)
    assert (recipe.text, recipe.label) == (load_recipe(name).text, stub)


def test_every_place_is_logged_in_order(package_log: pytest.LogCaptureFixture, home: Path) -> None:
    package_log.set_level(logging.DEBUG, "yolact")
    found = find(PRUNED, Kind.RECIPE)
    caches, settings = (home / name / "sparseml-yolact" for name in ("cache", "config"))
    assert [line.getMessage() for line in package_log.records] == [
        f"{PRUNED}: no recipe in the local cache: nothing in {home / 'zoo'} and {caches}",
        f"{PRUNED}: no recipe in the mirror map: there is no {settings / 'mirrors.yaml'}",
        f"{PRUNED}: no recipe in known mirrors: none is known",
        f"{PRUNED}: the recipe is {found} (this package)",
    ]
    assert package_log.records[-1].levelno == logging.INFO


def test_what_is_gone_is_said_with_what_is_known_and_what_to_do(home: Path) -> None:
    copy = f"or name a copy in {home}/config/sparseml-yolact/mirrors.yaml; " + (
        "-v lists where it was looked for"
    )
    gone = "is gone: SparseZoo's service has ended, and no copy was found"
    pruned = (
        "sparseml.yolact.train --resume weights/yolact_darknet53_54_800000.pth "
        "--recipe yolact.pruned --save_folder pruned"
    )
    error = failure(PRUNED, CHECKPOINT)
    assert isinstance(error, CheckpointError)
    assert str(error) == (
        f"the checkpoint of {PRUNED} {gone} (box/mask mAP@0.5 49.36/46.37, 90.6 % of the "
        "convolution weights zero, 30.1 MB as compressed ONNX)"
    )
    assert error.hint == f"train one: {pruned}; {copy}"

    error = failure(PRUNED, ONNX, CHECKPOINT)
    assert str(error).startswith(f"the ONNX file or checkpoint of {PRUNED} {gone} (")
    assert error.hint == (
        f"make one: {pruned}, then sparseml.yolact.export_onnx "
        f"--checkpoint pruned/yolact_darknet53_best.pth; {copy}"
    )
    error = failure(QUANT, CHECKPOINT)
    assert "(box/mask mAP 29.82/28.26, 83.2 % of the convolution weights zero, INT8, 9.7 MB" in str(
        error
    )
    assert "--recipe yolact.pruned_quant --save_folder pruned_quant" in str(error.hint)
    error = failure(BASE, ONNX)
    assert "box/mask mAP 30.61/28.80, dense, 170 MB as compressed ONNX" in str(error)
    assert error.hint == f"export one: sparseml.yolact.export_onnx --checkpoint {BASE}; {copy}"
    error = failure(BASE, Kind.RECIPE)
    assert isinstance(error, RecipeError)
    assert str(error.hint).startswith(
        "leave the recipe out, base-none is trained without one: "
        "sparseml.yolact.train --resume weights/darknet53.pth --backbone; or name"
    )


def test_without_a_network_the_error_is_immediate_and_says_so(home: Path) -> None:
    began = time.monotonic()
    error = failure(BASE, CHECKPOINT)
    assert time.monotonic() - began < 1
    assert str(error) == (
        f"the checkpoint of {BASE} is not on this machine, and yolact_darknet53_54_800000.pth "
        "cannot be fetched: 127.0.0.1 cannot be reached: Connection refused"
    )
    assert str(error.hint).startswith("check the connection and run this again, or name a copy in")


def test_offline_nothing_is_tried_and_the_error_says_so(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_map(home, {BASE: server.url("p.pth")})
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    error = failure(BASE, CHECKPOINT)
    assert str(error) == (
        f"the checkpoint of {BASE} is not on this machine, and --offline forbids fetching it"
    )
    assert str(error.hint).startswith("run this once without --offline, or name a copy in ")
    assert not server.log


def test_a_mirror_that_fails_is_not_the_last_word(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "yolact_darknet53_54_800000.pth"
    server.files[name] = weights(home / "p.pth").read_bytes()
    server.always["moved.pth"] = Fault(status=404)
    set_author(monkeypatch, Weights(name, server.url(name)))
    write_map(home, {BASE: server.url("moved.pth")})
    assert find(BASE, CHECKPOINT).name == name
