"""SparseZoo's three YOLACT models: their names, what is known of them, what replaces their files.

A name, or stub, is such as ``zoo:cv/segmentation/.../base-none?recipe=original``. Sources: the
model cards and recipes of SparseML 1.8 and neuralmagic/yolact for the figures and ids,
dbolya/yolact's README of 2025 for the addresses of the author's own weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from urllib.parse import parse_qsl

from yolact.errors import CheckpointError, RecipeError, YolactError

PREFIX = "zoo:"
ROOT = "cv/segmentation/yolact-darknet53/pytorch/dbolya/coco"
"""Domain, task, network, framework, repository and data set; all stubs share them."""
_AUTHOR = "https://huggingface.co/dbolya"
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


@dataclass(frozen=True)
class Weights:
    """A weights file of YOLACT's author."""

    file: str
    url: str
    sha256: str | None = None
    """None where nobody has published it: recorded on first use and compared from then on."""


def _initial(file: str) -> Weights:
    return Weights(file, f"{_AUTHOR}/yolact-initial-weights/resolve/main/{file}")


def _trained(repository: str, file: str) -> Weights:
    return Weights(file, f"{_AUTHOR}/{repository}/resolve/main/{file}")


WEIGHTS: Mapping[str, Weights] = {
    "backbone": _initial("darknet53.pth"),
    "base": _trained("yolact-darknet53", "yolact_darknet53_54_800000.pth"),
    "resnet50": _initial("resnet50-19c8e357.pth"),
    "resnet101": _initial("resnet101_reducedfc.pth"),
    "yolact_resnet50": _trained("yolact-resnet50", "yolact_resnet50_54_800000.pth"),
    "yolact_base": _trained("yolact-base", "yolact_base_54_800000.pth"),
    "yolact_im700": _trained("yolact-im700", "yolact_im700_54_800000.pth"),
}
"""By the names of ``download --weights``. The first two are DarkNet-53 trained on ImageNet, and
YOLACT on it trained on COCO, as SparseZoo had it; then other backbones, and YOLACT on them."""


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """One model of the zoo."""

    published: str
    """Its accuracy, sparsity and size, in words."""
    cache_ids: tuple[str, ...] = ()
    """Names of its folder in the cache of SparseZoo's older clients."""
    weights: Weights | None = None
    """The author's release that its checkpoint is."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """Recipe of the stub's query -> name of the recipe in this package."""
    remake: str
    """The command that makes a checkpoint like it."""
    checkpoint: str
    """Where that command puts it."""


MODELS: Mapping[str, ZooModel] = {
    "base-none": ZooModel(
        published="box/mask mAP 30.61/28.80, dense, 170 MB as compressed ONNX",
        cache_ids=("9eb1f165-c111-4d33-8375-ae2db87866c1",),
        weights=WEIGHTS["base"],
        remake="sparseml.yolact.train --resume weights/darknet53.pth --backbone",
        checkpoint="weights/yolact_darknet53_best.pth",
    ),
    "pruned90-none": ZooModel(
        published="box/mask mAP@0.5 49.36/46.37, 90.6 % of the convolution weights zero, "
        "30.1 MB as compressed ONNX",
        recipes={"original": "yolact.pruned", "transfer_learn": "yolact.transfer"},
        remake="sparseml.yolact.train --resume weights/yolact_darknet53_54_800000.pth "
        "--recipe yolact.pruned --save_folder pruned",
        checkpoint="pruned/yolact_darknet53_best.pth",
    ),
    "pruned82_quant-none": ZooModel(
        published="box/mask mAP 29.82/28.26, 83.2 % of the convolution weights zero, INT8, "
        "9.7 MB as compressed ONNX",
        cache_ids=("099e086b-1e84-450c-ab3b-90038c591554",),
        recipes={"original": "yolact.pruned_quant", "transfer_learn": "yolact.transfer_quant"},
        remake="sparseml.yolact.train --resume weights/yolact_darknet53_54_800000.pth "
        "--recipe yolact.pruned_quant --save_folder pruned_quant",
        checkpoint="pruned_quant/yolact_darknet53_best.pth",
    ),
}
"""By the last part of their stubs."""


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
