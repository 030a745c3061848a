"""The course of a run: JSON lines in upstream's layout, TensorBoard, W&B, and a line to read.

``<log_folder>/<config>.log`` holds one JSON object a line, ``type`` being ``session`` (the
options), ``train`` (losses B box, C class, M mask, S semantic, T total), ``val`` (mAP tables) or
``memory`` (bytes that steps took at most before and with quantization-aware training).
Runs with a teacher add KD, what is distilled (D is upstream's diversity loss); B, C, M and S are
then scaled by what the recipe's hardness leaves to them, so that T is still the sum.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yolact.errors import ConfigError
from yolact.files import storage_errors
from yolact.training.memory import MemoryRecord
from yolact.training.settings import LogSettings

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that W&B gets at the end of a run."""
LETTERS = {
    **{"box": "B", "classification": "C", "mask": "M", "semantic": "S"},
    "distillation": "KD",
}


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step."""

    epoch: int
    iteration: int
    lr: float
    losses: Mapping[str, float]
    """By the names of :class:`yolact.loss.criterion.Losses`."""
    elapsed: float
    """Seconds."""
    sparsity: float | None = None
    """Fraction of zeros in all convolution weights, where it was measured."""

    @property
    def total(self) -> float:
        """Sum of the loss terms."""
        return sum(self.losses.values())


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """One validation: mAP in percent by IoU threshold ("all", 50 ... 95)."""

    epoch: int
    iteration: int
    elapsed: float
    box: Mapping[str | int, float]
    mask: Mapping[str | int, float]


def step_line(record: StepRecord, total_steps: int) -> str:
    """One greppable line.

    >>> step_line(StepRecord(epoch=3, iteration=200, lr=1e-3, elapsed=0.5,
    ...     losses={"box": 1.021, "mask": 1.874}), 800)
    'epoch 3 step 200/800 lr 0.001 box 1.021 mask 1.874 total 2.895'
    """
    terms = " ".join(f"{name} {value:.3f}" for name, value in record.losses.items())
    head = f"epoch {record.epoch} step {record.iteration}/{total_steps} lr {record.lr:g}"
    tail = "" if record.sparsity is None else f" sparsity {record.sparsity:.3f}"
    return f"{head} {terms} total {record.total:.3f}{tail}"


Record = StepRecord | ValidationRecord | MemoryRecord
"""What is written down of a run."""


class Sink(Protocol):
    """Something that keeps records."""

    def write(self, record: Record) -> None:
        """Keep one."""

    def close(self) -> None:
        """Flush and release."""


class JsonLines:
    """Appends to ``<folder>/<config>.log``; each run is a new session number."""

    def __init__(self, path: Path, options: Mapping[str, Any], *, gpu: bool = False) -> None:
        """Begin a session with ``options``; with ``gpu``, steps tell GPU memory."""
        self._gpu = gpu
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.session = _last_session(path) + 1
            self._file = path.open("a", encoding="utf-8")
            if _ends_in_mid_line(path):
                self._file.write("\n")
        self._write("session", dict(options))

    def write(self, record: Record) -> None:
        """Write a ``train``, ``val`` or ``memory`` line."""
        match record:
            case StepRecord():
                self._write("train", self._step(record))
            case ValidationRecord():
                data = {
                    "elapsed": record.elapsed,
                    "epoch": record.epoch,
                    "iter": record.iteration,
                    "box": dict(record.box),
                    "mask": dict(record.mask),
                }
                self._write("val", data)
            case MemoryRecord():
                data = {
                    "iter": record.iteration,
                    "device": record.device,
                    "before": record.before,
                    "quantized": record.quantized,
                }
                self._write("memory", data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _step(self, record: StepRecord) -> dict[str, Any]:
        losses = {LETTERS[name]: _number(value) for name, value in record.losses.items()}
        losses["T"] = _number(record.total)
        data: dict[str, Any] = {
            "loss": losses,
            "epoch": record.epoch,
            "iter": record.iteration,
            "lr": round(record.lr, 10),
            "elapsed": record.elapsed,
        }
        return {**data, "gpu": _gpu_memory()} if self._gpu else data

    def _write(self, kind: str, data: Mapping[str, Any]) -> None:
        line = {"type": kind, "session": self.session, "data": data, "time": time.time()}
        with storage_errors(Path(self._file.name)):
            self._file.write(json.dumps(line, default=str) + "\n")
            self._file.flush()


class TensorBoard:
    """Scalars in ``<folder>/tensorboard/<config>``."""

    def __init__(self, folder: Path) -> None:
        """Open a new event file in ``folder``."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with storage_errors(folder):
            self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Write losses, learning rate and sparsity; box and mask mAP; or both peaks of memory."""
        match record:
            case StepRecord():
                scalars = _losses(record) | {"loss/total": record.total}
                if record.sparsity is not None:
                    scalars["sparsity"] = record.sparsity
            case ValidationRecord():
                scalars = {f"val/box_{key}": value for key, value in record.box.items()}
                scalars |= {f"val/mask_{key}": value for key, value in record.mask.items()}
            case MemoryRecord():
                scalars = _peaks(record)
        with storage_errors(self._folder):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, record.iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        with storage_errors(self._folder):
            self._writer.close()


class WandB:
    """Scalars to Weights & Biases; only on the user's explicit ``--wandb``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Begin a W&B run."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ConfigError(
                "--wandb needs the wandb package", hint="pip install 'sparseml-yolact[wandb]'"
            ) from error
        self._run = wandb.init(project="yolact", config=dict(options))

    def write(self, record: Record) -> None:
        """Send losses and learning rate; box and mask mAP; or both peaks of memory."""
        match record:
            case StepRecord():
                values = _losses(record)
            case ValidationRecord():
                values = {"val/box": record.box["all"], "val/mask": record.mask["all"]}
            case MemoryRecord():
                values = _peaks(record)
        self._run.log(values, step=record.iteration)

    def close(self) -> None:
        """Finish the W&B run; what the service does not take in time stays in wandb's folder."""
        sender = threading.Thread(target=self._run.finish, daemon=True)
        sender.start()
        sender.join(PATIENCE)
        if sender.is_alive():
            logger.warning(
                "W&B did not take the last values within %.0f s; send them with: wandb sync",
                PATIENCE,
            )


