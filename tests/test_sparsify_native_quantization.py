"""Quantization by the native engine: the same to the bit as sparseml's, layer by layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipe_engines import needs_sparseml
from training import tiny_config
from yolact.config import YolactConfig
from yolact.model.backbones.darknet import ResidualBlock, conv_bn_leaky
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.heads import PredictionHead
from yolact.model.protonet import ProtoNet
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact
from yolact.presets import yolact_darknet_small
from yolact.sparsify.check.curves import meta_copy
from yolact.sparsify.document import Entry, dump
from yolact.sparsify.engine import Engine
from yolact.sparsify.native.engine import NativeEngine
from yolact.sparsify.native.quantization_scheme import QuantizationArgs
from yolact.sparsify.quantization import input_quantizers, wanted_quantization, weight_quantizer
from yolact.sparsify.recipe import Recipe, packaged_recipes, read_document
from yolact.sparsify.sparsity import convolutions
from yolact.sparsify.stages import learn_ranges
from yolact.sparsify.structure import recipe_names
from yolact.sparsify.variables import resolve

STEPS = 3
"""Of an epoch."""

Fields = Mapping[str, Any]

LEARNING = {"disable_quantization_observer_epoch": 1, "freeze_bn_stats_epoch": 4 / 3}
"""Ranges learn for three steps, batch norms for four."""


class Toy(nn.Module):
    """Every kind of layer that the network has, once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_bn_leaky(3, 4, 3), ResidualBlock(4))
        self.proto_net = ProtoNet(4, 4, 2)
        self.prediction_layers = nn.ModuleList(
            [PredictionHead(4, 4, priors_per_cell=1, num_classes=2, num_prototypes=2)]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.backbone(x)
        return [*self.prediction_layers[0](x), self.proto_net(x)]


def network(build: Callable[[], nn.Module] = Toy) -> nn.Module:
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def tiny() -> nn.Module:
    return Yolact(tiny_config().model)


def images(number: int, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    batch = torch.rand(2, 3, side, side, generator=generator)
    return batch.to(memory_format=torch.channels_last)


class Run:
    """A training run of one engine, a step at a time."""

    def __init__(
        self, engine: Engine, model: nn.Module, *fields: Fields, goes_on: Run | None = None
    ) -> None:
        """Begin, or go on with a structure of this engine and all values of another run."""
        entries = [Entry("EpochRangeModifier", {"start_epoch": 0, "end_epoch": 9})]
        entries += [Entry("QuantizationModifier", dict(f)) for f in fields]
        built = [engine.build(entry) for entry in entries]
        self.model = model.train()
        self.done: int = 0 if goes_on is None else goes_on.done
        self.manager = engine.manager({"": built})
        if goes_on:
            self.manager.restructure(model, (self.done - 1) / STEPS)
            model.load_state_dict(goes_on.state())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.manager.start(model, self.optimizer, self.done, STEPS, None)
        if goes_on:
            self.optimizer.load_state_dict(copy.deepcopy(goes_on.optimizer.state_dict()))

    def step(self) -> list[Tensor]:
        """Outputs in training mode, gradients, and outputs in evaluation mode after the step."""
        epoch = self.done / STEPS
        self.manager.before_forward(self.model, self.optimizer, epoch)
        outputs = [o for o in self.model.train()(images(self.done)) if o is not None]
        self.optimizer.zero_grad()
        loss: Tensor = torch.stack([output.square().mean() for output in outputs]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        kept = [tensor.detach().clone() for tensor in (*outputs, *gradients)]
        self.manager.before_step(self.model, self.optimizer, epoch)
        self.optimizer.step()
        self.manager.after_step(self.model, self.optimizer, epoch)
        self.done += 1
        return [*kept, *self.results()]

    def results(self) -> list[Tensor]:
        with torch.no_grad():
            return [o for o in self.model.eval()(images(99)) if o is not None]

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def unequal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names with another value, shape or type; all of both if these are not the same in order."""
    if list(one) != list(other):
        return sorted(set(one) ^ set(other)) or ["order"]
    return [
        name
        for name, value in one.items()
        if value.dtype != other[name].dtype or not torch.equal(value, other[name])
    ]


def sparseml() -> Engine:
    from yolact.sparsify.sparseml.engine import SparsemlEngine

    return SparsemlEngine()


def both(*fields: Fields, build: Callable[[], nn.Module] = Toy) -> tuple[Run, Run]:
    model = network(build)
    return (
        Run(sparseml(), copy.deepcopy(model), *fields),
        Run(NativeEngine(), copy.deepcopy(model), *fields),
    )


def train_equally(one: Run, other: Run, steps: int) -> None:
    assert unequal(one.state(), other.state()) == []
    for _ in range(steps):
        for own, others in zip(one.step(), other.step(), strict=True):
            assert torch.equal(own, others)
        assert unequal(one.state(), other.state()) == []


SYMMETRIC, ASYMMETRIC = {"symmetric": True}, {"symmetric": False}
CHANNEL = {"symmetric": True, "strategy": "channel"}
SCHEMES: dict[str, Fields] = {
    "nothing said": {},
    "channels": {"scheme": {"weights": CHANNEL}},
    "asymmetric channels of 4 bits": {
        "scheme": {"weights": {"num_bits": 4, "symmetric": False, "strategy": "channel"}}
    },
    "few bits": {
        "scheme": {"weights": {"num_bits": 4, **SYMMETRIC}, "input_activations": {"num_bits": 6}}
    },
    "one bit": {"scheme": {"weights": {"num_bits": 1, **SYMMETRIC}}},
    "symmetric inputs": {"scheme": {"input_activations": SYMMETRIC}},
    "asymmetric weights": {"scheme": {"weights": ASYMMETRIC}},
    "weights only": {"scheme": {"input_activations": None}},
    "inputs only": {"scheme": {"weights": "null"}},
    "outputs": {"scheme": {"output_activations": {"num_bits": 8}, "input_activations": "None"}},
    "outputs too": {"scheme": {"output_activations": SYMMETRIC}},
    "deepsparse": {"scheme": "deepsparse"},
    "tensorrt": {"scheme": "tensorrt"},
    "tensorrt somewhere": {"scheme_overrides": {"proto_net": "tensorrt"}},
    "not fused": {"model_fuse_fn_name": "no_fuse"},
    "not fused, outputs": {
        "model_fuse_fn_name": "no_fuse",
        "scheme": {"output_activations": ASYMMETRIC},
    },
    "fused as asked": {"model_fuse_fn_name": "conv_bn_relus", "model_fuse_fn_kwargs": {}},
    "finer settings": {
        "scheme": {
            "weights": {
                **CHANNEL,
                "kwargs": {"averaging_constant": 0.5, "ch_axis": 1, "eps": 0.01},
            },
            "input_activations": {"kwargs": {"reduce_range": True, "averaging_constant": 1}},
        }
    },
    "other integers": {
        "scheme": {
            "weights": {**SYMMETRIC, "kwargs": {"quant_min": -127, "quant_max": 127}},
            "input_activations": {"num_bits": 4, "kwargs": {"reduce_range": True}},
        }
    },
    "some ignored": {"ignore": ["proto_net", "LeakyReLU"]},
    "fused ones ignored": {"ignore": ["ConvBn2d", "Upsample"]},
    "fused ones ignored, outputs": {
        "ignore": ["ConvBn2d", "ConvReLU2d"],
        "scheme": {"output_activations": ASYMMETRIC},
    },
    "whole blocks": {
        "scheme_overrides": {"ResidualBlock": {"output_activations": ASYMMETRIC}, "Upsample": None}
    },
    "whole blocks, outputs inside": {
        "scheme": {"output_activations": ASYMMETRIC},
        "scheme_overrides": {"PredictionHead": {"input_activations": ASYMMETRIC}},
    },
    "the network itself": {"scheme_overrides": {"Toy": "default"}},
    "overrides": {
        "scheme_overrides": {
            "proto_net": {"weights": {"num_bits": 4, **SYMMETRIC}},
            "proto_net.1": {"weights": {"num_bits": 3, **SYMMETRIC}},
            "LeakyReLU": {"input_activations": None, "weights": None},
            "Conv2d": {"weights": CHANNEL, "output_activations": ASYMMETRIC},
            "ConvReLU2d": {"weights": None},
        }
    },
    "lenient": {"ignore": ["nowhere"], "strict": False},
}
OLDER: dict[str, Fields] = {
    "submodules": {"submodules": ["backbone.0", "proto_net.10"]},
    "all submodules": {"submodules": None},
    "nested submodules": {"submodules": ["proto_net", "backbone", "backbone.1"]},
    "few bits": {"reduce_range": True, "weight_bits": 4, "quantize_conv_activations": False},
    "falsy bits": {"weight_bits": None, "activation_bits": False},
    "few bits, reduced": {"reduce_range": True, "activation_bits": 4},
    "excluded": {"exclude_module_types": ["LeakyReLU", "ConvBn2d"]},
    "excluded, not fused": {
        "exclude_module_types": ["Conv2d"],
        "model_fuse_fn_name": "no_fuse",
    },
    "batch norms": {"exclude_batchnorm": False, "model_fuse_fn_name": "no_fuse"},
    "custom": {"custom_quantizable_module_types": ["LeakyReLU", "PredictionHead"]},
    "settings": {
        "weight_qconfig_kwargs": {"averaging_constant": 0.3},
        "activation_qconfig_kwargs": {"quant_min": 0, "quant_max": 200, "averaging_constant": 0.7},
    },
    "tensorrt": {"tensorrt": True},
    "tensorrt, fused": {"tensorrt": True, "model_fuse_fn_name": "conv_bn_relus"},
    "only what is the default": {"quantize_embeddings": True},
}
QUICK = ("channels", "fused ones ignored, outputs", "submodules")
CASES = {**SCHEMES, **{f"older: {name}": fields for name, fields in OLDER.items()}}


@needs_sparseml
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.removeprefix("older: ") in QUICK else pytest.mark.slow)
        for name in CASES
    ],
)
def test_both_engines_train_a_quantized_network_to_the_same_bits(name: str) -> None:
    theirs, ours = both({**CASES[name], **LEARNING})
    assert is_quantized(ours.model)
    train_equally(ours, theirs, steps=5)


def packaged() -> list[Fields]:
    """What the recipes of this package say of quantization, each once.

    But those for networks with ReLU6, which name it.
    """
    found: list[Fields] = []
    for name in packaged_recipes():
        if name.startswith("yolact_lite0."):
            continue
        document, label = read_document(name)
        for entry in Recipe(resolve(document, label), label).entries:
            if entry.name == "QuantizationModifier":
                fields = {k: v for k, v in entry.fields.items() if not k.endswith("_epoch")}
                found += [fields] if fields not in found else []
    return found


@needs_sparseml
@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny_config, yolact_darknet_small])
def test_packaged_recipes_train_whole_networks_to_the_same_bits(
    config: Callable[[], YolactConfig],
) -> None:
    for fields in packaged():
        learning = {"disable_quantization_observer_epoch": 1 / 3, "freeze_bn_stats_epoch": 1 / 3}
        theirs, ours = both({**fields, **learning}, build=lambda: Yolact(config().model))
        train_equally(ours, theirs, steps=2)


@needs_sparseml
@pytest.mark.parametrize(("name", "done"), [("older: submodules", 1), ("channels", 4)])
def test_a_run_goes_on_with_either_engine(name: str, done: int) -> None:
    theirs, ours = both({**CASES[name], **LEARNING})
    for _ in range(done):
        theirs.step()
        ours.step()
    fields = {**CASES[name], **LEARNING}
    now_ours = Run(NativeEngine(), network(), fields, goes_on=theirs)
    now_theirs = Run(sparseml(), network(), fields, goes_on=ours)
    train_equally(now_ours, now_theirs, steps=2)
    assert [theirs.step(), theirs.step()]
    assert unequal(now_ours.state(), theirs.state()) == []


@needs_sparseml
@pytest.mark.parametrize("start", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_quantized_network_learns_ranges_again_as_with_sparseml(start: int) -> None:
    earlier = {"disable_quantization_observer_epoch": 0.5, "freeze_bn_stats_epoch": 0.5}
    again = {"start_epoch": start, "disable_quantization_observer_epoch": 4 / 3}
    first = both(earlier)
    train_equally(*first, steps=3)
    layers, before = list(first[1].model.modules()), first[1].state()
    theirs = Run(sparseml(), first[0].model, again)
    ours = Run(NativeEngine(), first[1].model, again)
    train_equally(ours, theirs, steps=1)
    moved = {name.rpartition(".")[2] for name in unequal(before, ours.state())}
    assert moved >= {"scale", "observer_enabled", "running_mean"}
    assert list(ours.model.modules()) == layers
    train_equally(ours, theirs, steps=4)


@needs_sparseml
def test_a_recipe_that_does_not_quantize_leaves_statistics_alone() -> None:
    runs = both({})
    train_equally(*runs, steps=1)
    theirs, ours = (
        Run(engine, run.model)
        for engine, run in zip((sparseml(), NativeEngine()), runs, strict=True)
    )
    before = ours.state()
    train_equally(ours, theirs, steps=2)
    assert not [n for n in unequal(before, ours.state()) if n.endswith("running_mean")]


@needs_sparseml
@pytest.mark.parametrize("name", ["overrides", "fused ones ignored", "older: submodules"])
def test_readers_see_the_same_in_the_networks_of_both_engines(name: str) -> None:
    theirs, ours = both(CASES[name])
    train_equally(ours, theirs, steps=1)
    seen = []
    for model in (ours.model, theirs.model):
        convs = convolutions(model)
        weights = {name: weight_quantizer(conv) for name, conv in convs.items()}
        inputs = {str(type(m).__name__): q for m, q in input_quantizers(model).items()}
        text = dump({"modifiers": [Entry("QuantizationModifier", dict(CASES[name]))]})
        wanted = wanted_quantization(model, Recipe.of_text(text, "r"), 1.0)
        learn_ranges(model, ["proto_net"])
        seen.append((recipe_names(model), weights, inputs, wanted, is_quantized(model)))
    assert seen[0] == seen[1] and any(seen[0][1].values())
    assert unequal(ours.state(), theirs.state()) == []


BITS = st.integers(1, 8)
VALUES = st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-4, 4, width=32) | st.just(0.0)


@needs_sparseml
@settings(max_examples=20, deadline=None)
@given(BITS, st.booleans(), st.sampled_from(["tensor", "channel"]), st.data())
def test_any_values_are_rounded_as_torch_does(
    bits: int, symmetric: bool, strategy: str, data: st.DataObject
) -> None:
    from yolact.sparsify import sparseml as door

    fields: dict[str, Any] = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy}
    theirs = door.QuantizationArgs(**fields).get_observer()()
    ours = QuantizationArgs(**fields).quantizer()
    batches = data.draw(st.lists(st.lists(VALUES, min_size=6, max_size=6), max_size=3))
    for values in batches:
        own, other = (torch.tensor(values).reshape(2, 3).requires_grad_() for _ in range(2))
        assert torch.equal(ours(own), theirs(other))
        ours(own).sum().backward()
        theirs(other).sum().backward()
        assert own.grad is not None and other.grad is not None
        assert torch.equal(own.grad, other.grad)
    assert unequal(ours.state_dict(), theirs.state_dict()) == []
    loaded = QuantizationArgs(**fields).quantizer()
    loaded.load_state_dict(theirs.state_dict())
    assert unequal(loaded.state_dict(), ours.state_dict()) == []


def run_of_ours(fields: Fields, steps: int = 0) -> Run:
    run = Run(NativeEngine(), network(), fields)
    for _ in range(steps):
        run.step()
    return run


@pytest.mark.parametrize("name", ["outputs too", "not fused", "older: submodules"])
def test_copies_and_pickles_of_a_quantized_network_are_the_same(name: str) -> None:
    run = run_of_ours({**CASES[name], **LEARNING}, steps=4)
    results = run.results()
    for model in (copy.deepcopy(run.model), pickle.loads(pickle.dumps(run.model))):
        run.model = model
        for one, other in zip(results, run.results(), strict=True):
            assert torch.equal(one, other)
        assert not any(q.observer_enabled for q in fake_quantizers(model) if name[:5] != "older")


def test_networks_without_values_are_quantized_alike() -> None:
    meta = Run(NativeEngine(), meta_copy(network()), {}).model
    real = run_of_ours({}).model
    shapes = [{n: v.shape for n, v in m.state_dict().items()} for m in (meta, real)]
    assert shapes[0] == shapes[1]
    assert {value.device.type for value in meta.state_dict().values()} == {"meta"}
    assert [o.shape for o in meta(torch.empty(2, 3, 16, 16, device="meta"))] == [
        o.shape for o in real(images(0))
    ]


def test_quantizing_draws_no_random_numbers() -> None:
    model = network()
    before = torch.get_rng_state()
    Run(NativeEngine(), model, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_ranges_are_learnt_where_gradients_are_recorded_only() -> None:
    run = run_of_ours({}, steps=1)
    before = run.state()
    run.results()
    with torch.no_grad():
        run.model(3 * images(5))
    assert unequal(before, run.state()) == []
    run.model(3 * images(5))
    assert any(name.endswith("scale") for name in unequal(before, run.state()))


def test_the_range_of_all_tensors_takes_the_place_of_their_mean_when_asked_for() -> None:
    args = QuantizationArgs(kwargs={"observer": "minmaxobserver"})
    tensor, channels = args.quantizer(), replace(args, strategy="channel").quantizer()
    for values in ([[1.0, 2.0]], [[-3.0, 1.0]], [[0.5, 0.5]]):
        tensor(torch.tensor(values))
        channels(torch.tensor(values))
    for quantizer in (tensor, channels):
        assert quantizer.activation_post_process.min_val.tolist() in (-3.0, [-3.0])
        assert quantizer.activation_post_process.max_val.tolist() in (2.0, [2.0])


def test_frozen_statistics_stay_frozen_when_the_mode_changes() -> None:
    for fuse in ("conv_bn_relus", "no_fuse"):
        run = run_of_ours({"freeze_bn_stats_epoch": 0, "model_fuse_fn_name": fuse})
        before = run.state()
        run.step()
        assert not [n for n in unequal(before, run.state()) if n.endswith("running_var")]


REFUSED: tuple[tuple[Fields, str], ...] = (
    ({"end_epoch": 3.0}, "end_epoch is 3"),
    ({"start_epoch": 2.0, "freeze_bn_stats_epoch": 1.0}, "freeze_bn_stats_epoch is 1"),
    ({"disable_quantization_observer_epoch": -2.0}, "disable_quantization_observer_epoch is -2"),
    ({"scheme": "deepspeed"}, "'deepspeed'"),
    ({"scheme": {"bias": None}}, "'bias'"),
    ({"scheme": ["weights"]}, "['weights']"),
    ({"scheme": {"weights": {"num_bits": 16}}}, "num_bits is 16"),
    ({"scheme": {"weights": {"num_bits": "many"}}}, "'many'"),
    ({"scheme": {"weights": {"symmetric": "partly"}}}, "'partly'"),
    ({"scheme": {"weights": {"strategy": "layer"}}}, "'layer'"),
    ({"scheme": {"weights": {"bits": 8}}}, "'bits'"),
    ({"scheme": {"weights": {"kwargs": {"observer": "histogram"}}}}, "'histogram'"),
    ({"scheme": {"weights": {"kwargs": {"dtype": "int8"}}}}, "'int8'"),
    ({"scheme": {"weights": {"kwargs": {"quant_min": 3, "quant_max": 9}}}}, "from 3 to 9"),
    ({"scheme": {"weights": {"kwargs": {"quant_min": -9, "quant_max": 900}}}}, "to 900"),
    ({"scheme": {"weights": {"kwargs": {"averaging_constant": "slow"}}}}, "'slow'"),
    ({"scheme": {"weights": {"kwargs": {"ch_axis": 1}}}}, "ch_axis is 1"),
    ({"scheme_overrides": ["Conv2d"]}, "['Conv2d']"),
    ({"scheme_overrides": {"Conv2d": "best"}}, "'best'"),
    ({"ignore": "proto_net"}, "'proto_net'"),
    ({"submodules": [3]}, "[3]"),
    ({"weight_bits": 9}, "num_bits is 9"),
    ({"activation_qconfig_kwargs": {"quant_min": -8, "quant_max": 7}}, "from -8 to 7"),
    ({"weight_bits": 8, "scheme": "default"}, "older fields"),
    ({"model_fuse_fn_kwargs": {"deep": True}}, "'deep'"),
    ({"model_fuse_fn_name": "fuse_model"}, "'fuse_model'"),
    ({"ignore": ["nowhere"]}, "'nowhere'"),
    ({"scheme_overrides": {"Conv7d": None}}, "'Conv7d'"),
    ({"ignore": ["Conv2d"]}, "Conv2d is ignored"),
    ({"submodules": ["nowhere"]}, "'nowhere'"),
    ({"submodules": ["proto_net.0"]}, "'proto_net.0', which is fused"),
    ({"exclude_module_types": ["Conv2d"]}, "has Conv2d"),
)


@pytest.mark.parametrize(("fields", "what"), REFUSED)
def test_values_that_cannot_be_are_refused_and_named(fields: Fields, what: str) -> None:
    with pytest.raises(ValueError) as caught:
        run_of_ours(fields)
    assert what in str(caught.value)
