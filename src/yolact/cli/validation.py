"""``sparseml.yolact.validation``: measure average precision, or look at what a model finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from yolact.cli.base import FILE, FOLDER, Command, setup_logging
from yolact.cli.inputs import ENGINE_NAMES, option
from yolact.errors import ConfigError

_USED_BY = {
    "warm_up_iterations": "--benchmark",
    "num_iterations": "--benchmark",
    "video_multiframe": "--video",
    "display_fps": "--video",
    "emulate_playback": "--video",
    "mask_proto_debug": "--image, --images or --display",
    "display_lincomb": "--image, --images or --display",
    "display_masks": "--image, --images, --video or --display",
    "display_bboxes": "--image, --images, --video or --display",
    "display_text": "--image, --images, --video or --display",
    "display_scores": "--image, --images, --video or --display",
    "min_map": "an evaluation",
    "per_class": "an evaluation",
    "resume": "an evaluation",
    "output_coco_json": "an evaluation",
    "output_web_json": "an evaluation",
}
"""Options that only some modes read -> those modes, for the message to who uses them elsewhere."""
_DRAWING = {
    *("mask_proto_debug", "display_lincomb"),
    *("display_masks", "display_bboxes", "display_text", "display_scores"),
}
_VIDEO = {"video_multiframe", "display_fps", "emulate_playback"}
_READS = {
    "image": _DRAWING,
    "images": _DRAWING,
    "video": (_DRAWING | _VIDEO) - {"mask_proto_debug", "display_lincomb"},
    "display": _DRAWING,
    "benchmark": {"warm_up_iterations", "num_iterations"},
    "evaluation": {name for name, mode in _USED_BY.items() if mode == "an evaluation"},
}

_OPTIONS = [
    click.option(
        "--trained_model",
        default="latest",
        show_default=True,
        help="A .pth or .onnx file, a zoo: stub, or latest or interrupt for a checkpoint in "
        "--save_folder.",
    ),
    click.option(
        "--save_folder",
        type=FOLDER,
        default="weights/",
        show_default=True,
        help="Where latest and interrupt are looked for.",
    ),
    click.option(
        "--config",
        default="yolact_darknet53_config",
        show_default=True,
        help="Configuration of a checkpoint that carries none, and of its name.",
    ),
    click.option(
        "--engine",
        type=click.Choice(ENGINE_NAMES),
        help="What runs the model.  [default: by the file's ending]",
    ),
    option("--cuda", default=True, help="Use a GPU if there is one."),
    click.option("--device", help="auto, cpu, cuda or cuda:N; overrides --cuda."),
    click.option("--num_cores", type=int, help="Threads to use.  [default: all]"),
    click.option(
        "--batch_size",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Images per call of the model.",
    ),
    click.option(
        "--validation_info",
        type=FILE,
        help="COCO annotation file.  [default: data/coco/annotations/instances_val2017.json]",
    ),
    click.option(
        "--validation_images", type=FOLDER, help="Its images.  [default: data/coco/images]"
    ),
    click.option(
        "--dataset", help="A folder with annotations/ and images/, or a name like coco2017_dataset."
    ),
    click.option(
        "--max_images", default=-1, show_default=True, help="At most so many images; -1 takes all."
    ),
    click.option(
        "--no_sort",
        is_flag=True,
        help="Take the first images by id, not a fixed unbiased choice (by a hash of the id).",
    ),
    click.option("--shuffle", is_flag=True, help="Take images in random order."),
    click.option("--seed", type=int, help="Makes --shuffle repeatable."),
    option("--fast_nms", default=True, help="YOLACT's one-pass suppression; False is greedy."),
    option(
        "--cross_class_nms", default=False, help="Let boxes of all classes suppress each other."
    ),
    click.option(
        "--score_threshold",
        type=click.FloatRange(0, 1),
        default=0,
        show_default=True,
        help="Only detections with a higher score.",
    ),
    click.option(
        "--top_k",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        help="Draw at most so many detections; an evaluation keeps all unless this is given.",
    ),
    click.option(
        "--no_crop",
        "crop",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Do not cut masks at their boxes.",
    ),
    click.option("--detect", "boxes_only", is_flag=True, help="Boxes only, no masks."),
    click.option("--no_bar", is_flag=True, help="Show no progress bar."),
    click.option(
        "--ap_data_file",
        type=FILE,
        default="results/ap_data.pkl",
        show_default=True,
        help="Where detections are kept for --resume: as JSON, with .json for an ending.",
    ),
    click.option(
        "--resume", is_flag=True, help="Run no model; measure the detections in --ap_data_file."
    ),
    click.option("--output_coco_json", is_flag=True, help="Also write COCO result files."),
    click.option(
        "--bbox_det_file",
        type=FILE,
        default="results/bbox_detections.json",
        show_default=True,
        help="Boxes of --output_coco_json.",
    ),
    click.option(
        "--mask_det_file",
        type=FILE,
        default="results/mask_detections.json",
        show_default=True,
        help="Masks of --output_coco_json.",
    ),
    click.option(
        "--output_web_json", is_flag=True, help="Also write a file for upstream's web viewer."
    ),
    click.option(
        "--web_det_path",
        type=FOLDER,
        default="web/dets/",
        show_default=True,
        help="Folder of --output_web_json.",
    ),
    click.option("--per_class", is_flag=True, help="Also print the AP of each class."),
    click.option(
        "--min_map",
        type=float,
        help="End with exit code 9 if mask AP (all, in percent) is lower; box AP with --detect.",
    ),
    click.option("--benchmark", is_flag=True, help="Measure speed instead of AP."),
    click.option(
        "--warm_up_iterations",
        type=click.IntRange(0),
        default=10,
        show_default=True,
        help="Batches of --benchmark that do not count.",
    ),
    click.option(
        "--num_iterations",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Batches of --benchmark; 0 goes through the images once.",
    ),
    click.option("--image", metavar="IN[:OUT]", help="Annotate an image; show it without an OUT."),
    click.option("--images", metavar="IN:OUT", help="Annotate a folder of images into another."),
    click.option(
        "--video",
        metavar="IN[:OUT]",
        help="Annotate a video (or a camera's number); show or write it.",
    ),
    click.option("--display", is_flag=True, help="Show annotated images of the data set."),
    option("--display_masks", default=True, help="Draw masks."),
    option("--display_bboxes", default=True, help="Draw boxes."),
    option("--display_text", default=True, help="Draw class names."),
    option("--display_scores", default=True, help="Draw scores beside the names."),
    option(
        "--display_lincomb",
        default=False,
        help="Also write a picture of how the best mask is combined from prototypes.",
    ),
    click.option(
        "--mask_proto_debug", is_flag=True, help="Also write a picture and an .npy of prototypes."
    ),
    click.option("--display_fps", is_flag=True, help="Write the speed on the frames of a video."),
    click.option(
        "--emulate_playback",
        is_flag=True,
        help="Let a written video drop the frames that real time would have dropped.",
    ),
    click.option(
        "--video_multiframe",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Frames of a video per call of the model.",
    ),
]


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: sparseml.yolact.validation --trained_model weights/yolact_darknet53_54.pth "
    "prints box and mask AP at IoU .50 to .95 and COCO's twelve numbers.",
)
@_with_options
@click.pass_context
def validation(ctx: click.Context, /, **values: Any) -> None:
    """Measure box and mask AP of a model, or run it on images and videos.

    All numbers are pycocotools', over all images of the annotation file.
    """
    setup_logging()
    given = {
        name
        for name in values
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    mode = _mode(values)
    defaults = {parameter.name: parameter.default for parameter in ctx.command.params}
    _refuse_unused(mode, {name for name in given if values[name] != defaults[name]})
    from yolact.cli import validation_modes as modes

    settings = modes.Settings.read(values, given)
    run = {
        "image": modes.annotate_image,
        "images": modes.annotate_folder,
        "video": modes.annotate_movie,
        "display": modes.display_dataset,
        "benchmark": modes.benchmark,
        "evaluation": modes.evaluate,
    }
    run[mode](settings)


def _mode(values: dict[str, Any]) -> str:
    modes = [name for name in ("image", "images", "video") if values[name] is not None]
    modes += [name for name in ("display", "benchmark") if values[name]]
    if len(modes) > 1:
        named = " and ".join(f"--{name}" for name in modes)
        raise ConfigError(f"{named} exclude each other", hint="give one of them")
    return modes[0] if modes else "evaluation"


def _refuse_unused(mode: str, given: set[str]) -> None:
    for name in sorted(given & _USED_BY.keys() - _READS[mode]):
        here = "in an evaluation" if mode == "evaluation" else f"with --{mode}"
        raise ConfigError(
            f"--{name} has no effect {here}", hint=f"it belongs to {_USED_BY[name]}; leave it out"
        )
