"""Find the objects of a picture with model.onnx: python run.py picture.jpg result.png."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def detect(rules: Any, loc: Any, conf: Any, coefficients: Any, priors: Any, proto: Any) -> Any:
    """Boxes (relative x1 y1 x2 y2), scores, classes, soft masks: decode, fast NMS, assemble."""
    center = priors[:, :2] + loc[:, :2] * rules["center_variance"] * priors[:, 2:]
    half = priors[:, 2:] * np.exp(loc[:, 2:] * rules["size_variance"]) / 2
    boxes, scores = np.hstack([center - half, center + half]), conf[:, 1:]  # without background
    likely = (scores.max(1) > rules["score_threshold"]) & np.isfinite(boxes).all(1)
    boxes, scores, coefficients = boxes[likely], scores[likely], coefficients[likely]
    order = np.argsort(-scores, axis=0, kind="stable")[: rules["top_k"]]  # [k, classes]
    low, high = boxes[order][..., :2], boxes[order][..., 2:]
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    common, area = shared.clip(0).prod(-1), (high - low).prod(-1)
    overlap = common / np.maximum(area[:, None] + area - common, 1e-12)  # [k, k, classes]
    better = np.tri(len(order), k=-1, dtype=bool).T[:, :, None]
    ranks, labels = np.nonzero(~((overlap > rules["nms_iou"]) & better).any(0))
    rows = order[ranks, labels]
    best = np.argsort(-scores[rows, labels], kind="stable")[: rules["max_detections"]]
    rows, labels = rows[best], labels[best]
    masks = 1 / (1 + np.exp(-np.moveaxis(proto @ coefficients[rows].T, 2, 0)))
    y, x = np.indices(masks.shape[1:])
    for mask, (x1, y1, x2, y2) in zip(masks, boxes[rows] * (x.shape[::-1] * 2), strict=True):
        mask *= (x >= x1 - 1) & (x < x2 + 1) & (y >= y1 - 1) & (y < y2 + 1)
    return boxes[rows], scores[rows, labels], labels, masks


def main(source: str, target: str) -> None:
    """Print class, score, box and area of each object, and draw it."""
    config = json.loads((HERE / "config.json").read_text("utf-8"))
    image: Any = cv2.imread(source)
    if image is None:
        raise SystemExit(f"cannot read {source}")
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"))
    batch, _, height, width = session.get_inputs()[0].shape
    pixels = cv2.resize(image[:, :, ::-1].astype(np.float32), (width, height))  # RGB
    images = np.stack([pixels.transpose(2, 0, 1)] * (batch if isinstance(batch, int) else 1))
    names = [output.name for output in session.get_outputs()]
    values: Any = session.run(names, {"input": images * np.float32(config["input"]["scale"])})
    found = [v if name == "priors" else v[0] for name, v in zip(names, values, strict=True)]
    if not config["detection"]["inside_graph"]:
        found = detect(config["detection"], *found)
    for box, score, label, mask in zip(*found, strict=True):
        if score > config["detection"]["draw_threshold"]:
            inside = cv2.resize(mask.astype(np.float32), image.shape[1::-1]) > 0.5
            x1, y1, x2, y2 = (box.clip(0, 1) * (image.shape[1::-1] * 2)).astype(int).tolist()
            name, color = config["classes"][label]["name"], np.array([37, 97, 173]) * (label + 1)
            print(f"{name} {score:.4f} {x1} {y1} {x2} {y2} {inside.sum()} pixels")
            image[inside] = image[inside] // 2 + color % 256 // 2
            cv2.rectangle(image, (x1, y1), (x2, y2), (color % 256).tolist(), 2)
            cv2.putText(image, f"{name} {score:.2f}", (x1, y1 + 12), 0, 0.5, (0, 0, 0))
    if not cv2.imwrite(target, image):
        raise SystemExit(f"cannot write {target}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
