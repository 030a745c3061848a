"""How much each layer of a quantized network suffers from it, and letting some compute in floats.

One layer at a time is quantized and all else is not: what that does to the outputs, on a few
images, is the noise of this layer. It costs a run of the network for each layer and image, whatever
the data set is; average precision would cost a run for each of its images, and change by chance as
much as a single layer changes it.

A layer in floats has its weights, and what it reads and puts out, as they are. Its neighbours stay
in integers: what one of these reads or puts out is still rounded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from tqdm import tqdm

from yolact import __version__
from yolact.config import YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.sources import CalibrationImages, spread
from yolact.data.transforms import preprocess
from yolact.exporter.options import ExportOptions
from yolact.exporter.prepare import as_exported
from yolact.exporter.trace import MODEL_PREFIX
from yolact.model.fake_quantize import FakeQuantize, is_fake_quantize
from yolact.model.yolact import Yolact
from yolact.predict.results import write_json
from yolact.tables import columns
from yolact.types import RawOutputs

IMAGES = 4
"""On which layers are measured. Outputs have thousands of values each, and all of them count."""
SHOWN = 10
"""Rows of the table that are printed."""
_SCHEMA = 1
_MEASURED = [name for name in RawOutputs._fields if name != "priors"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution of rounded weights, and how much its quantization disturbs the outputs."""

    name: str
    """As recipes and state dicts spell it."""
    quantizers: frozenset[str]
    """Names, in the model, of what rounds its weights, what it reads, and what it puts out where no
    other convolution reads that."""
    macs: float
    """Share of the network's multiplications, 0..1."""
    weights: float
    """Share of the network's weights, 0..1."""
    db: float = math.nan
    """Signal-to-noise ratio of the output that suffers most when this layer alone is quantized;
    inf when none does, nan before it is measured."""


def layer_images(
    images: CalibrationImages | None, dataset: CocoInstances | None, config: YolactConfig
) -> list[Tensor]:
    """Network inputs [1, 3, H, W] to measure layers on, of images or else of a data set.

    Args:
        images: Those for calibration, if there are any.
        dataset: Needed where these are missing.
        config: With the size of the input.
    """
    if images is not None:
        return list(replace(images, paths=spread(images.paths, IMAGES)))
    assert dataset is not None
    chosen = spread(range(len(dataset)), IMAGES)
    return [preprocess(dataset.image(index), config.model.image_size)[None] for index in chosen]


def measure_layers(
    model: Yolact, images: Sequence[Tensor], options: ExportOptions
) -> tuple[Layer, ...]:
    """Measure every quantized layer that inference runs.

    Args:
        model: Quantized; not changed.
        images: [1, 3, H, W] each, at least one.
        options: How its weights are rounded.

    Returns:
        The layers, the most sensitive one first.
    """
    network = as_exported(model, options)
    layers = _layers(network, images[0])
    rounding = {
        name.removeprefix(MODEL_PREFIX): module
        for name, module in network.named_modules()
        if is_fake_quantize(module) and bool(module.fake_quant_enabled)
    }
    with _rounding(rounding.values(), on=False), torch.no_grad():
        expected = [network(image) for image in images]
        measured = []
        for layer in tqdm(layers, desc="measuring layers", unit="layer", disable=None):
            own = [rounding[name] for name in layer.quantizers if name in rounding]
            with _rounding(own, on=True):
                pairs = ((before, network(i)) for before, i in zip(expected, images, strict=True))
                measured.append((_worst(pairs), layer))
    return tuple(replace(layer, db=db) for db, layer in sorted(measured, key=lambda m: m[0]))


def in_floats(model: Yolact, layers: Iterable[Layer], chosen: Sequence[Layer]) -> Yolact:
    """A copy of a quantized model that computes some layers in floats.

    Args:
        model: Not changed.
        layers: All of :func:`measure_layers`.
        chosen: Those of them that are not to be quantized.
    """
    copy = deepcopy(model)
    needed = {name for layer in layers if layer not in chosen for name in layer.quantizers}
    for name in {name for layer in chosen for name in layer.quantizers} - needed:
        parent, _, own = name.rpartition(".")
        setattr(copy.get_submodule(parent), own, nn.Identity())
    return copy


