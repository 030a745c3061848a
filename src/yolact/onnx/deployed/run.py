"""Find the objects of a picture with model.onnx: python run.py picture.jpg result.png."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def infer(image: Any, config: dict[str, Any]) -> list[Any]:
    """Outputs of the network (see config.json) for a BGR picture of any size."""
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"))
    name, (_, _, height, width) = config["input"]["name"], config["input"]["shape"]
    pixels = cv2.resize(image[:, :, ::-1].astype(np.float32), (width, height))  # RGB
    pixels = (pixels * np.float32(config["input"]["scale"])).transpose(2, 0, 1)
    batch = session.get_inputs()[0].shape[0]
    images = np.stack([pixels] * (batch if isinstance(batch, int) else 1))
    outputs: list[Any] = session.run([o["name"] for o in config["outputs"]], {name: images})
    return outputs


def detect(loc: Any, conf: Any, mask: Any, priors: Any, rules: dict[str, Any]) -> list[Any]:
    """Relative boxes, scores, classes and mask coefficients: decode, then fast NMS per class."""
    center = priors[:, :2] + loc[:, :2] * rules["center_variance"] * priors[:, 2:]
    half = priors[:, 2:] * np.exp(loc[:, 2:] * rules["size_variance"]) / 2
    boxes, scores = np.hstack([center - half, center + half]), conf[:, 1:]  # without background
    candidates = (scores.max(1) > rules["score_threshold"]) & np.isfinite(boxes).all(1)
    boxes, scores, mask = boxes[candidates], scores[candidates], mask[candidates]
    order = np.argsort(-scores, axis=0, kind="stable")[: rules["top_k"]]  # [k, classes]
    low, high = boxes[order][..., :2], boxes[order][..., 2:]
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    common, area = shared.clip(0).prod(-1), (high - low).prod(-1)
    overlap = common / np.maximum(area[:, None] + area - common, 1e-12)  # [k, k, classes]
    better = np.tri(len(order), k=-1, dtype=bool).T[:, :, None]
    ranks, classes = np.nonzero(~((overlap > rules["nms_iou"]) & better).any(0))
    rows = order[ranks, classes]
    best = np.argsort(-scores[rows, classes], kind="stable")[: rules["max_detections"]]
    rows, classes = rows[best], classes[best]
    return [boxes[rows], scores[rows, classes], classes, mask[rows]]


def full_mask(proto: Any, coefficients: Any, box: Any, size: tuple[int, int]) -> Any:
    """Mask of one object at the picture's (height, width): prototypes combined, cut at the box."""
    soft = 1 / (1 + np.exp(-(proto @ coefficients)))
    (rows, columns), (x1, y1, x2, y2) = np.indices(soft.shape), box * np.tile(soft.shape[::-1], 2)
    soft *= (columns >= x1 - 1) & (columns < x2 + 1) & (rows >= y1 - 1) & (rows < y2 + 1)
    return cv2.resize(soft.astype(np.float32), size[::-1]) > 0.5


def main(source: str, target: str) -> None:
    """Print class, score and box of each object, and draw it."""
    config = json.loads((HERE / "config.json").read_text("utf-8"))
    image: Any = cv2.imread(source)
    if image is None:
        raise SystemExit(f"cannot read {source}")
    size, (loc, conf, mask, priors, proto) = image.shape[:2], infer(image, config)
    found = detect(loc[0], conf[0], mask[0], priors, config["detection"])
    for box, score, label, weights in zip(*found, strict=True):
        if score > config["detection"]["draw_threshold"]:
            inside = full_mask(proto[0], weights, box, size)
            x1, y1, x2, y2 = (box.clip(0, 1) * np.tile(size[::-1], 2)).astype(int).tolist()
            name, color = (
                config["classes"][label]["name"],
                np.array([37, 97, 173]) * (label + 1) % 256,
            )
            print(f"{name} {score:.4f} {x1} {y1} {x2} {y2} {inside.sum()} pixels")
            image[inside] = image[inside] // 2 + color % 256 // 2
            cv2.rectangle(image, (x1, y1), (x2, y2), (color % 256).tolist(), 2)
            cv2.putText(image, f"{name} {score:.2f}", (x1, y1 + 12), 0, 0.5, (0, 0, 0))
    if not cv2.imwrite(target, image):
        raise SystemExit(f"cannot write {target}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
