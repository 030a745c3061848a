"""What is known of the three YOLACT models of SparseZoo, and what replaces each of their files.

Sources: the model cards and recipes of SparseML 1.8 and neuralmagic/yolact for the figures and ids,
dbolya/yolact's README of 2025 for the addresses of the author's own weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HUGGING_FACE = "https://huggingface.co/dbolya"


@dataclass(frozen=True)
class Weights:
    """A weights file of YOLACT's author."""

    file: str
    url: str
    sha256: str | None = None
    """None where nobody has published it: recorded on first use and compared from then on."""


WEIGHTS: Mapping[str, Weights] = {
    "backbone": Weights(
        "darknet53.pth", f"{HUGGING_FACE}/yolact-initial-weights/resolve/main/darknet53.pth"
    ),
    "base": Weights(
        "yolact_darknet53_54_800000.pth",
        f"{HUGGING_FACE}/yolact-darknet53/resolve/main/yolact_darknet53_54_800000.pth",
    ),
}
"""By the names of ``download --weights``: DarkNet-53 trained on ImageNet, and YOLACT on COCO."""


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
