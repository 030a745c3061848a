"""loss.npz: roles of priors, the four losses and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conftest import SEED, unit
from golden.matching import Matched, match
from golden.network import filled, forget_priors, training
from golden.pictures import Scene, choose, ellipses, resized, speck_scene
from golden.reference import Reference
from golden.store import Arrays, generator

LEARNED = ("loc", "conf", "mask", "proto", "segm")
UNIFORM_SCALE = {"loc": 1.5, "conf": 3.0, "mask": 1.0, "proto": 2.0, "segm": 4.0}
SIDE = 160
"""Of the small cases' input; the others' is 550."""
FULL = 550
CLOSE = 5e-7
"""Largest relative difference that float64 may make to a stored loss."""


@dataclass
class Target:
    """One image's ground truth; crowds are the last rows."""

    rows: NDArray[np.float32]
    """[k, 5]: relative corners and class index, -1 for a crowd."""
    masks: NDArray[np.uint8]
    crowds: int = 0
    picture: NDArray[np.uint8] | None = None
    """[side, side, 3] BGR."""


@dataclass
class Case:
    """A batch of two, and what the network says about it."""

    note: str
    side: int
    targets: list[Target]
    outputs: dict[str, Tensor]
    stored: bool = True
    """Whether the outputs are in the file; else a recipe gives them."""
    exact: bool = True
    """Whether no choice in it hangs on rounding."""


def write_loss(reference: Reference, folder: Path) -> None:
    """Write loss.npz."""
    arrays, meta = Arrays(), {}
    small, full = priors_at(reference, SIDE), priors_at(reference, FULL)
    for name, case in cases(reference, small, full).items():
        priors = small if case.side == SIDE else full
        if case.side == SIDE:
            arrays.put(f"{name}.in.priors", priors)
        if case.stored:
            for key in LEARNED:
                quantized = (case.outputs[key] * 1024).round().to(torch.int16)
                arrays.put(f"{name}.in.{key}_q1024", quantized)
        matched = put_targets(reference, arrays, name, case.targets, priors)
        meta[name] = {"note": case.note, "size": case.side, **describe(case.targets, matched)}
        assert max(each.positives for each in matched) <= reference.cfg.masks_to_train
        if case.exact:
            assert not any(each.ties.size for each in matched), name
        meta[name]["losses"] = put_losses(reference, arrays, name, case, priors)
    for number, target in enumerate(lone_targets()):
        name = f"M{number}"
        matched = put_targets(reference, arrays, name, [target], full, masks=False)
        meta[name] = describe([target], matched)
    arrays.save(folder / "loss.npz", reference, {"cases": meta, "masks_to_train": 100})


def put_targets(
    reference: Reference,
    arrays: Arrays,
    name: str,
    targets: list[Target],
    priors: Tensor,
    masks: bool = True,
) -> list[Matched]:
    """Store the ground truth, and which part each prior plays in learning it."""
    found = []
    for image, target in enumerate(targets):
        arrays.put(f"{name}.in.target.{image}", target.rows)
        arrays.put(f"{name}.in.num_crowds.{image}", np.array(target.crowds))
        if masks:
            arrays.masks(f"{name}.in.masks", target.masks, f".{image}")
        matched = match(reference, target.rows, target.crowds, priors)
        arrays.update(f"{name}.match.{image}", matched.arrays)
        arrays.put(f"{name}.tie_priors.{image}", matched.ties)
        found.append(matched)
    return found


def describe(targets: list[Target], matched: list[Matched]) -> dict[str, Any]:
    """Counts for the meta entry."""
    return {
        "objects": [len(target.rows) for target in targets],
        "crowds": [target.crowds for target in targets],
        "positives": [each.positives for each in matched],
        "neutral": [each.neutral for each in matched],
        "smallest_decision_margin": [each.margin for each in matched],
    }


