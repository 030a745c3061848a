"""Does a recipe fit a model? Names that match nothing, masks and layers that cannot be.

What is wrong is collected as records of :class:`Problem`, of which all checks are made, and
printed, or raised as one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from yolact.errors import RecipeError
from yolact.model.weights import is_quantized
from yolact.sparsify.catalog import facts_of
from yolact.sparsify.document import Entry, matches, nm_of
from yolact.sparsify.structure import recipe_names

PRUNABLE = "__ALL_PRUNABLE__"

_ALIKE = 0.8
"""From this likeness on, 0..1, a name is taken for another one misspelt. Of every seventh weight of
EfficientNet-Lite0 none was that like a name of DarkNet-53, ResNet or timm's MobileNetV3, nor the
other way round. DarkNet-53 and ResNets have names up to 0.97 alike: these are still proposed."""

_FUSED = ("ConvBn2d", "ConvBnReLU2d", "ConvReLU2d")
"""Classes that layers have by the time they are quantized."""

_FUSE = (None, "none", "None", "conv_bn_relus", "no_fuse")
"""Values of ``model_fuse_fn_name``; any other would be a method of the network, which has none."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that will not work (an error), or that is probably not meant (a warning)."""

    severity: Severity
    sentence: str
    """What is wrong, without the name of the recipe."""
    hint: str
    """What to do about it."""
    modifier: str | None = None
    """Class name of the modifier it is about; None for the recipe as a whole."""
    number: int | None = None
    """Place of that modifier in the recipe, from 1."""

    def __str__(self) -> str:
        """The sentence, with the modifier that it is about."""
        if self.modifier is None or self.sentence.startswith(self.modifier):
            return self.sentence
        if f"!{self.modifier}" in self.sentence:
            return self.sentence
        return f"{self.modifier}: {self.sentence}"


def from_error(
    error: RecipeError, label: str, modifier: str | None = None, number: int | None = None
) -> Problem:
    """The problem that an error tells of, without ``label`` and ``modifier`` at its beginning."""
    sentence = str(error).removeprefix(f"{label}: ").removeprefix(f"{modifier}: ")
    return Problem("error", sentence, error.hint or "", modifier, number)


