"""What a run with a teacher minimises: the task's loss and what the recipe distils just now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from yolact.config import ModelConfig
from yolact.distill.loss import distillation_loss, feature_distillation
from yolact.distill.teacher import Teacher
from yolact.errors import RecipeError
from yolact.loss.criterion import DistilledLosses, YolactLoss
from yolact.model.yolact import Yolact
from yolact.sparsify.distillation import DistillationSchedule, LayerDistillation, OutputDistillation
from yolact.types import NetworkOutputs, Target

_PROBE = 64
"""Side of the image with which channels are counted, in pixels."""

_FOLLOWERS = (nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU)
"""What belongs to the convolution before it: quantization may fuse them into one layer."""

_TRAINING_ONLY = "semantic_seg_conv"
"""A layer that a teacher, in evaluation mode, does not run."""


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
        """Pair the features that :func:`watched` collected, by layer."""
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
        """Run the student, and the teacher if it is due; the student is in training mode."""
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
                cost = distillation_loss(
                    outputs,
                    answers,
                    self.criterion.config,
                    temperature=what.temperature,
                    terms=what.terms,
                )
                learned = (1 - what.hardness) * learned + what.hardness * cost
                share *= 1 - what.hardness
        return DistilledLosses._make([*(share * term for term in task), learned])

    def _pairs_of(self, what: LayerDistillation) -> LayerPairs:
        index = next(i for i, layers in enumerate(self.schedule.layers) if layers is what)
        pairs = self.pairs[index]
        assert isinstance(pairs, LayerPairs)
        return pairs


def feature_layers(config: ModelConfig, wanted: Sequence[str] | None) -> list[str]:
    """Names of the modules whose outputs are the features of the wanted layers.

    A convolution stands for its group, with the batch norm and the activation that follow it in
    its ``Sequential``: quantization fuses them, and an activation in place overwrites its input.
    The output of the group's last module is the same thing before and after.

    Args:
        config: Of the network; its structure is what counts, so it may be quantized by now.
        wanted: Names of modules; None stands for every convolution.

    Raises:
        RecipeError: The network has no such layer.
    """
    with torch.device("meta"):
        modules = dict(Yolact(config).named_modules())
    if wanted is None:
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        wanted = [name for name in convolutions if name != _TRAINING_ONLY]
    for name in wanted:
        if name not in modules or not name:
            near = get_close_matches(name, modules, n=1, cutoff=0.5) or ["fpn.pred_layers.0"]
            raise RecipeError(
                f"the network has no layer {name!r} to distil", hint=f"try: {near[0]}"
            )
    return [_end_of_group(modules, name) for name in wanted]


@contextmanager
def watched(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of some modules while ``model`` runs inside the ``with`` block.

    Yields:
        Name -> outputs, one for every time the module ran.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: seen[name].append(output)

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in seen]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


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


def _end_of_group(modules: dict[str, nn.Module], name: str) -> str:
    parent, _, index = name.rpartition(".")
    if not isinstance(modules[name], (nn.Conv2d, *_FOLLOWERS)) or not index.isdigit():
        return name
    following = f"{parent}.{int(index) + 1}"
    follows = isinstance(modules[parent], nn.Sequential) and following in modules
    if follows and isinstance(modules[following], _FOLLOWERS):
        return _end_of_group(modules, following)
    return name
