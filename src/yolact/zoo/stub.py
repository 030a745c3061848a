"""The names of SparseZoo's YOLACT models: ``zoo:cv/segmentation/.../base-none?recipe=original``."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from urllib.parse import parse_qsl

from yolact.errors import CheckpointError, RecipeError, YolactError
from yolact.zoo.known import MODELS

PREFIX = "zoo:"
ROOT = "cv/segmentation/yolact-darknet53/pytorch/dbolya/coco"
"""Domain, task, network, framework, repository and data set; all stubs share them."""

_STAGES = ("default", "prepruning", "postpruning", "preqat", "postqat")
_RECIPES = ("original", "transfer_learn")
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "recipe": _RECIPES,
    "recipe_type": _RECIPES,
    "training": _STAGES,
    "checkpoint": _STAGES,
    "deployment": ("default",),
}
"""What may follow the ``?``. Only the recipe matters: the zoo never had more than one of the
others for a YOLACT model, whatever the name."""


class Kind(Enum):
    """What of a model is wanted."""

    CHECKPOINT = "checkpoint"
    ONNX = "ONNX file"
    RECIPE = "recipe"

    @property
    def error(self) -> type[YolactError]:
        """Class of the errors about such a file."""
        return RecipeError if self is Kind.RECIPE else CheckpointError


@dataclass(frozen=True)
class Stub:
    """A stub that names a known model."""

    model: str
    """``base-none``, ``pruned90-none`` or ``pruned82_quant-none``."""
    recipe: str | None = None
    """``original`` or ``transfer_learn`` when the query asks for one."""

    @property
    def path(self) -> str:
        """The stub without its prefix and its query."""
        return f"{ROOT}/{self.model}"

    def __str__(self) -> str:
        """The stub as the zoo spelled it."""
        return f"{PREFIX}{self.path}" + (f"?recipe={self.recipe}" if self.recipe else "")


def is_stub(text: str) -> bool:
    """Whether ``text`` means a model of SparseZoo and not a path."""
    return text.strip().lower().startswith(PREFIX)


def parse_stub(text: str, error: type[YolactError] = CheckpointError) -> Stub:
    """Read a stub; upper case, a slash at the end and doubled slashes do no harm.

    Args:
        text: ``zoo:``, the path of a model, and perhaps a query such as ``?recipe=original``.
        error: Class of what is raised.

    Raises:
        YolactError: Of the class ``error``: there never was such a model, or its query has a
            parameter or a value that the zoo did not have.

    >>> str(parse_stub("ZOO:CV/segmentation/yolact-darknet53/pytorch/dbolya/coco/Base-None/"))
    'zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco/base-none'
    """
    plain = text.strip().lower().removeprefix(PREFIX).replace("\\", "/")
    path, _, query = plain.partition("?")
    parts = [part for part in path.split("/") if part]
    model = parts[-1] if parts else ""
    if model not in MODELS or parts != [*ROOT.split("/"), model]:
        raise error(
            f"{text} is not a model that SparseZoo had for YOLACT", hint=_nearest_model(parts)
        )
    chosen = dict(_checked(text, *pair, error) for pair in parse_qsl(query, keep_blank_values=True))
    return Stub(model, chosen.get("recipe") or chosen.get("recipe_type"))


def _nearest_model(parts: list[str]) -> str:
    names = {f"{ROOT}/{model}": model for model in MODELS}
    last = parts[-1] if parts else ""
    near = get_close_matches(last, MODELS, n=1, cutoff=0.5)
    near = near or [names[path] for path in get_close_matches("/".join(parts), names, n=1)]
    if near:
        return f"did you mean {PREFIX}{ROOT}/{near[0]}?"
    return f"there were {PREFIX}{ROOT}/ and {', '.join(MODELS)}"


def _checked(text: str, name: str, value: str, error: type[YolactError]) -> tuple[str, str]:
    """A parameter of the query, with the full name of a recipe that may be shortened."""
    if name not in _PARAMETERS:
        near = get_close_matches(name, _PARAMETERS, n=1) or list(_PARAMETERS)
        raise error(f"{text} has an unknown parameter {name!r}", hint=f"try: {', '.join(near)}")
    value = value.replace("-", "_")
    known = [one for one in _PARAMETERS[name] if value and one.startswith(value)]
    if not known:
        known = list(_PARAMETERS[name])
        raise error(f"{text} asks for {name} {value!r}", hint=f"there was: {', '.join(known)}")
    return name, known[0]
