"""train_trace.json and train_trace_inputs.npz: three steps of training, in detail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.losses import Target, precision, target_of
from golden.network import filled, forget_priors, training
from golden.pictures import choose
from golden.reference import Reference
from golden.store import Arrays, generator, origin, save_json

SIDE, STEPS = 160, 3
PROTO_SCALE = 0.1
"""Of the last prototype layer, so that no mask logit saturates float32's sigmoid."""
LR_FACTOR = {"bn_train": 0.1, "bn_frozen": 1.0}
"""Batch statistics of two images are wild: a tenth of the rate keeps the numbers tame."""
WATCHED = (
    *("backbone._preconv.0.weight", "backbone._preconv.1.weight", "backbone._preconv.1.bias"),
    *("backbone.layers.1.1.conv2.0.weight", "backbone.layers.3.4.conv1.0.weight"),
    *("backbone.layers.4.4.conv2.1.weight", "fpn.lat_layers.0.weight", "fpn.pred_layers.2.bias"),
    *("fpn.downsample_layers.0.weight", "proto_net.0.weight", "proto_net.10.weight"),
    *(f"prediction_layers.0.{name}.weight" for name in ("upfeature.0", "bbox_layer")),
    *(f"prediction_layers.0.conf_layer.{name}" for name in ("weight", "bias")),
    *("prediction_layers.0.mask_layer.weight", "semantic_seg_conv.weight"),
    "semantic_seg_conv.bias",
)
BUFFERS = ("backbone._preconv.1", "backbone.layers.2.3.conv2.1", "backbone.layers.4.4.conv2.1")
SAMPLE = 24

State = dict[str, Tensor]


def write_trace(reference: Reference, folder: Path) -> None:
    """Write train_trace.json and train_trace_inputs.npz."""
    batches = [
        [target_of(choose(160, objects=n, skip=skip), SIDE) for n in objects]
        for skip, objects in ((1, (2, 4)), (2, (3, 1)), (3, (3, 2)))
    ]
    write_inputs(reference, folder, batches)
    modes = {}
    for mode in LR_FACTOR:
        single = Run(reference, mode, torch.float32, batches)
        double = Run(reference, mode, torch.float64, batches)
        modes[mode] = single.record(double)
    content = {
        **origin(reference),
        "input_size": SIDE,
        "max_size": SIDE,
        "proto_net_last_conv_scale": PROTO_SCALE,
        "lr_factor": LR_FACTOR,
        "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 5e-4},
        "suggested_tolerance": (
            "losses: relative 1e-4 at step 0; later 1e-4 (bn_frozen), 2e-3 (bn_train). weights: "
            "10 * noise_max_abs + 0.02 * rms_of_change + 2.5e-7"
        ),
        "modes": modes,
    }
    save_json(folder / "train_trace.json", content)


def write_inputs(reference: Reference, folder: Path, batches: list[list[Target]]) -> None:
    """Write train_trace_inputs.npz."""
    arrays = Arrays()
    for step, targets in enumerate(batches):
        arrays.put(f"step{step}.images_uint8_nchw_rgb", images_of(targets))
        for index, target in enumerate(targets):
            arrays.put(f"step{step}.target.{index}", target.rows)
            arrays.masks(f"step{step}.masks", target.masks, f".{index}")
    arrays.save(folder / "train_trace_inputs.npz", reference, {"size": SIDE})


def images_of(targets: list[Target]) -> Tensor:
    """[n, 3, side, side] uint8 RGB."""
    pictures = np.stack([target.picture for target in targets if target.picture is not None])
    return torch.from_numpy(pictures[..., ::-1].transpose(0, 3, 1, 2).copy())


