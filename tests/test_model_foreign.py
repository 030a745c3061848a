"""Weights of other programs: unwrapped, renamed, or named as what they are."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training import tiny_config, tiny_resnet
from yolact.checkpoint import load_checkpoint
from yolact.config import BackboneConfig
from yolact.errors import CheckpointError
from yolact.model.backbones.darknet import DarkNet
from yolact.model.foreign import adapt, find_weights
from yolact.model.identify import other_network
from yolact.model.weight_file import other_kind_of_file
from yolact.model.yolact import Yolact

State = dict[str, Tensor]
WIDTHS, BLOCKS = (4, 6, 8, 10, 12), (1, 2, 8, 8, 4)
WHOLE: State = Yolact(tiny_config().model).state_dict()
"""Of a network with two classes or more; only names and shapes matter."""
BACKBONE = {n[9:]: v for n, v in WHOLE.items() if n.startswith("backbone.")}
RESNET: State = Yolact(tiny_resnet().model).state_dict()
RESNET_BACKBONE = {n[9:]: v for n, v in RESNET.items() if n.startswith("backbone.")}


# The same network in other programs


class Layer(nn.Sequential):
    """Convolution, batch norm and activation under the names of a program."""

    def __init__(self, parts: tuple[str, str], before: int, out: int, side: int) -> None:
        stride = 2 if side == 3 and before != 3 and out > before and out in WIDTHS else 1
        conv = nn.Conv2d(before, out, side, stride, side // 2, bias=False)
        super().__init__(
            OrderedDict(
                {parts[0]: conv, parts[1]: nn.BatchNorm2d(out), "act": nn.LeakyReLU(0.1)},
            )
        )


class Theirs(nn.Module):
    """DarkNet-53 whose layers are at the places that a program gives them."""

    def __init__(self, place: Callable[[int, int, int], str], parts: tuple[str, str]) -> None:
        super().__init__()
        self.run: list[tuple[nn.Module, nn.Module | None]] = []
        self.put(place(-1, -1, 0), stem := Layer(parts, 3, 2, 3))
        self.run.append((stem, None))
        before = 2
        for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            self.put(place(stage, -1, 0), down := Layer(parts, before, width, 3))
            down[0].stride = (2, 2)  # type: ignore[assignment]
            self.run.append((down, None))
            before = width
            for block in range(blocks):
                self.put(place(stage, block, 1), one := Layer(parts, width, width // 2, 1))
                self.put(place(stage, block, 2), two := Layer(parts, width // 2, width, 3))
                two[0].stride = (1, 1)  # type: ignore[assignment]
                self.run.append((one, two))

    def put(self, place: str, layer: nn.Module) -> None:
        *path, name = place.split(".")
        module: nn.Module = self
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for one, two in self.run:
            x = one(x) if two is None else x + two(one(x))
        return x


def timm(stage: int, block: int, conv: int) -> str:
    if stage < 0:
        return "stem.conv1"
    return f"stages.{stage}." + ("conv_down" if block < 0 else f"blocks.{block}.conv{conv}")


def mmdetection(stage: int, block: int, conv: int) -> str:
    if stage < 0:
        return "conv1"
    return f"conv_res_block{stage + 1}." + ("conv" if block < 0 else f"res{block}.conv{conv}")


def pytorch_darknet53(stage: int, block: int, conv: int) -> str:
    if block < 0:
        return f"conv{stage + 2}"
    return f"residual_block{stage + 1}.{block}.layer{conv}"


def numbered(stage: int, block: int, conv: int) -> str:
    """A flat list, as programs have it that read the files of darknet."""
    before = sum(1 + 2 * blocks for blocks in BLOCKS[:stage]) if stage > 0 else 0
    number = 0 if stage < 0 else 1 + before + max(0, 1 + 2 * block) + max(0, conv - 1)
    return f"module_list.{number}"


PROGRAMS: dict[str, tuple[Callable[[int, int, int], str], tuple[str, str]]] = {
    "timm": (timm, ("conv", "bn")),
    "mmdetection": (mmdetection, ("conv", "bn")),
    "PyTorch-Darknet53": (pytorch_darknet53, ("0", "1")),
    "order": (numbered, ("conv", "batch_norm")),
}


def theirs(program: str) -> Theirs:
    torch.manual_seed(0)
    network = Theirs(*PROGRAMS[program]).eval()
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("by_name", "prefix"),
    [(False, ""), (True, "model.backbone.")],
    ids=["as saved", "sorted"],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_darknet53_of_another_program_computes_here_what_it_computes_there(
    program: str, by_name: bool, prefix: str
) -> None:
    network = theirs(program)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    assert len(state) == 312
    state |= {
        "head.fc.weight": torch.ones(5, 12),
        "neck.conv1.conv.weight": torch.ones(6, 12, 1, 1),
    }
    adapted = adapt(dict(sorted(state.items())) if by_name else state)
    ours = DarkNet(
        BackboneConfig(stem_channels=2, stage_channels=WIDTHS, stage_blocks=BLOCKS)
    ).eval()
    ours.load_state_dict(adapted.state)
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours(images)[-1], network(images))
    assert program in adapted.notes[0] and "2 others left out" in adapted.notes


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {n: v for n, v in s.items() if "3" not in n},
        lambda s: {n: v.repeat_interleave(3, 2) if v.ndim == 4 else v for n, v in s.items()},
        lambda s: {n: v[:1] if n.endswith("running_mean") else v for n, v in s.items()},
        lambda s: {n: v for n, v in s.items() if not n.endswith("running_var")},
    ],
    ids=["layers missing", "other kernels", "other widths", "no variances"],
)
def test_what_only_resembles_darknet53_is_left_as_it_is(
    change: Callable[[State], State],
) -> None:
    state = change(dict(theirs("order").state_dict()))
    assert adapt(state).state.keys() == state.keys()


# Prefixes and wrappers

PREFIXES = ["module.", "model.", "net.", "_orig_mod.", "module._orig_mod.module.", "a.student."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "state",
    [WHOLE, BACKBONE, RESNET, RESNET_BACKBONE],
    ids=["whole", "backbone", "resnet", "backbone of resnet"],
)
def test_words_before_the_names_are_taken_away(state: State, prefix: str) -> None:
    named = {f"{prefix}{name}": value for name, value in state.items()}
    adapted = adapt(named)
    assert adapted.notes and adapted.state.keys() == state.keys()
    assert all(adapted.state[name] is value for name, value in state.items())
    assert adapt(state) == (state, ())


def test_what_has_no_such_word_before_it_is_left_out() -> None:
    named = {f"module.{name}": value for name, value in WHOLE.items()}
    adapted = adapt({"n_averaged": torch.tensor(3), **named, "loss.weight": torch.ones(2)})
    assert adapted.state.keys() == WHOLE.keys() and "2 others left out" in adapted.notes


@pytest.mark.parametrize("inside", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
def test_a_backbone_wrapped_by_itself_is_unwrapped(inside: str) -> None:
    named = {name.replace("backbone.", f"backbone.{inside}"): v for name, v in WHOLE.items()}
    assert adapt(named).state.keys() == WHOLE.keys()


def test_names_of_quantized_layers_keep_their_own_module() -> None:
    name = "prediction_layers.0.conf_layer.module.weight"
    state = {f"module.{name}": torch.ones(3), "module.semantic_seg_conv.module.bias": torch.ones(1)}
    assert list(adapt(state).state) == [name, "semantic_seg_conv.module.bias"]


def test_averaged_weights_are_taken_where_both_are_there() -> None:
    averaged = {f"ema_model.{name}": value for name, value in WHOLE.items()}
    trained = {f"model.{name}": value + 1 for name, value in WHOLE.items()}
    state = adapt(trained | averaged).state
    assert all(state[name] is value for name, value in WHOLE.items())


T = torch.ones(2)


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"a.weight": T}, ()),
        ({"state_dict": {"a.weight": T}, "optimizer": {"state": {0: {"b": T}}}}, ("state_dict",)),
        ({"optimizer_states": {"b": T}, "model": {"a.weight": T}}, ("model",)),
        ({"net": {"a.weight": T}, "acc": 3.0, "rng_state": T}, ("net",)),
        ({"weights": {"a.weight": T}}, ("weights",)),
        ({"model_state": {"a.weight": T}}, ("model_state",)),
        ({"generator_b": {"a.weight": T}, "scaler": {"b": T}}, ("generator_b",)),
        ({"state_dict": {"b": T}, "state_dict_ema": {"a.weight": T}}, ("state_dict_ema",)),
        ({"model": {"b": T}, "ema": {"shadow": {"a.weight": T}}}, ("ema", "shadow")),
        ({"model": {"a.weight": T}, "ema": None}, ("model",)),
        ({"model": {"state_dict": {"a.weight": T}, "args": {}}}, ("model", "state_dict")),
        ({"model_state_dict": {"a.weight": T, "a._extra_state": None}}, ("model_state_dict",)),
    ],
)
def test_weights_are_found_in_what_is_around_them(content: Any, keys: tuple[str, ...]) -> None:
    found = find_weights(content)
    assert found is not None and found[0] == keys and list(found[1]) == ["a.weight"]


@pytest.mark.parametrize(
    "content", [3, [T], {}, {"a": 1}, {1: T}, {"optimizer": {"a": T}}, {"model": [T]}]
)
def test_there_may_be_no_weights(content: Any) -> None:
    assert find_weights(content) is None


# Files


def file_of(content: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(
    tmp_path: Path, dtype: torch.dtype, package_log: pytest.LogCaptureFixture
) -> None:
    package_log.set_level("INFO")
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in WHOLE.items()}
    loaded = load_checkpoint(file_of({"state_dict": state}, tmp_path / "a.ckpt")).model_state
    for name, value in loaded.items():
        assert value.is_contiguous() and value.dtype == WHOLE[name].dtype, name
        torch.testing.assert_close(value, WHOLE[name], atol=1e-2, rtol=1e-2)
    (line,) = package_log.messages
    assert line.startswith(f"{tmp_path / 'a.ckpt'}: {len(WHOLE)} of {len(WHOLE)} tensors taken: ")
    assert "'state_dict'" in line and str(dtype).removeprefix("torch.") in line


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("how", ["transposed", "parameters", "sparse", "shared"])
def test_tensors_of_any_form_are_read(tmp_path: Path, how: str) -> None:
    name = "semantic_seg_conv.weight"
    value = torch.rand(WHOLE[name].shape)
    forms = {
        "transposed": value.transpose(0, 1).contiguous().transpose(0, 1),
        "parameters": nn.Parameter(value),
        "sparse": value.to_sparse(),
        "shared": torch.cat([value, value])[: len(value)],
    }
    loaded = load_checkpoint(file_of({**WHOLE, name: forms[how]}, tmp_path / "a.pt"))
    assert torch.equal(loaded.model_state[name], value)
    assert loaded.model_state[name].is_contiguous() and not loaded.model_state[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_are_read_whatever_their_ending(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {f"model.{n}": v.to(dtype).contiguous() for n, v in WHOLE.items()}
    for name in ("a.safetensors", "a.pth"):
        save_file(state, tmp_path / name, metadata={"format": "pt"})
        assert load_checkpoint(tmp_path / name).model_state.keys() == WHOLE.keys()
    cut = (tmp_path / "a.pth").read_bytes()[:-9]
    (tmp_path / "a.pth").write_bytes(cut)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be read as a checkpoint: "):
        load_checkpoint(tmp_path / "a.pth")


class Settings:
    """Stands for what a program keeps beside weights."""

    def __init__(self) -> None:
        self.depth = 3


class SettingsDict(dict[str, int]):
    """The same as a dict."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        Namespace(lr=0.1, out=Path("a")),
        {"best": np.float64(3.5), "curve": np.arange(3.0), "when": defaultdict(list, a=[1])},
        {"cfg": Settings(), "more": SettingsDict(a=1)},
        torch.optim.SGD([nn.Parameter(T)], lr=0.1),
    ],
    ids=["arguments", "arrays", "objects", "optimizer"],
)
def test_settings_of_other_programs_beside_the_weights_do_not_matter(
    tmp_path: Path, settings: Any, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ModuleType("program_that_is_not_here")
    for kind in (Settings, SettingsDict):
        monkeypatch.setattr(kind, "__module__", gone.__name__)
        setattr(gone, kind.__name__, kind)
    with monkeypatch.context() as here:
        here.setitem(__import__("sys").modules, gone.__name__, gone)
        content = {"epoch": 3, "hyper_parameters": settings, "state_dict": WHOLE}
        file_of(content, tmp_path / "last.ckpt", legacy=legacy)
    assert load_checkpoint(tmp_path / "last.ckpt").model_state.keys() == WHOLE.keys()


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_beside_good_weights_is_refused_and_never_runs(tmp_path: Path, legacy: bool) -> None:
    content = {"args": Payload(tmp_path / "ran"), "state_dict": WHOLE}
    with pytest.raises(CheckpointError, match="is not a checkpoint of plain tensors"):
        load_checkpoint(file_of(content, tmp_path / "a.ckpt", legacy=legacy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: {"model": m}])
def test_a_pickled_network_is_refused_with_its_class_and_what_to_save(
    tmp_path: Path, wrap: Callable[[nn.Module], Any]
) -> None:
    with pytest.raises(
        CheckpointError, match=r"objects of yolact\.model\.backbones\.darknet\."
    ) as error:
        load_checkpoint(file_of(wrap(DarkNet(tiny_config().model.backbone)), tmp_path / "whole.pt"))
    assert error.value.hint and "state_dict" in error.value.hint


def big(path: Path, kind: str) -> Path:
    """A small file that would become very large."""
    if kind == "packed":
        file_of({"a.weight": torch.zeros(10**6)}, path)
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return path
    if kind == "repeated":
        return file_of({"a.weight": torch.zeros(1, dtype=torch.half).expand(10**12)}, path)
    if kind == "many":
        one = torch.zeros(10**5, dtype=torch.half)
        return file_of({f"{i}.weight": one for i in range(100)}, path)
    return file_of({"a.weight": torch.empty(10**12, device="meta")}, path)


@pytest.mark.parametrize("kind", ["packed", "repeated", "many", "without values"])
def test_a_file_that_claims_more_than_it_has_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be read as a checkpoint: ") as error:
        load_checkpoint(big(tmp_path / "a.pth", kind))
    assert error.value.hint


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b'<?xml version="1.0"?><Error>', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"\x08\x07\x12\x07pytorch\x1a\x06", "ONNX"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\0\0\0\0\2\0\0\0\0\0\0\0" + b"\1" * 20, "darknet"),
        (gzip.compress(b"a", mtime=0), "unpack"),
        (zipped("weights/a.pth", "weights/readme.txt"), "zip archive of 2 files"),
        (zipped("a/constants.pkl", "a/data.pkl"), "TorchScript"),
        (zipped("config.json", "model.weights.h5"), "Keras"),
        (json.dumps({"a": 1}).encode(), "not a file of PyTorch"),
        (b"", "empty"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert words in str(other_kind_of_file(tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match=words) as error:
        load_checkpoint(tmp_path / "a.pth")
    assert error.value.hint


# Other networks


def resnet(stage: str, blocks: int, convs: str = "123") -> list[str]:
    numbers = ((b, c) for b in range(blocks) for c in convs)
    return ["conv1.weight", *(f"{stage}.{b}.conv{c}.weight" for b, c in numbers)]


def within(names: list[str], *more: str) -> list[str]:
    return [*(f"backbone.{name}" for name in names), *more]


HEAD = "prediction_layers.0.conf_layer.weight"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (within(resnet("layers.2", 6), HEAD, "maskiou_net.0.weight"), "YOLACT++ on ResNet-50"),
        (
            within(resnet("layers.2", 23), HEAD, "backbone.layers.1.0.conv2.conv_offset_mask.bias"),
            "YOLACT++ on ResNet-101",
        ),
        (within(["layers.0.3.weight"], HEAD), "YOLACT on VGG"),
        (resnet("layer3", 23), "ResNet-101"),
        (resnet("layer3", 36), "ResNet-152"),
        (resnet("layer3", 6, "12"), "ResNet-34"),
        (resnet("layer3", 2, "12"), "ResNet-18"),
        (within(resnet("body.layer3", 6), "rpn.head.weight"), "R-CNN on ResNet-50"),
        (within(resnet("layer3", 6), "neck.convs.0.conv.weight"), "detector of another program on"),
        (within(resnet("bottom_up.res4", 23), "roi_heads.a.weight"), "R-CNN on ResNet-101"),
        (["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"], "YOLO"),
        (["backbone.backbone.dark2.0.conv.weight"], "YOLOX"),
        (["stages.0.conv_exp.conv.weight", "stages.0.blocks.0.conv1.bn.bias"], "CSPDarkNet"),
    ],
)
def test_other_networks_are_recognised(tmp_path: Path, names: list[str], words: str) -> None:
    for prefix in ("", "module."):
        state = {f"{prefix}{name}": torch.ones(2) for name in names}
        assert words in str(other_network(state))
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(file_of(state, tmp_path / "a.pth"))
        assert words in str(error.value) and "supported" in str(error.value) and error.value.hint


def test_our_own_networks_are_no_others() -> None:
    for ours in (WHOLE, BACKBONE, RESNET, RESNET_BACKBONE):
        assert other_network(ours) is None
    assert other_network(n for n in WHOLE if "_preconv" not in n) is None