class TrainLog:
    """All sinks of a run, closed together."""

    def __init__(self, settings: LogSettings, config_name: str, options: Mapping[str, Any]) -> None:
        """Open what ``settings`` ask for."""
        self.sinks: list[Sink] = []
        if settings.wandb:
            self.sinks.append(WandB(options))
        if settings.folder is not None:
            log = settings.folder / f"{config_name}.log"
            self.sinks.append(JsonLines(log, options, gpu=settings.gpu))
            self.sinks.append(TensorBoard(settings.folder / "tensorboard" / config_name))

    def __enter__(self) -> TrainLog:
        """Nothing to do: the sinks are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every sink, also when one cannot be closed."""
        with ExitStack() as stack:
            for sink in self.sinks:
                stack.callback(sink.close)

    def write(self, record: Record) -> None:
        """Give a record to every sink."""
        for sink in self.sinks:
            sink.write(record)


def _last_session(path: Path) -> int:
    """Highest session number in a log; lines that a crash cut short are passed over."""
    last = -1
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                last = max(last, int(json.loads(line)["session"]))
            except (ValueError, KeyError, TypeError):
                continue
    return last


def _ends_in_mid_line(path: Path) -> bool:
    """Whether a crash cut the last line short, so that the next one would be glued to it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) not in (b"", b"\n")


def _number(value: float) -> float | None:
    """A loss, or None for one that is not finite, which JSON has no number for."""
    return round(value, 5) if math.isfinite(value) else None


def _losses(record: StepRecord) -> dict[str, float]:
    """Each term and the learning rate by tag."""
    return {**{f"loss/{name}": value for name, value in record.losses.items()}, "lr": record.lr}


def _peaks(record: MemoryRecord) -> dict[str, float]:
    """Scalars by tag."""
    peaks = {"before_qat": record.before, "qat": record.quantized}
    return {f"memory/{name}": float(peak) for name, peak in peaks.items() if peak is not None}


def _gpu_memory() -> list[dict[str, int]]:
    import torch

    return [
        {
            "allocated": torch.cuda.memory_allocated(index),
            "peak": torch.cuda.max_memory_allocated(index),
        }
        for index in range(torch.cuda.device_count())
    ]
