"""The options of ``sparseml.yolact.validation``: how they are spelled, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yolact.cli.base import FILE, FOLDER
from yolact.cli.inputs import (
    ENGINE_NAMES,
    DataPaths,
    engine_name,
    model_path,
    option,
    validation_paths,
)
from yolact.config import YolactConfig, named_config
from yolact.errors import ConfigError
from yolact.model_files import model_kinds

if TYPE_CHECKING:
    from yolact.data.coco import CocoInstances
    from yolact.data.sources import ImageOrder
    from yolact.engines.base import Engine
    from yolact.predict.evaluate import EvaluationOptions
    from yolact.predict.media import Annotator
    from yolact.predict.pipeline import Selection

DECLARED = [
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
    click.option("--json", type=FILE, help="Also write all that is measured to this JSON file."),
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


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the command's options."""
    for decorate in reversed(DECLARED):
        command = decorate(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Options:
    """The values of all options by their names, and what they come to."""

    given: frozenset[str]
    """Names of those on the command line."""
    trained_model: str
    save_folder: Path
    config: str
    engine: str | None
    cuda: bool
    device: str | None
    num_cores: int | None
    batch_size: int
    validation_info: Path | None
    validation_images: Path | None
    dataset: str | None
    max_images: int
    no_sort: bool
    shuffle: bool
    seed: int | None
    fast_nms: bool
    cross_class_nms: bool
    score_threshold: float
    top_k: int
    crop: bool
    boxes_only: bool
    no_bar: bool
    ap_data_file: Path
    resume: bool
    output_coco_json: bool
    bbox_det_file: Path
    mask_det_file: Path
    output_web_json: bool
    web_det_path: Path
    per_class: bool
    json: Path | None
    min_map: float | None
    benchmark: bool
    warm_up_iterations: int
    num_iterations: int
    image: str | None
    images: str | None
    video: str | None
    display: bool
    display_masks: bool
    display_bboxes: bool
    display_text: bool
    display_scores: bool
    display_lincomb: bool
    mask_proto_debug: bool
    display_fps: bool
    emulate_playback: bool
    video_multiframe: int

    @cached_property
    def configuration(self) -> YolactConfig:
        """The one that ``--config`` names."""
        return named_config(self.config)

    @cached_property
    def model(self) -> Path | None:
        """File of ``--trained_model``; None with ``--resume``, which needs none.

        Raises:
            CheckpointError: There is no such file.
        """
        if self.resume:
            return None
        kinds = model_kinds(self.engine)
        return model_path(self.trained_model, self.save_folder, self.configuration.name, *kinds)

    def check(self) -> None:
        """Look at what can be wrong before data and model are read.

        Raises:
            ConfigError: The configuration, engine or number of images is impossible.
            CheckpointError: ``--trained_model`` means no file.
        """
        engine_name(self.engine)
        if self.max_images == 0 or self.max_images < -1:
            raise ConfigError(
                f"--max_images is {self.max_images}", hint="use 1 or more, or -1 for all"
            )
        _ = self.configuration, self.model

    def load(self) -> Engine:
        """Load the model."""
        from yolact.engines import load_engine
        from yolact.host import resolve_device

        assert self.model is not None
        wanted = self.device or ("auto" if self.cuda else "cpu")
        return load_engine(
            self.model,
            engine=self.engine,
            device=str(resolve_device(wanted)),
            num_cores=self.num_cores,
            config=self.configuration if "config" in self.given else None,
        )

    @property
    def paths(self) -> DataPaths:
        """Where the validation set is."""
        return validation_paths(self.dataset, self.validation_info, self.validation_images)

    def data(self, *, annotated: bool) -> CocoInstances:
        """Open the validation set; False accepts one without ground truth."""
        from yolact.data.coco import CocoInstances
        from yolact.data.transforms import EvalTransform

        transform = EvalTransform(self.configuration.model.image_size)
        return CocoInstances(self.paths.images, self.paths.info, transform, annotated=annotated)

    @property
    def order(self) -> ImageOrder:
        """The images of the set to use."""
        from yolact.data.sources import ImageOrder

        most = None if self.max_images < 0 else self.max_images
        return ImageOrder(most=most, by_id=self.no_sort, shuffle=self.shuffle, seed=self.seed)

    @property
    def selection(self) -> Selection:
        """The detections that count."""
        from yolact.predict.pipeline import Selection

        return Selection(
            detect=replace(
                self.configuration.detect,
                fast_nms=self.fast_nms,
                cross_class_nms=self.cross_class_nms,
            ),
            score_threshold=self.score_threshold,
            top_k=self.top_k,
            crop=self.crop,
            masks=not self.boxes_only,
        )

    @property
    def evaluation(self) -> EvaluationOptions:
        """How to evaluate."""
        from yolact.predict.evaluate import EvaluationOptions

        selection, name = self.selection, self.configuration.name
        all_unless_given = self.top_k if "top_k" in self.given else None
        return EvaluationOptions(
            selection=replace(selection, top_k=all_unless_given),
            detections=self.ap_data_file.with_suffix(".json"),
            resume=self.resume,
            order=self.order,
            batch_size=self.batch_size,
            progress=not self.no_bar,
            bbox_file=self.bbox_det_file if self.output_coco_json else None,
            mask_file=self.mask_det_file if self.output_coco_json else None,
            viewer_file=self.web_det_path / f"{name}.json" if self.output_web_json else None,
            viewer_title=name,
        )

    def annotator(self) -> Annotator:
        """Load the model, to draw what it finds."""
        from yolact.predict.draw import Style
        from yolact.predict.media import Annotator

        style = Style(
            masks=self.display_masks,
            boxes=self.display_bboxes,
            text=self.display_text,
            scores=self.display_scores,
        )
        return Annotator(engine=self.load(), selection=self.selection, style=style)
