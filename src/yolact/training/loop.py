"""The training loop: steps, recipe, checkpoints, validation, and an orderly end.

The loop owns the clock: step i of a run with n steps an epoch is at epoch i / n, and that number
drives the recipe, so that loop and recipe never drift apart and a resumed run continues exactly.

The recipe's manager, of either engine, is in ``run.driver``, a
:class:`yolact.sparsify.driver.RecipeDriver`. :func:`yolact.training.start.prepare` has made and
started it; :meth:`Trainer._step` asks it before the forward pass, before and after the optimizer's
step; :meth:`Trainer.train` lets it finish.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from yolact.checkpoint import Checkpoint
from yolact.data.coco import evaluation_order
from yolact.data.loader import make_loader
from yolact.data.workers import WorkerError
from yolact.engines.torch import TorchEngine
from yolact.errors import DataError, StorageError
from yolact.files import require_space, require_writable
from yolact.predict.evaluate import Evaluation, evaluate
from yolact.predict.pipeline import Selection
from yolact.sparsify.report import ModelReport
from yolact.training.logs import StepRecord, TrainLog, ValidationRecord, step_line
from yolact.training.memory import QuantizationMemory
from yolact.training.retention import CheckpointKeeper
from yolact.training.settings import TrainSettings
from yolact.training.start import Run, describe, prepare
from yolact.training.state import checkpoint_size, snapshot
from yolact.training.step import (
    ImageTooLargeError,
    Stepper,
    hold_batch_norms,
    most_skipped,
)
from yolact.training.stop import GracefulStop, Interrupted
from yolact.types import Batch

if TYPE_CHECKING:
    from typing_extensions import Never

logger = logging.getLogger(__name__)

LINE_EVERY = 10
"""Steps between console lines."""
SPARSITY_EVERY = 50
"""Steps between measurements of the sparsity shown beside the losses."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path | None
    """None when the run was interrupted and told not to save then."""
    best_checkpoint: Path | None
    evaluation: Evaluation | None
    """Of the final weights; None when validation is off or the run was interrupted."""
    interrupted: bool
    skipped_steps: int
    report: ModelReport | None
    """Of the final weights; None when the run had no recipe or was interrupted."""

    @property
    def missed(self) -> tuple[str, ...]:
        """Promises of the recipe that the final weights do not keep, in words."""
        return self.report.missed if self.report else ()


def train(settings: TrainSettings) -> TrainResult:
    """Train as ``settings`` say, from checking them to the final validation.

    Raises:
        YolactError: Anything the user can fix; before the first step where that is possible.
    """
    require_writable(settings.save.folder)
    return carry_out(prepare(settings))


def carry_out(run: Run) -> TrainResult:
    """Take the steps of a prepared run, writing down its course; a signal ends it in order.

    Args:
        run: The folder of its checkpoints is there already.

    Raises:
        YolactError: An image, a log or a checkpoint cannot be read or written; training has
            diverged; or the step of a single image does not fit into memory.
    """
    settings = run.settings
    logger.info("%s", describe(run))
    require_space(settings.save.folder, checkpoint_size(run), "one checkpoint")
    with (
        TrainLog(settings.log, run.config.name, asdict(settings)) as log,
        GracefulStop() as stop,
    ):
        return Trainer(run, log, stop).train()


