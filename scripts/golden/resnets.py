"""resnet.npz: what the original computes on ResNet-50 and ResNet-101, and at 400 and 700 px."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet

from conftest import golden_weight
from golden.network import (
    OUTPUTS,
    SMALL,
    evaluating,
    filled,
    forget_priors,
    prepared,
    small_input,
    stages,
    training,
)
from golden.pictures import choose
from golden.reference import Reference
from golden.settings import activations, simple
from golden.store import Array, Arrays

NETWORKS = {"yolact_resnet50": (3, 4, 6, 3), "yolact_base": (3, 4, 23, 3)}
"""Names of configurations, and the blocks of torchvision's network of this depth."""
SIZES = ("yolact_im400", "yolact_im700")
"""Configurations that differ from the second by the size of their input."""
COUNT, STAGE_COUNT = 400, 100
BUFFERS = ("backbone.bn1", "backbone.layers.2.5.bn2", "backbone.layers.3.0.downsample.1")
ELSEWHERE = ("dataset", "mask_proto_debug", "_tmp_img_h", "_tmp_img_w")


def write_resnets(reference: Reference, folder: Path) -> None:
    """Write resnet.npz."""
    arrays, picture = Arrays(), choose(560, objects=3, count=12).picture
    for name, blocks in NETWORKS.items():
        with reference.settings(**config_of(reference, name)):
            network = filled(reference)
            describe(reference, arrays, name, network)
            put_json(arrays, f"{name}.backbone_file", backbone_file(reference, blocks))
            with torch.no_grad():
                outputs(reference, arrays, name, network, picture)
    for name in SIZES:
        with reference.settings(**config_of(reference, name)), torch.no_grad():
            network = evaluating(filled(reference))
            put_json(arrays, f"{name}.settings", settings(reference))
            image = prepared(reference, picture, reference.cfg.max_size)
            arrays.sample(f"{name}.input", image, COUNT)
            arrays.sample(f"{name}.priors", network(image)["priors"], COUNT)
    arrays.save(folder / "resnet.npz", reference, {"small_size": SMALL})


def config_of(reference: Reference, name: str) -> dict[str, Any]:
    """All settings of a configuration of the original."""
    return dict(vars(getattr(reference.data, f"{name}_config")))


def settings(reference: Reference) -> dict[str, Any]:
    """The settings that hold now, but those of data and command line."""
    names = activations(reference)
    return {k: simple(v, names) for k, v in vars(reference.cfg).items() if k not in ELSEWHERE}


def describe(reference: Reference, arrays: Arrays, name: str, network: nn.Module) -> None:
    """Store settings, and names, shapes and order of the weights."""
    state = network.state_dict()
    put_json(arrays, f"{name}.settings", settings(reference))
    put_json(arrays, f"{name}.state", [[key, list(value.shape)] for key, value in state.items()])
    put_json(arrays, f"{name}.parameters", [key for key, _ in network.named_parameters()])


def put_json(arrays: Arrays, key: str, value: Any) -> None:
    """Store a value as JSON, which compresses well."""
    arrays.put(key, np.array(json.dumps(value)))


def backbone_file(reference: Reference, blocks: tuple[int, ...]) -> list[list[str]]:
    """Names in a file of torchvision's weights, and those that the original loads them into."""
    theirs = resnet.ResNet(resnet.Bottleneck, list(blocks)).state_dict()
    file = {k: torch.from_numpy(golden_weight(k, tuple(v.shape))) for k, v in theirs.items()}
    buffer = io.BytesIO()
    torch.save(file, buffer)
    buffer.seek(0)
    backbone: Any = reference.model.Yolact().backbone
    backbone.init_backbone(buffer)
    # counters are all alike, and follow the statistics beside them
    known = {value.numpy().tobytes(): key for key, value in file.items() if value.ndim}
    pairs = [
        [known[value.numpy().tobytes()], key]
        for key, value in backbone.state_dict().items()
        if value.ndim
    ]
    assert len({old for old, _ in pairs}) == len(pairs)
    return pairs


def outputs(
    reference: Reference, arrays: Arrays, name: str, network: nn.Module, picture: Array
) -> None:
    """Store samples of inputs, outputs, stages and levels at 550 px and at a small size."""
    selected = list(reference.cfg.backbone.selected_layers)
    image = prepared(reference, picture, reference.cfg.max_size)
    arrays.sample(f"{name}.input", image, COUNT)
    fast = reference.augmentations.FastBaseTransform(cuda=False)
    arrays.sample(f"{name}.input_fast", fast(torch.from_numpy(picture)[None].float()), COUNT)
    sample(arrays, f"{name}.eval550", evaluating(network)(image))
    with reference.settings(max_size=SMALL):
        small = small_input(reference, picture)
        arrays.sample(f"{name}.input_small", small, COUNT)
        forget_priors(network)
        sample(arrays, f"{name}.eval_small", evaluating(network)(small))
        for part, value in stages(network, small, selected).items():
            arrays.sample(f"{name}.eval_small.{part}", value, STAGE_COUNT)
        pair = torch.cat([small, 0.5 * small.flip(3)])
        sample(arrays, f"{name}.trainbn_small", training(network, frozen=False)(pair))
    state = network.state_dict()
    for layer in BUFFERS:
        for part in ("running_mean", "running_var"):
            arrays.sample(f"{name}.after.{layer}.{part}", state[f"{layer}.{part}"], STAGE_COUNT)


def sample(arrays: Arrays, case: str, found: dict[str, torch.Tensor]) -> None:
    """Store a sample of each output; ``segm`` is there in training mode only."""
    for output in (*OUTPUTS, *({"segm"} & found.keys())):
        arrays.sample(f"{case}.{output}", found[output], COUNT)
