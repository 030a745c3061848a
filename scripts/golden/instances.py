"""postprocess.npz: detections and prototypes to masks and pixel boxes of an image."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional

from golden.reference import Reference
from golden.store import Arrays, generator

PROTOTYPES = 32
IMAGE_ID = 12345


@dataclass(frozen=True)
class Case:
    """An image size, prototypes and settings."""

    note: str
    width: int
    height: int
    count: int
    grid: int = 138
    """Side of the prototypes."""
    crop: bool = True
    score_threshold: float = 0


CASES = {
    "landscape": Case("swapped corners, sub-pixel box, box larger than the image", 640, 427, 14),
    "portrait": Case("non-square portrait image", 375, 500, 10),
    "nocrop": Case("masks are not cut at their boxes", 640, 427, 6, crop=False),
    "threshold": Case("one score equals the threshold", 320, 240, 9, 36, score_threshold=0.5),
    "threshold_all": Case("no score is above", 320, 240, 5, 36, score_threshold=0.995),
    "smallproto": Case("an image smaller than the network's input", 97, 61, 7, 36),
}


def write_postprocess(reference: Reference, folder: Path) -> None:
    """Write postprocess.npz."""
    arrays, meta = Arrays(), {}
    reference.evaluation.prep_coco_cats()
    for name, case in CASES.items():
        inputs = make_inputs(name, case)
        arrays.update(f"{name}.in", inputs)
        meta[name] = {
            "note": case.note,
            "h": case.height,
            "w": case.width,
            "params": {
                "crop_masks": case.crop,
                "score_threshold": case.score_threshold,
                "interpolation_mode": "bilinear",
            },
            **put_instances(reference, arrays, name, case, inputs),
        }
    content = {"cases": meta, "image_id_used_in_results": IMAGE_ID}
    arrays.save(folder / "postprocess.npz", reference, content)


def make_inputs(name: str, case: Case) -> dict[str, NDArray[Any]]:
    """Detections by descending score, and smooth prototypes in steps of 1/8."""
    rng = generator(f"postprocess.{name}")
    coarse = rng.normal(0, 1, (9, 9, PROTOTYPES)).astype(np.float32)
    smooth = cv2.resize(coarse, (case.grid, case.grid), interpolation=cv2.INTER_CUBIC)
    proto = (np.round(np.maximum(smooth, 0) * 8) * 32).astype(np.int16)
    sides = rng.uniform(0.1, 0.7, (case.count, 2))
    corner = rng.uniform(-0.1, 1.1 - sides)
    boxes = np.concatenate([corner, corner + sides], axis=1)
    boxes[0] = [0.9, 0.2, 0.55, 0.1]  # corners swapped
    boxes[1] = [0.5, 0.5, 0.5 + 1e-4, 0.5 + 1e-4]  # less than a pixel
    boxes[2] = [-0.2, -0.3, 1.4, 1.2]  # larger than the image
    score = np.sort(rng.uniform(0.1, 0.99, case.count))[::-1].copy()
    if name == "threshold":
        score[2] = 0.5
        score[3:] = score[3:] * 0.4
    return {
        "proto_q256": proto,
        "coeff": rng.normal(0, 0.6, (case.count, PROTOTYPES)).astype(np.float32),
        "box": boxes.astype(np.float32),
        "score": score.astype(np.float32),
        "class": rng.integers(0, 80, case.count),
    }


def put_instances(
    reference: Reference, arrays: Arrays, name: str, case: Case, inputs: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Run the original; store what it returns, and return its COCO entries."""
    classes, scores, boxes, masks = reference.output.postprocess(
        entry(inputs),
        case.width,
        case.height,
        crop_masks=case.crop,
        score_threshold=case.score_threshold,
    )
    count = len(scores)
    arrays.put(f"{name}.out.n", np.array(count))
    found = results(reference, case, inputs)
    if not count:
        return {**found, "n_in": case.count, "n_out": 0}
    codes = [rle.encode(np.asfortranarray(mask.byte().numpy())) for mask in masks]
    values = logits(reference, case, inputs)[inputs["score"] > case.score_threshold]
    arrays.update(
        f"{name}.out",
        {
            "class": classes,
            "score": scores,
            "box": boxes,
            "rle": np.array([code["counts"].decode() for code in codes]),
            "area": masks.sum((1, 2)).long(),
            "pixels_within_1e-4_of_threshold": ((values - 0.5).abs() < 1e-4).sum((1, 2)),
        },
    )
    return {**found, "n_in": case.count, "n_out": count}


def entry(inputs: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """What the original's detection layer returns for one image; it changes its input."""
    names = {"box": "box", "mask": "coeff", "class": "class", "score": "score"}
    detection = {key: torch.from_numpy(inputs[name].copy()) for key, name in names.items()}
    detection["proto"] = torch.from_numpy(inputs["proto_q256"]).float() / 256
    return [{"detection": detection, "net": None}]


def logits(reference: Reference, case: Case, inputs: dict[str, NDArray[Any]]) -> Tensor:
    """[n, height, width] the values that are cut off at 0.5, before they are."""
    proto = torch.from_numpy(inputs["proto_q256"]).float() / 256
    masks = (proto @ torch.from_numpy(inputs["coeff"]).T).sigmoid()
    if case.crop:
        masks = reference.boxes.crop(masks, torch.from_numpy(inputs["box"]))
    stacked = masks.permute(2, 0, 1)[None].contiguous()
    size = (case.height, case.width)
    return functional.interpolate(stacked, size, mode="bilinear", align_corners=False)[0]


def results(
    reference: Reference, case: Case, inputs: dict[str, NDArray[Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The entries that the original would write for COCO's server."""
    evaluation = reference.evaluation
    before = evaluation.args
    vars(evaluation)["args"] = argparse.Namespace(
        output_coco_json=True, crop=case.crop, score_threshold=case.score_threshold, cuda=False
    )
    found = evaluation.Detections()
    size = (case.height, case.width)
    evaluation.prep_metrics(None, entry(inputs), None, None, None, *size, 0, IMAGE_ID, found)
    vars(evaluation)["args"] = before
    return {"coco_bbox_results": found.bbox_data, "coco_segm_results": found.mask_data}
