"""The options of ``sparseml.yolact.validation``: how they are spelled, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.cli.inputs import ENGINE_NAMES, DataPaths, engine_name, model_path, validation_paths
from yolact.config import OnBadImage, YolactConfig, on_bad_image, strict
from yolact.errors import ConfigError
from yolact.model_files import model_kinds
from yolact.presets import named_config
from yolact.setting import setting
from yolact.sizes import ImageSize, image_size_setting, prior_base_size_setting

if TYPE_CHECKING:
    from yolact.data.coco import CocoInstances
    from yolact.data.sources import ImageOrder
    from yolact.engines.base import Engine
    from yolact.predict.evaluate import EvaluationOptions
    from yolact.predict.media import Annotator
    from yolact.predict.pipeline import Selection


@dataclass(frozen=True, kw_only=True)
class Options:
    """The values of all options, in the order of the help, and what they come to."""

    given: frozenset[str]
    """Names of the parameters on the command line."""
    trained_model: str = setting(
        default="latest",
        help="A .pth or .onnx file, a zoo: stub, or latest or interrupt for a checkpoint in "
        "--save_folder.",
    )
    save_folder: Path = setting(
        default=Path("weights"),
        path="folder",
        shown="weights/",
        help="Where latest and interrupt are looked for.",
    )
    config: str = setting(
        default="yolact_darknet53_config",
        help="Configuration of a checkpoint that carries none, and of its name.",
    )
    image_size: ImageSize | None = image_size_setting()
    prior_base_size: float | None = prior_base_size_setting()
    engine: str | None = setting(
        default=None,
        choices=ENGINE_NAMES,
        help="What runs the model.  [default: by the file's ending]",
    )
    cuda: bool = setting(default=True, spoken=True, help="Use a GPU if there is one.")
    device: str | None = setting(default=None, help="auto, cpu, cuda or cuda:N; overrides --cuda.")
    num_cores: int | None = setting(default=None, help="Threads to use.  [default: all]")
    batch_size: int = setting(default=1, at_least=1, help="Images per call of the model.")
    validation_info: Path | None = setting(
        default=None,
        help="COCO annotation file.  [default: data/coco/annotations/instances_val2017.json]",
    )
    validation_images: Path | None = setting(
        default=None, path="folder", help="Its images.  [default: data/coco/images]"
    )
    dataset: str | None = setting(
        default=None,
        help="A folder with annotations/ and images/, or a name like coco2017_dataset.",
    )
    on_bad_image: OnBadImage = on_bad_image()
    strict: bool = strict()
    max_images: int = setting(default=-1, help="At most so many images; -1 takes all.")
    no_sort: bool = setting(
        default=False,
        help="Take the first images by id, not a fixed unbiased choice (by a hash of the id).",
    )
    shuffle: bool = setting(default=False, help="Take images in random order.")
    seed: int | None = setting(default=None, help="Makes --shuffle repeatable.")
    fast_nms: bool = setting(
        default=True, spoken=True, help="YOLACT's one-pass suppression; False is greedy."
    )
    cross_class_nms: bool = setting(
        default=False, spoken=True, help="Let boxes of all classes suppress each other."
    )
    score_threshold: float = setting(
        default=0, at_least=0, at_most=1, help="Only detections with a higher score."
    )
    top_k: int = setting(
        default=5,
        at_least=1,
        help="Draw at most so many detections; an evaluation keeps all unless this is given.",
    )
    crop: bool = setting("--no_crop", default=True, help="Do not cut masks at their boxes.")
    boxes_only: bool = setting("--detect", default=False, help="Boxes only, no masks.")
    no_bar: bool = setting(default=False, help="Show no progress bar.")
    ap_data_file: Path = setting(
        default=Path("results/ap_data.pkl"),
        help="Where detections are kept for --resume: as JSON, with .json for an ending.",
    )
    resume: bool = setting(
        default=False, help="Run no model; measure the detections in --ap_data_file."
    )
    output_coco_json: bool = setting(default=False, help="Also write COCO result files.")
    bbox_det_file: Path = setting(
        default=Path("results/bbox_detections.json"), help="Boxes of --output_coco_json."
    )
    mask_det_file: Path = setting(
        default=Path("results/mask_detections.json"), help="Masks of --output_coco_json."
    )
    output_web_json: bool = setting(
        default=False, help="Also write a file for upstream's web viewer."
    )
    web_det_path: Path = setting(
        default=Path("web/dets"),
        path="folder",
        shown="web/dets/",
        help="Folder of --output_web_json.",
    )
    per_class: bool = setting(default=False, help="Also print the AP of each class.")
    json: Path | None = setting(
        default=None, help="Also write all that is measured to this JSON file."
    )
    min_map: float | None = setting(
        default=None,
        help="End with exit code 9 if mask AP (all, in percent) is lower; box AP with --detect.",
    )
    benchmark: bool = setting(default=False, help="Measure speed instead of AP.")
    warm_up_iterations: int = setting(
        default=10, at_least=0, help="Batches of --benchmark that do not count."
    )
    num_iterations: int = setting(
        default=0, at_least=0, help="Batches of --benchmark; 0 goes through the images once."
    )
    image: str | None = setting(
        default=None, metavar="IN[:OUT]", help="Annotate an image; show it without an OUT."
    )
    images: str | None = setting(
        default=None, metavar="IN:OUT", help="Annotate a folder of images into another."
    )
    video: str | None = setting(
        default=None,
        metavar="IN[:OUT]",
        help="Annotate a video, a camera's number or an address; show or write it.",
    )
    display: bool = setting(default=False, help="Show annotated images of the data set.")
    display_masks: bool = setting(default=True, spoken=True, help="Draw masks.")
    display_bboxes: bool = setting(default=True, spoken=True, help="Draw boxes.")
    display_text: bool = setting(default=True, spoken=True, help="Draw class names.")
    display_scores: bool = setting(default=True, spoken=True, help="Draw scores beside the names.")
    display_lincomb: bool = setting(
        default=False,
        spoken=True,
        help="Also write a picture of how the best mask is combined from prototypes.",
    )
    mask_proto_debug: bool = setting(
        default=False, help="Also write a picture and an .npy of prototypes."
    )
    display_fps: bool = setting(default=False, help="Write the speed on the frames of a video.")
    emulate_playback: bool = setting(
        default=False,
        help="Let a written video drop the frames that real time would have dropped.",
    )
    video_multiframe: int = setting(
        default=1, at_least=1, help="Frames of a video per call of the model."
    )

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
            image_size=self.image_size,
            prior_base_size=self.prior_base_size,
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
        return CocoInstances(
            self.paths.images,
            self.paths.info,
            transform,
            annotated=annotated,
            on_bad_image=self.on_bad_image,
            strict=self.strict,
        )

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
