"""``sparseml.yolact.export_onnx``: a checkpoint in, a checked ONNX file out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from yolact.cli.base import FILE, FOLDER, Command, setup_logging
from yolact.cli.inputs import local_path, recipe_source
from yolact.download.stubs import Kind, is_stub, parse_stub
from yolact.errors import ConfigError

if TYPE_CHECKING:
    from yolact.data.calibration import CalibrationImages
    from yolact.engines.compress import Compression
    from yolact.exporter.export import ExportReport
    from yolact.exporter.integers import Layout
    from yolact.model.yolact import Yolact
    from yolact.sparsify.one_shot import OneShot
    from yolact.sparsify.recipe import Recipe

CALIBRATION_COUNT = 100
"""Ranges of the small network, found on 10 to 400 images, differed by less than 1 dB of noise."""


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.export_onnx --checkpoint weights/model.pth"
    " writes weights/model.onnx.",
)
@click.option("--checkpoint", type=FILE, required=True, help="Trained .pth file, or zoo: stub.")
@click.option("-c", "--config", help="Configuration.  [default: the checkpoint's own]")
@click.option("-r", "--recipe", help="Recipe that made the weights.  [default: the checkpoint's]")
@click.option("-o", "--one-shot", help="Recipe to apply before the export, without training.")
@click.option(
    "--calibration_images",
    help="Folder or pattern of images: --one-shot finds the ranges of INT8 on them, and any "
    "quantized model those of its last layers.",
)
@click.option(
    "--calibration_count",
    type=click.IntRange(1),
    default=CALIBRATION_COUNT,
    show_default=True,
    help="How many of them, spread evenly over their names.",
)
@click.option(
    "-N", "--skip-qat-convert", is_flag=True, help="Write a quantized model as it was trained."
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["qdq", "openvino", "deepsparse"]),
    default="qdq",
    show_default=True,
    help="How a quantized model is written: for all engines, or the fastest for one of them.",
)
@click.option(
    "--per_channel",
    is_flag=True,
    help="Round the weights of a quantized model more finely: a range per output channel.",
)
@click.option(
    "--reduce_range",
    is_flag=True,
    help="Round them to 7 bits: for CPUs without VNNI, which add products of 8 bits with overflow.",
)
@click.option(
    "--pack_blocks",
    is_flag=True,
    help="Store quantized weights with blocks of zeros in one piece: smaller once compressed, as "
    "fast as ever.",
)
@click.option("-b", "--batch-size", type=int, default=1, show_default=True, help="Sample's size.")
@click.option("--static", is_flag=True, help="Let the file take that batch size only.")
@click.option("-S", "--image-shape", type=int, nargs=3, help="3 HEIGHT WIDTH of the input.")
@click.option("--image_size", type=int, help="Side of the input.  [default: the checkpoint's]")
@click.option(
    "-n",
    "--name",
    type=click.Path(path_type=Path),
    help="Output file; without .onnx a folder for model.onnx.  [default: beside the checkpoint]",
)
@click.option("-s", "--save_dir", type=FOLDER, help="Folder that --name is relative to.")
@click.option("--opset", type=int, default=14, show_default=True, help="ONNX opset, 14 to 19.")
@click.option("--half", is_flag=True, help="Store the weights in 16 bits: half the file.")
@click.option(
    "--with-nms",
    is_flag=True,
    help="Detect inside the graph: boxes, scores, classes and masks instead of raw outputs.",
)
@click.option(
    "--deployment",
    is_flag=True,
    help="Also write deployment/ beside the file: model, settings, labels, a sample and a script "
    "that runs it with onnxruntime and OpenCV alone.",
)
@click.option("--image", type=FILE, help="Picture to compare the outputs on.")
@click.option(
    "--compress",
    type=click.Choice(["gz", "xz", "zst"]),
    multiple=True,
    help="Also write the file compressed; it runs as it is. May be given several times.",
)
def export_onnx(
    checkpoint: Path,
    config: str | None,
    recipe: str | None,
    one_shot: str | None,
    calibration_images: str | None,
    calibration_count: int,
    skip_qat_convert: bool,
    layout: Layout,
    per_channel: bool,
    reduce_range: bool,
    pack_blocks: bool,
    batch_size: int,
    static: bool,
    image_shape: tuple[int, int, int] | None,
    image_size: int | None,
    name: Path | None,
    save_dir: Path | None,
    opset: int,
    half: bool,
    with_nms: bool,
    deployment: bool,
    image: Path | None,
    compress: tuple[Compression, ...],
) -> None:
    """Convert a checkpoint to ONNX, and check that it computes what PyTorch computes.

    The input is `input` [batch, 3, S, S], RGB in 0..1; the outputs are loc, conf, mask, priors and
    proto, or with --with-nms boxes (relative x1 y1 x2 y2), scores, classes and masks.
    """
    from yolact.checkpoint import classes_of, load_checkpoint
    from yolact.config import YolactConfig, named_config
    from yolact.exporter.deployment import require_deployable, write_deployment
    from yolact.exporter.export import export
    from yolact.files import require_writable_file
    from yolact.model.quantized import require_quantized
    from yolact.restore import build_model

    setup_logging()
    side = input_side(image_shape, image_size)
    weights = local_path(checkpoint, Kind.CHECKPOINT)
    target = onnx_path(beside(checkpoint), name, save_dir)
    loaded = load_checkpoint(weights)
    require_writable_file(target)
    if deployment:
        require_deployable(target)
    if recipe is not None:
        loaded = replace(loaded, recipe=_read_recipe(recipe).text)
    chosen = named_config(config) if config else loaded.config or YolactConfig()
    side = chosen.model.image_size if side is None else side
    model = build_model(loaded, chosen)
    done = None
    images = _find_images(calibration_images, calibration_count, side)
    if one_shot is not None:
        done = _apply(model, one_shot, images, loaded.recipe)
        loaded = replace(loaded, recipe=done.recipe.text)
    if images is not None:
        require_quantized(model, "--calibration_images")
    image = image or (images.paths[0] if images else None)
    report = export(
        model,
        classes_of(loaded),
        target,
        image_size=side,
        batch_size=batch_size,
        static=static,
        opset=opset,
        convert_qat=not skip_qat_convert,
        per_channel=per_channel,
        reduce_range=reduce_range,
        pack_blocks=pack_blocks,
        config=chosen,
        recipe=loaded.recipe,
        image=image,
        compress=compress,
        one_shot=done,
        layout=layout,
        images=images,
        half=half,
        with_nms=with_nms,
    )
    folder = [f"wrote {write_deployment(target, image=image)}"] if deployment else []
    click.echo("\n".join([*folder, *report_lines(report)]))


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


def input_side(image_shape: tuple[int, int, int] | None, image_size: int | None) -> int | None:
    """Side of the square input that the options ask for; None when they say nothing.

    Raises:
        ConfigError: The shape is not 3 x S x S, or the two options contradict each other.
    """
    if not image_shape:
        return image_size
    channels, height, width = image_shape
    if channels != 3 or height != width:
        raise ConfigError(
            f"--image-shape {channels} {height} {width} cannot be exported",
            hint="images have 3 channels and are resized to a square, such as 3 550 550",
        )
    if image_size not in (None, height):
        raise ConfigError(
            f"--image-shape says {height} and --image_size {image_size}", hint="give one of them"
        )
    return height


def _read_recipe(source: str) -> Recipe:
    from yolact.sparsify.recipe import load_recipe  # loads sparseml: seconds, so only when needed

    source, label = recipe_source(source)
    return load_recipe(source, label=label)


def _find_images(source: str | None, count: int, side: int) -> CalibrationImages | None:
    from yolact.data.calibration import calibration_images

    return None if source is None else calibration_images(source, count, side)


def _apply(
    model: Yolact, recipe: str, images: CalibrationImages | None, checkpoint_recipe: str | None
) -> OneShot:
    from yolact.sparsify.one_shot import apply_at_once
    from yolact.sparsify.recipe import Recipe

    stored, earlier = checkpoint_recipe, None
    if stored is not None:
        earlier = Recipe.of_text(stored, "the checkpoint's recipe")
    return apply_at_once(model, _read_recipe(recipe), images, earlier)


def report_lines(report: ExportReport) -> list[str]:
    """What the command prints."""
    packed = (f"{kind} {size / 1e6:.2f} MB" for kind, size in report.packed.items())
    lines = [
        *(f"wrote {path}" for path in (report.path, *report.written)),
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
    worst = max(output.max_difference for output in report.outputs)
    return [*lines, f"max difference from PyTorch {worst:.2e}"]


def _shaped(name: str, shape: tuple[int | str, ...]) -> str:
    return f"{name} [{', '.join(map(str, shape))}]"
