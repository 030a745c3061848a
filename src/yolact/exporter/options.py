"""What an export is asked to do: the export command's options as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from yolact.config import YolactConfig
from yolact.errors import ConfigError
from yolact.files import Compression
from yolact.presets import named_config
from yolact.setting import setting
from yolact.sizes import ImageSize, image_size_setting, prior_base_size_setting

Layout = Literal["qdq", "openvino", "deepsparse"]
"""How a quantized graph is written.

qdq: QuantizeLinear / DequantizeLinear around every node, the form that all engines read, and that
ONNX Runtime runs in integers, all but resizing, softmax and tanh. openvino: the same without a pair
between convolution and LeakyReLU, which OpenVINO runs in one kernel. deepsparse: ConvInteger, as
SparseML's exporter wrote; quantizers are where training has put them, and calibration images have
no use.
"""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
OPSETS = range(11, 20)
"""Opsets that can be asked for: 14 is SparseML's, 19 the newest that onnx 1.14 checks."""
OPSET_OF_INTEGERS = 13
"""The oldest with a scale for each channel of quantized weights."""
_OPSET_OF_DETECTION = 13
"""The oldest with the operators of detection inside the graph."""
MOST_IMAGES = 1024
"""In one batch; more are taken for a mistake."""
_MOST_POINTS = 100
"""Of average precision, in percent."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a model is written as ONNX."""

    convert_qat: bool = setting(
        "-N",
        "--skip-qat-convert",
        default=True,
        help="Write a quantized model as it was trained.",
    )
    """Store quantized weights as int8 and fold batch norms into them; without it a
    quantization-aware model is written as it trains, float weights and all."""
    layout: Layout = setting(
        "--format",
        default="qdq",
        help="How a quantized model is written: for all engines, or the fastest for one of them.",
    )
    per_channel: bool = setting(
        default=False,
        help="Round the weights of a quantized model more finely: a range per output channel.",
    )
    """Also where they were trained with one range for all."""
    reduce_range: bool = setting(
        default=False,
        help="Round them to 7 bits: for CPUs without VNNI, which add products of 8 bits with "
        "overflow.",
    )
    pack_blocks: bool = setting(
        default=False,
        help="Store quantized weights with blocks of zeros in one piece: smaller once compressed, "
        "as fast as ever.",
    )
    """See :func:`yolact.exporter.passes.store.store_blocks_together`."""
    batch_size: int = setting("-b", "--batch-size", default=1, help="Sample's size.")
    """Of the traced sample."""
    static: bool = setting(default=False, help="Let the file take that batch size only.")
    """Otherwise it takes any."""
    image_size: ImageSize | None = image_size_setting()
    """None for the model's own."""
    prior_base_size: float | None = prior_base_size_setting()
    """None keeps the priors' sides in pixels; see
    :meth:`yolact.config.ModelConfig.for_weights`."""
    opset: int = setting(default=14, help="ONNX opset, 11 to 19; 13 or more for int8.")
    half: bool = setting(default=False, help="Store the weights in 16 bits: half the file.")
    """Of a float model."""
    with_nms: bool = setting(
        "--with-nms",
        default=False,
        help="Detect inside the graph: boxes, scores, classes and masks instead of raw outputs.",
    )
    """See :func:`yolact.exporter.nms.detect_inside`."""
    priors_output: bool = setting(
        default=False,
        help="Let the graph compute the output priors, for OpenCV: it does not give out constants.",
    )
    """See :func:`yolact.exporter.trace.compute_priors`."""
    image: Path | None = setting(default=None, help="Picture to compare the outputs on.")
    """None for a generated one."""
    compress: tuple[Compression, ...] = setting(
        default=(),
        help="Also write the file compressed; it runs as it is. May be given several times.",
    )

    def __post_init__(self) -> None:
        """Refuse numbers out of range with a ConfigError."""
        if not 1 <= self.batch_size <= MOST_IMAGES:
            raise ConfigError(f"batch size is {self.batch_size}", hint=f"use 1 to {MOST_IMAGES}")
        if self.opset not in OPSETS:
            raise ConfigError(
                f"opset {self.opset} cannot be exported", hint=f"use {OPSETS[0]} to {OPSETS[-1]}"
            )
        if self.with_nms and self.opset < _OPSET_OF_DETECTION:
            raise ConfigError(
                f"opset {self.opset} lacks operators that detection inside the graph needs",
                hint=f"use --opset {_OPSET_OF_DETECTION} or more, or export without --with-nms",
            )
        if self.with_nms and self.priors_output:
            raise ConfigError(
                "--with-nms puts out boxes, and no priors that --priors_output could add",
                hint="give one of them",
            )


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A checkpoint to export, and what is done to it before."""

    checkpoint: Path = setting(help="Trained .pth file, or zoo: stub.")
    """Here a stub has been resolved to the path of its file."""
    target: Path
    """The ONNX file to write."""
    config: YolactConfig | None = setting(
        "-c",
        "--config",
        default=None,
        words=str,
        read=named_config,
        help="Configuration.  [default: the checkpoint's own]",
    )
    recipe: tuple[str, str | None] | None = setting(
        "-r",
        "--recipe",
        default=None,
        words=str,
        help="Recipe that made the weights.  [default: the checkpoint's]",
    )
    """Its source and label, as :func:`yolact.sparsify.recipe.load_recipe` takes them."""
    one_shot: tuple[str, str | None] | None = setting(
        "-o",
        "--one-shot",
        default=None,
        words=str,
        help="Recipe to apply before the export, without training.",
    )
    """Likewise."""
    calibration_images: str | None = setting(
        default=None,
        help="Folder or pattern of images: --one-shot finds the ranges of INT8 on them, and any "
        "quantized model those of its last layers.",
    )
    # Ranges of the small network, found on 10 to 400 images, differed by less than 1 dB of noise.
    calibration_count: int = setting(
        default=100, at_least=1, help="How many of them, spread evenly over their names."
    )
    deployment: bool = setting(
        default=False,
        help="Also write deployment/ beside the file: model, settings, labels, a sample and a "
        "script that runs it with onnxruntime and OpenCV alone.",
    )
    max_drop: float | None = setting(
        default=None,
        help="Write the file only if its mask mAP, in ONNX Runtime, is at most so many points "
        "below the float model's; exit code 9 otherwise. Needs --validation_info.",
    )
    mixed: bool = setting(
        default=False,
        help="Keep as few layers of an INT8 model in float as --max_drop asks for, the most "
        "sensitive ones.",
    )
    """A table of :attr:`sensitivity` comes with it."""
    sensitivity: bool = setting(
        default=False,
        help="Measure what each layer loses in INT8, print the worst, and write all to "
        "NAME.sensitivity.json.",
    )
    validation_info: Path | None = setting(
        default=None, help="COCO annotation file that --max_drop measures on."
    )
    validation_images: Path | None = setting(
        default=None, path="folder", help="Its images.  [default: data/coco/images]"
    )
    options: ExportOptions = ExportOptions()

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, or has no use, with a ConfigError."""
        drop, data = self.max_drop, self.validation_info
        if drop is not None and not 0 <= drop <= _MOST_POINTS:
            raise ConfigError(f"--max_drop is {drop:g}", hint=f"use 0 to {_MOST_POINTS} points")
        for wrong, problem, hint in (
            (self.mixed and drop is None, "--mixed has no limit to keep", "add --max_drop 1.0"),
            (
                drop is not None and data is None,
                f"--max_drop {drop} has nothing to be measured on",
                "add --validation_info and --validation_images",
            ),
            (
                self.validation_images is not None and data is None,
                f"--validation_images {self.validation_images} has no annotations",
                "add --validation_info",
            ),
            (
                self.sensitivity and data is None and self.calibration_images is None,
                "--sensitivity has no images to be measured on",
                "add --calibration_images or --validation_info",
            ),
            (
                data is not None and drop is None and not self.sensitivity,
                f"--validation_info {data} has no use here",
                "add --max_drop, or use sparseml.yolact.validation to measure a file",
            ),
        ):
            if wrong:
                raise ConfigError(problem, hint=hint)