def put_losses(
    reference: Reference, arrays: Arrays, name: str, case: Case, priors: Tensor
) -> dict[str, float]:
    """Run the original's loss and its gradients; float64 must agree where nothing is tied."""
    values, gradients = run(reference, case, priors, torch.float32)
    for key, value in values.items():
        arrays.put(f"{name}.loss.{key}", np.float32(value))
    for key in LEARNED:
        arrays.sample(f"{name}.grad.{key}", gradients[key])
    used = confidence_rows(reference, case, priors)
    for image, rows in enumerate(used):
        arrays.put(f"{name}.conf_rows_used.{image}", rows.nonzero()[:, 0].int())
    if case.exact:
        wide, _ = run(reference, case, priors, torch.float64)
        for key, value in values.items():
            if name != "SAT" or key != "M":  # float64 does not saturate
                assert abs(wide[key] - value) <= CLOSE * value, (name, key, wide[key], value)
    return values


def run(
    reference: Reference, case: Case, priors: Tensor, dtype: torch.dtype, only: str = ""
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses, and the gradient of their sum, or of one of them."""
    outputs = {k: v.detach().to(dtype).requires_grad_() for k, v in case.outputs.items()}
    targets = [torch.from_numpy(target.rows).to(dtype) for target in case.targets]
    masks = [torch.from_numpy(target.masks).to(dtype) for target in case.targets]
    crowds = [target.crowds for target in case.targets]
    predictions = {**outputs, "priors": priors.to(dtype)}
    with precision(dtype):
        losses = reference.criterion()(None, predictions, targets, masks, crowds)
    total = losses[only] if only else sum(losses.values())
    total.backward()
    gradients = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in outputs.items()}
    return {key: value.item() for key, value in losses.items()}, gradients


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Let ``float()`` inside the original mean the wanted precision."""
    with patch.object(Tensor, "float", lambda self: self.to(dtype)):
        yield


def confidence_rows(reference: Reference, case: Case, priors: Tensor) -> Tensor:
    """[2, n] the priors that the class loss looks at: only they get a gradient from it."""
    _, gradients = run(reference, case, priors, torch.float32, only="C")
    return gradients["conf"].abs().sum(-1) > 0


def priors_at(reference: Reference, side: int) -> Tensor:
    """[n, 4] of a square network of this input and max_size."""
    network: Any = filled(reference)
    with reference.settings(max_size=side), torch.no_grad():
        priors: Tensor = network(torch.zeros(1, 3, side, side))["priors"]
    return priors


def cases(reference: Reference, small: Tensor, full: Tensor) -> dict[str, Case]:
    """All cases with losses."""
    crowded = target_of(choose(160, objects=4, crowds=1), SIDE)
    plain = target_of(choose(160, objects=2), SIDE)
    # inside one of the smallest priors each, not inside several equal ones
    specks = speck_target("L2", 3, 0.012, 0.03, cells=SIDE // 8)
    several = target_of(choose(160, objects=3), SIDE)
    busy = [speck_target(f"L5.{i}", n, 0.02, 0.12) for i, n in enumerate((15, 13))]
    busy[0].crowds, busy[0].rows[-1, 4] = 1, -1
    large = [untied(reference, n, full) for n in (5, 1)]
    saturated = constant_outputs(len(small))
    return {
        "L1": Case("a crowd", SIDE, [crowded, plain], network_outputs(reference, [crowded, plain])),
        "L2": Case(
            "specks, some too small for the reduced mask",
            SIDE,
            [specks, several],
            network_outputs(reference, [specks, several]),
        ),
        "L3": Case(
            "L1's ground truth in the other order, larger outputs",
            SIDE,
            [plain, crowded],
            drawn_outputs("L3", small, 40, 20),
            stored=False,
        ),
        "SAT": Case("float32's sigmoid is exactly 1", SIDE, [plain, crowded], saturated),
        "L4": Case("full size", FULL, large, drawn_outputs("L4", full, 138, 69), stored=False),
        "L5": Case(
            "crowded: small objects inside several equal priors",
            SIDE,
            busy,
            drawn_outputs("L5", small, 40, 20),
            stored=False,
            exact=False,
        ),
    }


def lone_targets() -> list[Target]:
    """Ground truths that are only matched."""
    crowd = speck_target("M0", 15, 0.02, 0.2, FULL)
    crowd.crowds = 1
    crowd.rows[-1] = [0.4, 0.3, 0.85, 0.6, -1]
    return [crowd, *(target_of(choose(160, objects=n, skip=2), FULL) for n in (2, 3))]


def untied(reference: Reference, objects: int, priors: Tensor) -> Target:
    """The first generated image whose matching at full size hangs on no rounding."""
    for skip in range(20):
        target = target_of(choose(160, objects=objects, skip=skip), FULL)
        if not match(reference, target.rows, 0, priors).ties.size:
            return target
    raise LookupError(f"no image with {objects} objects is without ties")


def target_of(scene: Scene, side: int) -> Target:
    """A generated image's annotations at an input size.

    Boxes are moved by a fraction of a pixel: with edges on whole pixels, rounding would decide
    which column a mask is cut at.
    """
    picture, masks = resized(scene, side)
    boxes = scene.boxes + generator(scene.name).uniform(-0.4, 0.4, scene.boxes.shape) / SIDE
    rows = np.concatenate([boxes, scene.labels[:, None]], axis=1).astype(np.float32)
    return Target(rows, masks, scene.crowds, picture)


def speck_target(
    name: str, count: int, smallest: float, largest: float, side: int = SIDE, cells: int = 0
) -> Target:
    """Small ellipses on a grey ground."""
    boxes, labels = speck_scene(generator(f"loss.{name}"), count, smallest, largest, cells)
    rows = np.concatenate([boxes, labels[:, None]], axis=1).astype(np.float32)
    masks = ellipses(boxes, side)
    picture = np.full((side, side, 3), 120, np.uint8)
    picture[masks.any(0)] = 30, 60, 220
    return Target(rows, masks, picture=picture)


def network_outputs(reference: Reference, targets: list[Target]) -> dict[str, Tensor]:
    """What the filled network says in training, rounded to 1/64 for a small file.

    Prototypes are scaled down, or the sigmoid of masks would saturate.
    """
    pictures = np.stack([target.picture for target in targets if target.picture is not None])
    images = torch.from_numpy(pictures[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
    network = training(filled(reference), frozen=True)
    forget_priors(network)
    with reference.settings(max_size=SIDE), torch.no_grad():
        outputs = network(images)
    outputs["proto"] = outputs["proto"] * 0.1
    return {name: (outputs[name] * 64).round() / 64 for name in LEARNED}


def drawn_outputs(name: str, priors: Tensor, grid: int, segm: int) -> dict[str, Tensor]:
    """Uniform numbers that depend on names and shapes only."""
    count = len(priors)
    shapes: dict[str, tuple[int, ...]] = {
        "loc": (2, count, 4),
        "conf": (2, count, 81),
        "mask": (2, count, 32),
        "proto": (2, grid, grid, 32),
        "segm": (2, 80, segm, segm),
    }
    found = {
        key: torch.from_numpy(unit(f"loss.{name}.{key}", shape, SEED).astype(np.float32))
        * UNIFORM_SCALE[key]
        for key, shape in shapes.items()
    }
    return {**found, "proto": found["proto"].clamp(min=0)}


def constant_outputs(count: int) -> dict[str, Tensor]:
    """Every mask logit is 31."""
    return {
        "loc": torch.zeros(2, count, 4),
        "conf": torch.zeros(2, count, 81),
        "mask": torch.full((2, count, 32), 31 / 32),
        "proto": torch.ones(2, 40, 40, 32),
        "segm": torch.zeros(2, 80, 20, 20),
    }
