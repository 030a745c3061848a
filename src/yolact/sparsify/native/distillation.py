"""Modifiers of distillation: fields only, which :mod:`yolact.sparsify.distillation` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yolact.sparsify.native.modifier import Modifier, require_order


@dataclass(kw_only=True, eq=False)
class DistillationModifier(Modifier):
    """Trains on the teacher's outputs as well."""

    distill_output_keys: list[Any] | None = None
    teacher_input_keys: list[Any] | None = None
    update_frequency: float = -1.0
    """Without effect: every step distils."""
    hardness: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        """Check the order of its epochs."""
        require_order(self)
        self.update_frequency = -1.0


@dataclass(kw_only=True, eq=False)
class PerLayerDistillationModifier(Modifier):
    """Trains on what layers inside the teacher compute as well."""

    gain: float = 1.5
    update_frequency: float = -1.0
    """Without effect: every step distils."""
    normalize: bool = True
    student_layer_names: list[str] | None = None
    teacher_layer_names: list[str] | None = None
    """Those of the student where only these are given, and the other way round."""
    project_features: bool = True
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Check the order of its epochs and the number of its layers."""
        require_order(self)
        self.update_frequency = -1.0
        student, teacher = self.student_layer_names, self.teacher_layer_names
        if isinstance(student, list) and isinstance(teacher, list) and len(student) != len(teacher):
            raise ValueError(
                f"student_layer_names has {len(student)} layers and teacher_layer_names "
                f"{len(teacher)}; give as many of both"
            )
        self.student_layer_names = teacher if student is None else student
        self.teacher_layer_names = student if teacher is None else teacher
