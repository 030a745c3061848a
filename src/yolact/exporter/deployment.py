"""A folder with all that running a model takes, on a machine that has nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.engines.onnx_file import (
    DEPLOYED,
    DETECTED,
    INPUT_MEANING,
    OUTPUT_MEANINGS,
    ModelMetadata,
)
from yolact.engines.onnxruntime import run_graph
from yolact.errors import StorageError
from yolact.exporter.trace import sample_images
from yolact.files import atomic_folder, storage_errors
from yolact.ops.boxes import CENTER_VARIANCE, SIZE_VARIANCE

FOLDER = "deployment"
MODEL, CONFIG, LABELS, PRIORS, SAMPLE, SCRIPT = FILES = (
    DEPLOYED,
    "config.json",
    "labels.txt",
    "priors.bin",
    "sample.npz",
    "run.py",
)
"""What the folder holds."""
_SCRIPT_SOURCE = "deployed_run.py"
"""The script's file in this package."""

_LINE_BREAKS = "\x7f\x85\u2028\u2029"
"""What JSON leaves as it is, and some editors and ``str.splitlines`` take for the end of a line."""
DRAW_THRESHOLD = 0.3
"""Score above which the script draws an object, as the annotate command does."""


def write_deployment(model: Path, *, image: Path | None = None) -> Path:
    """Write ``deployment/`` beside an exported file.

    It holds ``model.onnx``, ``config.json`` (classes, input, outputs, thresholds, where the model
    comes from), ``labels.txt`` (one class a line, see :func:`label_line`), ``priors.bin`` (the
    output ``priors``, which is the same for every image, as rows of float32 numbers, the lowest
    byte first; not for a model that detects inside), ``sample.npz`` (an input and the outputs it
    gives) and ``run.py``, which needs onnxruntime and OpenCV only. The folder appears whole or
    not at all; an older one is replaced as a whole.

    Args:
        model: Written by :func:`yolact.exporter.export.export`; not compressed.
        image: Picture of the sample pair; None for a generated one.

    Returns:
        The folder.

    Raises:
        StorageError: It cannot be written, or holds something that this function did not make.
    """
    target = model.parent / FOLDER
    require_deployable(model)
    with atomic_folder(target) as folder:
        _place(model, folder / MODEL)
        graph = onnx.load(str(model))
        props = ModelMetadata.from_props({p.key: p.value for p in graph.metadata_props})
        classes, config = props.classes or Classes((), ()), props.config or YolactConfig()
        text = json.dumps(_content(graph, props, classes, config), indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        lines = "".join(f"{label_line(name)}\n" for name in classes.names)
        (folder / LABELS).write_bytes(lines.encode())
        outputs = _write_sample(graph, folder, image)
        if "priors" in outputs:
            (folder / PRIORS).write_bytes(outputs["priors"].astype("<f4").tobytes())
        source = files("yolact.exporter") / _SCRIPT_SOURCE
        (folder / SCRIPT).write_text(source.read_text("utf-8"), encoding="utf-8")
    return target


def require_deployable(model: Path) -> None:
    """Check before long work that ``deployment/`` beside ``model`` may be replaced.

    Raises:
        StorageError: It is a file, or holds something that :func:`write_deployment` did not make.
    """
    target = model.parent / FOLDER
    with storage_errors(target):
        if not target.exists():
            return
        if not target.is_dir():
            raise StorageError(
                f"cannot write the folder {target}: a file of that name is in the way",
                hint="move it away, or choose another --save-dir",
            )
        others = sorted(path.name for path in target.iterdir() if path.name not in FILES)
        if others:
            raise StorageError(
                f"{target} holds {others[0]}, which no export has written",
                hint="move it away, or choose another --save-dir",
            )


def label_line(name: str) -> str:
    r"""A class name in one line: line breaks, backslashes and the like as in a JSON string.

    >>> print(label_line('5" nut\nM8'))
    5" nut\nM8
    """
    text = json.dumps(name, ensure_ascii=False)[1:-1].replace(r"\"", '"')
    return "".join(f"\\u{ord(c):04x}" if c in _LINE_BREAKS else c for c in text)


def _content(
    graph: onnx.ModelProto, props: ModelMetadata, classes: Classes, config: YolactConfig
) -> dict[str, Any]:
    detect = config.detect
    fast = not _detects(graph) and detect.fast_nms
    return {
        "model": MODEL,
        "architecture": config.name,
        "classes": [
            {"index": index, "id": category, "name": name}
            for index, (name, category) in enumerate(zip(classes.names, classes.ids, strict=True))
        ],
        "input": {
            **_value(graph.graph.input[0], INPUT_MEANING),
            "layout": "NCHW",
            "color_order": "RGB",
            "scale": 1 / 255,
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        },
        "outputs": [_value(o, OUTPUT_MEANINGS[o.name]) for o in graph.graph.output],
        "priors": None if _detects(graph) else _priors(graph, config),
        "detection": {
            "inside_graph": _detects(graph),
            "score_threshold": detect.score_threshold,
            "nms": "fast" if fast else "greedy",
            "nms_iou": detect.nms_iou,
            "top_k": detect.top_k,
            "max_detections": detect.max_detections,
            "center_variance": CENTER_VARIANCE,
            "size_variance": SIZE_VARIANCE,
            "draw_threshold": DRAW_THRESHOLD,
        },
        "sparsity": props.sparsity,
        "quantization": props.quantization,
        "one_shot": props.one_shot,
        "recipe": props.recipe,
        "tools": {
            "sparseml-yolact": props.version,
            **(props.tools or {}),
            "opset": graph.opset_import[0].version,
        },
    }


def _value(value: onnx.ValueInfoProto, meaning: str) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
        "type": str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        "meaning": meaning,
    }


def _priors(graph: onnx.ModelProto, config: YolactConfig) -> dict[str, Any]:
    """How to read the file of priors."""
    (priors,) = (output for output in graph.graph.output if output.name == "priors")
    return {
        "file": PRIORS,
        **_value(priors, OUTPUT_MEANINGS["priors"]),
        "byte_order": "little",
        "base_size": config.model.prior_base_size,
    }


def _detects(graph: onnx.ModelProto) -> bool:
    return [output.name for output in graph.graph.output] == list(DETECTED)


def _write_sample(
    graph: onnx.ModelProto, folder: Path, image: Path | None
) -> dict[str, NDArray[Any]]:
    """Write an input and its outputs; these are returned by name."""
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    images = sample_images(image, (shape[2], shape[3]), shape[0] or 1)
    outputs = run_graph(folder / MODEL, images)
    arrays: dict[str, Any] = {graph.graph.input[0].name: images.numpy(), **outputs}
    np.savez_compressed(folder / SAMPLE, **arrays)
    return outputs


def _place(source: Path, target: Path) -> None:
    """As a second name of the same file where the disk can: 190 MB need not be there twice.

    Exports replace files and never write into them, so that neither name changes the other's.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