def raise_errors(problems: Iterable[Problem], label: str) -> None:
    """Raise one error that names every problem that is one; warnings pass.

    Raises:
        RecipeError: There are errors among the problems.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    if len(errors) == 1:
        raise RecipeError(f"{label}: {errors[0]}", hint=errors[0].hint)
    hints = dict.fromkeys(problem.hint for problem in errors)
    raise RecipeError(
        f"{label} has {len(errors)} problems: {'; '.join(map(str, errors))}",
        hint="; ".join(hints),
    )


@dataclass(frozen=True)
class Parameters:
    """What of a model recipes can name."""

    shapes: dict[str, tuple[int, ...]]
    """Of every parameter, by the name that recipes have for it."""
    prunable: frozenset[str]
    """The weights of convolutions and fully connected layers."""

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Those of ``model``, quantized or not."""
        names = recipe_names(model)
        layers = [
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        return cls(
            shapes={names[name]: tuple(p.shape) for name, p in model.named_parameters()},
            prunable=frozenset(names[name] for name in layers if name in names),
        )

    def matching(self, pattern: str) -> list[str]:
        """The parameters that a name, ``re:`` expression or token stands for.

        Raises:
            re.error: It is no regular expression.
        """
        if pattern == PRUNABLE:
            return [name for name in self.shapes if name in self.prunable]
        return [name for name in self.shapes if matches(pattern, name)]


def patterns_of(entry: Entry) -> list[Any]:
    """What a modifier has to say which parameters it is for; not all are text if it is wrong."""
    params = entry.fields.get("params") or []
    found = [params] if isinstance(params, str) else list(params)
    final = entry.fields.get("final_sparsity")
    if isinstance(final, dict):
        found += [name for names in final.values() for name in names]
    return found


def matched(entry: Entry, parameters: Parameters) -> tuple[str, ...]:
    """The parameters a modifier is for, in the model's order; expressions that are none skipped."""
    found: set[str] = set()
    for pattern in patterns_of(entry):
        try:
            found.update(parameters.matching(pattern))
        except (re.error, AttributeError):
            continue
    return tuple(name for name in parameters.shapes if name in found)


def misfits(
    entry: Entry, number: int, parameters: Parameters, model: nn.Module
) -> Iterator[Problem]:
    """Names that match nothing or too much, blocks that do not divide, and layers there are not.

    Args:
        entry: A modifier, its variables resolved.
        number: Its place in the recipe, from 1.
        parameters: Of the model.
        model: What the run begins with. Of a quantized one no layers are asked: its quantizers
            stay.
    """
    quantizes = facts_of(entry.name).kind == "quantization"
    for sentence, hint in (
        *_absent(entry, parameters),
        *_uneven(entry, parameters),
        *_ill_shaped(entry, parameters),
        *(_wrong_layers(entry, model) if quantizes else ()),
        *_absent_layers(entry, model),
    ):
        yield Problem("error", sentence, hint, entry.name, number)
    for sentence, hint in (
        *_not_prunable(entry, parameters),
        *(_idle_exclusions(entry, model) if quantizes else ()),
    ):
        yield Problem("warning", sentence, hint, entry.name, number)


def _absent(entry: Entry, parameters: Parameters) -> Iterator[tuple[str, str]]:
    patterns = patterns_of(entry)
    if not all(isinstance(pattern, str) for pattern in patterns):
        yield (
            f"{patterns} are not all names of parameters",
            "give names such as proto_net.0.weight, or re: and a regular expression",
        )
        return
    if "params" in entry.fields and not patterns:
        yield (
            f"params is {entry.fields['params']!r}, which names no parameter",
            f"name some, or give {PRUNABLE}",
        )
    if PRUNABLE in patterns and facts_of(entry.name).kind not in ("pruning", "constant"):
        yield (
            f"params names {PRUNABLE}, which only modifiers that prune know",
            "give names, or re: and a regular expression, such as re:backbone.*[.]0[.]weight",
        )
    for pattern in patterns:
        try:
            absent = not parameters.matching(pattern)
        except re.error as error:
            yield (
                f"{error.pattern!r} is not a regular expression: {error}",
                "text after re: is a Python regular expression",
            )
            continue
        if absent and entry.fields.get("params_strict") is not False:
            plain = re.sub(r"[^\w.]", "", pattern.removeprefix("re:"))
            near = get_close_matches(plain, parameters.shapes, n=1, cutoff=_ALIKE)
            yield (
                f"no parameter of the model matches {pattern!r}",
                f"did you mean {near[0]!r}?" if near else "use the recipe made for this --config",
            )


def _not_prunable(entry: Entry, parameters: Parameters) -> Iterator[tuple[str, str]]:
    if facts_of(entry.name).kind not in ("pruning", "constant"):
        return
    names = matched(entry, parameters)
    others = [name for name in names if name not in parameters.prunable]
    if others:
        first = ", ".join(others[:3])
        yield (
            f"{len(others)} of {len(names)} parameters are biases, or scales of batch norms, whose "
            f"zeros cost accuracy and save nothing (first: {first})",
            f"params: {PRUNABLE} names the weights of convolutions alone",
        )


def _larger_kernels(entry: Entry, parameters: Parameters) -> Iterator[tuple[str, str]]:
    # Blocks are of input channels, but sparseml's update takes neighbours in memory for them.
    for name in matched(entry, parameters):
        shape = parameters.shapes[name]
        if any(side > 1 for side in shape[2:]):
            yield (
                f"block4 of OBS needs kernels of 1 x 1, unlike those of {name} {list(shape)}",
                "use mask_type: unstructured, or GMPruningModifier",
            )


def _uneven(entry: Entry, parameters: Parameters) -> Iterator[tuple[str, str]]:
    block = entry.fields.get("mask_type")
    if facts_of(entry.name).by_neighbours and block == "block4":
        yield from _larger_kernels(entry, parameters)
    if ratio := nm_of(block):
        block = [1, ratio[1]]  # groups lie along the input channels
    if not isinstance(block, list):
        return
    if len(block) != 2 or not all(isinstance(side, int) and side != 0 for side in block):
        yield (
            f"mask_type {block} is not a block shape",
            "give two whole numbers, output and input channels, such as [1, 4]",
        )
        return
    for name in matched(entry, parameters):
        shape = parameters.shapes[name]
        sides = list(zip(shape, block, strict=False))
        if len(shape) < 2 or any(side > 0 and size % side for size, side in sides):
            yield (
                f"blocks of {block} do not divide {name} {list(shape)}",
                "leave that parameter out, or use mask_type: unstructured for it",
            )


def _ill_shaped(entry: Entry, parameters: Parameters) -> Iterator[tuple[str, str]]:
    """Values for parameters that have other shapes."""
    for field in ("val", "init_val", "final_val"):
        if field not in entry.fields:
            continue
        value = entry.fields[field]
        try:
            shape = tuple(torch.tensor(value, dtype=torch.float32).shape)
        except (TypeError, ValueError, RuntimeError):
            yield f"{field} is {value!r}", "give numbers, nested as the parameter's dimensions"
            continue
        others = [name for name in matched(entry, parameters) if parameters.shapes[name] != shape]
        if others:
            yield (
                f"{field} has the shape {list(shape)}, unlike {others[0]} "
                f"{list(parameters.shapes[others[0]])}",
                "name parameters of one shape, and give values of that",
            )


def _absent_layers(entry: Entry, model: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers to remove that there are not: sparseml takes whole names, no expressions."""
    if not facts_of(entry.name).removes_layers:
        return
    modules, _ = _layers(model)
    for text in _names(entry.fields.get("layers")):
        if text not in modules:
            yield _unmatched("layers", text, list(modules))


def _wrong_layers(entry: Entry, model: nn.Module) -> Iterator[tuple[str, str]]:
    fuse = entry.fields.get("model_fuse_fn_name")
    if fuse not in _FUSE:
        yield (
            f"model_fuse_fn_name {fuse!r} is no way to fuse this network",
            "give conv_bn_relus (the default) or no_fuse",
        )
    if is_quantized(model):
        return
    modules, kinds = _layers(model)
    if entry.fields.get("strict", True):
        for field in ("ignore", "scheme_overrides"):
            for text in _names(entry.fields.get(field)):
                begins = isinstance(text, str) and any(n.startswith(text) for n in modules)
                if not begins and text not in kinds:
                    yield _unmatched(field, text, [*modules, *kinds])
    for text in _names(entry.fields.get("submodules")):
        if text not in modules:
            yield _unmatched("submodules", text, list(modules))


def _idle_exclusions(entry: Entry, model: nn.Module) -> Iterator[tuple[str, str]]:
    if is_quantized(model):
        return
    _, kinds = _layers(model)
    for text in _names(entry.fields.get("exclude_module_types")):
        if text not in kinds:
            sentence, hint = _unmatched("exclude_module_types", text, sorted(kinds))
            yield f"{sentence}: it excludes nothing", hint


def _layers(model: nn.Module) -> tuple[dict[str, str], set[str]]:
    """The classes of all layers by name, and those that any has now or once it is quantized."""
    modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
    return modules, {*modules.values(), *_FUSED}


def _names(value: Any) -> list[Any]:
    """The names in a list, in the keys of a mapping, or the one that is given."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | dict) else [value]


def _unmatched(field: str, text: Any, known: list[str]) -> tuple[str, str]:
    near = get_close_matches(str(text), known, n=1, cutoff=0.5)
    return (
        f"{field} names {text!r}, and the network has no such layer",
        f"did you mean {near[0]!r}?" if near else "give the name or the class of a layer",
    )
