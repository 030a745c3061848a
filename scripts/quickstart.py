"""The tutorial in miniature: train, prune, quantize, export and measure a small network.

Every step is one of this package's commands, printed before it runs. The result is the tutorial's
table, in ``quickstart/results.json`` and ``quickstart/results.md``, and an annotated picture.

Stopped in any way and run again, it goes on where it stopped: what was done is written down in
``quickstart/stages``, and a training run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from commands import Stages, call, final_checkpoint, hashed, machine, validate

from yolact.errors import CheckpointError, ConfigError

CONFIG = "yolact_darknet_small_config"
TILES, TILE = 8, 288
"""Held-out images in the picture, four a row, and the side of each in pixels."""
ROUNDS = 3
"""Times each model is benchmarked, in turns, so that a slow moment does not hit one of them."""
IMAGES, BATCH = 2000, 4
"""How many there are to train on, and of these in a step."""
SAVE_EVERY = 500
"""Steps that a killed training run loses at most."""
NOTHING_LEFT, UNREADABLE = ConfigError.exit_code, CheckpointError.exit_code
"""How a training run ends that goes on from a checkpoint at its end, or from a damaged one."""


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
        """Work in ``folder``; ``steps`` is the length of each run, for a first look."""
        self.folder = folder
        self.steps = steps
        self.images = min(IMAGES, (steps or IMAGES) * BATCH)
        self.data = folder / "data"
        self.stages = Stages(folder / "stages")

    def run(self) -> list[Row]:
        """Everything, in order."""
        call(
            "download", "--dataset", "shapes", "--data_dir", self.data, "--train_size", self.images
        )
        trained: dict[str, Any] = {}
        for variant in VARIANTS:
            trained[variant.folder] = self.train(variant, trained)
        for variant in VARIANTS:
            self.export(variant, Path(trained[variant.folder]["checkpoint"]))
        reports = self.benchmark()
        rows = [
            self.measure(variant, reports[variant.name], trained[variant.folder]["minutes"])
            for variant in VARIANTS
        ]
        best = self.onnx(VARIANTS[-1])
        self.stages.once("annotate", hashed(best), lambda _: self.annotate(), self.picture)
        return rows

    def train(self, variant: Variant, trained: Mapping[str, Any]) -> Any:
        """Train one variant; pruned ones begin with the baseline's weights.

        Args:
            variant: Which one.
            trained: What this returned for those before.

        Returns:
            ``checkpoint``, its path, and ``minutes`` that it took since it was last begun.
        """
        arguments: list[object] = ["--config", CONFIG, "--batch_size", BATCH, "--num_workers", 1]
        arguments += ["--train_info", self.data / "annotations" / "instances_train.json"]
        arguments += ["--train_images", self.data / "images", *self.validation_data()]
        arguments += ["--save_folder", self.folder / variant.folder, "--keep_latest"]
        arguments += ["--save_interval", SAVE_EVERY]
        arguments += ["--log_folder", self.folder / "logs" / variant.folder]
        arguments += ["--validation_epoch", -1]
        start: list[object] = []
        wish: list[object] = []
        if variant.recipe:
            base = trained[VARIANTS[0].folder]["checkpoint"]
            arguments += ["--recipe", variant.recipe]
            if self.steps:
                arguments += ["--recipe_args", f"num_epochs={self.steps * BATCH / self.images:g}"]
            start, wish = ["--resume", base], [hashed(Path(base))]
        elif self.steps:
            arguments += ["--max_iter", self.steps]
        wish += map(str, [*arguments, *start])

        def work(begun: float | None) -> dict[str, Any]:
            began = time.monotonic()
            checkpoint = self.trained(variant, begun, arguments, start)
            minutes = (time.monotonic() - began) / 60
            return {"checkpoint": str(checkpoint), "minutes": minutes}

        name = f"train_{variant.folder}"
        result = self.stages.once(name, wish, work)
        if not Path(result["checkpoint"]).exists():
            result = self.stages.once(name, wish, work, Path(result["checkpoint"]))
        return result

    def trained(
        self, variant: Variant, begun: float | None, arguments: list[object], start: list[object]
    ) -> Path:
        """Run a training command to its end, from its last checkpoint if it was begun before."""
        for checkpoint in self.checkpoints(variant, begun):
            try:
                return final_checkpoint(call("train", *arguments, "--resume", checkpoint))
            except SystemExit as end:
                if end.code == NOTHING_LEFT and not checkpoint.stem.endswith("_interrupt"):
                    return checkpoint  # stopped between its end and writing that down
                if end.code != UNREADABLE:
                    raise
        return final_checkpoint(call("train", *arguments, *start))

    def checkpoints(self, variant: Variant, begun: float | None) -> list[Path]:
        """Those written since a run was begun, the last first; none if it was not."""
        if begun is None:
            return []
        found = (self.folder / variant.folder).glob("yolact_darknet_small_[0-9]*.pth")
        times = {path: path.stat().st_mtime for path in found}
        return sorted(
            (path for path in times if times[path] >= begun),
            key=lambda path: times[path],
            reverse=True,
        )

    def export(self, variant: Variant, checkpoint: Path) -> None:
        """Write the ONNX file; images let the last layers of a quantized one stay in integers."""
        images = ["--calibration_images", self.data / "images"] if variant.quantized else []
        onnx = self.onnx(variant)
        arguments = ["--checkpoint", checkpoint, "--name", onnx, *images]
        wish = [hashed(checkpoint), *map(str, arguments)]

        def work(_: object) -> None:
            call("export_onnx", *arguments)

        self.stages.once(f"export_{variant.folder}", wish, work, onnx)

    def benchmark(self) -> dict[str, Any]:
        """Median ``speed`` in images per second of every variant, measured in turns, and sizes."""
        found: dict[str, list[Any]] = {variant.name: [] for variant in VARIANTS}
        rounds, seconds = (1, 1) if self.steps else (ROUNDS, 4)
        for turn in range(rounds):
            for variant in VARIANTS:
                onnx = self.onnx(variant)
                report = self.folder / f"benchmark_{variant.folder}.json"

                def work(_: object, onnx: Path = onnx, report: Path = report) -> Any:
                    call("benchmark", onnx, "-t", seconds, "-w", 1, "-q", "-x", report)
                    return json.loads(report.read_text())

                name = f"benchmark_{variant.folder}_{turn}"
                found[variant.name].append(self.stages.once(name, hashed(onnx), work))
        return {
            name: reports[-1]
            | {"speed": statistics.median(r["benchmark_result"]["items_per_sec"] for r in reports)}
            for name, reports in found.items()
        }

    def measure(self, variant: Variant, report: Mapping[str, Any], minutes: float) -> Row:
        """Accuracy and size of the ONNX file, which is what would be deployed."""
        folder, model = self.folder / variant.folder, self.onnx(variant)

        def work(_: object) -> tuple[float, float]:
            return validate(folder, "--trained_model", model, *self.validation_data())

        mask_map, box_map = self.stages.once(f"validate_{variant.folder}", hashed(model), work)
        return Row(
            name=variant.name,
            box_map=box_map,
            mask_map=mask_map,
            compressed_bytes=report["size_on_disk_compressed"],
            onnx_bytes=model.stat().st_size,
            images_per_second=report["speed"],
            train_minutes=minutes,
        )

    def annotate(self) -> None:
        """Draw what the pruned, quantized model finds in held-out images, in one picture."""
        sources = self.folder / "held_out"
        sources.mkdir(exist_ok=True)
        for path in sorted((self.data / "images").glob("val_*"))[:TILES]:
            image = np.asarray(cv2.imread(str(path)))
            image = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(sources / path.name), image)
        call(
            *("annotate", "--source", sources, "--model_filepath", self.onnx(VARIANTS[-1])),
            *("--save_dir", self.folder, "--name", "annotated", "--score_threshold", 0.5),
        )
        newest = max(self.folder.glob("annotated*/"), key=lambda path: path.stat().st_mtime)
        drawn = [np.asarray(cv2.imread(str(path))) for path in sorted(newest.glob("*.jpg"))]
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
    parser.add_argument("--steps", type=int, help="of each run, for a first look")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