class Trainer:
    """Runs the steps of a prepared :class:`~yolact.training.start.Run`."""

    def __init__(self, run: Run, log: TrainLog, stop: GracefulStop) -> None:
        """Continue from where ``run`` stands."""
        settings = run.settings
        self.run = run
        self.log = log
        self.stop = stop
        self.iteration = run.iteration
        continues = settings.start.checkpoint if run.resumed else None
        self.keeper = CheckpointKeeper(run.config.name, settings.save, continues=continues)
        self.best_map = run.resumed.best_map if run.resumed else None
        self.without_better = run.without_better
        self._validated: tuple[int, Evaluation] | None = None
        self.stepper = Stepper(
            run.model,
            run.objective,
            run.optimizer,
            run.device,
            half=settings.half,
            max_grad_norm=run.optim.max_grad_norm,
            allocation=settings.batch_alloc,
            most_skipped=most_skipped(run.plan.total_steps - run.iteration),
        )
        self.loader = make_loader(
            run.train_data,
            settings.batch_size,
            settings.data.num_workers,
            run.seed,
            pin_memory=run.device.type == "cuda",
            name=run.train_data.name,
        )
        if run.resumed and run.resumed.training and run.resumed.training.scaler:
            self.stepper.scaler.load_state_dict(run.resumed.training.scaler)
        self._recent: dict[str, deque[float]] = {}
        quantizes = run.driver.quantizes_by(math.inf)
        self._memory = QuantizationMemory(run.device, expected=quantizes)

    def train(self) -> TrainResult:
        """Run to the end, or to an interruption, and save."""
        run = self.run
        try:
            with logging_redirect_tqdm([logging.getLogger("yolact")]), self._bar() as bar:
                while self.iteration < run.plan.total_steps and not self._out_of_patience:
                    self._epoch(bar)
            self.stepper.growth.check()
        except Interrupted:
            stepped = self.iteration > run.iteration  # else an earlier interrupt holds more
            path = self._save_interrupt() if stepped else None
            return self._result(path, None, interrupted=True)
        # Of an image or a log, met between two steps; or a step for which there is no memory.
        except (DataError, StorageError, ImageTooLargeError, WorkerError):
            self._save_what_there_is()
            raise
        finally:
            self.loader.close()
        self._say_why_early()
        run.driver.finish(run.model)
        run.average.follow()
        path = self.keeper.save(self._checkpoint())
        try:
            evaluation = self._validate(final=True) if run.validation_data else None
        except Interrupted:
            return self._result(path, None, interrupted=True)
        return self._result(path, evaluation, interrupted=False)

    def _save_what_there_is(self) -> None:
        """After an error, unless it is saved already."""
        if self.iteration > self.run.iteration and not self.keeper.holds(self.iteration):
            with suppress(StorageError):  # the first error is the one to tell
                self._save_interrupt()

    def _save_interrupt(self) -> Path | None:
        if not self.run.settings.save.interrupt:
            return None
        with self.stop.shielded():
            return self.keeper.save_interrupt(self._checkpoint())

    def _epoch(self, bar: tqdm[Never]) -> None:
        """The rest of the current epoch, with its validation."""
        run, settings = self.run, self.run.settings
        epoch, first_batch = run.plan.batch_of(self.iteration)
        self.loader.batch_sampler.set_position(epoch, first_batch)
        for batches in self._groups(iter(self.loader), settings.accumulate):
            self._step(epoch, batches, bar)
            if self.iteration >= run.plan.total_steps:
                return
            self.stop.check()
            if self.keeper.due(self.iteration) and not self.stepper.growth.ruined:
                self.keeper.save(self._checkpoint())
        every = settings.validation_epoch
        if run.validation_data and (epoch + 1) % every == 0:
            self._validate()

    def _groups(self, batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
        """Lists of ``size`` consecutive batches; the last may be shorter."""
        while True:
            with self.stop.at_once():  # a disk may never answer
                group = list(islice(batches, size))
            if not group:
                return
            yield group

    def _step(self, epoch: int, batches: list[Batch], bar: tqdm[Never]) -> None:
        run, began = self.run, time.perf_counter()
        clock = self.iteration / run.plan.steps_per_epoch
        self._memory.begin()
        self._keep_float_weights(clock)
        if run.driver.quantizes_by(clock + 1 / run.plan.steps_per_epoch):
            self.stepper.full_precision()
        run.model.train()  # batch norms too that were frozen and may be trained from this step on
        run.driver.before_forward(run.model, run.optimizer, clock)
        hold_batch_norms(run.model, every=run.settings.freeze_bn)
        run.objective.set_epoch(clock)
        if not run.driver.controls_lr:
            for group in run.optimizer.param_groups:
                group["lr"] = run.optim.lr_at(self.iteration)
        losses = self.stepper.gradients(batches)
        run.driver.before_step(run.model, run.optimizer, clock)
        self.stepper.apply(self.iteration, losses, batches)
        run.driver.after_step(run.model, run.optimizer, clock)
        run.average.update()
        self.iteration += 1
        self._measure(clock)
        self._report(epoch, losses, time.perf_counter() - began, bar)

    def _keep_float_weights(self, clock: float) -> None:
        """Save right before quantization begins: its first step may be one too large for memory."""
        run = self.run
        begins = run.driver.quantizes_by(clock) and not run.driver.quantizes_by(
            clock - 1 / run.plan.steps_per_epoch
        )
        if begins and self.iteration > run.iteration and not self.keeper.holds(self.iteration):
            self.keeper.save(self._checkpoint())

    def _measure(self, clock: float) -> None:
        """Once quantization has begun, or the run has ended before long, tell what it takes."""
        run, memory = self.run, self._memory
        complete = memory.end(quantized=run.driver.quantizes_by(clock))
        ended = self.iteration >= run.plan.total_steps and not memory.done
        record = memory.record(self.iteration) if complete or ended else None
        if record is not None:
            self.log.write(record)
            logger.info("%s", record.line())

    def _report(
        self, epoch: int, losses: Mapping[str, float], elapsed: float, bar: tqdm[Never]
    ) -> None:
        run = self.run
        sparse = self.iteration % SPARSITY_EVERY == 0
        record = StepRecord(
            epoch=epoch,
            iteration=self.iteration,
            lr=run.optimizer.param_groups[0]["lr"],
            losses=losses,
            elapsed=elapsed,
            sparsity=run.driver.sparsity(run.model) if sparse else None,
        )
        self.log.write(record)
        for name, value in losses.items():
            self._recent.setdefault(name, deque(maxlen=100)).append(value)
        means = {name: sum(values) / len(values) for name, values in self._recent.items()}
        images = run.settings.batch_size * run.settings.accumulate
        bar.update()
        bar.set_postfix(
            {name: f"{value:.2f}" for name, value in means.items()}
            | {"lr": f"{record.lr:.1e}", "img/s": f"{images / elapsed:.1f}"}
            | ({"sparsity": f"{record.sparsity:.3f}"} if record.sparsity is not None else {}),
            refresh=False,
        )
        if bar.disable and self.iteration % LINE_EVERY == 0:
            smooth = replace(record, losses=means)
            logger.info("%s", step_line(smooth, run.plan.total_steps))

    def _validate(self, *, final: bool = False) -> Evaluation:
        """Evaluate and note the result; the final table is the command's to print."""
        run, began = self.run, time.perf_counter()
        if self._validated and self._validated[0] == self.iteration:
            return self._validated[1]
        assert run.validation_data is not None
        ids = evaluation_order(run.validation_data.image_ids)[: run.settings.validation_size]
        run.model.eval()
        try:
            with run.average.applied(), self.stop.at_once():
                evaluation = evaluate(
                    TorchEngine(run.model, run.classes, device=str(run.device)),
                    run.validation_data,
                    Selection(detect=run.config.detect),
                    batch_size=run.settings.batch_size,
                    image_ids=ids,
                )
        finally:
            run.model.train()
        record = ValidationRecord(
            epoch=self._epoch_index(),
            iteration=self.iteration,
            elapsed=time.perf_counter() - began,
            box=evaluation.box,
            mask=evaluation.mask,
        )
        self.log.write(record)
        if not final:
            logger.info("epoch %d\n%s", record.epoch, evaluation.table())
        self._validated = self.iteration, evaluation
        self._keep_if_best(evaluation.mask["all"])
        return evaluation

    def _keep_if_best(self, mask_map: float) -> None:
        """Save when mask mAP is a new best of weights that have their final sparsity and bits.

        Otherwise patience wears, once the recipe has done all it does.
        """
        clock, driver = self.iteration / self.run.plan.steps_per_epoch, self.run.driver
        settled = clock >= driver.settles_at and not self.stepper.growth.ruined
        if settled and (self.best_map is None or mask_map > self.best_map):
            known, self.best_map = self.best_map is not None, mask_map
            self.without_better = 0
            path = self.keeper.save_best(self._checkpoint(), own=known)
            self._write_report(path)
            logger.info("best mask mAP so far, %.2f: kept as %s", mask_map, path)
        elif self.run.settings.patience is None or clock < driver.acts_until:
            return
        else:
            self.without_better += 1
        if self.keeper.holds(self.iteration):  # a run resumed from it has to know
            self.keeper.save(self._checkpoint())

    @property
    def _out_of_patience(self) -> bool:
        patience = self.run.settings.patience
        return patience is not None and self.without_better >= patience

    def _say_why_early(self) -> None:
        if self._out_of_patience and self.iteration < self.run.plan.total_steps:
            logger.info(
                "no better mask mAP in %d validations: the run ends at step %d of %d",
                *(self.without_better, self.iteration, self.run.plan.total_steps),
            )

    def _write_report(self, path: Path, *, macs: bool = False) -> ModelReport | None:
        """Of the weights that are saved; operations are counted when the run is over."""
        run = self.run
        with run.average.applied():
            size = run.config.model.image_size if macs else None
            return run.driver.write_report(run.model, path, size)

    def _epoch_index(self) -> int:
        return max(self.iteration - 1, 0) // self.run.plan.steps_per_epoch

    def _checkpoint(self) -> Checkpoint:
        return snapshot(
            self.run, self.iteration, self.stepper.scaler, self.best_map, self.without_better
        )

    def _result(
        self, path: Path | None, evaluation: Evaluation | None, *, interrupted: bool
    ) -> TrainResult:
        best, report = self.keeper.best_path, None
        if path and not interrupted:
            report = self._write_report(path, macs=True)
        return TrainResult(
            checkpoint=path,
            best_checkpoint=best if self.best_map is not None and best.exists() else None,
            evaluation=evaluation,
            interrupted=interrupted,
            skipped_steps=self.stepper.skipped.total,
            report=report,
        )

    def _bar(self) -> tqdm[Never]:
        plan = self.run.plan
        return tqdm(
            total=plan.total_steps,
            initial=self.iteration,
            desc="train",
            unit="step",
            disable=None,  # a bar on a terminal, lines elsewhere
            dynamic_ncols=True,
        )
