"""Quantization-aware training: which layers are quantized, how, and until when they learn."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modifier_cases import Case, Verdict
from modifier_cases.practice import engine_in_use, in_turn, practice, recipe
from training import differences, make_shapes, resume, tiny_settings
from yolact.checkpoint import classes_of, load_checkpoint
from yolact.errors import RecipeError
from yolact.exporter.export import export
from yolact.model.fake_quantize import FakeQuantize, is_fake_quantize
from yolact.model.quantized_layers import is_quant_wrapper
from yolact.model.weights import is_quantized
from yolact.restore import build_model
from yolact.training.loop import train
from yolact.training.settings import SaveSettings
from yolact.training.start import Run

BN, RELU, PLAIN = 16, 5, 13
"""Convolutions of the tiny network: before a batch norm, before a ReLU, and by themselves."""
ALL = BN + RELU + PLAIN
WEIGHT, INPUT = (8, "symmetric", "tensor"), (8, "asymmetric", "tensor")
ACTIVATIONS = frozenset({"LeakyReLU", "ReLU", "Upsample"})


@dataclass(frozen=True)
class Seen:
    """The quantizers of a model, counted by bits, symmetry and scope."""

    weights: Counter[tuple[int, str, str]]
    inputs: Counter[tuple[int, str, str]]
    """Of convolutions."""
    others: frozenset[str]
    """Classes of the other layers whose input is quantized."""
    outputs: Counter[tuple[int, str, str]]
    """Of all layers."""
    fused: int
    """Convolutions fused with their batch norm."""


DEFAULT = Seen(
    Counter({WEIGHT: ALL}), Counter({INPUT: ALL}), ACTIVATIONS, outputs=Counter(), fused=BN
)

NOTHING = Seen(Counter(), Counter(), frozenset(), outputs=Counter(), fused=0)


def look(model: nn.Module) -> Seen:
    """What there is now."""
    wrappers = [m for m in model.modules() if is_quant_wrapper(m)]
    convs = [w for w in wrappers if isinstance(w.module, nn.Conv2d)]
    seen_from_inside = {id(w.quant) for w in wrappers}
    return Seen(
        weights=_count(getattr(m, "weight_fake_quant", None) for m in model.modules()),
        inputs=_count(getattr(w.quant, "activation_post_process", None) for w in convs),
        others=frozenset(type(w.module).__name__ for w in wrappers if w not in convs),
        outputs=_count(
            getattr(m, "activation_post_process", None)
            for m in model.modules()
            if id(m) not in seen_from_inside and not is_fake_quantize(m)
        ),
        fused=sum(hasattr(m, "weight_fake_quant") and hasattr(m, "bn") for m in model.modules()),
    )


def _count(found: object) -> Counter[tuple[int, str, str]]:
    counts: Counter[tuple[int, str, str]] = Counter()
    for module in found:  # type: ignore[attr-defined]
        if is_fake_quantize(module):
            bits = (module.quant_max - module.quant_min + 1).bit_length() - 1
            scheme = str(module.qscheme)
            symmetry = "symmetric" if "symmetric" in scheme else "asymmetric"
            counts[bits, symmetry, "channel" if "channel" in scheme else "tensor"] += 1
    return counts


def quantizes(expected: Seen, *, exported: bool = True) -> Callable[[str], None]:
    """Checks the quantizers from epoch 1 on, and that the network loads and exports again."""

    def check(text: str) -> None:
        done = practice(text, lambda run: look(run.model))
        assert done.seen[:3] == [NOTHING] * 3
        assert done.seen[3:] == [expected] * 3
        assert not done.missed
        if exported:
            loads_and_exports(done.checkpoint, done.run.model)

    return check


def loads_and_exports(path: Path, model: nn.Module) -> None:
    """The file rebuilds the trained network, and its export reproduces it."""
    checkpoint = load_checkpoint(path)
    again = build_model(checkpoint).to(memory_format=torch.channels_last)  # as while training
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(again(images)[:5], model.eval()(images)[:5], strict=True):
            assert torch.equal(one, other)
    with tempfile.TemporaryDirectory() as folder:
        report = export(again, classes_of(checkpoint), Path(folder) / "model.onnx")
        assert report.quantized


def resumes(text: str) -> None:
    """Checkpoints before, at the beginning of and during quantization go on bit by bit."""
    with tempfile.TemporaryDirectory() as name:
        data, out = make_shapes(Path(name) / "data"), Path(name) / "whole"
        whole = train(tiny_settings(data, out, recipe=text, recipe_engine=engine_in_use()))
        assert whole.checkpoint is not None
        for step in (3, 5):
            (path,) = (out / "weights").glob(f"tiny_*_{step}.pth")
            checkpoint = load_checkpoint(path)
            assert checkpoint.quantized == is_quantized(build_model(checkpoint)) == (step > 3)
            folder = Path(name) / str(step)
            begin = {"recipe_engine": engine_in_use(), **resume(path)}
            settings = tiny_settings(data, folder, recipe=text, **begin)
            save = SaveSettings(folder=folder / "weights", interval=1000)
            result = train(replace(settings, save=save))
            assert result.checkpoint is not None
            assert differences(result.checkpoint, whole.checkpoint) == []


def quantizers(run: Run) -> list[FakeQuantize]:
    return [m for m in run.model.modules() if is_fake_quantize(m)]


def stop_watching(text: str) -> None:
    """Ranges move in steps 4 and 5; from epoch 1.6 on no observer learns."""

    def ranges(run: Run) -> tuple[int, list[Tensor]]:
        on = sum(int(q.observer_enabled) for q in quantizers(run))
        return on, [q.scale.clone() for q in quantizers(run) if q.scale.numel()]

    seen = practice(text, ranges).seen
    assert [on for on, _ in seen[3:5]] == [len(seen[3][1])] * 2 and seen[5][0] == 0
    same = [torch.equal(a, b) for a, b in zip(seen[4][1], seen[5][1], strict=True)]
    assert all(same)
    moved = [not torch.equal(a, b) for a, b in zip(seen[3][1], seen[4][1], strict=True)]
    assert sum(moved) > len(moved) / 2


def freeze_statistics(text: str) -> None:
    """Means and variances move in every step before epoch 1.6 and in none after."""

    def statistics(run: Run) -> list[Tensor]:
        state = run.model.state_dict().items()
        return [v.clone() for k, v in state if k.endswith(("running_mean", "running_var"))]

    seen = practice(text, statistics).seen
    moved = [
        [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        for before, after in zip(seen, seen[1:], strict=False)
    ]
    assert len(moved[0]) == 2 * BN
    assert all(map(all, moved[:4])) and not any(moved[4])


def refuses(message: str, hint: str) -> Callable[[str], None]:
    """Checks that training refuses the recipe at once, with these words."""

    def check(text: str) -> None:
        with pytest.raises(RecipeError) as caught:
            practice(text)
        assert (str(caught.value), caught.value.hint) == (f"the recipe: {message}", hint)

    return check


def qat_from_1(fields: str) -> str:
    return recipe(f"!QuantizationModifier {{start_epoch: 1{', ' * bool(fields)}{fields}}}")


def _case(variant: str, fields: str, why: str, *checks: Callable[[str], None]) -> Case:
    verdict: Verdict = "patched" if why else "works"
    return Case("QuantizationModifier", variant, qat_from_1(fields), verdict, why, in_turn(*checks))


def _seen(**changes: object) -> Callable[[str], None]:
    return quantizes(replace(DEFAULT, **changes))  # type: ignore[arg-type]


UNFUSED = {"fused": 0, "others": ACTIVATIONS | {"BatchNorm2d"}}
NARROW = "trains as sparseml has it; torch's ONNX exporter refused it: written as INT8 with limits"

CASES = [
    _case(
        "",
        "",
        "torch's qconfig takes no attributes, and observers also learned from validation images",
        quantizes(DEFAULT),
        resumes,
    ),
    _case(
        "scheme: strategy: channel",
        "scheme: {weights: {num_bits: 8, symmetric: True, strategy: channel}}",
        "",
        _seen(weights=Counter({(8, "symmetric", "channel"): ALL})),
    ),
    _case(
        "scheme: symmetric activations",
        "scheme: {input_activations: {num_bits: 8, symmetric: True}}",
        "",
        _seen(inputs=Counter({WEIGHT: ALL})),
    ),
    _case(
        "scheme: asymmetric weights",
        "scheme: {weights: {num_bits: 8, symmetric: False}}",
        "",
        _seen(weights=Counter({INPUT: ALL})),
    ),
    _case(
        "scheme: num_bits: 4",
        "scheme: {weights: {num_bits: 4, symmetric: True}, input_activations: {num_bits: 6}}",
        NARROW,
        _seen(
            weights=Counter({(4, "symmetric", "tensor"): ALL}),
            inputs=Counter({(6, "asymmetric", "tensor"): ALL}),
        ),
    ),
    _case(
        "scheme: output_activations",
        "scheme: {output_activations: {num_bits: 8}}",
        "onnxruntime could not load the sum of two quantized outputs",
        _seen(outputs=Counter({INPUT: 2 * BN + RELU + PLAIN + 2})),
    ),
    _case(
        "scheme: weights only",
        "scheme: {input_activations: null}",
        "",
        _seen(inputs=Counter(), others=frozenset()),
    ),
    _case("scheme: deepsparse", "scheme: deepsparse", "", quantizes(DEFAULT, exported=False)),
    _case(
        "scheme: tensorrt",
        "scheme: tensorrt",
        "",
        _seen(inputs=Counter({WEIGHT: ALL}), **UNFUSED),
    ),
    _case(
        "scheme_overrides",
        "scheme_overrides: {proto_net: {weights: {num_bits: 4, symmetric: True}}, "
        "LeakyReLU: {input_activations: null, weights: null}, "
        "Conv2d: {weights: {num_bits: 8, symmetric: True, strategy: channel}}}",
        "goes by the beginnings of names, then by classes: LeakyReLU, ConvBn2d, and Conv2d for the "
        "convolutions without a batch norm; names that are none are refused before training",
        _seen(
            weights=Counter(
                {
                    WEIGHT: BN,
                    (4, "symmetric", "tensor"): 5,
                    (8, "symmetric", "channel"): RELU + PLAIN - 5,
                }
            ),
            others=ACTIVATIONS - {"LeakyReLU"},
        ),
    ),
    _case(
        "ignore",
        "ignore: [proto_net, LeakyReLU]",
        "",
        _seen(
            weights=Counter({WEIGHT: ALL - 5}),
            inputs=Counter({INPUT: ALL - 5}),
            others=frozenset(),
        ),
    ),
    _case(
        "strict",
        "ignore: [protonet]",
        "names that match nothing are refused before training, not when their epoch comes",
        refuses(
            "QuantizationModifier: ignore names 'protonet', and the network has no such layer",
            "did you mean 'proto_net'?",
        ),
    ),
    _case(
        "strict: False", "ignore: [protonet], strict: False", "", quantizes(DEFAULT, exported=False)
    ),
    _case(
        "model_fuse_fn_name: no_fuse",
        "model_fuse_fn_name: no_fuse, freeze_bn_stats_epoch: 1.6",
        "batch norms that are not fused went on learning after freeze_bn_stats_epoch",
        _seen(**UNFUSED),
        freeze_statistics,
        resumes,
    ),
    _case(
        "model_fuse_fn_name: conv_bn_relus",
        "model_fuse_fn_name: conv_bn_relus, "
        "model_fuse_fn_kwargs: {override_bn_subclasses_forward: False}",
        "",
        quantizes(DEFAULT, exported=False),
    ),
    _case(
        "model_fuse_fn_name: others",
        "model_fuse_fn_name: fuse_model",
        "the network needs no fusing method of its own: other names are refused before training",
        refuses(
            "QuantizationModifier: model_fuse_fn_name 'fuse_model' is no way to fuse this network",
            "give conv_bn_relus (the default) or no_fuse",
        ),
    ),
    _case(
        "disable_quantization_observer_epoch",
        "disable_quantization_observer_epoch: 1.6",
        "",
        stop_watching,
    ),
    _case("freeze_bn_stats_epoch", "freeze_bn_stats_epoch: 1.6", "", freeze_statistics),
    _case(
        "num_calibration_steps",
        "num_calibration_steps: 4",
        "demanded calibration images in training, where training images set the ranges; it is for "
        "export_onnx --one-shot, which calibrates on the images it is given",
        quantizes(DEFAULT, exported=False),
    ),
    _case(
        "submodules (older fields)",
        "submodules: [backbone, proto_net.10], disable_quantization_observer_epoch: 1.6, "
        "freeze_bn_stats_epoch: 1.6",
        "observers of a submodule that is a single layer went on learning",
        _seen(
            weights=Counter({WEIGHT: BN + 1}),
            inputs=Counter({INPUT: BN + 1}),
            others=frozenset(),
            outputs=Counter({INPUT: 2 * BN + 1}),
        ),
        stop_watching,
        freeze_statistics,
        resumes,
    ),
    _case(
        "reduce_range, weight_bits (older fields)",
        "reduce_range: True, weight_bits: 4, quantize_conv_activations: False",
        NARROW,
        _seen(
            weights=Counter({(4, "symmetric", "tensor"): ALL}),
            inputs=Counter({(7, "asymmetric", "tensor"): ALL}),
            others=frozenset(),
            outputs=Counter({(7, "asymmetric", "tensor"): BN}),
        ),
    ),
    _case(
        "exclude_module_types (older fields)",
        "exclude_module_types: [LeakyReLU]",
        "",
        _seen(others=frozenset(), outputs=Counter({INPUT: ALL})),
    ),
    _case(
        "tensorrt (older fields)",
        "tensorrt: True",
        "",
        _seen(
            inputs=Counter({WEIGHT: ALL}),
            others=frozenset(),
            outputs=Counter({WEIGHT: BN}),
            fused=0,
        ),
    ),
]
