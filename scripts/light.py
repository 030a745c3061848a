"""How fast light networks are, beside the published one and files of other programs.

    python scripts/light.py --cores 1 --other "YOLO11n-seg INT8"=yolo11n-seg_int8.xml

exports ours as ``scripts/speed.py`` does, in the folder that it uses. Files of others are measured
as they are: ``.onnx`` in ONNX Runtime and OpenVINO, ``.xml`` in OpenVINO. All run in turns, one
image each, on random pixels, with nothing around the engines. Columns compare with the first row in
the same engine. The result is ``speed/light.md`` and ``light.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from commands import machine
from speed import ENGINES, ROUNDS, File, Speed, TimedCall, in_turns

from yolact.config import YolactConfig
from yolact.engines.openvino import openvino_core
from yolact.host import available_cpus, physical_cores
from yolact.loss.criterion import Supervised, YolactLoss
from yolact.model.yolact import Yolact
from yolact.presets import named_config
from yolact.training.optimizer import make_optimizer
from yolact.training.step import Stepper
from yolact.types import Batch, Target

OURS = (
    ("yolact_darknet53_config", File("dense")),
    ("yolact_darknet53_config", File("thinned_quant", (), ("onnxruntime",))),
    ("yolact_darknet53_config", File("thinned_quant", ("--format", "openvino"), ("openvino",))),
    ("yolact_lite0_config", File("dense")),
    ("yolact_lite0_config", File("one_shot_int8")),
    ("yolact_lite0_config", File("thinned_quant")),
)
"""Networks, and files of them; those that there is no recipe for are left out."""


@dataclass(frozen=True)
class Contender:
    """A file in the comparison of light networks, whoever wrote it."""

    name: str
    path: Path
    engines: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the file, and of the weights beside it."""
        return sum(
            f.stat().st_size for f in {self.path, self.path.with_suffix(".bin")} if f.exists()
        )


def contenders(folder: Path, others: Sequence[str]) -> list[Contender]:
    """Ours, exported unless an earlier run has, and those named as NAME=PATH."""
    found = []
    for config, file in OURS:
        own = folder / config.removesuffix("_config")
        own.mkdir(parents=True, exist_ok=True)
        speed = Speed(own, config)
        if file.model == "dense" or speed.recipe(file) is not None:
            engines = tuple(name for name in file.engines if name != "deepsparse")
            name = f"{speed.prefix} {file.name.replace('_', ' ')}"
            found.append(Contender(name, speed.export(file), engines))
    for other in others:
        name, _, path = other.rpartition("=")
        engines = ("openvino",) if path.endswith(".xml") else ("onnxruntime", "openvino")
        found.append(Contender(name, Path(path), engines))
    return found


def raw_call(path: Path, engine: str, cores: int) -> TimedCall:
    """A function that runs any file once on one image, nothing around it."""
    infer: Callable[[], object]
    if engine == "openvino":
        settings = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": "f32"}
        request = (
            openvino_core().compile_model(static(path), "CPU", settings).create_infer_request()
        )
        image = np.random.rand(*request.get_input_tensor().shape).astype(np.float32)

        def infer() -> object:
            return request.infer([image], share_inputs=True, share_outputs=True)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = cores, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (port,) = session.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        image = np.random.rand(*shape).astype(np.float32)

        def infer() -> object:
            return session.run(None, {port.name: image})

    def timed() -> float:
        began = time.perf_counter()
        infer()
        return 1e3 * (time.perf_counter() - began)

    return timed


def static(path: Path) -> Any:
    """OpenVINO's view of any file, for one image."""
    model = openvino_core().read_model(path)
    shape = model.inputs[0].partial_shape
    model.reshape([size.get_length() if size.is_static else 1 for size in shape])
    return model


