"""How fast exported models are: each kind, in each engine, beside dense float32 in ONNX Runtime.

The weights are those that a network begins with: how long they take does not depend on what they
have learned. Every model is exported by this package's commands, all are loaded at once, and then
run in turns, one image each, so that a slow moment of the machine hits all alike. DeepSparse takes
part where YOLACT_DEEPSPARSE names its environment (see ``scripts/clients``).

``--avx2`` measures the same CPU without AVX-512, VNNI and AMX: see ``scripts/older_cpu.py``.

The result is the table of ``recipes/onnx.md``, in ``speed/results.md`` and ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from commands import call, machine
from older_cpu import older_cpu
from tqdm import trange

from yolact.checkpoint import Checkpoint, save_checkpoint
from yolact.data.labels import Classes
from yolact.engines import load_engine
from yolact.engines.base import ReportsOperators
from yolact.host import physical_cores
from yolact.model.yolact import Yolact
from yolact.presets import named_config

HERE = Path(__file__).parent
ROUNDS = 15
IMAGES = 4
"""To find ranges on: which ones does not matter for the time."""
DEEPSPARSE = "YOLACT_DEEPSPARSE"
TimedCall = Callable[[], float]
"""Runs a model once; milliseconds."""
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "deepsparse": "DeepSparse"}
"""Columns of the table."""


@dataclass(frozen=True)
class File:
    """One exported file: a row of the table."""

    model: str
    """``dense``, or the recipe that makes it, without the prefix that names the network."""
    options: tuple[str, ...] = ()
    """Of the export."""
    engines: tuple[str, ...] = tuple(ENGINES)
    """That the file is meant for."""

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return "_".join([self.model, *self.options]).replace("--", "").replace("-", "_")

    @property
    def cells(self) -> str:
        """The first two of its row: the model, and the options of the export."""
        options = f"`{' '.join(self.options)}`" if self.options else ""
        return f"| {self.model} | {options} |"


def quantized(model: str) -> tuple[File, ...]:
    """The files of a quantized model: one for each engine, and the usual one in OpenVINO too."""
    return (
        File(model, (), ("onnxruntime", "openvino")),
        File(model, ("--format", "openvino"), ("openvino",)),
        File(model, ("--format", "deepsparse"), ("deepsparse",)),
    )


FILES = (
    File("dense"),
    File("dense", ("--half",), ("onnxruntime", "openvino")),
    File("pruned"),
    File("thinned"),
    *quantized("pruned_quant"),
    File("pruned_quant", ("--skip-qat-convert",)),
    *quantized("thinned_quant"),
)


@dataclass(frozen=True)
class Result:
    """What was measured of one file in one engine."""

    file: File
    engine: str
    bytes: int
    """Of the file."""
    milliseconds: tuple[float, ...]
    """Of every round."""
    operators: tuple[str, ...]
    """What the engine runs in integers, and what in floats."""

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.milliseconds)


class Speed:
    """Exports the files into ``folder`` and measures them."""

    def __init__(self, folder: Path, config: str) -> None:
        """Work in ``folder`` with the network of a configuration."""
        self.folder = folder
        self.config = named_config(config)
        self.prefix = "yolact_small" if "small" in config else config.removesuffix("_config")

    def recipe(self, file: File) -> str | None:
        """The packaged recipe that makes the model: this network's, or that for all."""
        names = (f"{prefix}.{file.model}" for prefix in (self.prefix, "yolact"))
        return next((n for n in names if (HERE.parent / "recipes" / f"{n}.md").exists()), None)

    def export(self, file: File) -> Path:
        """The ONNX file, made unless an earlier run has."""
        path = self.folder / f"{file.name}.onnx"
        if path.exists():
            return path
        images = self.folder / "data" / "images"
        if not images.exists():
            call("download", "--dataset", "shapes", "--data_dir", self.folder / "data")
        quantizes = "quant" in file.model or "int8" in file.model
        call(
            "export_onnx", "--checkpoint", self.checkpoint(), "--name", path, *file.options,
            *(["--one-shot", self.recipe(file)] if file.model != "dense" else []),
            *(["--calibration_images", images, "--calibration_count", IMAGES] if quantizes else []),
        )  # fmt: skip
        return path

    def checkpoint(self) -> Path:
        """The network as training begins with it."""
        path = self.folder / "initial.pth"
        if not path.exists():
            torch.manual_seed(0)
            state = Yolact(self.config.model).state_dict()
            classes = Classes.numbered(self.config.model.num_classes)
            save_checkpoint(
                path, Checkpoint(model_state=state, classes=classes, config=self.config)
            )
        return path

    def measure(self, rounds: int, cores: int) -> list[Result]:
        """Every file in every engine that it is meant for and that is here, in turns."""
        for file in FILES:
            self.export(file)
        here = [name for name in ENGINES if name != "deepsparse" or DEEPSPARSE in os.environ]
        runs = [(file, engine) for file in FILES for engine in file.engines if engine in here]
        images = torch.rand(1, 3, *self.config.model.input_size)
        loaded = [self.load(file, engine, images, cores) for file, engine in runs]
        times = in_turns([call_once for call_once, _operators in loaded], rounds)
        return [
            Result(file, engine, self.export(file).stat().st_size, tuple(found), operators)
            for (file, engine), found, (_call, operators) in zip(runs, times, loaded, strict=True)
        ]

    def load(
        self, file: File, engine: str, images: torch.Tensor, cores: int
    ) -> tuple[TimedCall, tuple[str, ...]]:
        """A function that runs the file once, and what runs in which precision."""
        path = self.export(file)
        if engine == "deepsparse":
            np.save(self.folder / "images.npy", images.numpy())
            return in_deepsparse(path, cores, self.folder / "images.npy")
        loaded = load_engine(path, engine=engine, num_cores=cores)

        def timed() -> float:
            began = time.perf_counter()
            loaded(images)
            return 1e3 * (time.perf_counter() - began)

        if isinstance(loaded, ReportsOperators):
            return timed, tuple(loaded.operators().lines())
        return timed, ()


