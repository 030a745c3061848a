"""state_dict.json, forward.npz and priors.npz: names, loading rules, outputs of the network."""

from __future__ import annotations

import io
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from conftest import SEED, golden_weight
from golden.pictures import choose
from golden.reference import Reference
from golden.store import Array, Arrays, origin, save_json

OUTPUTS = ("loc", "conf", "mask", "priors", "proto")
SMALL = 138
RECTANGLE = (120, 168)
"""Height and width."""
COUNT, STAGE_COUNT = 2500, 500
BUFFERS = (
    "backbone._preconv.1",
    "backbone.layers.0.0.1",
    "backbone.layers.2.5.conv1.1",
    "backbone.layers.3.8.conv2.1",
    "backbone.layers.4.4.conv2.1",
)
XAVIER = (
    "fpn.lat_layers.0.weight",
    "proto_net.10.weight",
    "prediction_layers.0.conf_layer.weight",
    "semantic_seg_conv.weight",
)


def filled(reference: Reference) -> nn.Module:
    """The original's network with the weights of the fill recipe, in training mode."""
    network: nn.Module = reference.model.Yolact()
    network.load_state_dict(fill(network))
    return network.train()


def fill(network: nn.Module) -> dict[str, Tensor]:
    """The fill recipe for every entry of a state dict."""
    return {
        name: torch.from_numpy(np.asarray(golden_weight(name, tuple(value.shape))))
        for name, value in network.state_dict().items()
    }


def evaluating(network: nn.Module) -> nn.Module:
    """Evaluation mode that returns raw outputs, as its ONNX export does."""
    vars(network)["export"] = True
    return network.eval()


def training(network: nn.Module, *, frozen: bool) -> nn.Module:
    """Training mode, with running or batch statistics."""
    network.train()
    freeze: Any = network.freeze_bn
    freeze(enable=not frozen)
    return network


def forget_priors(network: nn.Module) -> None:
    """Priors are kept per input size; they must be made anew where max_size has changed."""
    for layer in network.prediction_layers:  # type: ignore[union-attr]
        vars(layer)["last_img_size"] = None


def stages(network: nn.Module, image: Tensor, selected: list[int]) -> dict[str, Tensor]:
    """Outputs of the backbone's five stages and the pyramid's five levels."""
    backbone: Any = network.backbone
    pyramid: Any = network.fpn
    found = backbone(image)
    levels = pyramid([found[i] for i in selected])
    named = {f"backbone{i}": value for i, value in enumerate(found)}
    return {**named, **{f"fpn{i}": value for i, value in enumerate(levels)}}


def write_forward(reference: Reference, folder: Path) -> None:
    """Write forward.npz."""
    arrays, selected = Arrays(), list(reference.cfg.backbone.selected_layers)
    scene = choose(560, objects=3, count=12)
    picture = scene.picture
    ok, png = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert ok
    arrays.put("image.jpg", np.frombuffer(scene.jpeg, np.uint8))
    arrays.put("image.png", png.reshape(-1))
    base = prepared(reference, picture, reference.cfg.max_size)
    arrays.sample("pre550.base", base, COUNT)
    fast = reference.augmentations.FastBaseTransform(cuda=False)
    arrays.sample("pre550.fast", fast(torch.from_numpy(picture)[None].float()), COUNT)

    network = filled(reference)
    with torch.no_grad():
        sample_outputs(arrays, "eval550", evaluating(network)(base))
        sample_stages(arrays, "eval550", stages(network, base, selected))
        sample_outputs(arrays, "trainfrozen550", training(network, frozen=True)(base))
        with reference.settings(max_size=SMALL):
            noise = small_cases(reference, arrays, network, picture, selected)
    meta = {
        "image": scene.name,
        "height": picture.shape[0],
        "width": picture.shape[1],
        "small_size": SMALL,
        "small_max_size": SMALL,
        "rect_hw": RECTANGLE,
        "rect_max_size": SMALL,
        "float32_vs_float64_noise": noise,
    }
    arrays.save(folder / "forward.npz", reference, meta)