class Run:
    """One run in one precision."""

    def __init__(
        self, reference: Reference, mode: str, dtype: torch.dtype, batches: list[list[Target]]
    ) -> None:
        """Take the steps."""
        self.reference, self.dtype = reference, dtype
        network = filled(reference)
        with torch.no_grad():
            for name in ("proto_net.10.weight", "proto_net.10.bias"):
                network.get_parameter(name).mul_(PROTO_SCALE)
        self.network = training(network.to(dtype), frozen=mode == "bn_frozen")
        self.steps: list[dict[str, Any]] = []
        self.states: list[State] = [self.state()]
        optimizer = torch.optim.SGD(network.parameters(), lr=0, momentum=0.9, weight_decay=5e-4)
        factor = LR_FACTOR[mode]
        for step, targets in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lr = factor * (1e-4 + 9e-4 * step / 500)
            losses = self.losses(targets)
            optimizer.zero_grad()
            losses["T"].backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.steps.append({"iteration": step, "lr": lr, **values(losses), **self.gradients()})
            self.states.append(self.state())
        with torch.no_grad():
            self.after = values(self.losses(batches[0]))

    def losses(self, targets: list[Target]) -> dict[str, Tensor]:
        """B, C, M, S and their sum T."""
        with self.reference.settings(max_size=SIDE), precision(self.dtype):
            forget_priors(self.network)
            predictions = self.network(images_of(targets).to(self.dtype) / 255)
            predictions["priors"] = predictions["priors"].to(self.dtype)
            found: dict[str, Tensor] = self.reference.criterion()(
                None,
                predictions,
                [torch.from_numpy(target.rows).to(self.dtype) for target in targets],
                [torch.from_numpy(target.masks).to(self.dtype) for target in targets],
                [target.crowds for target in targets],
            )
        return {**found, "T": torch.stack(list(found.values())).sum()}

    def state(self) -> State:
        """A copy of weights and statistics."""
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def gradients(self) -> dict[str, Any]:
        """Norms of the watched ones, and which parameters have none."""
        named = dict(self.network.named_parameters())
        found = {name: parameter.grad for name, parameter in named.items()}
        norms = {n: g.norm().item() for n in WATCHED if (g := found[n]) is not None}
        absent = [name for name, gradient in found.items() if gradient is None]
        return {"grad_l2": norms, "params_without_grad": absent}

    def record(self, double: Run) -> dict[str, Any]:
        """What the file holds of this run; ``double`` tells what of it is rounding."""
        for name, value in self.steps[0]["losses"].items():
            assert abs(value - double.steps[0]["losses"][name]) < 1e-5 * value, name
        return {
            "steps": self.steps,
            "loss_after_3_steps_on_step0_batch": self.after,
            "weights_after_1_step": self.weights(double, 1),
            "weights_after_3_steps": self.weights(double, STEPS),
            "bn_after_3_steps": statistics(self.states[STEPS]),
            "noise_float32_vs_float64": [
                {k: abs(v - wide["losses"][k]) / v for k, v in narrow["losses"].items()}
                for narrow, wide in zip(
                    [*self.steps, self.after], [*double.steps, double.after], strict=True
                )
            ],
        }

    def weights(self, double: Run, steps: int) -> dict[str, Any]:
        """Some elements of the watched parameters."""
        found = {}
        for name in WATCHED:
            value, initial, wide = (
                state[name].double().flatten()
                for state in (self.states[steps], self.states[0], double.states[steps])
            )
            change = value - initial
            count = min(SAMPLE, len(value))
            index = np.sort(generator(name).choice(len(value), count, replace=False))
            found[name] = {
                "flat_index": index.tolist(),
                "value": value[index].tolist(),
                "initial": initial[index].tolist(),
                "rms_of_change": change.square().mean().sqrt().item(),
                "noise_max_abs": (value - wide).abs().max().item(),
            }
        return found


def values(losses: dict[str, Tensor]) -> dict[str, Any]:
    """Losses as numbers."""
    return {"losses": {name: value.item() for name, value in losses.items()}}


def statistics(state: State) -> dict[str, Any]:
    """Running statistics of some layers."""
    found: dict[str, Any] = {}
    for name in BUFFERS:
        for part in ("running_mean", "running_var"):
            value = state[f"{name}.{part}"]
            found[f"{name}.{part}"] = {"first8": value[:8].tolist(), "l2": value.norm().item()}
        key = f"{name}.num_batches_tracked"
        found[key] = int(state[key])
    return found
