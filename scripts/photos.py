r"""How good a network gets on a few photos of one's own, in some minutes of CPU time.

Trains on most of the photos and measures on the others, with several seeds and, if wanted, several
variants of the options of ``sparseml.yolact.train``, one run after the other::

    python scripts/photos.py PHOTOS --config yolact_darknet_small_config --variant "as it is=" \
        --variant "mosaic=--mosaic 0.5" --stage "INT8=export_onnx --one-shot \
        yolact.one_shot_int8 --calibration_images {calibration}" -- --batch_size 4

Two short runs of each variant tell what a step costs, and what a run's beginning and end do; from
that follows how many steps fit into ``--cpu_minutes`` of user and system time, all processes
together. A stage goes on from the checkpoint of each such run and may take any time: it is measured
as an ONNX file and compared with that run. Training validates nothing, so that the held-out photos
choose nothing; if options turn that on, the best checkpoint is measured instead of the last.

The tables are in ``results.md`` and ``results.json`` of ``--folder``, after every measurement. A
second run does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from commands import Stages, call, cpu_seconds, final_checkpoint, hashed, machine, measure

PROBES = 10, 60
"""Steps of the two runs that tell what a step costs."""
RESERVE = 0.08
"""Of the time, for steps that take longer than they did in these."""
COMMANDS = "train", "export_onnx"
"""What a stage consists of."""
BEST = "best checkpoint: "
"""How training names that file."""
FIRST = "float"
"""The stage that all others begin with."""


@dataclass(frozen=True)
class Named:
    """A variant or a stage: its name in the table, and words of a command line."""

    name: str
    words: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Named:
        """From NAME=OPTIONS, where options are quoted as in a shell."""
        name, equals, options = text.partition("=")
        if not equals or not name.strip():
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=OPTIONS")
        return cls(name.strip(), tuple(shlex.split(options)))

    @classmethod
    def read_stage(cls, text: str) -> Named:
        """The same, of which the options begin with a command."""
        stage = cls.read(text)
        if not stage.words or stage.words[0] not in COMMANDS:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not NAME=COMMAND OPTIONS with one of {', '.join(COMMANDS)}"
            )
        return stage

    def commands(self) -> list[tuple[str, list[str]]]:
        """Of a stage: each command and its options."""
        found: list[tuple[str, list[str]]] = []
        for word in self.words:
            if word in COMMANDS:
                found.append((word, []))
            else:
                found[-1][1].append(word)
        return found

    @property
    def folder(self) -> str:
        """A name for files."""
        return re.sub(r"\W+", "_", self.name).strip("_") or "_"


@dataclass(frozen=True)
class Row:
    """What was measured of one model; average precision in percent."""

    variant: str
    stage: str
    seed: int
    mask_map: float
    mask_ap50: float
    box_map: float
    box_ap50: float
    steps: int
    """Most that the first training took: options may have ended it earlier."""
    cpu_minutes: float
    """User and system time that making this model took, from the checkpoint before."""
    file: str


@dataclass(frozen=True)
class Photos:
    """The images, and which of them are trained on."""

    images: Path
    train: Path
    """Annotations of these."""
    held_out: Path
    """Annotations of the others."""

    def training(self) -> list[object]:
        """Options of ``train``."""
        return ["--train_info", self.train, "--train_images", self.images, *self.validation()]

    def validation(self) -> list[object]:
        """Options of ``validation``, and of ``train`` where it validates."""
        return ["--validation_info", self.held_out, "--validation_images", self.images]

    def calibration(self, folder: Path) -> Path:
        """A folder that has the photos to train on and no others."""
        folder.mkdir(parents=True, exist_ok=True)
        for image in json.loads(self.train.read_text())["images"]:
            name = str(image["file_name"])
            link = folder / f"{image['id']}_{Path(name).name}"
            if not link.is_symlink():
                link.symlink_to((self.images / name).resolve())
        return folder


def split(annotations: Path, images: Path, held_out: int, folder: Path) -> Photos:
    """Hold out photos that are spread evenly over those of ``annotations``, in order of their ids.

    Raises:
        SystemExit: None are left to train on.
    """
    data = json.loads(annotations.read_text())
    listed = sorted(data["images"], key=lambda image: int(image["id"]))
    if not 0 < held_out < len(listed):
        raise SystemExit(f"error: cannot hold out {held_out} of {len(listed)} photos")
    chosen = {(2 * i + 1) * len(listed) // (2 * held_out) for i in range(held_out)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, held in (("train", False), ("held_out", True)):
        part = [image for i, image in enumerate(listed) if (i in chosen) == held]
        ids = {image["id"] for image in part}
        objects = [one for one in data["annotations"] if one["image_id"] in ids]
        paths[name] = folder / f"{name}.json"
        text = json.dumps({**data, "images": part, "annotations": objects})
        paths[name].write_text(text)
    return Photos(images, **paths)


class Experiment:
    """Trains, changes and measures the models of every variant and seed in ``folder``."""

    def __init__(
        self, folder: Path, photos: Photos, options: Sequence[object], minutes: float, threads: int
    ) -> None:
        """Work in ``folder``.

        Args:
            folder: Of checkpoints, tables and what was done before.
            photos: The data.
            options: Of every training run.
            minutes: CPU time of each.
            threads: Of every command.
        """
        self.folder, self.photos = folder, photos
        self.options, self.minutes = options, minutes
        self.done = Stages(folder / "stages")
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.wish = [hashed(photos.train), hashed(photos.held_out), threads]
        self.rows: list[Row] = []

    def run(self, variants: list[Named], seeds: list[int], stages: list[Named]) -> None:
        """Everything that is not done yet: seed by seed, so that there are early tables."""
        for seed in seeds:
            for variant in variants:
                base = self.first(variant, seed)
                for stage in stages:
                    self.further(variant, seed, stage, base)

    def first(self, variant: Named, seed: int) -> Row:
        """Train one model for as many steps as its time allows, and measure it."""
        steps = self.steps(variant)
        folder = self.folder / variant.folder / f"seed{seed}"
        words = [*variant.words, "--seed", seed, "--max_iter", steps]
        wish = self.arguments(*words)
        name = f"{variant.folder}_seed{seed}_made"
        made = self.once(name, wish, lambda: self.train(folder, *words))
        return self.add(variant, FIRST, seed, folder, [steps, *made], wish)

    def further(self, variant: Named, seed: int, stage: Named, base: Row) -> None:
        """Carry out one stage and measure its ONNX file."""
        folder = self.folder / variant.folder / f"seed{seed}_{stage.folder}"
        wish = [self.arguments(*variant.words), stage.words, base.file]
        made = self.once(
            f"{variant.folder}_{folder.name}_made",
            wish,
            lambda: self.carry_out(folder, variant, seed, stage, Path(base.file)),
        )
        self.add(variant, stage.name, seed, folder, [base.steps, *made], wish)

    def carry_out(
        self, folder: Path, variant: Named, seed: int, stage: Named, checkpoint: Path
    ) -> tuple[Path, float]:
        """The ONNX file that the commands of a stage make of a checkpoint, and its CPU seconds."""
        photos = str(self.photos.calibration(self.folder / "calibration"))
        commands = stage.commands()
        if commands[-1][0] == "train":
            commands.append(("export_onnx", []))
        total, model = 0.0, folder / "model.onnx"
        for name, words in commands:
            words = [word.replace("{calibration}", photos) for word in words]
            if name == "train":
                start = ["--seed", seed, "--ckpt", checkpoint]
                checkpoint, seconds = self.train(folder, *variant.words, *start, *words)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                began = cpu_seconds()
                self.call(name, "--checkpoint", checkpoint, "--name", model, *words)
                seconds = cpu_seconds() - began
            total += seconds
        return model, total

    def steps(self, variant: Named) -> int:
        """How many fit into the time, by two short runs.

        Raises:
            SystemExit: None do.
        """
        folder = self.folder / variant.folder / "probe"

        def work() -> list[float]:
            return [self.train(folder, *variant.words, "--max_iter", n)[1] for n in PROBES]

        arguments = self.arguments(*variant.words)
        less, more = self.once(f"{variant.folder}_probe", arguments, work)
        shutil.rmtree(folder, ignore_errors=True)
        each = (more - less) / (PROBES[1] - PROBES[0])
        rest = max(0.0, less - PROBES[0] * each)
        steps = int((self.minutes * 60 * (1 - RESERVE) - rest) / each) if each > 0 else 0
        print(
            f"\n{variant.name}: {each:.2f} CPU seconds a step and {rest:.0f} besides, "
            f"{steps} steps in {self.minutes:g} minutes",
            flush=True,
        )
        if steps < 1:
            raise SystemExit("error: not one step fits into this time\nhint: more --cpu_minutes")
        return steps

    def train(self, folder: Path, *words: object) -> tuple[Path, float]:
        """The checkpoint of a training run into ``folder``, and its CPU seconds."""
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        began = cpu_seconds()
        printed = self.call(
            "train", *self.arguments(*words), "--save_folder", folder, "--log_folder", folder
        )
        seconds = cpu_seconds() - began
        best = [line for line in printed.splitlines() if line.startswith(BEST)]
        checkpoint = Path(best[0].removeprefix(BEST)) if best else final_checkpoint(printed)
        return checkpoint, seconds

    def arguments(self, *words: object) -> list[object]:
        """Those of a training run, its folders apart; later ones win."""
        fixed = ["--num_workers", 0, "--save_interval", 10**6, "--validation_epoch", -1]
        return [*self.photos.training(), *fixed, *self.options, *words]

    def call(self, name: str, *words: object) -> str:
        """Run a command with the threads that were asked for."""
        return call(name, *words, environment=self.environment)

    def once(self, name: str, wish: Sequence[object], work: Callable[[], Any]) -> Any:
        """The result of ``work``, or of an earlier run if nothing it depends on has changed."""
        plain = json.loads(json.dumps([*wish, *self.wish], default=str))
        return self.done.once(name, plain, lambda _: json.loads(json.dumps(work(), default=str)))

    def add(
        self,
        variant: Named,
        stage: str,
        seed: int,
        folder: Path,
        made: Sequence[Any],
        wish: Sequence[object],
    ) -> Row:
        """Measure what a ``wish`` has made (steps, file, CPU seconds), and write the tables."""
        steps, file, seconds = made

        def work() -> tuple[Any, ...]:
            words = ("--trained_model", file, *self.photos.validation())
            report = measure(folder, *words, environment=self.environment)
            return tuple(report[kind]["ap"][at] for kind in ("mask", "box") for at in ("all", "50"))

        name = f"{folder.parent.name}_{folder.name}_measured"
        mask, mask50, box, box50 = self.once(name, [file, *wish], work)
        minutes = seconds / 60
        row = Row(variant.name, stage, seed, mask, mask50, box, box50, steps, minutes, file)
        self.rows.append(row)
        text = f"{to_markdown(self.rows, self.minutes)}\n\nMeasured on {machine()}.\n"
        (self.folder / "results.md").write_text(text)
        rows = [asdict(row) for row in self.rows]
        record = {"machine": machine(), "cpu_minutes": self.minutes, "results": rows}
        (self.folder / "results.json").write_text(json.dumps(record, indent=1))
        print(f"\n{text}", flush=True)
        return row


def to_markdown(rows: Sequence[Row], minutes: float) -> str:
    """A row a variant and stage: means, values of the seeds, share of the float mask mAP, time."""
    first = {(row.variant, row.seed): row.mask_map for row in rows if row.stage == FIRST}
    lines = [
        "| variant | model | mask mAP, mean (seeds) | mask AP50, mean (seeds) | box mAP | box AP50 "
        "| of float | steps | CPU minutes, most |",
        "|:--|:--|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for variant, stage in dict.fromkeys((row.variant, row.stage) for row in rows):
        some = [row for row in rows if (row.variant, row.stage) == (variant, stage)]
        of_float = mean(_share(row.mask_map, first[variant, row.seed]) for row in some)
        most = max(row.cpu_minutes for row in some)
        over = f", over {minutes:g}" if stage == FIRST and most > minutes else ""
        lines.append(
            f"| {variant} | {stage} | {listed([row.mask_map for row in some])} "
            f"| {listed([row.mask_ap50 for row in some])} "
            f"| {mean(row.box_map for row in some):.1f} "
            f"| {mean(row.box_ap50 for row in some):.1f} "
            f"| {of_float:.3f} | {some[0].steps} | {most:.1f}{over} |"
        )
    return "\n".join(lines)


def listed(values: Sequence[float]) -> str:
    """Mean and each."""
    return f"{mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _share(value: float, whole: float) -> float:
    return value / whole if whole else float("nan")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows ``--`` is in ``options``."""
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Further options of sparseml.yolact.train, for all variants, follow after --.",
    )
    add = parser.add_argument
    add("data", type=Path, help="folder with images/ and coco/all.json")
    add("--images", type=Path, help="another folder of the photos")
    add(
        "--info", type=Path, nargs="+", metavar="JSON",
        help="annotations: of all photos, or of those to train on and of those held out",
    )  # fmt: skip
    add("--held_out", type=int, default=5, help="photos, of one file of annotations  [5]")
    add("--config", default="yolact_darknet53_config")
    add("--cpu_minutes", type=float, default=15.0, help="of each training run  [15]")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--variant", type=Named.read, action="append", metavar="NAME=OPTIONS")
    add(
        "--stage", type=Named.read_stage, action="append", default=[],
        metavar="NAME=train OPTIONS [export_onnx OPTIONS]",
        help="more to do with each model; {calibration} is a folder of its training photos",
    )  # fmt: skip
    add("--threads", type=int, default=os.cpu_count() or 1, help="of every command  [all]")
    add("--folder", type=Path, default=Path("photos"), help="of all files  [photos]")
    found = parser.parse_args(words[:end])
    if found.info and len(found.info) > 2:
        parser.error("--info takes one file or two")
    for named in (found.variant or [], found.stage):
        if len({one.folder for one in named}) < len(named):
            parser.error("two names are the same, or differ in signs only")
    found.options = list(words[end + 1 :])
    return found


def main() -> None:
    """Run everything, print the tables, write them down."""
    given = parse(sys.argv[1:])
    images = given.images or given.data / "images"
    info = given.info or [given.data / "coco" / "all.json"]
    if len(info) == 2:
        photos = Photos(images, *info)
    else:
        photos = split(info[0], images, given.held_out, given.folder / "split")
    options = ["--config", given.config, *given.options]
    experiment = Experiment(given.folder, photos, options, given.cpu_minutes, given.threads)
    variants = given.variant or [Named(given.config.removesuffix("_config"), ())]
    experiment.run(variants, given.seeds, given.stage)


if __name__ == "__main__":
    main()
