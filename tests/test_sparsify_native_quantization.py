"""Quantization by the native engine: the same to the bit as sparseml's, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipe_engines import needs_sparseml
from training import tiny_config
from yolact.model.weights import is_quantized
from yolact.model.yolact import Yolact
from yolact.sparsify.document import Entry
from yolact.sparsify.engine import Manager
from yolact.sparsify.native.engine import NativeEngine

STEPS = 3
"""Of an epoch."""

Fields = Mapping[str, Any]

LEARNING = {"disable_quantization_observer_epoch": 1, "freeze_bn_stats_epoch": 4 / 3}
"""Ranges learn for three steps, batch norms for four."""


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Yolact(tiny_config().model).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def images(number: int, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    batch = torch.rand(2, 3, side, side, generator=generator)
    return batch.to(memory_format=torch.channels_last)


class Run:
    """A training run of one engine, a step at a time."""

    def __init__(self, engine: Any, model: nn.Module, *fields: Fields, done: int = 0) -> None:
        built = [engine.build(Entry("QuantizationModifier", dict(f))) for f in fields]
        self.model, self.done = model.train(), done
        self.manager: Manager = engine.manager({"": built})
        if done:
            self.manager.restructure(model, (done - 1) / STEPS)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def start(self) -> Run:
        self.manager.start(self.model, self.optimizer, self.done, STEPS, None)
        return self

    def step(self) -> list[Tensor]:
        """Outputs in training mode, the gradients, and outputs in evaluation mode after the step."""
        epoch = self.done / STEPS
        self.manager.before_forward(self.model, self.optimizer, epoch)
        outputs = [o for o in self.model.train()(images(self.done)) if o is not None]
        self.optimizer.zero_grad()
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        kept = [tensor.detach().clone() for tensor in (*outputs, *gradients)]
        self.manager.before_step(self.model, self.optimizer, epoch)
        self.optimizer.step()
        self.manager.after_step(self.model, self.optimizer, epoch)
        self.done += 1
        with torch.no_grad():
            return [*kept, *(o for o in self.model.eval()(images(99)) if o is not None)]

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


def both(*fields: Fields) -> tuple[Run, Run]:
    from yolact.sparsify.sparseml.engine import SparsemlEngine

    model = network()
    return (
        Run(SparsemlEngine(), copy.deepcopy(model), *fields).start(),
        Run(NativeEngine(), copy.deepcopy(model), *fields).start(),
    )


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
    "the network itself": {"scheme_overrides": {"Yolact": "default"}},
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
    "submodules": {"submodules": ["backbone", "proto_net.10"]},
    "all submodules": {"submodules": None},
    "nested submodules": {"submodules": ["proto_net", "backbone", "backbone.layers.1"]},
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
        "activation_qconfig_kwargs": {"reduce_range": True, "averaging_constant": 0.7},
    },
    "tensorrt": {"tensorrt": True},
    "tensorrt, fused": {"tensorrt": True, "model_fuse_fn_name": "conv_bn_relus"},
    "only what is the default": {"quantize_embeddings": True},
}
QUICK = ("channels", "overrides", "fused ones ignored, outputs", "not fused, outputs", "submodules")
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
    assert unequal(ours.state(), theirs.state()) == []
    for _ in range(6):
        for own, other in zip(ours.step(), theirs.step(), strict=True):
            assert torch.equal(own, other)
        assert unequal(ours.state(), theirs.state()) == []