def small_cases(
    reference: Reference, arrays: Arrays, network: nn.Module, picture: Array, selected: list[int]
) -> dict[str, float]:
    """The cases with max_size 138; float32's distance from float64 in the first of them."""
    small = small_input(reference, picture)
    rectangle = cv2.resize(picture, RECTANGLE[::-1], interpolation=cv2.INTER_AREA)
    rect = torch.from_numpy(rectangle[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)[None]
    arrays.put("pre_small.base", small)
    arrays.put("rect.input", rect)
    forget_priors(network)
    outputs = evaluating(network)(small)
    arrays.update("eval_small", {name: outputs[name] for name in OUTPUTS})
    sample_stages(arrays, "eval_small", stages(network, small, selected))
    sample_outputs(arrays, "eval_rect", network(rect))
    sample_stages(arrays, "eval_rect", stages(network, rect, selected))
    double = evaluating(filled(reference)).double()(small.double())
    noise = {name: float((outputs[name] - double[name]).abs().max()) for name in OUTPUTS}

    sample_outputs(arrays, "trainfrozen_small", training(network, frozen=True)(small))
    pair = torch.cat([small, 0.5 * small.flip(3)])
    sample_outputs(arrays, "trainbn_small", training(network, frozen=False)(pair))
    state = network.state_dict()
    for name in BUFFERS:
        for part in ("running_mean", "running_var", "num_batches_tracked"):
            arrays.put(f"trainbn_small.after.{name}.{part}", state[f"{name}.{part}"].clone())
    return noise


def prepared(reference: Reference, picture: Array, side: int) -> Tensor:
    """[1, 3, side, side]: a BGR picture through the original's transform for evaluation."""
    with reference.settings(max_size=side):
        transform = reference.augmentations.BaseTransform()
    nothing = np.zeros((1, *picture.shape[:2])), np.array([[0.0, 0, 1, 1]])
    image = transform(picture, *nothing, {"labels": np.zeros(1)})[0]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def small_input(reference: Reference, picture: Array) -> Tensor:
    """[1, 3, 138, 138]; shrunk in 8 bits first, which halves the size of its file."""
    small = cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    return prepared(reference, np.asarray(small), SMALL)


def sample_outputs(arrays: Arrays, case: str, outputs: dict[str, Tensor]) -> None:
    """Store a sample of each output; ``segm`` is there in training mode only."""
    for name in (*OUTPUTS, *({"segm"} & outputs.keys())):
        arrays.sample(f"{case}.{name}", outputs[name], COUNT)


def sample_stages(arrays: Arrays, case: str, values: dict[str, Tensor]) -> None:
    """Store a small sample of each stage, for locating an error."""
    for name, value in values.items():
        arrays.sample(f"{case}.{name}", value, STAGE_COUNT)


def write_priors(reference: Reference, folder: Path) -> None:
    """Write priors.npz."""
    arrays, network = Arrays(), evaluating(filled(reference))
    cases = [((550, 550), 550), ((400, 400), 400), ((138, 138), 550), (RECTANGLE, SMALL)]
    for (height, width), base in cases:
        size = str(height) if height == width else f"{height}x{width}"
        forget_priors(network)
        shapes: list[tuple[int, ...]] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, inputs, kept=shapes: kept.append(tuple(inputs[0].shape[2:]))
            )
            for layer in network.prediction_layers  # type: ignore[union-attr]
        ]
        with reference.settings(max_size=base), torch.no_grad():
            outputs = network(torch.zeros(1, 3, height, width))
        for hook in hooks:
            hook.remove()
        arrays.put(f"priors_in{size}_max{base}", outputs["priors"])
        arrays.put(f"convhw_in{size}_max{base}", np.array(shapes, np.int64))
    arrays.save(folder / "priors.npz", reference, {})


def write_state_dict(reference: Reference, folder: Path) -> None:
    """Write state_dict.json."""
    network = filled(reference)
    state = network.state_dict()
    parameters = dict(network.named_parameters())
    rows = [
        {
            "key": name,
            "shape": list(value.shape),
            "dtype": str(value.dtype).split(".")[1],
            "kind": "parameter" if name in parameters else "buffer",
        }
        for name, value in state.items()
    ]
    content = {
        **origin(reference),
        "keys": rows,
        "num_keys": len(rows),
        "num_parameters": sum(p.numel() for p in parameters.values()),
        "parameter_order": list(parameters),
        "loading_cases": loading_cases(reference, network),
        "backbone_file": backbone_file(reference, network),
        "fill_check": {"seed": SEED, "entries": fill_check(state)},
    }
    save_json(folder / "state_dict.json", content)


def fill_check(state: dict[str, Tensor]) -> list[list[Any]]:
    """First three values, sum and largest magnitude of every floating-point entry."""
    wide = {name: v.double().flatten() for name, v in state.items() if v.is_floating_point()}
    return [
        [name, v[:3].tolist(), v.sum().item(), v.abs().max().item()] for name, v in wide.items()
    ]


