"""Quantization-aware training as a modifier of recipes.

sparseml has two modifiers of this name: one with schemes, and an older one, which any field that
only it has stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from yolact.model.fake_quantize import fake_quantizers
from yolact.model.quantized_layers import freezable_batch_norms
from yolact.model.weights import is_quantized
from yolact.sparsify.native.modifier import Modifier
from yolact.sparsify.native.quantization_scheme import QuantizationArgs, QuantizationScheme
from yolact.sparsify.native.quantize import Schemes, quantize
from yolact.sparsify.native.quantize_older import CONVOLUTIONS, LINEAR, OlderFields
from yolact.sparsify.native.quantize_older import quantize as quantize_older

_NOT_GIVEN: Any = object()

_OLDER: dict[str, Any] = {
    "submodules": None,
    "reduce_range": False,
    "activation_bits": 8,
    "weight_bits": 8,
    "activation_qconfig_kwargs": None,
    "weight_qconfig_kwargs": None,
    "quantize_linear_activations": True,
    "quantize_conv_activations": True,
    "quantize_embedding_activations": True,
    "quantize_embeddings": True,
    "exclude_batchnorm": True,
    "exclude_module_types": None,
    "custom_quantizable_module_types": None,
    "tensorrt": False,
}
"""Fields that only the older modifier has, with their defaults."""

_FUSE_SETTINGS = frozenset({"inplace", "override_bn_subclasses_forward"})
"""Of sparseml's fusing; this network has nothing that they are about."""


