"""Export a model to ONNX, and prove that the file computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from yolact.config import DetectConfig, YolactConfig
from yolact.data.labels import Classes
from yolact.errors import ConfigError, ExportError
from yolact.files import atomic_path, require_space, require_writable_file
from yolact.model.quantized import is_quantized
from yolact.model.yolact import InferenceModel, Yolact
from yolact.onnx.agreement import Agreement, agreement, require_agreement
from yolact.onnx.compress import FORMATS, QUICK, Compression, compress_file, compressed_size
from yolact.onnx.contract import DETECTED, OUTPUT_MEANINGS
from yolact.onnx.finish import Finish, Finished, finish, greedy
from yolact.onnx.fuse import (
    fold_batch_norms,
    fold_quantized_batch_norms,
    freeze_observers,
)
from yolact.onnx.integers import Layout, to_integers
from yolact.onnx.locate import first_wrong_layer
from yolact.onnx.metadata import ModelMetadata
from yolact.onnx.narrow import widen_quantizers
from yolact.onnx.parity import OutputParity, compare, require_parity
from yolact.onnx.passes import CLEAN, run_passes
from yolact.onnx.per_channel import quantize_per_channel
from yolact.onnx.picture import sample_images
from yolact.onnx.trace import OPSETS, OUTPUTS, label_outputs, trace
from yolact.onnx.weights import graph_sparsity
from yolact.runtime.ort_engine import OrtEngine
from yolact.types import RawOutputs

if TYPE_CHECKING:
    from yolact.sparsify.one_shot import OneShot

DEFAULT_OPSET = 14
MOST_COMPARED = 8
"""Images in which detections are compared: each runs once in PyTorch."""
MOST_IMAGES = 1024
"""In one batch; more are taken for a mistake."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how close it is to PyTorch."""

    path: Path
    size: int
    """Bytes of the file."""
    packed: Mapping[Compression, int]
    """Bytes of the file compressed, by format: the quick ones, and those that were written."""
    written: tuple[Path, ...]
    """Compressed copies beside the file."""
    opset: int
    quantized: bool
    """Whether the graph simulates or uses integers (Q/DQ nodes)."""
    sparsity: float
    """Share of exact zeros among the convolution weights in the file, 0..1."""
    input_shape: tuple[int | str, ...]
    """With the label of the dynamic axis."""
    output_shapes: tuple[tuple[int | str, ...], ...]
    outputs: tuple[OutputParity, ...]
    one_shot: OneShot | None = None
    """What was done to the weights right before, without training."""
    float_outputs: int = 0
    """Convolutions of a quantized graph whose outputs stay float: their ranges are not known."""
    agreement: Agreement | None = None
    """Of the detections in a few of the images that were given for a quantized network."""

    detections: int | None = None
    """Objects that detection inside the graph finds in the sample; None without it."""
    detected: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Its outputs and their shapes; the file then has these instead of ``outputs``."""

    @property
    def compressed(self) -> int:
        """Bytes of the file after gzip."""
        return self.packed["gz"]


def export(
    model: Yolact,
    classes: Classes,
    path: Path,
    *,
    image_size: int | None = None,
    batch_size: int = 1,
    static: bool = False,
    opset: int = DEFAULT_OPSET,
    convert_qat: bool = True,
    per_channel: bool = False,
    config: YolactConfig | None = None,
    recipe: str | None = None,
    image: Path | None = None,
    compress: Collection[Compression] = (),
    one_shot: OneShot | None = None,
    layout: Layout = "qdq",
    images: Iterable[Tensor] | None = None,
    half: bool = False,
    with_nms: bool = False,
) -> ExportReport:
    """Write ``model`` to ``path`` as ONNX; the model itself is left as it was.

    Args:
        model: Float, pruned or quantization-aware.
        classes: Stored in the file's metadata.
        path: Where to; replaced in one step, and only when the check below passes.
        image_size: Side of the input in pixels; None for the model's own.
        batch_size: Of the traced sample.
        static: Let the file take exactly this batch size; otherwise it takes any.
        opset: One of :data:`yolact.onnx.trace.OPSETS`.
        convert_qat: Store quantized weights as int8 and fold batch norms into them; without it a
            quantization-aware model is written as it trains, float weights and all.
        per_channel: Round the weights of a quantized model with a range per output channel, also
            where they were trained with one range for all.
        config: Stored in the metadata; None makes one of the model's own part.
        recipe: Text of the recipe that made the weights, for the metadata.
        image: Picture to compare the outputs on; None for a generated one.
        compress: Formats to write the file in as well, beside it.
        one_shot: What was done to ``model`` without training, for the report and the metadata.
        layout: Of a quantized graph; see :data:`yolact.onnx.integers.Layout`.
        images: Network inputs like those the model will see, to measure the outputs of a quantized
            network on; without any, the last convolutions put out floats.
        half: Store the weights of a float model in 16 bits.
        with_nms: Detect inside the graph; see :func:`yolact.onnx.nms.detect_inside`.

    Raises:
        ConfigError: A size or the opset is out of range, or an option does not fit a model that is
            quantized, or that is not.
        ExportError: The graph does not reproduce the model's outputs.
        StorageError: The file cannot be written.
    """
    side = model.config.image_size if image_size is None else image_size
    _check_options(batch_size, opset)
    config = (config or YolactConfig(model=model.config)).with_model(
        image_size=side, num_classes=len(classes)
    )
    _check_precision(
        is_quantized(model), half=half, per_channel=per_channel, convert_qat=convert_qat
    )
    if with_nms:
        config = replace(config, detect=greedy(config.detect))
    require_writable_file(path)
    bytes_each = 1 if is_quantized(model) and convert_qat else 4
    require_space(path.parent, bytes_each * sum(p.numel() for p in model.parameters()), "the graph")
    sample = sample_images(image, side, batch_size)
    network, expected, unquantized = _prepare(
        model, sample, convert_qat=convert_qat, per_channel=per_channel
    )
    graph = trace(network, sample, opset=opset, static=static)
    run_passes(graph, CLEAN)
    float_outputs = 0
    if unquantized is not None and convert_qat:
        float_outputs = to_integers(graph, network, layout, images)
    label_outputs(graph, [tuple(output.shape) for output in expected], static=static)
    sparsity = graph_sparsity(graph)
    metadata = ModelMetadata(
        classes=classes,
        config=config,
        image_size=(side, side),
        recipe=recipe,
        sparsity=sparsity,
        one_shot=None if one_shot is None else str(one_shot),
        quantization=_quantization(
            unquantized is not None, converted=convert_qat, layout=layout, per_channel=per_channel
        ),
        outputs={name: OUTPUT_MEANINGS[name] for name in (DETECTED if with_nms else OUTPUTS)},
        tools={"torch": torch.__version__, "onnx": onnx.__version__},
    )
    onnx.helper.set_model_props(graph, metadata.to_props())
    check = _Check(network, sample, expected, unquantized, _few(images, batch_size), config.detect)
    raw_shapes = tuple(_shape(output) for output in graph.graph.output)
    parity, found, finished = _write(graph, path, check, Finish(half=half, with_nms=with_nms))
    written = {kind: compress_file(path, kind) for kind in compress}
    return ExportReport(
        path=path,
        size=path.stat().st_size,
        packed=_packed_sizes(path, written),
        written=tuple(written.values()),
        opset=opset,
        quantized=unquantized is not None,
        sparsity=sparsity,
        input_shape=_shape(graph.graph.input[0]),
        output_shapes=raw_shapes,
        outputs=finished.outputs or parity,
        one_shot=one_shot,
        float_outputs=float_outputs,
        agreement=found,
        detections=finished.detections,
        detected={o.name: _shape(o) for o in graph.graph.output} if with_nms else {},
    )


def _quantization(
    quantized: bool, *, converted: bool, layout: Layout, per_channel: bool
) -> str | None:
    if not quantized:
        return None
    if not converted:
        return "simulated"
    return f"int8 {layout}" + (", weights per channel" if per_channel else "")


def _packed_sizes(path: Path, written: Mapping[Compression, Path]) -> dict[Compression, int]:
    return {
        kind: written[kind].stat().st_size if kind in written else compressed_size(path, kind)
        for kind in FORMATS
        if kind in written or kind in QUICK
    }


def _check_options(batch_size: int, opset: int) -> None:
    if not 1 <= batch_size <= MOST_IMAGES:
        raise ConfigError(f"batch size is {batch_size}", hint=f"use 1 to {MOST_IMAGES}")
    if opset not in OPSETS:
        raise ConfigError(
            f"opset {opset} cannot be exported", hint=f"use {OPSETS[0]} to {OPSETS[-1]}"
        )


def _check_precision(quantized: bool, *, half: bool, per_channel: bool, convert_qat: bool) -> None:
    if half and quantized:
        raise ConfigError(
            "a quantized model has no float weights to halve", hint="export it without --half"
        )
    if per_channel and not quantized:
        raise ConfigError(
            "--per_channel has no use for a model that is not quantized",
            hint="add --one-shot yolact.one_shot_int8, or another recipe that quantizes",
        )
    if per_channel and not convert_qat:
        raise ConfigError(
            "--per_channel changes what --skip-qat-convert leaves as it was trained",
            hint="give one of them",
        )


def _prepare(
    model: Yolact, images: Tensor, *, convert_qat: bool, per_channel: bool
) -> tuple[nn.Module, RawOutputs, RawOutputs | None]:
    """A copy ready for tracing, the outputs to reproduce, and those without quantization."""
    network = InferenceModel(deepcopy(model)).cpu().float().eval()
    quantized = is_quantized(network)
    freeze_observers(network)
    with torch.no_grad():
        expected: RawOutputs = network(images)
        unquantized: RawOutputs | None = None
        if quantized:
            with _without_quantization(network):
                unquantized = network(images)
    if convert_qat or not quantized:
        fold_quantized_batch_norms(network)
        fold_batch_norms(network)
    if per_channel:
        quantize_per_channel(network)
    widen_quantizers(network)
    return network, expected, unquantized


@contextmanager
def _without_quantization(network: nn.Module) -> Iterator[None]:
    quantizers = [
        module
        for module in network.modules()
        if isinstance(module, torch.ao.quantization.FakeQuantizeBase)
        and bool(module.fake_quant_enabled[0])
    ]
    for module in quantizers:
        module.disable_fake_quant()
    try:
        yield
    finally:
        for module in quantizers:
            module.enable_fake_quant()


@dataclass(frozen=True)
class _Check:
    """What a graph is compared with before it replaces anything."""

    network: nn.Module
    """That was traced."""
    sample: Tensor
    """[B, 3, S, S]."""
    expected: RawOutputs
    """PyTorch's for the sample."""
    unquantized: RawOutputs | None
    """Of a quantized network, with its quantization off."""
    images: tuple[Tensor, ...]
    """Like the sample, real ones, to compare the detections of a quantized network in."""
    detect: DetectConfig