def in_turns(calls: Sequence[TimedCall], rounds: int) -> list[list[float]]:
    """Milliseconds of each in every round."""
    times: list[list[float]] = [[] for _ in calls]
    for call_once in calls:
        call_once()
    for turn in trange(rounds, desc="rounds"):
        order = list(range(len(calls)))
        random.Random(turn).shuffle(order)  # nobody always runs after the same one
        for index in order:
            times[index].append(calls[index]())
    return times


def in_deepsparse(model: Path, cores: int, images: Path) -> tuple[TimedCall, tuple[str, ...]]:
    """The same in a process of DeepSparse's environment, which ends with this one."""
    python = Path(os.environ[DEEPSPARSE]) / "python"
    worker = subprocess.Popen(
        [python, HERE / "deepsparse_worker.py", model, str(cores), images],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NM_FAST_VNNI_EMULATION": "1"},  # its fastest way on a CPU without VNNI
    )
    assert worker.stdin is not None and worker.stdout is not None
    send, answers = worker.stdin, worker.stdout
    while not (line := answers.readline()).startswith("ready "):
        if not line:
            raise SystemExit(f"DeepSparse could not load {model}")

    def timed() -> float:
        print(file=send, flush=True)
        return float(answers.readline())

    return timed, (f"deepsparse has code of its own for {float(line.split()[1]):.0%} of it",)


def to_markdown(results: list[Result]) -> str:
    """A row a file, a column an engine: milliseconds, and times as fast as the first."""
    first = results[0].median
    names = [name for name in ENGINES if any(result.engine == name for result in results)]
    lines = [
        f"| model | `export_onnx` | file | {' | '.join(ENGINES[name] for name in names)} |",
        f"|:--|:--|--:|{'--:|' * len(names)}",
    ]
    for file in dict.fromkeys(result.file for result in results):
        found = {result.engine: result for result in results if result.file == file}
        cells = [
            f"{found[name].median:.0f} ms, {first / found[name].median:.2f}x"
            if name in found
            else ""
            for name in names
        ]
        size = next(iter(found.values())).bytes / 1e6
        lines.append(f"{file.cells} {size:.1f} MB | {' | '.join(cells)} |")
    return "\n".join(lines)


def operators_of(results: list[Result], model: str) -> str:
    """What every engine makes of the files of a quantized model."""
    return "\n".join(
        f"- `{' '.join(result.file.options) or '--format qdq'}`: {line}"
        for result in results
        for line in result.operators
        if result.file.model == model
    )


def main() -> None:
    """Run everything, print the table, write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("speed"))
    parser.add_argument("--config", default="yolact_darknet53_config")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--avx2", action="store_true", help="hide what came after AVX2")
    parser.add_argument("--cores", type=int, default=len(physical_cores()), help="threads")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.avx2 and "HIDE_CPUINFO" not in os.environ:  # what is loaded here has seen the CPU
        os.execve(sys.executable, [sys.executable, *sys.argv], older_cpu(options.folder))
    results = Speed(options.folder, options.config).measure(options.rounds, options.cores)
    deepsparse = ", deepsparse 1.8.0" if DEEPSPARSE in os.environ else ""
    instructions = "AVX2 (the rest hidden)" if options.avx2 else "all instructions"
    text = (
        f"{to_markdown(results)}\n\nOperators of `pruned_quant`:\n\n"
        f"{operators_of(results, 'pruned_quant')}\n\n"
        f"Medians of {options.rounds} runs in turns, {options.config}, {instructions}, on "
        f"{machine('openvino')}{deepsparse}.\n"
    )
    name = "avx2" if options.avx2 else "results"
    (options.folder / f"{name}.md").write_text(text)
    record = {"machine": machine(), "results": [asdict(result) for result in results]}
    (options.folder / f"{name}.json").write_text(json.dumps(record, indent=1))
    print(f"\n{text}")


if __name__ == "__main__":
    main()
