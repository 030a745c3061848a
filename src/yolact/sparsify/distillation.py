"""What a recipe wants to be distilled, and when: its modifiers as plain records.

sparseml's modifiers compute a loss of their own, which does not fit YOLACT (see
:mod:`yolact.distill.loss`); taken from them are the schedule and the numbers. Corrected on the
way: output keys and numbers are checked, and ``update_frequency``, which sparseml's constructors
drop without a word, is said to have no effect.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import Entry, is_number
from yolact.types import TERMS

logger = logging.getLogger(__name__)

_TERM_OF: dict[str | int, str] = {
    **{"loc": "box", "conf": "classification", "mask": "mask", "proto": "mask"},
    **{0: "box", 1: "classification", 2: "mask", 4: "mask"},
}
"""Term by the name and by the index of the network's output."""


@dataclass(frozen=True, kw_only=True)
class OutputDistillation:
    """A ``!DistillationModifier``: the loss becomes (1 - hardness) loss + hardness distilled."""

    hardness: float
    """0..1."""
    temperature: float
    """Of the class distributions."""
    terms: Collection[str] = TERMS
    """Of :data:`yolact.types.TERMS`."""


@dataclass(frozen=True, kw_only=True)
class LayerDistillation:
    """A ``!PerLayerDistillationModifier``: the loss becomes loss + gain features' difference."""

    gain: float
    normalize: bool
    epsilon: float
    student_layers: tuple[str, ...] | None
    """Names of modules; None stands for every convolution."""
    teacher_layers: tuple[str, ...] | None
    """As many."""
    project: bool
    """Learn a linear map from the student's channels to the teacher's."""


Distilled = OutputDistillation | LayerDistillation


@dataclass(frozen=True)
class DistillationSchedule:
    """All that a recipe distils, in the order in which it changes the loss."""

    windows: tuple[tuple[float, float, Distilled], ...] = field(default=())
    """First epoch, end epoch (exclusive; inf for the run's end), what."""

    def __bool__(self) -> bool:
        """Whether the recipe distils anything at any time."""
        return bool(self.windows)

    def at(self, epoch: float) -> tuple[Distilled, ...]:
        """What the step that begins at ``epoch`` distils."""
        return tuple(what for start, end, what in self.windows if start <= epoch < end)

    @property
    def layers(self) -> tuple[LayerDistillation, ...]:
        """What is distilled from features at any time."""
        return tuple(w for _, _, w in self.windows if isinstance(w, LayerDistillation))


def distillation_schedule(
    modifiers: Iterable[Any], entries: Iterable[Entry], label: str
) -> DistillationSchedule:
    """Read the distillation modifiers among ``modifiers``, in their order.

    Args:
        modifiers: All of a recipe's.
        entries: The same, as the recipe has them.
        label: What to call it in errors.

    Raises:
        RecipeError: A field has a value that cannot be.
    """
    _name_idle_fields(entries, label)
    windows = []
    for modifier in modifiers:
        what = what_it_distils(modifier, label)
        if what is not None:
            end = modifier.end_epoch if modifier.end_epoch >= 0 else math.inf
            windows.append((max(modifier.start_epoch, 0.0), end, what))
    return DistillationSchedule(tuple(windows))


def what_it_distils(modifier: Any, label: str) -> Distilled | None:
    """A modifier of distillation as a record; None for any other modifier.

    Raises:
        RecipeError: A field has a value that cannot be.
    """
    distils = facts_of(type(modifier).__name__).distils
    if distils is None:
        return None
    return _outputs(modifier, label) if distils == "outputs" else _layers(modifier, label)


def _name_idle_fields(entries: Iterable[Entry], label: str) -> None:
    for entry in entries:
        frequency = entry.fields.get("update_frequency", -1)
        if facts_of(entry.name).distils and frequency not in (None, -1):
            logger.warning(
                "%s: %s: update_frequency %s has no effect, as in sparseml: "
                "every step between start_epoch and end_epoch distils",
                *(label, entry.name, frequency),
            )


def _outputs(modifier: Any, label: str) -> OutputDistillation:
    owner = f"{label}: DistillationModifier"
    hardness, temperature = modifier.hardness, modifier.temperature
    _require(owner, "hardness", hardness, "0 to 1", _is_finite(hardness) and 0 <= hardness <= 1)
    _require(owner, "temperature", temperature, "a number above 0", _is_positive(temperature))
    if modifier.teacher_input_keys:
        raise RecipeError(
            f"{owner}: teacher_input_keys {modifier.teacher_input_keys} choose among inputs, "
            "but the network has one, the images",
            hint="leave the field out",
        )
    keys = modifier.distill_output_keys
    _require(owner, "distill_output_keys", keys, "a list", keys is None or isinstance(keys, list))
    keys = keys or ["loc", "conf", "mask"]
    terms = dict.fromkeys(_term(key, owner) for key in keys)
    return OutputDistillation(hardness=hardness, temperature=temperature, terms=tuple(terms))


def _term(key: Any, owner: str) -> str:
    if isinstance(key, str | int) and not isinstance(key, bool) and key in _TERM_OF:
        return _TERM_OF[key]
    names = [name for name in _TERM_OF if isinstance(name, str)]
    near = get_close_matches(str(key), names, n=1) or names
    raise RecipeError(
        f"{owner}: {key!r} in distill_output_keys is no output that can be distilled",
        hint=f"try: {', '.join(near)}",
    )


def _layers(modifier: Any, label: str) -> LayerDistillation:
    owner = f"{label}: PerLayerDistillationModifier"
    gain, epsilon = modifier.gain, modifier.epsilon
    _require(owner, "gain", gain, "a number above 0", _is_positive(gain))
    _require(owner, "epsilon", epsilon, "a number above 0", _is_positive(epsilon))
    student, teacher = modifier.student_layer_names, modifier.teacher_layer_names
    for name, layers in (("student_layer_names", student), ("teacher_layer_names", teacher)):
        texts = isinstance(layers, list) and all(isinstance(layer, str) for layer in layers)
        _require(owner, name, layers, "a list of names", layers is None or (texts and layers != []))
    return LayerDistillation(
        gain=gain,
        normalize=bool(modifier.normalize),
        epsilon=epsilon,
        student_layers=None if student is None else tuple(student),
        teacher_layers=None if teacher is None else tuple(teacher),
        project=bool(modifier.project_features),
    )


def _require(owner: str, name: str, value: Any, wanted: str, fits: bool) -> None:
    if not fits:
        raise RecipeError(f"{owner}: {name} is {value!r}", hint=f"give {wanted}")


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0