def _few(images: Iterable[Tensor] | None, batch_size: int) -> tuple[Tensor, ...]:
    first = islice(images or (), MOST_COMPARED)
    return tuple(image[:1].repeat(batch_size, 1, 1, 1) for image in first)


def _write(
    graph: onnx.ModelProto, path: Path, check: _Check, steps: Finish
) -> tuple[tuple[OutputParity, ...], Agreement | None, Finished]:
    with atomic_path(path) as temporary:
        _save_valid(graph, temporary)
        engine = OrtEngine(temporary)
        parity = compare(check.expected, engine(check.sample), check.unquantized)
        if not all(output.passed for output in parity):
            require_parity(parity, _first_wrong(graph, check, check.sample))
        found = _agreement(graph, engine, check)
        finished = Finished(None, None)
        if steps:
            finished = finish(graph, steps, check.detect, check.sample, check.expected)
            _save_valid(graph, temporary)
    return parity, found, finished


def _save_valid(graph: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(graph.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX: {error}",
            hint="nothing was written; try another --opset",
        ) from error


@torch.no_grad()
def _agreement(graph: onnx.ModelProto, engine: OrtEngine, check: _Check) -> Agreement | None:
    if check.unquantized is None or not check.images:
        return None
    pairs = ((check.network(images), engine(images)) for images in check.images)
    found = agreement(pairs, check.detect)
    if not found.passed:
        require_agreement(found, _first_wrong(graph, check, check.images[0]))
    return found


def _first_wrong(graph: onnx.ModelProto, check: _Check, images: Tensor) -> str | None:
    if check.unquantized is None:
        return first_wrong_layer(graph, check.network, images, None)
    unquantized = deepcopy(check.network)
    with _without_quantization(unquantized):
        return first_wrong_layer(graph, check.network, images, unquantized)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
