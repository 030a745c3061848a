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
    """Outputs of the graph (see config.json) for a BGR picture of any size."""
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"))
    name, (_, _, height, width) = config["input"]["name"], config["input"]["shape"]
    pixels = cv2.resize(image[:, :, ::-1].astype(np.float32), (width, height))  # RGB
    pixels = (pixels * np.float32(config["input"]["scale"])).transpose(2, 0, 1)
    batch = session.get_inputs()[0].shape[0]
    images = np.stack([pixels] * (batch if isinstance(batch, int) else 1))
    outputs: list[Any] = session.run([o["name"] for o in config["outputs"]], {name: images})
    return outputs


def main(source: str, target: str) -> None:
    """Print class, score and box of each object, and draw it."""
    config = json.loads((HERE / "config.json").read_text("utf-8"))
    image: Any = cv2.imread(source)
    if image is None:
        raise SystemExit(f"cannot read {source}")
    size, found = image.shape[:2], [output[0] for output in infer(image, config)]
    for box, score, label, mask in zip(*found, strict=True):
        if score > config["detection"]["draw_threshold"]:
            inside = cv2.resize(mask, size[::-1]) > 0.5
            x1, y1, x2, y2 = (box.clip(0, 1) * np.tile(size[::-1], 2)).astype(int).tolist()
            name, color = config["classes"][label]["name"], np.array([37, 97, 173]) * (label + 1)
            print(f"{name} {score:.4f} {x1} {y1} {x2} {y2} {inside.sum()} pixels")
            image[inside] = image[inside] // 2 + color % 256 // 2
            cv2.rectangle(image, (x1, y1), (x2, y2), (color % 256).tolist(), 2)
            cv2.putText(image, f"{name} {score:.2f}", (x1, y1 + 12), 0, 0.5, (0, 0, 0))
    if not cv2.imwrite(target, image):
        raise SystemExit(f"cannot write {target}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
