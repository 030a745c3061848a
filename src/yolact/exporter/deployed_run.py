"""Find the objects of a picture with model.onnx: python run.py picture.jpg result.png."""

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

try:
    import cv2
    import numpy as np
    import onnxruntime
except ImportError as error:
    raise SystemExit(f"error: {error}; pip install onnxruntime opencv-python-headless") from None

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


def read_label(line: str) -> str:
    """The class name of a line of labels.txt, where a line break is written as in JSON."""
    try:
        return str(json.loads('"' + line.replace('"', '\\"') + '"'))
    except ValueError:  # a backslash that somebody wrote by hand
        return line


def drawable(name: str, number: int) -> str:
    """The name without accents, or its number: OpenCV's letters are those of ASCII."""
    marks = unicodedata.normalize("NFKD", " ".join(name.split()))
    plain = "".join(c for c in marks if not unicodedata.combining(c))
    return plain if plain.isascii() and plain.isprintable() and plain else f"class {number}"


def read_picture(source: Path) -> Any:
    """Its pixels, BGR."""
    data = np.frombuffer(source.read_bytes(), np.uint8)
    image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{source} is damaged, or no picture that OpenCV reads")
    return image


def require_target(source: Path, target: Path) -> None:
    """Raise an error where the result cannot be written, before there is one."""
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target} is the picture itself; name another file for the result")
    if target.is_dir() or not target.parent.is_dir():
        what = "it is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise ValueError(f"cannot write {target}: {what}")
    if not target.suffix or not cv2.haveImageWriter(f"x{target.suffix}"):
        raise ValueError(f"cannot write {target}: end it in .png or .jpg")


def open_model(path: Path) -> Any:
    """A session of onnxruntime, whose exceptions have nothing in common."""
    path.stat()
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"cannot load {path}: {error}") from None


def run(source: Path, target: Path) -> None:
    """Print class, score, box and area of each object, and draw it."""
    require_target(source, target)
    image = read_picture(source)
    config = json.loads((HERE / "config.json").read_text("utf-8"))
    labels = (HERE / "labels.txt").read_text("utf-8").removesuffix("\n").split("\n")
    if len(labels) != len(config["classes"]):
        raise ValueError(f"labels.txt has {len(labels)} lines, not {len(config['classes'])}")
    session = open_model(HERE / "model.onnx")
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
            color = np.array([37, 97, 173]) * (label + 1)
            print(f"{labels[label]} {score:.4f} {x1} {y1} {x2} {y2} {inside.sum()} pixels")
            image[inside] = image[inside] // 2 + color % 256 // 2
            cv2.rectangle(image, (x1, y1), (x2, y2), (color % 256).tolist(), 2)
            text = f"{drawable(read_label(labels[label]), int(label))} {score:.2f}"
            cv2.putText(image, text, (x1, y1 + 12), 0, 0.5, (0, 0, 0))
    written, data = cv2.imencode(target.suffix, image)
    if not written:
        raise ValueError(f"cannot write {target}")
    target.write_bytes(data.tobytes())


def main(arguments: list[str]) -> None:
    """Run, or say in one line why not."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # no console is too poor for a name
    if len(arguments) != 2:
        print(
            "usage: python run.py PICTURE RESULT, such as picture.jpg result.png", file=sys.stderr
        )
        raise SystemExit(0 if arguments in (["-h"], ["--help"]) else 2)
    try:
        run(Path(arguments[0]), Path(arguments[1]))
    except FileNotFoundError as error:
        raise SystemExit(f"error: there is no file {error.filename}") from None
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
