"""Export a model to ONNX, and prove that the file computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor

from yolact.config import YolactConfig
from yolact.data.labels import Classes
from yolact.engines.compress import FORMATS, QUICK, Compression, compress_file, compressed_size
from yolact.engines.onnx_file import DETECTED, OUTPUT_MEANINGS, ModelMetadata
from yolact.errors import ConfigError
from yolact.exporter.graph import graph_sparsity
from yolact.exporter.integers import Layout, to_integers
from yolact.exporter.passes import CLEAN, run_passes
from yolact.exporter.trace import OPSETS, OUTPUTS, label_outputs, sample_images, trace
from yolact.exporter.verify import Agreement, OutputParity
from yolact.exporter.write import Finish, greedy, prepare, write_checked
from yolact.files import require_space, require_writable_file
from yolact.model.quantized import is_quantized, parameter_count, require_quantized
from yolact.model.yolact import Yolact

if TYPE_CHECKING:
    from yolact.sparsify.one_shot import OneShot

DEFAULT_OPSET = 14
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
    reduce_range: bool = False,
    config: YolactConfig | None = None,
    recipe: str | None = None,
    image: Path | None = None,
    compress: Collection[Compression] = (),
    one_shot: OneShot | None = None,
    layout: Layout = "qdq",
    images: Iterable[Tensor] | None = None,
    half: bool = False,
    pack_blocks: bool = False,
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
        opset: One of :data:`yolact.exporter.trace.OPSETS`.
        convert_qat: Store quantized weights as int8 and fold batch norms into them; without it a
            quantization-aware model is written as it trains, float weights and all.
        per_channel: Round the weights of a quantized model with a range per output channel, also
            where they were trained with one range for all.
        reduce_range: Round them to 7 bits, whose products CPUs without VNNI add without overflow.
        config: Stored in the metadata; None makes one of the model's own part.
        recipe: Text of the recipe that made the weights, for the metadata.
        image: Picture to compare the outputs on; None for a generated one.
        compress: Formats to write the file in as well, beside it.
        one_shot: What was done to ``model`` without training, for the report and the metadata.
        layout: Of a quantized graph; see :data:`yolact.exporter.integers.Layout`.
        images: Network inputs like those the model will see, to measure the outputs of a quantized
            network on; without any, the last convolutions put out floats.
        half: Store the weights of a float model in 16 bits.
        pack_blocks: Store the weights of a quantized model so that blocks of zeros lie together;
            see :func:`yolact.exporter.passes.store.store_blocks_together`.
        with_nms: Detect inside the graph; see :func:`yolact.exporter.nms.detect_inside`.

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
    anew = {"--per_channel": per_channel, "--reduce_range": reduce_range}
    needs_integers = {**anew, "--pack_blocks": pack_blocks}
    _check_precision(model, half=half, needs_integers=needs_integers, convert_qat=convert_qat)
    quantized = is_quantized(model)
    if with_nms:
        config = replace(config, detect=greedy(config.detect))
    require_writable_file(path)
    bytes_each = 1 if quantized and convert_qat else 4
    require_space(path.parent, bytes_each * parameter_count(model), "the graph")
    sample = sample_images(image, side, batch_size)
    reference = prepare(
        model,
        sample,
        images,
        convert_qat=convert_qat,
        per_channel=per_channel,
        reduce_range=reduce_range,
    )
    graph = trace(reference.network, sample, opset=opset, static=static)
    run_passes(graph, CLEAN)
    float_outputs = 0
    if quantized and convert_qat:
        float_outputs = to_integers(graph, reference.network, layout, images)
    shapes = [tuple(output.shape) for output in reference.expected]
    label_outputs(graph, shapes, static=static)
    sparsity = graph_sparsity(graph)
    metadata = ModelMetadata(
        classes=classes,
        config=config,
        image_size=(side, side),
        recipe=recipe,
        sparsity=sparsity,
        one_shot=None if one_shot is None else str(one_shot),
        quantization=_quantization(quantized, convert_qat, layout, anew),
        outputs={name: OUTPUT_MEANINGS[name] for name in (DETECTED if with_nms else OUTPUTS)},
        tools={"torch": torch.__version__, "onnx": onnx.__version__},
    )
    onnx.helper.set_model_props(graph, metadata.to_props())
    raw_shapes = tuple(_shape(output) for output in graph.graph.output)
    steps = Finish(half=half, pack_blocks=pack_blocks, with_nms=with_nms)
    parity, found, finished = write_checked(graph, path, reference, steps, config.detect)
    written = {kind: compress_file(path, kind) for kind in compress}
    return ExportReport(
        path=path,
        size=path.stat().st_size,
        packed=_packed_sizes(path, written),
        written=tuple(written.values()),
        opset=opset,
        quantized=quantized,
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
    quantized: bool, converted: bool, layout: Layout, anew: Mapping[str, bool]
) -> str | None:
    if not quantized:
        return None
    if not converted:
        return "simulated"
    return ", ".join([f"int8 {layout}", *(name for name, given in anew.items() if given)])


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


def _check_precision(
    model: Yolact, *, half: bool, needs_integers: Mapping[str, bool], convert_qat: bool
) -> None:
    if half and is_quantized(model):
        raise ConfigError(
            "a quantized model has no float weights to halve", hint="export it without --half"
        )
    for option in (name for name, given in needs_integers.items() if given):
        require_quantized(model, option)
        if not convert_qat:
            raise ConfigError(
                f"{option} changes what --skip-qat-convert leaves as it was trained",
                hint="give one of them",
            )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