def loading_cases(reference: Reference, network: nn.Module) -> list[dict[str, Any]]:
    """What the original does with checkpoints that hold more or less than the network."""
    added = {
        "old_backbone_alias": [
            "backbone.layer1.0.conv1.weight",
            "backbone.layer4.2.bn3.running_var",
        ],
        "v1_downsample": ["fpn.downsample_layers.2.*", "fpn.downsample_layers.3.*"],
        "unknown_key": ["maskiou_net.0.weight"],
    }
    removed = {
        "missing_key": ["proto_net.10.bias"],
        # torch tolerates this in files without its marks of module versions only
        "no_num_batches_tracked": ["*.num_batches_tracked"],
        "no_num_batches_tracked_with_metadata": ["*.num_batches_tracked"],
    }
    cases = []
    for name in ("flat", "wrapped", *added, *removed):
        state: dict[str, Any] = network.state_dict()
        if name == "no_num_batches_tracked":
            state = dict(state)
        for key in added.get(name, []):
            state[key.replace("*", "weight")] = torch.ones(1)
        for key in removed.get(name, []):
            for each in [each for each in state if each.endswith(key.removeprefix("*"))]:
                del state[each]
        wrapped = {"model_state_dict": state, "epoch": 3, "checkpoint_recipe": None}
        outcome = load_outcome(reference, wrapped if name == "wrapped" else state)
        changes = {"added": added.get(name), "removed": removed.get(name)}
        keys = {kind: names for kind, names in changes.items() if names}
        cases.append({"name": name, "keys_changed": keys, **outcome})
    return cases


def load_outcome(reference: Reference, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint file with the original's own method."""
    network: Any = reference.model.Yolact()
    expected = dict(checkpoint.get("model_state_dict", checkpoint))
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "checkpoint.pth"
        torch.save(checkpoint, path)
        try:
            network.load_checkpoint(str(path))
        except RuntimeError as error:
            kinds = {"missing": "Missing", "unexpected": "Unexpected"}
            found = {kind: named(str(error), word) for kind, word in kinds.items()}
            counts = {k: {"count": len(v), "first": v[:3]} for k, v in found.items()}
            return {"outcome": "rejected", **counts}
    state = network.state_dict()
    equal = all(torch.equal(state[name], expected[name]) for name in state.keys() & expected.keys())
    return {"outcome": "loaded", "weights_equal_to_file": equal}


def named(message: str, kind: str) -> list[str]:
    """Names in one of the lists of torch's message about a state dict."""
    line = re.search(rf"{kind} key\(s\) in state_dict: (.*)", message)
    return re.findall(r'"([^"]+)"', line[1]) if line else []


def backbone_file(reference: Reference, network: nn.Module) -> dict[str, Any]:
    """Layout of the file that training starts from, and what the rest is initialised with."""
    prefix = "backbone."
    file = {k.removeprefix(prefix): v for k, v in fill(network).items() if k.startswith(prefix)}
    started: Any = reference.model.Yolact()
    buffer = io.BytesIO()
    torch.save({**file, "fc.weight": torch.ones(10, 4)}, buffer)
    buffer.seek(0)
    torch.manual_seed(SEED)
    started.init_weights(buffer)
    state = started.state_dict()
    biases = [
        module.bias
        for name, module in started.named_modules()
        if isinstance(module, nn.Conv2d) and module.bias is not None
    ]
    return {
        "name": reference.cfg.backbone.path,
        "keys": [
            {"key": name, "model_key": prefix + name, "shape": list(value.shape)}
            for name, value in file.items()
        ],
        "observed": {
            "all_backbone_loaded": all(torch.equal(state[prefix + k], v) for k, v in file.items()),
            "extra_keys_ignored": "fc.weight" not in state,
            "non_backbone_conv_biases_zero": not any(bool(bias.any()) for bias in biases),
            "xavier_uniform_bound_absmax_std*sqrt3": [xavier(n, state[n]) for n in XAVIER],
        },
    }


def xavier(name: str, weight: Tensor) -> list[Any]:
    """The bound of xavier-uniform weights, and the largest and the spread of those drawn."""
    area = weight[0, 0].numel()
    bound = (6 / (area * (weight.shape[0] + weight.shape[1]))) ** 0.5
    return [name, bound, weight.abs().max().item(), weight.std().item() * 3**0.5]
