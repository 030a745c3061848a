"""What a run with a teacher minimises: the task's loss and what the recipe distils just now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from yolact.distill.features import feature_layers, watched
from yolact.distill.loss import distillation_loss, feature_distillation
from yolact.distill.teacher import Teacher
from yolact.errors import RecipeError
from yolact.loss.criterion import DistilledLosses, YolactLoss
from yolact.model.yolact import Yolact
from yolact.sparsify.distillation import DistillationSchedule, LayerDistillation, OutputDistillation
from yolact.types import NetworkOutputs, Target

_PROBE = 64
"""Side of the image with which channels are counted, in pixels."""


class LayerPairs(nn.Module):
    """The layers that one modifier compares, and the linear maps between their channels.

    A map begins as the identity where both layers are equally wide, so that a student that begins
    as its teacher has nothing to learn (sparseml begins with random maps, also there).

    Args:
        what: Of the recipe.
        student: With any weights; its mode is left as it is.
        teacher: In evaluation mode.

    Raises:
        RecipeError: A layer does not exist, or two cannot be compared.
    """

    def __init__(self, what: LayerDistillation, student: Yolact, teacher: Yolact) -> None:
        """Count channels by running both networks on a small image."""
        super().__init__()
        self.student = feature_layers(student.config, what.student_layers or what.teacher_layers)
        self.teacher = feature_layers(teacher.config, what.teacher_layers or what.student_layers)
        if len(self.student) != len(self.teacher):
            raise RecipeError(
                f"PerLayerDistillationModifier: {len(self.student)} layers of the student, "
                f"but {len(self.teacher)} of the teacher",
                hint="name as many in student_layer_names as in teacher_layer_names",
            )
        shapes = zip(
            self.student,
            _shapes(student, self.student),
            self.teacher,
            _shapes(teacher, self.teacher),
            strict=True,
        )
        maps = [_map_between(*pair, project=what.project) for pair in shapes]
        self.maps = nn.ModuleList(maps)

    def forward(
        self, student: dict[str, list[Tensor]], teacher: dict[str, list[Tensor]]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Pair the features that :func:`yolact.distill.features.watched` collected, by layer."""
        return [
            [(m(x.float()), y) for x, y in zip(student[ours], teacher[theirs], strict=True)]
            for m, ours, theirs in zip(self.maps, self.student, self.teacher, strict=True)
        ]