@dataclass(kw_only=True, eq=False)
class QuantizationModifier(Modifier):
    """Lets a model round its weights, inputs and outputs from ``start_epoch`` on."""

    scheme: Any = None
    """How layers are rounded; see :meth:`.QuantizationScheme.load`."""
    scheme_overrides: Any = None
    """Schemes of some layers, by the beginning of their names or by class."""
    ignore: Sequence[str] | None = None
    """Beginnings of names, and classes, of layers that are left as they are."""
    disable_quantization_observer_epoch: float | None = None
    """From then on ranges stay as they are."""
    freeze_bn_stats_epoch: float | None = None
    """From then on the statistics of batch norms stay as they are."""
    model_fuse_fn_name: str | None = None
    """``conv_bn_relus`` (the default) or ``no_fuse``."""
    model_fuse_fn_kwargs: Mapping[str, Any] | None = None
    """Of sparseml's fusing, for batch norms of other classes than torch's; without effect."""
    num_calibration_steps: int | None = None
    """No use in training: training images set the ranges."""
    strict: bool = True
    """Whether each name has to be that of a layer."""

    submodules: Sequence[str] | None = _NOT_GIVEN
    """Names of what is quantized; None is the whole model."""
    reduce_range: bool = _NOT_GIVEN
    """Whether activations have half of the integers."""
    activation_bits: int | None = _NOT_GIVEN
    weight_bits: int | None = _NOT_GIVEN
    activation_qconfig_kwargs: Mapping[str, Any] | None = _NOT_GIVEN
    """Finer settings; see :class:`.QuantizationArgs`."""
    weight_qconfig_kwargs: Mapping[str, Any] | None = _NOT_GIVEN
    quantize_linear_activations: bool = _NOT_GIVEN
    """Whether outputs of fully connected layers are rounded."""
    quantize_conv_activations: bool = _NOT_GIVEN
    """Whether outputs of convolutions are rounded."""
    quantize_embedding_activations: bool = _NOT_GIVEN
    quantize_embeddings: bool = _NOT_GIVEN
    exclude_batchnorm: bool = _NOT_GIVEN
    """Whether outputs of batch norms by themselves are not rounded."""
    exclude_module_types: Sequence[str] | None = _NOT_GIVEN
    """Classes of layers of which only the inputs are rounded."""
    custom_quantizable_module_types: Sequence[str] | None = _NOT_GIVEN
    """Classes of further layers whose inputs are rounded."""
    tensorrt: bool = _NOT_GIVEN
    """Whether all is symmetric, nothing is fused, and outputs of convolutions are not rounded."""

    older: bool = field(default=False, init=False)
    """Whether the older fields say what is quantized."""
    _quantized: bool = field(default=False, init=False, repr=False)
    _fixed: bool = field(default=False, init=False, repr=False)
    _frozen: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values, and read schemes.

        Raises:
            ValueError: One cannot be; says which.
        """
        self.older = any(getattr(self, name) is not _NOT_GIVEN for name in _OLDER)
        for name, default in _OLDER.items():
            if getattr(self, name) is _NOT_GIVEN:
                setattr(self, name, default)
        self._check_epochs()
        self._check_names()
        if self.older:
            newer = (self.scheme, self.scheme_overrides, self.ignore)
            if any(value is not None for value in newer):
                raise ValueError("scheme, scheme_overrides and ignore do not go with older fields")
            how = self._older_fields()
            how.weights.limits()
            how.activations.limits(signed=how.signed_activations)
            return
        self.scheme = QuantizationScheme.load(self.scheme)
        overrides = self.scheme_overrides or {}
        if not isinstance(overrides, Mapping):
            raise ValueError(f"scheme_overrides is {overrides!r}: give schemes by name or class")
        self.scheme_overrides = {
            name: QuantizationScheme.load(value, self.scheme) for name, value in overrides.items()
        }
        self.ignore = self.ignore or ()

    def attach(self, model: nn.Module, epoch: float) -> None:
        """Quantize ``model``, fix ranges and freeze batch norms, as far as that is due.

        Raises:
            ValueError: The model has no such layers.
        """
        self._advance(model, epoch)

    def due(self, epoch: float) -> bool:
        """Whether there is something to do at ``epoch``."""
        return self.starts(epoch) or self._fixes(epoch) or self._freezes(epoch)

    def act(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: float, steps_per_epoch: int
    ) -> None:
        """Quantize, fix ranges or freeze batch norms; a quantized model only learns again."""
        self._advance(model, epoch)

    def _advance(self, model: nn.Module, epoch: float) -> None:
        if self.starts(epoch) and not self._quantized:
            self._quantized = True
            if is_quantized(model):
                _learn_again(model, ranges=True)
            else:
                self._quantize(model)
        if self._fixes(epoch):
            self._fixed = True
            for part in self._parts(model):
                for quantizer in fake_quantizers(part):
                    quantizer.disable_observer()
        if self._freezes(epoch):
            self._frozen = True
            for part in self._parts(model):
                for norm in freezable_batch_norms(part):
                    norm.freeze_bn_stats()

    def _fixes(self, epoch: float) -> bool:
        due = self.disable_quantization_observer_epoch
        return due is not None and epoch >= due and not self._fixed

    def _freezes(self, epoch: float) -> bool:
        due = self.freeze_bn_stats_epoch
        return due is not None and epoch >= due and not self._frozen

    def _parts(self, model: nn.Module) -> list[nn.Module]:
        names = [""] if self.submodules is None else self.submodules
        return [model.get_submodule(name) for name in names]

    def _quantize(self, model: nn.Module) -> None:
        fuse = self.model_fuse_fn_name
        if fuse not in (None, "conv_bn_relus", "no_fuse"):
            raise ValueError(f"model_fuse_fn_name is {fuse!r}: give conv_bn_relus or no_fuse")
        if self.older:
            fused = fuse == "conv_bn_relus" or (fuse is None and not self.tensorrt)
            quantize_older(model, self._older_fields(), fused=fused)
            return
        schemes = Schemes(
            common=self.scheme,
            overrides=self.scheme_overrides,
            ignore=self.ignore or (),
            strict=self.strict,
        )
        hardware = {s.target_hardware for s in (self.scheme, *self.scheme_overrides.values())}
        quantize(model, schemes, fused=fuse != "no_fuse" and "tensorrt" not in hardware)

    def _older_fields(self) -> OlderFields:
        activations = {"reduce_range": self.reduce_range, **(self.activation_qconfig_kwargs or {})}
        outputs = (
            (self.quantize_linear_activations and not self.tensorrt, LINEAR),
            (self.quantize_conv_activations and not self.tensorrt, CONVOLUTIONS),
        )
        norms = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d") if self.exclude_batchnorm else ()
        return OlderFields(
            submodules=self.submodules,
            weights=QuantizationArgs(
                num_bits=self.weight_bits or 8,
                symmetric=True,
                kwargs=self.weight_qconfig_kwargs or {},
            ),
            activations=QuantizationArgs(
                num_bits=self.activation_bits or 8, symmetric=self.tensorrt, kwargs=activations
            ),
            signed_activations=self.tensorrt,
            also=self.custom_quantizable_module_types or (),
            keep_outputs=[kind for rounded, kinds in outputs if not rounded for kind in kinds],
            exclude=("Softmax", *norms, *(self.exclude_module_types or ())),
        )

    def _check_epochs(self) -> None:
        if self.end_epoch != -1:
            raise ValueError(f"end_epoch is {self.end_epoch:g}: quantization does not end")
        for name in ("disable_quantization_observer_epoch", "freeze_bn_stats_epoch"):
            epoch = getattr(self, name)
            if epoch is not None and epoch < self.start_epoch:
                raise ValueError(f"{name} is {epoch:g}, before start_epoch {self.start_epoch:g}")

    def _check_names(self) -> None:
        if isinstance(self.model_fuse_fn_name, str) and self.model_fuse_fn_name.lower() == "none":
            self.model_fuse_fn_name = None
        unknown = set(self.model_fuse_fn_kwargs or {}) - _FUSE_SETTINGS
        if unknown:
            raise ValueError(f"model_fuse_fn_kwargs has no {min(unknown)!r}")
        for name in (
            *("ignore", "submodules", "exclude_module_types", "custom_quantizable_module_types"),
        ):
            given = getattr(self, name)
            listed = isinstance(given, list | tuple) and all(isinstance(n, str) for n in given)
            if given is not None and not listed:
                raise ValueError(f"{name} is {given!r}: give a list of names")


def adopt(model: nn.Module, *, quantizes: bool, fresh: bool) -> None:
    """Prepare a model that is quantized already for a run, before modifiers are attached to it.

    Args:
        model: Quantized by this run before it was interrupted, or by an earlier one; its layers
            may be those of either engine.
        quantizes: Whether a modifier of the run does. If none does, batch norms stay as they are.
        fresh: Whether the run begins: ranges of earlier ones are a beginning, not the end.
    """
    if quantizes:
        _learn_again(model, ranges=fresh)
        return
    for norm in freezable_batch_norms(model):
        norm.freeze_bn_stats()


def _learn_again(model: nn.Module, *, ranges: bool) -> None:
    """Let batch norms learn their statistics, and quantizers their ``ranges``."""
    for norm in freezable_batch_norms(model):
        norm.update_bn_stats()
    if ranges:
        for quantizer in fake_quantizers(model):
            quantizer.enable_observer()
