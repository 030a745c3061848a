"""Whether a quantized model finds the same everywhere: its mAP in PyTorch and in each engine.

    python scripts/engines.py pruned_quant/model.pth --info val.json --images data/images

exports the checkpoint for ONNX Runtime and for OpenVINO and validates every file on the same
images; with ``--avx2`` also as on a CPU without VNNI (see ``scripts/older_cpu.py``), where some
sums of products overflow.

A value between two steps of a quantizer falls on either side with the last bit of a sum, in PyTorch
itself too. ``--noisy 8`` shows by how much its mAP varies when that happens, over 8 runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from commands import call, machine, validate
from older_cpu import older_cpu
from torch import Tensor

from yolact.checkpoint import classes_of, load_checkpoint
from yolact.config import YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.transforms import EvalTransform
from yolact.engines.torch import TorchEngine
from yolact.predict.evaluate import evaluate
from yolact.restore import build_model
from yolact.types import RawOutputs

NOISE = 1e-6
"""Of pixels in 0..1: a few units in the last place of float32; grey levels are 0.004 apart."""
FORMATS = {"qdq": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
"""Of the export, and the engines that each is for."""


class Noisy(TorchEngine):
    """PyTorch that adds up in another order, so to say: its input differs in the last digits."""

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run the network; see the class."""
        return super().__call__(images + NOISE * torch.randn_like(images))


def with_noise(model: Path, info: Path, images: Path, times: int) -> list[tuple[float, float]]:
    """Mask and box mAP of several runs in PyTorch, each with other noise."""
    loaded = load_checkpoint(model)
    config = loaded.config or YolactConfig()
    engine = Noisy(build_model(loaded, config), classes_of(loaded))
    dataset = CocoInstances(images, info, EvalTransform(config.model.image_size))
    torch.manual_seed(0)
    found = (evaluate(engine, dataset) for _ in range(times))
    return [(result.mask["all"], result.box["all"]) for result in found]


def row(name: str, found: list[tuple[float, float]]) -> str:
    """Mask and box mAP, or how far they spread."""
    cells = [(min(values), max(values)) for values in zip(*found, strict=True)]
    texts = [f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}" for low, high in cells]
    return f"| {name} | {' | '.join(texts)} |"


def main() -> None:
    """Export, validate, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--info", type=Path, required=True, help="COCO JSON to validate on")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--calibration_images", type=Path, help="[default: the same]")
    parser.add_argument("--per_channel", action="store_true", help="as in the export")
    parser.add_argument("--reduce_range", action="store_true", help="as in the export")
    parser.add_argument("--avx2", action="store_true", help="also without newer instructions")
    parser.add_argument("--noisy", type=int, default=0, help="runs of PyTorch with noise")
    parser.add_argument("--folder", type=Path, default=Path("engines"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data: list[object] = ["--validation_info", options.info, "--validation_images", options.images]
    cpus = {"": dict(os.environ)}
    if options.avx2:
        cpus[", AVX2 only"] = older_cpu(options.folder)

    def measure(model: Path, engine: str, environment: dict[str, str]) -> tuple[float, float]:
        chosen = ("--trained_model", model, "--engine", engine, *data)
        return validate(options.folder, *chosen, environment=environment)

    rows = [row("PyTorch", [measure(options.checkpoint, "torch", cpus[""])])]
    if options.noisy:
        spread = with_noise(options.checkpoint, options.info, options.images, options.noisy)
        rows.append(row(f"PyTorch, {options.noisy} runs with noise", spread))
    for layout, engines in FORMATS.items():
        model = options.folder / f"{layout}.onnx"
        call(
            "export_onnx", "--checkpoint", options.checkpoint, "--name", model, "--format", layout,
            "--calibration_images", options.calibration_images or options.images,
            *(f"--{name}" for name in ("per_channel", "reduce_range") if getattr(options, name)),
        )  # fmt: skip
        for engine in engines:
            for note, environment in cpus.items():
                found = measure(model, engine, environment)
                rows.append(row(f"{engine}, {layout}{note}", [found]))
    head = ["| engine and format | mask mAP | box mAP |", "|:--|--:|--:|"]
    text = "\n".join([*head, *rows, "", f"Measured on {machine('openvino')}."])
    print(f"\n{text}")
    (options.folder / "results.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
