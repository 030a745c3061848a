"""The tutorial in miniature: train, prune, quantize, export and measure a small network.

Every step is one of this package's commands, printed before it runs. The result is the tutorial's
table, in ``quickstart/results.json`` and ``quickstart/results.md``, and an annotated picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from commands import call, machine, validate

CONFIG = "yolact_darknet_small_config"
TILES, TILE = 8, 288
"""Held-out images in the picture, four a row, and the side of each in pixels."""
ROUNDS = 3
"""Times each model is benchmarked, in turns, so that a slow moment does not hit one of them."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    folder: str
    recipe: str | None = None
    quantized: bool = False


VARIANTS = (
    Variant("Baseline", "base"),
    Variant("Pruned", "pruned", "yolact_small.pruned"),
    Variant("Pruned Quantized", "pruned_quant", "yolact_small.pruned_quant", quantized=True),
)


@dataclass
class Row:
    """What was measured of one model."""

    name: str
    box_map: float
    mask_map: float
    compressed_bytes: int
    onnx_bytes: int
    images_per_second: float
    train_minutes: float


class Quickstart:
    """Runs the commands in ``folder`` and keeps what they measured."""

    def __init__(self, folder: Path, steps: int | None) -> None:
        """Work in ``folder``; ``steps`` shortens the baseline, for a first look."""
        self.folder = folder
        self.steps = steps
        self.data = folder / "data"

    def run(self) -> list[Row]:
        """Everything, in order."""
        call("download", "--dataset", "shapes", "--data_dir", self.data)
        minutes = {variant.name: self.train(variant) for variant in VARIANTS}
        for variant in VARIANTS:
            self.export(variant)
        speeds = self.benchmark()
        rows = [
            self.measure(variant, speeds[variant.name], minutes[variant.name])
            for variant in VARIANTS
        ]
        self.annotate()
        return rows

    def train(self, variant: Variant) -> float:
        """Train one variant; pruned ones begin with the baseline's weights. Minutes it took."""
        began = time.monotonic()
        arguments: list[object] = ["--config", CONFIG, "--batch_size", 4, "--num_workers", 1]
        arguments += ["--train_info", self.data / "annotations" / "instances_train.json"]
        arguments += ["--train_images", self.data / "images", *self.validation_data()]
        arguments += ["--save_folder", self.folder / variant.folder, "--keep_latest"]
        arguments += ["--log_folder", self.folder / "logs" / variant.folder]
        arguments += ["--validation_epoch", -1]
        if variant.recipe:
            arguments += ["--resume", self.checkpoint(VARIANTS[0]), "--recipe", variant.recipe]
        elif self.steps:
            arguments += ["--max_iter", self.steps]
        call("train", *arguments)
        return (time.monotonic() - began) / 60

    def export(self, variant: Variant) -> None:
        """Write the ONNX file; images let the last layers of a quantized one stay in integers."""
        images = ["--calibration_images", self.data / "images"] if variant.quantized else []
        checkpoint = self.checkpoint(variant)
        call("export_onnx", "--checkpoint", checkpoint, "--name", self.onnx(variant), *images)

    def benchmark(self) -> dict[str, float]:
        """Median images per second of every variant, measured in turns."""
        found: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
        for _turn in range(ROUNDS):
            for variant in VARIANTS:
                report = self.folder / f"benchmark_{variant.folder}.json"
                call("benchmark", self.onnx(variant), "-t", 4, "-w", 1, "-q", "-x", report)
                result = json.loads(report.read_text())["benchmark_result"]
                found[variant.name].append(result["items_per_sec"])
        return {name: statistics.median(values) for name, values in found.items()}

    def measure(self, variant: Variant, speed: float, minutes: float) -> Row:
        """Accuracy and size of the ONNX file, which is what would be deployed."""
        folder, model = self.folder / variant.folder, self.onnx(variant)
        mask_map, box_map = validate(folder, "--trained_model", model, *self.validation_data())
        report = json.loads((self.folder / f"benchmark_{variant.folder}.json").read_text())
        return Row(
            name=variant.name,
            box_map=box_map,
            mask_map=mask_map,
            compressed_bytes=report["size_on_disk_compressed"],
            onnx_bytes=model.stat().st_size,
            images_per_second=speed,
            train_minutes=minutes,
        )

    def annotate(self) -> None:
        """Draw what the pruned, quantized model finds in held-out images, in one picture."""
        sources = self.folder / "held_out"
        sources.mkdir(exist_ok=True)
        for path in sorted((self.data / "images").glob("val_*"))[:TILES]:
            image = cv2.resize(cv2.imread(str(path)), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(sources / path.name), image)
        call(
            *("annotate", "--source", sources, "--model_filepath", self.onnx(VARIANTS[-1])),
            *("--save_dir", self.folder, "--name", "annotated", "--score_threshold", 0.5),
        )
        newest = max(self.folder.glob("annotated*/"), key=lambda path: path.stat().st_mtime)
        drawn = [cv2.imread(str(path)) for path in sorted(newest.glob("*.jpg"))]
        rows = [cv2.hconcat(drawn[i : i + 4]) for i in range(0, len(drawn), 4)]
        cv2.imwrite(str(self.picture), cv2.vconcat(rows))

    @property
    def picture(self) -> Path:
        """Where the annotated picture is written."""
        return self.folder / "annotated.jpg"

    def validation_data(self) -> list[object]:
        """Options that name the held-out images."""
        info = self.data / "annotations" / "instances_val.json"
        return ["--validation_info", info, "--validation_images", self.data / "images"]

    def checkpoint(self, variant: Variant) -> Path:
        """The last checkpoint of a variant's run."""
        found = (self.folder / variant.folder).glob("yolact_darknet_small_[0-9]*.pth")
        return max(found, key=lambda path: int(path.stem.split("_")[-1]))

    def onnx(self, variant: Variant) -> Path:
        """Where a variant is exported to."""
        return self.folder / f"{variant.folder}.onnx"


def to_markdown(rows: list[Row]) -> str:
    """The tutorial's table."""
    lines = [
        "| Sparsification | mask mAP@all | box mAP@all | size on disk (compressed) | images/s |",
        "|:--|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.mask_map / 100:.3f} | {row.box_map / 100:.3f} "
            f"| {row.compressed_bytes / 1e6:.2f} MB | {row.images_per_second:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run everything, print the table, write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("quickstart"))
    parser.add_argument("--steps", type=int, help="steps of the baseline  [default: the config's]")
    options = parser.parse_args()
    began = time.monotonic()
    quickstart = Quickstart(options.folder, options.steps)
    rows = quickstart.run()
    minutes = (time.monotonic() - began) / 60
    text = f"{to_markdown(rows)}\n\nMeasured in {minutes:.1f} minutes on {machine()}.\n"
    (options.folder / "results.md").write_text(text)
    record = {"machine": machine(), "minutes": minutes, "rows": [asdict(row) for row in rows]}
    (options.folder / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\n{text}\nPicture: {quickstart.picture}")


if __name__ == "__main__":
    main()