class Distillation(nn.Module):
    """Learning from ground truth and a teacher: a :class:`yolact.loss.criterion.Objective`.

    A module, so that the teacher follows to other devices; the student is no part of it.

    Args:
        criterion: The task's loss.
        teacher: Whom to learn from; its network is moved to the device of ``student``.
        schedule: What is distilled when.
        student: The network to be trained.

    Attributes:
        active: What the next step distils.
        teacher_name: Where the teacher comes from, in words.
    """

    def __init__(
        self,
        criterion: YolactLoss,
        teacher: Teacher,
        schedule: DistillationSchedule,
        student: Yolact,
    ) -> None:
        """Stand at epoch 0."""
        super().__init__()
        device = next(student.parameters()).device
        self.criterion = criterion
        self.schedule = schedule
        self.teacher_name: str | None = teacher.origin
        self.teacher = teacher.model.to(device).to(memory_format=torch.channels_last)
        with torch.random.fork_rng(devices=[]):
            pairs = [LayerPairs(what, student, self.teacher) for what in schedule.layers]
        self.pairs = nn.ModuleList(pairs).to(device)
        self.active = schedule.at(0)

    def set_epoch(self, epoch: float) -> None:
        """Let the next step be the one that begins at ``epoch``."""
        self.active = self.schedule.at(epoch)

    def count_positives(self, priors: Tensor, targets: Sequence[Target]) -> list[int]:
        """As :meth:`yolact.loss.criterion.YolactLoss.count_positives` does."""
        return self.criterion.count_positives(priors, targets)

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """The linear maps between the channels of student and teacher."""
        return list(self.pairs.parameters())

    def state(self) -> dict[str, Tensor] | None:
        """The maps between layers, for a checkpoint; None when there are none."""
        return self.pairs.state_dict() or None

    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            RuntimeError: It belongs to other layers.
        """
        self.pairs.load_state_dict(dict(state or {}))

    def forward(
        self, model: nn.Module, images: Tensor, targets: Sequence[Target]
    ) -> DistilledLosses:
        """Run the student, and the teacher if it is due.

        Args:
            model: The student in training mode.
            images: [B, 3, S, S] float32 RGB, 0..1.
            targets: B of them.
        """
        pairs = [self._pairs_of(w) for w in self.active if isinstance(w, LayerDistillation)]
        with watched(model, {name for pair in pairs for name in pair.student}) as features:
            outputs: NetworkOutputs = model(images)
        task = self.criterion(outputs, targets)
        if not any(_counts(what) for what in self.active):
            return DistilledLosses(*task, distillation=torch.zeros_like(task.box))
        layers = {name for pair in pairs for name in pair.teacher}
        with torch.no_grad(), watched(self.teacher, layers) as wanted:
            answers: NetworkOutputs = self.teacher(images)
        share, learned = 1.0, torch.zeros_like(task.box)
        for what in self.active:
            if isinstance(what, LayerDistillation):
                compared = self._pairs_of(what)(features, wanted)
                learned = learned + what.gain * feature_distillation(
                    compared, normalize=what.normalize, epsilon=what.epsilon
                )
            else:
                cost = self._of_outputs(what, outputs, answers)
                learned = (1 - what.hardness) * learned + what.hardness * cost
                share *= 1 - what.hardness
        return DistilledLosses._make([*(share * term for term in task), learned])

    def _of_outputs(
        self, what: OutputDistillation, outputs: NetworkOutputs, answers: NetworkOutputs
    ) -> Tensor:
        return distillation_loss(
            outputs,
            answers,
            self.criterion.config,
            temperature=what.temperature,
            terms=what.terms,
        )

    def _pairs_of(self, what: LayerDistillation) -> LayerPairs:
        index = next(i for i, layers in enumerate(self.schedule.layers) if layers is what)
        pairs = self.pairs[index]
        assert isinstance(pairs, LayerPairs)
        return pairs


def _counts(what: OutputDistillation | LayerDistillation) -> bool:
    """Whether it changes the loss at all: with a hardness of 0 the teacher need not run."""
    return isinstance(what, LayerDistillation) or what.hardness > 0


@torch.no_grad()
def _shapes(model: Yolact, names: Sequence[str]) -> list[list[int]]:
    """[C, H, W] of each layer's output for a small image."""
    like = next(model.parameters())
    training = model.training
    model.eval()
    with watched(model, set(names)) as seen:
        model(like.new_zeros(1, 3, _PROBE, _PROBE))
    model.train(training)
    for name in names:
        if not seen[name] or not isinstance(seen[name][0], Tensor):
            raise RecipeError(
                f"PerLayerDistillationModifier: {name} has no feature map of its own in "
                "evaluation mode",
                hint="name layers such as fpn.pred_layers.0",
            )
    return [list(seen[name][0].shape[1:]) for name in names]


def _map_between(
    student: str, ours: list[int], teacher: str, theirs: list[int], *, project: bool
) -> nn.Module:
    if ours[1:] != theirs[1:] or (ours[0] != theirs[0] and not project):
        raise RecipeError(
            f"PerLayerDistillationModifier: outputs of {student} and {teacher} cannot be "
            f"compared: {ours} and {theirs} for an image of {_PROBE} pixels",
            hint="pair layers of the same stride; project_features: True maps channels",
        )
    if not project:
        return nn.Identity()
    conv = nn.Conv2d(ours[0], theirs[0], kernel_size=1, bias=False)
    if ours[0] == theirs[0]:
        nn.init.dirac_(conv.weight)
    return conv
