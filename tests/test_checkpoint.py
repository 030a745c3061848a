"""Checkpoint files: what is written comes back, other tools' files load, bad ones are refused."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training import names, tiny_config, unequal
from yolact.checkpoint import (
    SCHEMA,
    Checkpoint,
    TrainingState,
    checkpoint_name,
    classes_of,
    load_checkpoint,
    parse_checkpoint_name,
    save_checkpoint,
)
from yolact.config import YolactConfig
from yolact.data.labels import COCO_CLASSES, Classes
from yolact.errors import CheckpointError, YolactError
from yolact.model.weights import is_quantized_state
from yolact.model.yolact import Yolact
from yolact.model_files import find_checkpoint
from yolact.restore import build_model

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

CLASSES = Classes(("disc", "ring", "star"), (1, 3, 9))
CONFIG = tiny_config().with_model(num_classes=3)


def model_state(config: YolactConfig = CONFIG) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = Yolact(config.model).state_dict()
    return state


def full_checkpoint() -> Checkpoint:
    """Every part that a training run stores."""
    model = Yolact(CONFIG.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    training = TrainingState(
        optimizer=optimizer.state_dict(),
        scaler={"scale": 2.0, "_growth_tracker": 3},
        rng={"cpu": torch.get_rng_state()},
        steps_per_epoch=40,
        batch_size=8,
        accumulate=2,
        seed=5,
        stage_recipe="modifiers: []",
        earlier_recipe=None,
    )
    return Checkpoint(
        model_state=model.state_dict(),
        epoch=2,
        iteration=100,
        recipe="modifiers: []",
        classes=CLASSES,
        config=CONFIG,
        training=training,
        best_map=12.5,
    )


# Round trip


def test_everything_written_comes_back(tmp_path: Path) -> None:
    path, saved = tmp_path / "a.pth", full_checkpoint()
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert unequal(saved, loaded) == []
    assert (loaded.classes, loaded.config) == (CLASSES, CONFIG)
    assert (loaded.position, loaded.num_classes, loaded.quantized) == (2.5, 3, False)


def test_weights_alone_come_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", Checkpoint(model_state=model_state()))
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert (loaded.training, loaded.config, loaded.recipe) == (None, None, None)
    assert loaded.position == float("inf")


def test_the_file_has_the_documented_keys_and_the_references_layout(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", full_checkpoint())
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == [
        *("epoch", "model_state_dict", "checkpoint_recipe", "schema", "iteration"),
        *("classes", "config", "training", "best_map"),
    ]
    assert content["schema"] == SCHEMA
    assert content["classes"] == {"names": ["disc", "ring", "star"], "ids": [1, 3, 9]}


def test_weights_are_read_onto_the_cpu_wherever_they_were(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", full_checkpoint())
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert {value.device.type for value in loaded.model_state.values()} == {"cpu"}


# Files of other tools


def test_a_bare_state_dict_is_a_checkpoint(tmp_path: Path) -> None:
    torch.save(OrderedDict(model_state()), tmp_path / "yolact_darknet53_54_800000.pth")
    loaded = load_checkpoint(tmp_path / "yolact_darknet53_54_800000.pth")
    assert loaded == Checkpoint(model_state=loaded.model_state)
    assert loaded.model_state.keys() == model_state().keys()


def test_torchs_legacy_format_is_read(tmp_path: Path) -> None:
    torch.save(model_state(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "a.pth").num_classes == 3


def test_the_layout_of_the_reference_is_read(tmp_path: Path) -> None:
    content = {"epoch": 7, "model_state_dict": model_state(), "checkpoint_recipe": "version: 1"}
    torch.save(content, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert (loaded.epoch, loaded.iteration, loaded.recipe) == (7, None, "version: 1")


def test_obsolete_names_of_early_files_do_not_prevent_building() -> None:
    state = model_state()
    state["backbone.layer1.0.weight"] = torch.zeros(1)
    state["fpn.downsample_layers.2.weight"] = torch.zeros(1)
    assert build_model(Checkpoint(model_state=state), CONFIG).training is False


# Building


def test_a_model_is_built_from_what_the_file_says(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", full_checkpoint())
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    model = build_model(checkpoint)
    assert model.config == CONFIG.model and not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.model_state[name])


def test_the_number_of_classes_is_that_of_the_weights() -> None:
    model = build_model(Checkpoint(model_state=model_state()), tiny_config())
    assert model.config.num_classes == 3


def test_weights_of_another_network_are_refused() -> None:
    wider = CONFIG.with_model(proto_channels=16)
    with pytest.raises(CheckpointError, match="the weights do not fit the model"):
        build_model(Checkpoint(model_state=model_state()), wider)


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not the weights of a YOLACT model") as error:
        build_model(Checkpoint(model_state={"fc.weight": torch.zeros(2, 2)}))
    assert error.value.hint


def test_quantized_weights_without_their_recipe_are_refused() -> None:
    state = model_state() | {"proto_net.0.quant.zero_point": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="is quantized, but holds no recipe") as error:
        build_model(Checkpoint(model_state=state, config=CONFIG))
    assert error.value.hint == "use the checkpoint that the training run itself wrote"
    assert is_quantized_state(state) and not is_quantized_state(model_state())


def test_classes_are_the_files_or_cocos_or_numbers() -> None:
    weights = {80: model_state(tiny_config().with_model(num_classes=80)), 3: model_state()}
    assert classes_of(Checkpoint(model_state=weights[3], classes=CLASSES)) == CLASSES
    assert classes_of(Checkpoint(model_state=weights[80])) == COCO_CLASSES
    assert classes_of(Checkpoint(model_state=weights[3])) == Classes.numbered(3)


# Names


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    st.integers(0, 10**4),
    st.integers(0, 10**7),
    st.booleans(),
)
def test_a_name_tells_what_it_was_made_of(
    config: str, epoch: int, iteration: int, interrupt: bool
) -> None:
    name = checkpoint_name(config, epoch, iteration, interrupt=interrupt)
    assert parse_checkpoint_name(Path("weights") / name) == (config, epoch, iteration)


@pytest.mark.parametrize("name", ["model.pth", "tiny_best.pth", "tiny_5.pth", "_1_2.pth"])
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_checkpoint_name(Path(name)) is None


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).touch()


def test_latest_is_the_one_furthest_along(tmp_path: Path) -> None:
    touch(tmp_path, "tiny_0_9.pth", "tiny_1_10.pth", "tiny_best.pth", "tiny_2_99_50.pth")
    touch(tmp_path, "other_9_900.pth", "tiny_1_10.onnx", ".tiny_7_70.pth")
    assert find_checkpoint(tmp_path, "latest", "tiny").name == "tiny_1_10.pth"
    touch(tmp_path, "tiny_1_11_interrupt.pth")
    assert find_checkpoint(tmp_path, "latest", "tiny").name == "tiny_1_11_interrupt.pth"


def test_interrupt_is_the_newest_interrupted_one(tmp_path: Path) -> None:
    touch(tmp_path, "tiny_0_8_interrupt.pth", "tiny_1_12_interrupt.pth", "tiny_9_90.pth")
    assert find_checkpoint(tmp_path, "interrupt", "tiny").name == "tiny_1_12_interrupt.pth"


@pytest.mark.parametrize("which", ["latest", "interrupt"])
def test_a_folder_without_one_is_named(tmp_path: Path, which: str) -> None:
    touch(tmp_path, "other_1_2.pth", "other_1_2_interrupt.pth")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError) as error:
            find_checkpoint(folder, which, "tiny")
        assert str(error.value) == f"no {which} checkpoint of tiny in {folder}"
        assert error.value.hint and "--save_folder" in error.value.hint


# Refusals


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path: Path, legacy: bool) -> None:
    for content in (Payload(tmp_path / "ran"), {"model_state_dict": Payload(tmp_path / "ran")}):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(tmp_path / "a.pth")
        message = f"{tmp_path / 'a.pth'} is not a checkpoint of plain tensors and values"
        assert str(error.value).startswith(message) and "pathlib" in str(error.value)
        assert error.value.hint and "arbitrary code" in error.value.hint
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.pth", tmp_path):
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path)
        assert str(error.value) == f"checkpoint not found: {path}"
        assert error.value.hint == "check the path, or train a model first"
        assert error.value.exit_code == 4


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_says_so(tmp_path: Path, fraction: float) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, full_checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(CheckpointError, match="a.pth cannot be read as a checkpoint") as error:
        load_checkpoint(path)
    assert error.value.hint and "truncated" in error.value.hint
    assert "\n" not in str(error.value)


def small_files() -> list[bytes]:
    files = []
    for legacy in (False, True):
        file = io.BytesIO()
        content = {"model_state_dict": {"a": torch.arange(4.0)}, "epoch": 1, "schema": 1}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        files.append(file.getvalue())
    return [*files, *(pickle.dumps({"a": 1}, protocol) for protocol in range(5))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_a_checkpoint_error_or_load(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(small_files())))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        assert error.hint


@pytest.mark.parametrize(
    "text", ["", "<html><body>404 Not Found</body></html>", "epoch: 1\n", "PK\x03\x04 no zip"]
)
def test_a_text_file_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pth").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.pth (is not|cannot be read as) a checkpoint"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"model_state_dict": {}}, 7])
def test_a_file_without_weights_is_no_checkpoint(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds no model weights") as error:
        load_checkpoint(tmp_path / "a.pth")
    assert error.value.hint == "expected a state_dict or a dict with model_state_dict"


def changed(path: Path, **values: Any) -> Path:
    save_checkpoint(path, full_checkpoint())
    torch.save(torch.load(path, weights_only=True) | values, path)
    return path


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.pth", schema=SCHEMA + 1)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(error.value) == f"{path} was written by a newer version of sparseml-yolact"
    assert error.value.hint == "upgrade: pip install -U sparseml-yolact"


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"modle": {}}},
        {"config": 7},
        {"config": {"model": {"image_size": "wide"}}},
        {"training": {"optimizer": {}}},
        {"training": {"nothing": 1}},
        {"classes": {"names": ["a"]}},
        {"classes": {"names": ["a", "b"], "ids": [1]}},
        {"classes": 7},
    ],
)
def test_what_describes_the_weights_has_to_make_sense(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    path = changed(tmp_path / "a.pth", **values)
    with pytest.raises(CheckpointError, match="what describes them cannot be understood") as error:
        load_checkpoint(path)
    assert error.value.hint


def test_a_checkpoint_may_have_keys_of_its_owner(tmp_path: Path) -> None:
    assert load_checkpoint(changed(tmp_path / "a.pth", note="best of three")).epoch == 2


# Writing


def test_a_failing_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, full_checkpoint())
    before = path.read_bytes()

    def fails(content: Any, file: Any) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(path, full_checkpoint())
    assert path.read_bytes() == before and names(tmp_path) == ["a.pth"]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_the_old_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, full_checkpoint())
    before = path.read_bytes()
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from yolact.checkpoint import Checkpoint, save_checkpoint\n"
        "from yolact.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "large = {str(i): torch.zeros(10_000) for i in range(9)}\n"
        "try: save_checkpoint(Path(sys.argv[1]), Checkpoint(model_state=large))\n"
        "except StorageError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"no space left to write {path}\n"
    assert path.read_bytes() == before and names(tmp_path) == ["a.pth"]


def test_errors_of_checkpoints_are_errors_of_the_user() -> None:
    assert issubclass(CheckpointError, YolactError) and CheckpointError.exit_code == 4
