"""What each recipe costs in accuracy: dense, pruned, quantized and thinned models of three seeds.

A seed's baseline is the small network after the run of its configuration and six more epochs.
Every model begins with its weights and trains the same number of further epochs; the dense one too,
with the same learning rates, so that no recipe profits from training longer. Recovery is the mask
mAP of a model's ONNX file over that of its seed's dense one.

The result is the table of ``recipes/README.md``, in ``recovery/results.md`` and ``results.json``.
A second run does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from commands import call, machine, validate

CONFIG = "yolact_darknet_small_config"
EPOCHS = 6
"""Further epochs of every model."""
INIT_LR = 0.004
"""From which every run falls to a two-hundredth."""
TRAIN_ON = """
num_epochs: 6
init_lr: 0.004
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
    lr_func: cosine
    init_lr: eval(init_lr)
    final_lr: 0.00002
"""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    recipe: str
    wanted: float
    """Recovery that the recipe is expected to reach."""
    settings: str = ""
    """Variables of the recipe: six epochs are enough for fewer zeros than its defaults ask."""


DENSE = Variant("dense", TRAIN_ON, 1.0)
VARIANTS = (
    DENSE,
    Variant(
        "pruned",
        "yolact_small.pruned",
        0.99,
        "pruning_end_target=0.35,prune_low_target_sparsity=0.4,prune_mid_target_sparsity=0.6,"
        "prune_high_target_sparsity=0.65",
    ),
    Variant("quantized", "yolact_small.quantized", 0.99),
    Variant(
        "pruned_quant",
        "yolact_small.pruned_quant",
        0.98,
        "pruning_end_target=0.35,prune_low_target_sparsity=0.3,prune_mid_target_sparsity=0.5,"
        "prune_high_target_sparsity=0.55",
    ),
    Variant("thinned", "yolact_small.thinned", 0.97),
    Variant("thinned_quant", "yolact_small.thinned_quant", 0.96),
)


@dataclass(frozen=True)
class Result:
    """What was measured of one model."""

    variant: str
    seed: int
    box_map: float
    mask_map: float
    zeros: float
    """Share of zeros among the convolution weights, 0..1."""
    macs: int
    """Multiplications of one image, zeros included."""
    onnx_bytes: int
    compressed_bytes: int


class Recovery:
    """Trains, exports and validates every variant of every seed in ``folder``."""

    def __init__(self, folder: Path, steps: int | None) -> None:
        """Work in ``folder``; ``steps`` shortens the baselines, for a first look."""
        self.folder = folder
        self.steps = steps
        self.data = folder / "data"

    def run(self, seeds: list[int], variants: list[Variant], jobs: int) -> list[Result]:
        """Everything that is not done yet, ``jobs`` trainings at a time."""
        if not (self.data / "annotations").exists():
            call("download", "--dataset", "shapes", "--data_dir", self.data)
        tasks = [(seed, variant) for seed in seeds for variant in variants]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self.baseline, seeds))
            return list(pool.map(lambda task: self.result(*task), tasks))

    def baseline(self, seed: int) -> Path:
        """The checkpoint that all models of a seed begin with."""
        first, folder = (self.folder / f"seed{seed}" / name for name in ("base", "baseline"))
        if not checkpoints(folder):
            if not checkpoints(first):
                self.train(first, seed, *(["--max_iter", self.steps] if self.steps else []))
            self.train(folder, seed, "--ckpt", newest(first), "--recipe", TRAIN_ON)
        return newest(folder)

    def result(self, seed: int, variant: Variant) -> Result:
        """Train, export and validate one model, or read what an earlier run measured."""
        folder = self.folder / f"seed{seed}" / variant.name
        record = folder / "result.json"
        if record.exists():
            return Result(**json.loads(record.read_text()))
        if not checkpoints(folder):
            settings = f"num_epochs={EPOCHS},init_lr={INIT_LR},{variant.settings}".rstrip(",")
            recipe = ["--recipe", variant.recipe, "--recipe_args", settings]
            self.train(folder, seed, "--ckpt", self.baseline(seed), *recipe)
        report = json.loads(newest(folder).with_suffix(".report.json").read_text())
        model = folder / f"{variant.name}.onnx"
        call("export_onnx", "--checkpoint", newest(folder), "--name", model, "--compress", "gz")
        mask_map, box_map = validate(folder, "--trained_model", model, *self.held_out())
        result = Result(
            variant=variant.name,
            seed=seed,
            box_map=box_map,
            mask_map=mask_map,
            zeros=report["sparsity"],
            macs=report["macs"],
            onnx_bytes=model.stat().st_size,
            compressed_bytes=model.with_name(f"{model.name}.gz").stat().st_size,
        )
        record.write_text(json.dumps(asdict(result), indent=1))
        return result

    def train(self, folder: Path, seed: int, *more: object) -> None:
        """One training run into ``folder``."""
        info = self.data / "annotations" / "instances_train.json"
        call(
            "train", "--config", CONFIG, "--batch_size", 4, "--num_workers", 0, "--seed", seed,
            "--train_info", info, "--train_images", self.data / "images", *self.held_out(),
            "--save_folder", folder, "--log_folder", folder, "--save_interval", 10**6,
            "--validation_epoch", -1, *more,
        )  # fmt: skip

    def held_out(self) -> list[object]:
        """Options that name the images to validate on."""
        info = self.data / "annotations" / "instances_val.json"
        return ["--validation_info", info, "--validation_images", self.data / "images"]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of finished runs in ``folder``."""
    return list(folder.glob("yolact_darknet_small_[0-9]*[0-9].pth"))


def newest(folder: Path) -> Path:
    """The checkpoint of the last step in ``folder``."""
    return max(checkpoints(folder), key=lambda path: int(path.stem.split("_")[-1]))


def to_markdown(results: list[Result]) -> str:
    """A row a variant: mean mask mAP, its range over the seeds, recovery, sizes."""
    dense = {r.seed: r.mask_map for r in results if r.variant == DENSE.name}
    lines = [
        "| model | mask mAP, mean (seeds) | box mAP | recovery | wanted | zeros | MACs | gzip |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for variant in VARIANTS:
        rows = [r for r in results if r.variant == variant.name]
        if not rows:
            continue
        masks = [r.mask_map for r in rows]
        recovery = statistics.mean(r.mask_map / dense[r.seed] for r in rows)
        lines.append(
            f"| {variant.name} | {statistics.mean(masks):.2f} "
            f"({', '.join(f'{value:.2f}' for value in masks)}) "
            f"| {statistics.mean(r.box_map for r in rows):.2f} "
            f"| {recovery:.3f} | {variant.wanted:.2f} "
            f"| {rows[0].zeros:.0%} | {rows[0].macs / 1e6:.0f} M "
            f"| {rows[0].compressed_bytes / 1e6:.2f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run everything, print the table, write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("recovery"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="variants, besides dense")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--steps", type=int, help="steps of the baselines  [default: config's]")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    chosen = [v for v in VARIANTS if not options.only or v.name in ["dense", *options.only]]
    results = Recovery(options.folder, options.steps).run(options.seeds, chosen, options.jobs)
    text = f"{to_markdown(results)}\n\nMeasured on {machine()}.\n"
    (options.folder / "results.md").write_text(text)
    record = {"machine": machine(), "results": [asdict(result) for result in results]}
    (options.folder / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\n{text}")


if __name__ == "__main__":
    main()
