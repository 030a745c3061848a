"""A short training run of the tiny network, watched after every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import make_shapes, tiny_settings
from yolact.errors import RecipeError
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import load_recipe
from yolact.training.logs import Record, StepRecord, TrainLog
from yolact.training.loop import Trainer
from yolact.training.start import Run, prepare
from yolact.training.stop import GracefulStop

STEPS = 3
"""Of an epoch, with the seven images of the tiny data set in batches of two."""


_ENGINE: ContextVar[EngineName | None] = ContextVar("engine", default=None)


@contextmanager
def run_by(engine: EngineName) -> Iterator[None]:
    """Inside, that engine runs recipes."""
    token = _ENGINE.set(engine)
    try:
        yield
    finally:
        _ENGINE.reset(token)


def engine_in_use() -> EngineName | None:
    """That of :func:`run_by`; None for the default one."""
    return _ENGINE.get()


def recipe(*modifiers: str, epochs: float = 2) -> str:
    """A recipe of some epochs with ``modifiers``, each without its dash."""
    lines = [f"!EpochRangeModifier {{start_epoch: 0, end_epoch: {epochs}}}", *modifiers]
    return "modifiers:\n" + "".join(f"- {line}\n" for line in lines)


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="modifiers-")
    make_shapes(Path(folder.name) / "shapes")
    return folder


@dataclass
class Practice:
    """A finished run."""

    run: Run
    seen: list[Any]
    """What the watcher returned after each step."""
    first: dict[str, Tensor]
    """The network before the first step."""
    missed: tuple[str, ...]
    """Sparsity targets that were missed."""
    checkpoint: Path
    """What the run saved at its end."""

    def weight(self, name: str) -> Tensor:
        """A parameter after the run."""
        return self.run.model.get_parameter(name).detach()


@dataclass(frozen=True)
class _Watcher:
    """A part of the log that looks at the run after each step."""

    look: Callable[[], None]

    def write(self, record: Record) -> None:
        if isinstance(record, StepRecord):
            self.look()

    def close(self) -> None: ...


def practice(text: str, watch: Callable[[Run], Any] = lambda run: None, **changes: Any) -> Practice:
    """Train as the train command does.

    Args:
        text: The recipe.
        watch: Called after every step.
        changes: Of :func:`training.tiny_settings`.
    """
    home = Path(_home().name)
    out = Path(tempfile.mkdtemp(dir=home))
    changes = {"recipe_engine": engine_in_use(), **changes}
    settings = tiny_settings(home / "shapes", out, recipe=text, **changes)
    run = prepare(replace(settings, save=replace(settings.save, interval=10**6)))
    first = {name: value.clone() for name, value in run.model.state_dict().items()}
    seen: list[Any] = []

    with TrainLog(settings.log, run.config.name, asdict(settings)) as log, GracefulStop() as stop:
        log.sinks.append(_Watcher(lambda: seen.append(watch(run))))
        result = Trainer(run, log, stop).train()
    assert result.checkpoint is not None and not result.skipped_steps
    return Practice(run, seen, first, result.missed, result.checkpoint)


def modifier_class(name: str) -> Any:
    """A modifier of sparseml, which is never imported but through this package's door."""
    from yolact.sparsify.sparseml import Modifier

    kinds = [Modifier]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next(kind for kind in kinds if kind.__name__ == name)


def lr(run: Run) -> float:
    """The learning rate of the step just taken."""
    return float(run.optimizer.param_groups[0]["lr"])


def zeros(*values: Tensor) -> float:
    """Fraction of zeros in all of ``values``."""
    flat = torch.cat([value.detach().reshape(-1) for value in values])
    return float((flat == 0).float().mean())


def sparsity(names: Sequence[str]) -> Callable[[Run], float]:
    """Watches the fraction of zeros in some parameters together."""
    return lambda run: zeros(*(run.model.get_parameter(name) for name in names))


def pattern(names: Sequence[str]) -> Callable[[Run], list[Tensor]]:
    """Watches which weights of some parameters are zero."""
    return lambda run: [run.model.get_parameter(name).detach() == 0 for name in names]


def refused(message: str, hint: str, *, exactly: bool = True) -> Callable[[str], None]:
    """Checks that a recipe is refused before anything is trained, with these words.

    Args:
        message: Without what it calls the recipe.
        hint: The hint.
        exactly: False when sparseml's own words follow ``message``.
    """

    def check(text: str) -> None:
        with pytest.raises(RecipeError) as caught:
            RecipeDriver(load_recipe(text, engine=engine_in_use()))
        begins = str(caught.value).startswith(f"the recipe: {message}")
        assert begins, str(caught.value)
        assert not exactly or str(caught.value) == f"the recipe: {message}"
        assert caught.value.hint == hint

    return check


def in_turn(*checks: Callable[[str], None]) -> Callable[[str], None]:
    """All of ``checks``, one after the other."""

    def check(text: str) -> None:
        for each in checks:
            each(text)

    return check
