"""``sparseml.yolact.export_onnx``: a checkpoint in, a checked ONNX file out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FOLDER, Command, setup_logging
from yolact.cli.inputs import local_path, recipe_source, validation_paths
from yolact.cli.options import options, options_of, read
from yolact.download.stubs import Kind, is_stub, parse_stub
from yolact.errors import ConfigError
from yolact.exporter.options import ExportJob, ExportOptions
from yolact.sizes import ImageSize, sides_of, size_words

if TYPE_CHECKING:
    from yolact.exporter.export import ExportReport


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.export_onnx --checkpoint weights/model.pth"
    " writes weights/model.onnx.",
)
@options(
    *options_of(ExportJob, "checkpoint", "config", "recipe", "one_shot"),
    *options_of(ExportJob, "calibration_images", "calibration_count"),
    *options_of(ExportJob, "max_drop", "mixed", "sensitivity"),
    *options_of(ExportJob, "validation_info", "validation_images"),
    *options_of(ExportOptions, "convert_qat", "layout", "per_channel", "reduce_range"),
    *options_of(ExportOptions, "pack_blocks", "batch_size", "static"),
    click.option("-S", "--image-shape", type=int, nargs=3, help="3 HEIGHT WIDTH of the input."),
    *options_of(ExportOptions, "image_size", "prior_base_size"),
    click.option(
        "-n",
        "--name",
        type=click.Path(path_type=Path),
        help="Output file; without .onnx a folder for model.onnx.  [default: beside the "
        "checkpoint]",
    ),
    click.option("-s", "--save_dir", type=FOLDER, help="Folder that --name is relative to."),
    *options_of(ExportOptions, "opset", "half", "with_nms", "priors_output"),
    *options_of(ExportJob, "deployment"),
    *options_of(ExportOptions, "image", "compress"),
)
def export_onnx(**given: Any) -> None:
    """Convert a checkpoint to ONNX, and check that it computes what PyTorch computes.

    The input is `input` [batch, 3, H, W], RGB in 0..1; the outputs are loc, conf, mask, priors and
    proto, or with --with-nms boxes (relative x1 y1 x2 y2), scores, classes and masks.
    """
    from yolact.exporter.export import export_checkpoint

    setup_logging()
    report = export_checkpoint(export_job(given))
    click.echo("\n".join(report_lines(report)))


def export_job(given: Mapping[str, Any]) -> ExportJob:
    """What an export is asked to do.

    Args:
        given: Parsed values of the command's options.

    Raises:
        YolactError: They contradict each other, or a stub's file is gone.
    """
    how = read(ExportOptions, given)
    size = input_size(given["image_shape"], how.image_size)
    checkpoint, recipe, one_shot = (given[name] for name in ("checkpoint", "recipe", "one_shot"))
    info, images = given["validation_info"], given["validation_images"]
    return read(
        ExportJob,
        given,
        checkpoint=local_path(checkpoint, Kind.CHECKPOINT),
        target=onnx_path(beside(checkpoint), given["name"], given["save_dir"]),
        recipe=None if recipe is None else recipe_source(recipe),
        one_shot=None if one_shot is None else recipe_source(one_shot),
        validation_images=images if info is None else validation_paths(None, info, images).images,
        options=replace(how, image_size=size),
    )


def beside(checkpoint: Path) -> Path:
    """What the output is named after: a stub's model goes into the current folder, not a cache.

    >>> beside(Path("zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco/base-none")).name
    'base-none.pth'
    """
    text = str(checkpoint)
    return Path(f"{parse_stub(text).model}.pth") if is_stub(text) else checkpoint


def onnx_path(checkpoint: Path, name: Path | None, save_dir: Path | None) -> Path:
    """Where the file goes.

    Args:
        checkpoint: Gives the folder and the name that are not given otherwise.
        name: A ``.onnx`` file, or without any ending a folder to put ``model.onnx`` into.
        save_dir: Folder that ``name`` is relative to.

    Raises:
        ConfigError: ``name`` ends in something else.

    >>> onnx_path(Path("weights/a.pth"), None, None).as_posix()
    'weights/a.onnx'
    >>> onnx_path(Path("weights/a.pth"), Path("deploy"), Path("out")).as_posix()
    'out/deploy/model.onnx'
    """
    if name is None:
        return (save_dir or checkpoint.parent) / f"{checkpoint.stem}.onnx"
    if name.suffix not in ("", ".onnx"):
        raise ConfigError(
            f"--name {name} ends in {name.suffix}", hint="end it in .onnx, or name a folder"
        )
    path = name if name.suffix else name / "model.onnx"
    return path if save_dir is None else save_dir / path


def input_size(
    image_shape: tuple[int, int, int] | None, image_size: ImageSize | None
) -> ImageSize | None:
    """Size of the input that the options ask for; None when they say nothing.

    Raises:
        ConfigError: The shape has not three channels, or the two options contradict each other.
    """
    if not image_shape:
        return image_size
    channels, *sides = image_shape
    if channels != 3:
        raise ConfigError(
            f"--image-shape {' '.join(map(str, image_shape))} cannot be exported",
            hint="images have 3 channels: give 3 HEIGHT WIDTH, such as 3 550 550",
        )
    if image_size is not None and list(sides_of(image_size)) != sides:
        raise ConfigError(
            f"--image-shape says {size_words((sides[0], sides[1]))} and --image_size "
            f"{size_words(image_size)}",
            hint="give one of them",
        )
    return sides[0], sides[1]


def report_lines(report: ExportReport) -> list[str]:
    """What the command prints."""
    packed = (f"{kind} {size / 1e6:.2f} MB" for kind, size in report.packed.items())
    written = (report.deployment, report.path, *report.written)
    lines = [
        *(f"wrote {path}" for path in written if path is not None),
        f"size {report.size / 1e6:.2f} MB, compressed {', '.join(packed)}",
        f"{'INT8' if report.quantized else 'FP32'}, opset {report.opset}, "
        f"{report.sparsity:.2%} of the convolution weights are zero",
        *([str(report.one_shot)] if report.one_shot else []),
        f"input {_shaped('input', report.input_shape)}",
    ]
    place = "inside" if report.detected else "output"
    for output, shape in zip(report.outputs, report.output_shapes, strict=True):
        line = f"{place} {_shaped(output.name, shape)} max difference {output.max_difference:.2e}"
        lines.append(line + (f", SQNR {output.sqnr:.1f} dB" if output.floor is not None else ""))
    lines += [f"output {_shaped(name, shape)}" for name, shape in report.detected.items()]
    if report.detections is not None:
        lines.append(f"finds the {report.detections} objects that PyTorch finds in the sample")
    if report.agreement is not None and report.agreement.detections:
        lines.append(f"finds {report.agreement} that PyTorch finds, weighted by score")
    if report.float_outputs:
        lines.append(
            f"{report.float_outputs} layers put out floats: with --calibration_images they can "
            "stay in integers"
        )
    lines += _measured(report)
    worst = max(output.max_difference for output in report.outputs)
    return [*lines, f"max difference from PyTorch {worst:.2e}"]


def _measured(report: ExportReport) -> list[str]:
    """What was measured layer by layer, and on a validation set."""
    from yolact.exporter.sensitivity import SHOWN, table

    lines = []
    if report.layers:
        count = len(report.layers)
        most = "" if count <= SHOWN else f"; the {SHOWN} most sensitive of {count} layers"
        lines += [f"wrote {report.layer_file}{most}", table(report.layers)]
    if report.float_layers:
        lines.append(_in_float(report))
    return lines + ([] if report.accuracy is None else [report.accuracy.table()])


def _in_float(report: ExportReport) -> str:
    count, names = len(report.float_layers), ", ".join(report.float_layers)
    before = report.size_in_integers
    cost = "" if before is None else f", {(report.size - before) / 1e6:.2f} MB more than without"
    return f"{count} of {len(report.layers)} layers in float{cost}: {names}"


def _shaped(name: str, shape: tuple[int | str, ...]) -> str:
    return f"{name} [{', '.join(map(str, shape))}]"