def table(layers: Sequence[Layer], most: int = SHOWN) -> str:
    """The first ``most`` of ``layers`` in aligned columns."""
    rows = [
        (layer.name, f"{layer.db:.1f}", f"{layer.macs:.1%}", f"{layer.weights:.1%}")
        for layer in layers[:most]
    ]
    return columns([("layer", "dB", "MACs", "weights"), *rows], "<>>>")


def write_table(path: Path, layers: Iterable[Layer], chosen: Collection[str]) -> None:
    """Write all layers as JSON.

    | key | value |
    |---|---|
    | ``schema`` | 1 |
    | ``version`` | of this package |
    | ``layers`` | a list, the most sensitive one first, of ``layer`` (its name), ``db`` (see
      :class:`Layer`; null for inf), ``macs`` and ``weights`` (shares, 0..1) and ``float`` (whether
      the file computes it in floats) |

    Raises:
        StorageError: The file cannot be written.
    """
    rows = [
        {
            "layer": layer.name,
            "db": round(layer.db, 2) if math.isfinite(layer.db) else None,
            "macs": round(layer.macs, 6),
            "weights": round(layer.weights, 6),
            "float": layer.name in chosen,
        }
        for layer in layers
    ]
    write_json(path, {"schema": _SCHEMA, "version": __version__, "layers": rows})


@contextmanager
def _rounding(quantizers: Iterable[FakeQuantize], *, on: bool) -> Iterator[None]:
    """Switch quantizers inside the block."""
    switched = list(quantizers)
    for quantizer in switched:
        quantizer.enable_fake_quant(on)
    try:
        yield
    finally:
        for quantizer in switched:
            quantizer.enable_fake_quant(not on)


def _worst(pairs: Iterable[tuple[RawOutputs, RawOutputs]]) -> float:
    """Smallest signal-to-noise ratio of the outputs in dB, over all pairs (expected, actual)."""
    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    for expected, actual in pairs:
        for name in _MEASURED:
            before, after = (getattr(outputs, name).double() for outputs in (expected, actual))
            signal[name] += float(before.square().sum())
            noise[name] += float((after - before).square().sum())
    ratios = (signal[name] / noise[name] for name in _MEASURED if noise[name] > 0)
    return min((10 * math.log10(ratio) for ratio in ratios if ratio > 0), default=math.inf)


@torch.no_grad()
def _layers(network: nn.Module, image: Tensor) -> list[Layer]:
    """The quantized convolutions that run, with the quantizers that are theirs.

    A quantizer belongs to the convolution that reads what it rounded. One that another layer reads,
    such as an activation function, belongs to the convolution whose very result it rounds.
    """
    names = {module: name.removeprefix(MODEL_PREFIX) for name, module in network.named_modules()}
    rounded_by, put_out_by = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
    read: dict[nn.Module, set[str]] = defaultdict(set)
    followed: dict[nn.Module, set[str]] = defaultdict(set)
    macs: dict[nn.Module, int] = defaultdict(int)

    def quantized(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0] in put_out_by:
            followed[put_out_by[inputs[0]]].add(names[module])
        rounded_by[output] = names[module]

    def convolved(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0] in rounded_by:
            read[module].add(rounded_by[inputs[0]])
        put_out_by[output] = module
        macs[module] += output[0].numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(quantized if is_fake_quantize(module) else convolved)
        for module in network.modules()
        if is_fake_quantize(module) or isinstance(module, nn.Conv2d)
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    inside = {m: {names[part] for part in m.modules() if is_fake_quantize(part)} for m in macs}
    of_readers = set().union(*read.values())
    sizes: dict[nn.Module, int] = {module: module.weight.numel() for module in macs}  # type: ignore[operator]
    return [
        Layer(
            name=names[module].removesuffix(".module"),
            quantizers=frozenset(inside[module] | read[module] | (followed[module] - of_readers)),
            macs=count / sum(macs.values()),
            weights=sizes[module] / sum(sizes.values()),
        )
        for module, count in macs.items()
        if is_fake_quantize(getattr(module, "weight_fake_quant", None))
    ]
