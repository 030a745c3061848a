"""Whether a quantized model finds the same everywhere: its mAP in PyTorch and in each engine.

    python scripts/engines.py pruned_quant/model.pth --info val.json --images data/images

exports the checkpoint for ONNX Runtime and for OpenVINO and validates every file on the same
images; with ``--avx2`` also as on a CPU without VNNI (see ``scripts/older_cpu.py``), where some
sums of products overflow.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from commands import call, machine, table_value
from older_cpu import older_cpu

FORMATS = {"qdq": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
"""Of the export, and the engines that each is for."""


def measure(
    model: Path, engine: str, data: list[object], folder: Path, environment: dict[str, str]
) -> tuple[float, float]:
    """Mask and box mAP of a file in an engine."""
    output = call(
        "validation", "--trained_model", model, "--engine", engine, *data, "--no_bar",
        "--ap_data_file", folder / "ap_data.json", environment=environment,
    )  # fmt: skip
    return table_value(output, "mask"), table_value(output, "box")


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
    parser.add_argument("--folder", type=Path, default=Path("engines"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data: list[object] = ["--validation_info", options.info, "--validation_images", options.images]
    cpus = {"": dict(os.environ)}
    if options.avx2:
        cpus[", AVX2 only"] = older_cpu(options.folder)
    rows = [("PyTorch", measure(options.checkpoint, "torch", data, options.folder, cpus[""]))]
    for layout, engines in FORMATS.items():
        model = options.folder / f"{layout}.onnx"
        call(
            "export_onnx", "--checkpoint", options.checkpoint, "--name", model, "--format", layout,
            "--calibration_images", options.calibration_images or options.images,
            *(f"--{name}" for name in ("per_channel", "reduce_range") if getattr(options, name)),
        )  # fmt: skip
        for engine in engines:
            for note, environment in cpus.items():
                found = measure(model, engine, data, options.folder, environment)
                rows.append((f"{engine}, {layout}{note}", found))
    lines = ["| engine and format | mask mAP | box mAP |", "|:--|--:|--:|"]
    lines += [f"| {name} | {mask:.2f} | {box:.2f} |" for name, (mask, box) in rows]
    text = "\n".join([*lines, "", f"Measured on {machine('openvino')}."])
    print(f"\n{text}")
    (options.folder / "results.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
