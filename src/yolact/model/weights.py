"""A network's weights: drawn anew or read from files, quantized or not.

Weights that do not fit are refused with the likeliest reason, as far as their names tell it.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from yolact.errors import CheckpointError, ConfigError
from yolact.model.fake_quantize import fake_quantizers
from yolact.model.identify import distinct_words, identify_backbone, words

if TYPE_CHECKING:  # what reads weights without a network, such as checkpoints, stays small
    from yolact.model.yolact import Yolact

logger = logging.getLogger(__name__)
_SHOWN = 3
_HEAD = "prediction_layers.0."


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
    misfit = _try_loading(copy.deepcopy(model), weights)
    if any(misfit):
        raise CheckpointError(
            f"the weights do not fit the model: {misfit.summary()}",
            hint=_hint_for_classes(model, weights) or _hint_for(model, weights, misfit),
        )
    broken = [name for name in _own_shapes(model) if not torch.isfinite(weights[name]).all()]
    if broken:
        raise CheckpointError(
            f"the weights cannot be used: {_listing(broken, 'hold NaN or infinity')}",
            hint="the training that wrote them diverged: take an earlier checkpoint",
        )
    model.load_state_dict(weights)


def load_backbone(model: Yolact, state_dict: Mapping[str, Tensor]) -> None:
    """Load the backbone from a file like ``darknet53.pth``, which was trained on ImageNet.

    One of other depths is refused, even where what it shares with the model's would fit.

    Backbone names that the file lacks keep their values, with a warning.

    Args:
        model: Only its backbone changes; left unchanged when the weights are refused.
        state_dict: Its name K is ``backbone.K`` of the model; unknown names are ignored.

    Raises:
        CheckpointError: No name matches, a shape differs, or it is another network.
    """
    theirs, ours = identify_backbone(state_dict), model.config.backbone
    if theirs is not None and (theirs.name, theirs.stage_blocks) != (ours.name, ours.stage_blocks):
        raise CheckpointError(
            "the file has {}, the model {}".format(*distinct_words(theirs, ours)),
            hint="use the --config of this backbone, or the file for this one",
        )
    own = model.backbone.state_dict()
    known = {name: state_dict[name] for name in own if name in state_dict}
    if not known:
        raise CheckpointError(
            f"no {words(ours)} in the file; its names are {_first(state_dict)}",
            hint="it is a whole model: load it without --backbone"
            if _is_whole_model(state_dict)
            else f"give a file with names like {next(iter(own))}",
        )
    misfit = _try_loading(copy.deepcopy(model.backbone), known)
    if misfit.differ:
        raise CheckpointError(
            f"the backbone does not fit the model: {_listing(misfit.differ, 'of another shape')}",
            hint="use the config that the backbone was trained for",
        )
    if misfit.missing:
        logger.warning(
            "the backbone file lacks %s; they keep their values",
            _listing(misfit.missing, "names"),
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
            hint=_hint_for_origin(state_dict) or "give a checkpoint that YOLACT training saved",
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
    if not _is_whole_model(weights) or num_classes_of(weights) == expected:
        return None
    return (
        f"they are for {num_classes_of(weights)} classes and the model for {expected}: "
        "build the model with the number of classes of the weights"
    )


class _Misfit(NamedTuple):
    """What keeps weights from being loaded."""

    missing: list[str]
    unexpected: list[str]
    differ: list[str]
    """Names with the file's and the model's shape."""

    def summary(self) -> str:
        """The three lists in a line, shortened."""
        kinds = zip(self, ("missing", "unexpected", "of another shape"), strict=True)
        return "; ".join(_listing(names, what) for names, what in kinds if names)


def _try_loading(model: nn.Module, weights: Mapping[str, Tensor]) -> _Misfit:
    """Load into ``model`` whatever fits and tell what does not.

    Torch decides what is missing or unexpected, since the modules of a quantized model accept
    more than their exact names; only shapes are compared here, where torch would raise.
    """
    own = {name: tuple(value.shape) for name, value in _own_shapes(model).items()}
    differ = {name for name in own if name in weights and tuple(weights[name].shape) != own[name]}
    rest = {name: value for name, value in weights.items() if name not in differ}
    missing, unexpected = model.load_state_dict(rest, strict=False)
    return _Misfit(
        missing=[name for name in missing if name not in differ],
        unexpected=list(unexpected),
        differ=[
            f"{name} {list(weights[name].shape)} for {list(own[name])}"
            for name in own
            if name in differ
        ],
    )


def _listing(names: Collection[str], what: str) -> str:
    """Count and first few of ``names``.

    >>> _listing(["a", "b", "c", "d", "e"], "missing")
    '5 missing (a, b, c, ...)'
    """
    return f"{len(names)} {what} ({_first(names)})"


def _first(names: Collection[str]) -> str:
    """The first few of ``names``.

    >>> _first(["a", "b"])
    'a, b'
    """
    more = [] if len(names) <= _SHOWN else ["..."]
    return ", ".join([*list(names)[:_SHOWN], *more])


def _hint_for(model: nn.Module, weights: Mapping[str, Tensor], misfit: _Misfit) -> str:
    """The likeliest reason of a misfit, judged by the names, and what to do about it."""
    own = model.state_dict()
    if origin := _hint_for_origin(weights):
        return origin
    quantized = is_quantized_state(weights)
    if quantized != is_quantized_state(own):
        return (
            "the weights are of a quantized model: apply the recipe they were trained with first"
            if quantized
            else "the model is quantized, the weights are not: load them before the recipe"
        )
    common = sum(name in own for name in weights)
    if common < min(len(own), len(weights)) / 2:
        return "they belong to another network: use the --config they were trained with"
    if misfit.differ:
        return "they are of other widths or depths: use the --config they were trained with"
    nearest = _nearest(misfit)
    if nearest:
        return f"names that the model may have for those of the file: {nearest}"
    return "the file is incomplete or of a modified network; take the file as training saved it"


def _nearest(misfit: _Misfit) -> str:
    """The first few unexpected names with the missing ones that they resemble most."""
    pairs = [
        f"{found[0]} for {name}"
        for name in misfit.unexpected[:_SHOWN]
        if (found := difflib.get_close_matches(name, misfit.missing, 1, 0.75))
    ]
    return ", ".join(pairs)


def _hint_for_origin(weights: Mapping[str, Tensor]) -> str | None:
    """What to do with weights that are recognised as something else than a model's."""
    backbone = re.compile(r"(layers|blocks)\.\d+\.")
    if not _is_whole_model(weights) and any(backbone.match(name) for name in weights):
        return "it is a backbone alone: sparseml.yolact.train takes it with --resume and --backbone"
    return None


def _is_whole_model(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is a prediction head among the weights."""
    return any(name.startswith(_HEAD) for name in weights)


def _own_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict whose shape never changes; observers adapt theirs when loaded."""
    parameters = {name for name, _ in model.named_parameters()}
    statistics = (".running_mean", ".running_var")
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in parameters or name.endswith(statistics)
    }


def is_quantized(model: nn.Module) -> bool:
    """Whether any module of ``model`` simulates quantization."""
    return any(True for _ in fake_quantizers(model))


def require_quantized(model: nn.Module, option: str) -> None:
    """Refuse an option that is about integers.

    Raises:
        ConfigError: ``model`` has none; names the ``option``.
    """
    if not is_quantized(model):
        raise ConfigError(
            f"{option} has no use for a model that is not quantized",
            hint="add --one-shot yolact.one_shot_int8, or another recipe that quantizes",
        )


def is_quantized_state(names: Iterable[str]) -> bool:
    """Whether state-dict names are those of a fake-quantized network."""
    return any(name.endswith(".zero_point") for name in names)


def parameter_count(model: nn.Module) -> int:
    """Numbers that training can change, those that are zero included.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
