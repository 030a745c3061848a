"""Export a model to ONNX, and prove that the file computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor

from yolact.checkpoint import classes_of, load_checkpoint
from yolact.config import DetectConfig, YolactConfig
from yolact.data.labels import Classes
from yolact.data.sources import CalibrationImages, calibration_images
from yolact.engines.compress import FORMATS, QUICK, compress_file, compressed_size
from yolact.engines.onnx_file import DETECTED, OUTPUT_MEANINGS, ModelMetadata
from yolact.errors import ConfigError
from yolact.exporter.deployment import require_deployable, write_deployment
from yolact.exporter.graph import graph_sparsity
from yolact.exporter.limit import Accuracy, Limit, limit_hint, validation_data, write_mixed
from yolact.exporter.options import OPSET_OF_INTEGERS, OPSETS, ExportJob, ExportOptions
from yolact.exporter.passes import CLEAN, run_passes, to_integers
from yolact.exporter.prepare import Reference, prepare
from yolact.exporter.sensitivity import (
    Layer,
    in_floats,
    layer_images,
    measure_layers,
    write_table,
)
from yolact.exporter.trace import OUTPUTS, compute_priors, label_outputs, sample_images, trace
from yolact.exporter.verify import Agreement, OutputParity
from yolact.exporter.write import greedy, write_checked
from yolact.files import (
    Compression,
    require_own_places,
    require_space,
    require_writable_file,
)
from yolact.model.weights import is_quantized, parameter_count, require_quantized
from yolact.model.yolact import Yolact
from yolact.restore import build_model, config_for
from yolact.sparsify.catalog import CATALOG
from yolact.sparsify.one_shot import OneShot, apply_at_once
from yolact.sparsify.recipe import Recipe, read_document
from yolact.sparsify.recipe_engines import recipe_engine
from yolact.sparsify.variables import resolve

DEFAULTS = ExportOptions()


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
    deployment: Path | None = None
    """The folder written beside the file."""
    accuracy: Accuracy | None = None
    """Of the file and of the float model; None where no limit was given."""
    float_layers: tuple[str, ...] = ()
    """Layers of a quantized network that stay float so that it loses less."""
    size_in_integers: int | None = None
    """Bytes of the file without any such layer; None where there was none to compare with."""
    layers: tuple[Layer, ...] = ()
    """How sensitive each is, where that was asked for; the most sensitive one first."""
    layer_file: Path | None = None
    """Where these were written."""


def export_checkpoint(job: ExportJob) -> ExportReport:
    """Export a checkpoint, after applying a recipe to it where one is asked for.

    Raises:
        YolactError: A file is missing, unreadable, in the way or would be replaced by a result, or
            the parts do not fit each other; nothing is written then.
        ExportError: The graph does not reproduce the model's outputs.
    """
    checkpoint = load_checkpoint(job.checkpoint)
    _require_own_places(job)
    require_writable_file(job.target)
    if job.deployment:
        require_deployable(job.target)
    if job.recipe is not None:
        checkpoint = replace(checkpoint, recipe=_load_recipe(job.recipe).text)
    options = job.options
    size, base = options.image_size, options.prior_base_size
    config = config_for(checkpoint, job.checkpoint, job.config, size, base)
    classes = classes_of(checkpoint)
    dataset = validation_data(job, config, classes)
    model = build_model(checkpoint, config)
    before = deepcopy(model) if job.max_drop is not None else None
    images = _calibration(job, config)
    done = None
    if job.one_shot is not None:
        done = _apply_at_once(model, _load_recipe(job.one_shot), images, checkpoint.recipe)
    for option in ("calibration_images", "mixed", "sensitivity"):
        if getattr(job, option):
            require_quantized(model, f"--{option}")
    _check_precision(model, options)
    if images is not None:
        options = replace(options, image=options.image or images.paths[0])
    limit = None
    if dataset is not None and before is not None:
        detect = greedy(config.detect) if options.with_nms else config.detect
        hint = limit_hint(quantized=is_quantized(model), half=options.half)
        limit = Limit.of(dataset, before, classes, detect, job.max_drop or 0, hint)
    write = partial(
        export,
        classes=classes,
        path=job.target,
        options=options,
        config=config,
        recipe=checkpoint.recipe if done is None else done.recipe.text,
        one_shot=done,
        images=images,
        limit=limit,
    )
    if job.mixed or job.sensitivity:
        report = _layer_by_layer(job, model, write, layer_images(images, dataset, config))
    else:
        report = write(model)
    if not job.deployment:
        return report
    return replace(report, deployment=write_deployment(job.target, image=options.image))


def _require_own_places(job: ExportJob) -> None:
    packed = [Path(f"{job.target}.{kind}") for kind in job.options.compress]
    recipes = [text for text, _ in filter(None, (job.recipe, job.one_shot)) if "\n" not in text]
    read = [job.checkpoint, job.options.image, job.validation_info, *map(Path, recipes)]
    tables = [_layer_file(job)] if job.mixed or job.sensitivity else []
    require_own_places([job.target, *packed, *tables], read)
    for table in tables:
        require_writable_file(table)


def _layer_file(job: ExportJob) -> Path:
    return job.target.with_suffix(".sensitivity.json")


def _layer_by_layer(
    job: ExportJob, model: Yolact, write: Callable[..., ExportReport], images: Sequence[Tensor]
) -> ExportReport:
    """Measure the layers, and write the file: with some of them in floats, if that is asked for."""
    layers = measure_layers(model, images, job.options)

    def write_with(count: int) -> ExportReport:
        chosen = layers[:count]
        names = tuple(layer.name for layer in chosen)
        return write(in_floats(model, layers, chosen), float_layers=names)

    if job.mixed:
        report, size = write_mixed(write_with, len(layers))
        report = replace(report, size_in_integers=size)
    else:
        report = write_with(0)
    write_table(_layer_file(job), layers, report.float_layers)
    return replace(report, layers=layers, layer_file=_layer_file(job))


def export(
    model: Yolact,
    classes: Classes,
    path: Path,
    options: ExportOptions = DEFAULTS,
    *,
    config: YolactConfig | None = None,
    recipe: str | None = None,
    one_shot: OneShot | None = None,
    images: Iterable[Tensor] | None = None,
    limit: Limit | None = None,
    float_layers: tuple[str, ...] = (),
) -> ExportReport:
    """Write ``model`` to ``path`` as ONNX; the model itself is left as it was.

    Args:
        model: Float, pruned or quantization-aware.
        classes: Stored in the file's metadata.
        path: Where to; replaced in one step, and only when the check below passes.
        options: How.
        config: Stored in the metadata; None makes one of the model's own part.
        recipe: Text of the recipe that made the weights, for the metadata.
        one_shot: What was done to ``model`` without training, for the report and the metadata.
        images: Network inputs like those the model will see, to measure the outputs of a quantized
            network on; without any, the last convolutions put out floats.
        limit: How much average precision the file may lose.
        float_layers: Layers of a quantized model that are not, for the report and the metadata.

    Raises:
        ConfigError: The image size is out of range, or an option does not fit a model that is
            quantized, or that is not.
        ExportError: The graph does not reproduce the model's outputs.
        StorageError: The file cannot be written.
        TargetMissedError: It loses more than ``limit`` allows.
    """
    config = _stored_config(model, classes, config, options)
    _check_precision(model, options)
    require_writable_file(path)
    bytes_each = 1 if is_quantized(model) and options.convert_qat else 4
    require_space(path.parent, bytes_each * parameter_count(model), "the graph")
    sample = sample_images(options.image, config.model.image_size, options.batch_size)
    reference = prepare(model, sample, images, options, config.model)
    graph, float_outputs = _graph(reference, options, images)
    metadata = ModelMetadata(
        classes=classes,
        config=config,
        image_size=config.model.input_size,
        recipe=recipe,
        sparsity=graph_sparsity(graph),
        one_shot=None if one_shot is None else str(one_shot),
        quantization=_quantization(options) if is_quantized(model) else None,
        float_layers=float_layers or None,
        outputs={n: OUTPUT_MEANINGS[n] for n in (DETECTED if options.with_nms else OUTPUTS)},
        tools={"torch": torch.__version__, "onnx": onnx.__version__},
    )
    onnx.helper.set_model_props(graph, metadata.to_props())
    report = _write(graph, path, reference, options, config.detect, limit)
    return replace(
        report, one_shot=one_shot, float_outputs=float_outputs, float_layers=float_layers
    )


def _stored_config(
    model: Yolact, classes: Classes, config: YolactConfig | None, options: ExportOptions
) -> YolactConfig:
    config = config or YolactConfig(model=model.config)
    sized = model.config.for_weights(None, options.image_size, options.prior_base_size)
    config = config.with_model(
        image_size=sized.image_size,
        prior_base_size=sized.prior_base_size,
        num_classes=len(classes),
    )
    return replace(config, detect=greedy(config.detect)) if options.with_nms else config


def _graph(
    reference: Reference, options: ExportOptions, images: Iterable[Tensor] | None
) -> tuple[onnx.ModelProto, int]:
    """The graph of raw outputs, and how many of its convolutions have no range for theirs."""
    network, static = reference.network, options.static
    graph = trace(network, reference.sample, opset=options.opset, static=static)
    run_passes(graph, CLEAN)
    float_outputs = 0
    if reference.quantized and options.convert_qat:
        float_outputs = to_integers(graph, network, options.layout, images)
    shapes = [tuple(output.shape) for output in reference.expected]
    label_outputs(graph, shapes, static=static)
    if options.priors_output:
        compute_priors(graph)
    return graph, float_outputs


def _write(
    graph: onnx.ModelProto,
    path: Path,
    reference: Reference,
    options: ExportOptions,
    detect: DetectConfig,
    limit: Limit | None,
) -> ExportReport:
    sparsity = graph_sparsity(graph)
    raw_shapes = tuple(_shape(output) for output in graph.graph.output)
    found = write_checked(graph, path, reference, options, detect, limit)
    written = {kind: compress_file(path, kind) for kind in options.compress}
    return ExportReport(
        path=path,
        size=path.stat().st_size,
        packed=_packed_sizes(path, written),
        written=tuple(written.values()),
        opset=options.opset,
        quantized=reference.quantized,
        sparsity=sparsity,
        input_shape=_shape(graph.graph.input[0]),
        output_shapes=raw_shapes,
        outputs=found.outputs,
        agreement=found.agreement,
        accuracy=found.accuracy,
        detections=found.detections,
        detected={o.name: _shape(o) for o in graph.graph.output} if options.with_nms else {},
    )


def _quantization(options: ExportOptions) -> str:
    """How integers are written, in words."""
    if not options.convert_qat:
        return "simulated"
    anew = [f"--{name}" for name in ("per_channel", "reduce_range") if getattr(options, name)]
    return ", ".join([f"int8 {options.layout}", *anew])


def _packed_sizes(path: Path, written: Mapping[Compression, Path]) -> dict[Compression, int]:
    return {
        kind: written[kind].stat().st_size if kind in written else compressed_size(path, kind)
        for kind in FORMATS
        if kind in written or kind in QUICK
    }


def _check_precision(model: Yolact, options: ExportOptions) -> None:
    if is_quantized(model) and options.opset < OPSET_OF_INTEGERS:
        raise ConfigError(
            f"opset {options.opset} cannot say how the model is quantized",
            hint=f"use --opset {OPSET_OF_INTEGERS} or more; float models go down to {OPSETS[0]}",
        )
    if options.half and is_quantized(model):
        raise ConfigError(
            "a quantized model has no float weights to halve", hint="export it without --half"
        )
    for name in ("per_channel", "reduce_range", "pack_blocks"):
        if getattr(options, name):
            require_quantized(model, f"--{name}")
            if not options.convert_qat:
                raise ConfigError(
                    f"--{name} changes what --skip-qat-convert leaves as it was trained",
                    hint="give one of them",
                )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _calibration(job: ExportJob, config: YolactConfig) -> CalibrationImages | None:
    if job.calibration_images is None:
        return None
    size = config.model.image_size
    return calibration_images(job.calibration_images, job.calibration_count, size)


def _load_recipe(named: tuple[str, str | None]) -> Recipe:
    """A recipe of which everything is right but, perhaps, what only sparseml has.

    That may have made the weights; whether it can do without training is for one shot to say.
    """
    source, given = named
    document, label = read_document(source, given)
    recipe = Recipe(resolve(document, label), label, engine="native")
    known = recipe_engine("native").fields()
    foreign = {name for name, f in CATALOG.items() if name not in known and not f.refused}
    own = [e for e in recipe.entries if getattr(e, "name", None) not in foreign]
    if own or not recipe.entries:
        recipe.of(own).manager()
    return recipe


def _apply_at_once(
    model: Yolact, recipe: Recipe, images: CalibrationImages | None, earlier: str | None
) -> OneShot:
    stored = None if earlier is None else Recipe.of_text(earlier, "the checkpoint's recipe")
    return apply_at_once(model, recipe, images, stored)
