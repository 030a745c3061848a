"""Initial weights, and weights from files of the published layout."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yolact.errors import CheckpointError
from yolact.model.misfit import (
    first,
    hint_for,
    hint_for_origin,
    is_whole_model,
    listing,
    own_shapes,
    try_loading,
)

if TYPE_CHECKING:  # what reads weights without a network, such as checkpoints, stays small
    from yolact.model.yolact import Yolact

logger = logging.getLogger(__name__)


def init_weights(model: nn.Module) -> None:
    """Draw every convolution's weight xavier-uniform and set its bias to zero, as upstream does.

    Batch norms are left alone. Uses torch's global random generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def load_weights(model: Yolact, state_dict: Mapping[str, Tensor]) -> None:
    """Load all weights; every name and shape has to fit.

    Names that old upstream checkpoints carry on top are ignored, and the counters of batch norm
    (``num_batches_tracked``) may be absent.

    Args:
        model: Left unchanged when the weights are refused.
        state_dict: A flat mapping like ``model.state_dict()``. That of a quantized model fits a
            model that its recipe was applied to.

    Raises:
        CheckpointError: Names are missing or unexpected, or shapes differ; the message counts
            them and shows the first of each, the hint says why as far as the names tell. Or
            weights are NaN or infinite.
    """
    weights = _without_obsolete_names(model, state_dict)
    # On a copy, because torch overwrites what fits before it reports what does not.
    misfit = try_loading(copy.deepcopy(model), weights)
    if any(misfit):
        raise CheckpointError(
            f"the weights do not fit the model: {misfit.summary()}",
            hint=_hint_for_classes(model, weights) or hint_for(model, weights, misfit),
        )
    broken = [name for name in own_shapes(model) if not torch.isfinite(weights[name]).all()]
    if broken:
        raise CheckpointError(
            f"the weights cannot be used: {listing(broken, 'hold NaN or infinity')}",
            hint="the training that wrote them diverged: take an earlier checkpoint",
        )
    model.load_state_dict(weights)


def load_backbone(model: Yolact, state_dict: Mapping[str, Tensor]) -> None:
    """Load the backbone from a file like ``darknet53.pth``, which was trained on ImageNet.

    Backbone names that the file lacks keep their values, with a warning.

    Args:
        model: Only its backbone changes; left unchanged when the weights are refused.
        state_dict: Its name K is ``backbone.K`` of the model; unknown names are ignored.

    Raises:
        CheckpointError: No name matches, or a shape differs.
    """
    own = model.backbone.state_dict()
    known = {name: state_dict[name] for name in own if name in state_dict}
    if not known:
        raise CheckpointError(
            f"no DarkNet backbone in the file; its names are {first(state_dict)}",
            hint="it is a whole model: load it without --backbone"
            if is_whole_model(state_dict)
            else "give a file like darknet53.pth, with names like layers.0.0.0.weight",
        )
    misfit = try_loading(copy.deepcopy(model.backbone), known)
    if misfit.differ:
        raise CheckpointError(
            f"the backbone does not fit the model: {listing(misfit.differ, 'of another shape')}",
            hint="use the config that the backbone was trained for",
        )
    if misfit.missing:
        logger.warning(
            "the backbone file lacks %s; they keep their values",
            listing(misfit.missing, "names"),
        )
    model.backbone.load_state_dict(known, strict=False)


def num_classes_of(state_dict: Mapping[str, Tensor]) -> int:
    """How many object classes, without the background, a model's weights are for.

    Raises:
        CheckpointError: They are not those of a YOLACT model.
    """
    conf, bbox = (_rows(state_dict, f"prediction_layers.0.{n}_layer") for n in ("conf", "bbox"))
    if not conf or bbox < 4:
        raise CheckpointError(
            "not the weights of a YOLACT model: prediction_layers.0.conf_layer.weight is missing",
            hint=hint_for_origin(state_dict) or "give a checkpoint that YOLACT training saved",
        )
    priors_per_cell = bbox // 4
    return conf // priors_per_cell - 1


def _rows(state_dict: Mapping[str, Tensor], layer: str) -> int:
    """Output channels of a convolution, which quantization may have wrapped; 0 without it."""
    weight = re.compile(re.escape(layer) + r"(\.module)?\.weight")
    found = (value for name, value in state_dict.items() if weight.fullmatch(name))
    return next((len(value) for value in found if value.ndim), 0)


def _without_obsolete_names(model: Yolact, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` without names that have no counterpart in this network, nor need one.

    A plain dict, so that the version marks of torch are gone too: without them batch norm does
    not insist on its counters.
    """
    levels = len(model.fpn.downsample_layers)

    def obsolete(name: str) -> bool:
        if re.match(r"backbone\.layer(?!s)", name):  # a second name of the same stages
            return True
        # Upstream has an empty head for each of P4..P7. Quantization gave these observers, so that
        # the levels were rounded twice: once here, once at the input of the head they share.
        if re.match(r"prediction_layers\.[1-9]\d*\.quant\.", name):
            return True
        level = re.match(r"fpn\.downsample_layers\.(\d+)\.", name)
        return level is not None and int(level[1]) >= levels  # v1.0 had more levels than it used

    return {name: value for name, value in state_dict.items() if not obsolete(name)}


def _hint_for_classes(model: Yolact, weights: Mapping[str, Tensor]) -> str | None:
    """What to do when model and weights are for different numbers of classes."""
    expected = model.config.num_classes
    if not is_whole_model(weights) or num_classes_of(weights) == expected:
        return None
    return (
        f"they are for {num_classes_of(weights)} classes and the model for {expected}: "
        "build the model with the number of classes of the weights"
    )