def macs(model: Any) -> int:
    """Multiplications of the convolutions and matrix products of OpenVINO's view of a file."""
    total = 0
    for step in model.get_ops():
        kind, shapes = step.get_type_name(), [list(port.get_shape()) for port in step.inputs()]
        output = math.prod(step.output(0).get_shape()) if step.get_output_size() else 0
        if kind == "Convolution":
            total += output * math.prod(shapes[1][1:])
        elif kind == "GroupConvolution":
            total += output * math.prod(shapes[1][2:])
        elif kind == "ConvolutionBackpropData":
            total += math.prod(shapes[0]) * math.prod(shapes[1][1:])
        elif kind == "MatMul":
            total += output * shapes[0][-1]
    return total


def compare(folder: Path, others: Sequence[str], rounds: int, cores: int) -> str:
    """Measure all in turns; the table. A row a file, a column an engine."""
    rows = contenders(folder, others)
    runs = [(row, engine) for row in rows for engine in row.engines]
    found = in_turns([raw_call(row.path, engine, cores) for row, engine in runs], rounds)
    times = {run: measured for run, measured in zip(runs, found, strict=True)}
    medians = {run: statistics.median(measured) for run, measured in times.items()}
    engines = ("onnxruntime", "openvino")
    lines = [
        f"| network | input | GMACs | file | {' | '.join(ENGINES[name] for name in engines)} |",
        f"|:--|--:|--:|--:|{'--:|' * len(engines)}",
    ]
    for row in rows:
        model = static(row.path)
        *_, height, width = model.inputs[0].get_shape()
        cells = [f"{height} x {width}", f"{macs(model) / 1e9:.2f}", f"{row.bytes / 1e6:.2f} MB"]
        for engine in engines:
            median, first = medians.get((row, engine)), medians[rows[0], engine]
            cells.append("" if median is None else f"{median:.1f} ms, {first / median:.1f}x")
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    record = [
        {"name": row.name, "engine": engine, "milliseconds": times[row, engine]}
        for row, engine in runs
    ]
    (folder / "light.json").write_text(json.dumps(record, indent=1))
    return "\n".join(lines)


def training(config: YolactConfig, rounds: int, threads: int, *, half: bool) -> float:
    """Images that forward pass, loss, backward pass and optimizer do in a second, four in a batch.

    They are random ones of three classes, with ten objects each.
    """
    torch.set_num_threads(threads)
    config = config.with_model(num_classes=3)
    height, width = config.model.input_size
    corners = torch.rand(4, 10, 2) * 0.8
    targets = [
        Target(
            boxes=torch.cat([corner, corner + 0.2], 1),
            labels=torch.arange(10) % 3,
            masks=torch.ones(10, height, width, dtype=torch.uint8),
            crowd=torch.zeros(10, dtype=torch.bool),
        )
        for corner in corners
    ]
    batch = Batch(torch.rand(4, 3, height, width), targets, [0, 1, 2, 3])
    model = Yolact(config.model).train()
    model.to(memory_format=torch.channels_last)
    objective = Supervised(YolactLoss(config.loss))
    optimizer = make_optimizer(config.optim, model, objective)
    stepper = Stepper(model, objective, optimizer, torch.device("cpu"), half=half)
    seconds = []
    for step in range(rounds + 2):
        began = time.perf_counter()
        stepper.apply(step, stepper.gradients([batch]), [batch])
        seconds.append(time.perf_counter() - began)
    return 4 / statistics.median(seconds[2:])


def main() -> None:
    """Run everything, print the table, write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("speed"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cores", type=int, default=len(physical_cores()), help="threads")
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a file of another program",
    )
    options = parser.parse_args()
    table = compare(options.folder, options.other, options.rounds, options.cores)
    threads = len(available_cpus())
    config = named_config("yolact_lite0")
    rates = [
        f"{training(config, options.rounds, threads, half=half):.1f} in {name}"
        for name, half in (("float32", False), ("bfloat16", True))
    ]
    text = (
        f"{table}\n\nMedians of {options.rounds} runs in turns, {options.cores} threads, on "
        f"{machine('openvino')}. Training yolact_lite0 on {threads} threads: images/s "
        f"{', '.join(rates)}.\n"
    )
    (options.folder / "light.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
