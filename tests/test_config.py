"""Settings: the published values, refusals, and the way through a file and back."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import pytest

from conftest import GoldenSet
from yolact.config import (
    BackboneConfig,
    DetectConfig,
    LossConfig,
    ModelConfig,
    YolactConfig,
)
from yolact.data.labels import COCO_CLASSES
from yolact.errors import ConfigError
from yolact.optim_config import OptimConfig
from yolact.presets import CONFIGS, named_config, yolact_darknet53, yolact_darknet_small


def test_the_network_has_the_published_shape(golden: GoldenSet) -> None:
    content = golden.json("config.json")
    published, constants = content["config"], content["constants_not_in_config"]
    backbone, model = published["backbone"], yolact_darknet53().model
    assert published["name"] == yolact_darknet53().name
    assert published["num_classes"] == model.num_classes + 1
    assert published["max_size"] == model.image_size == model.prior_base_size
    assert backbone["args"][0] == constants["darknet_blocks"] == list(model.backbone.stage_blocks)
    assert constants["darknet_channels"] == list(model.backbone.stage_channels)
    assert constants["darknet_stem_channels"] == model.backbone.stem_channels
    assert backbone["pred_scales"] == [[scale] for scale in model.prior_scales]
    assert backbone["pred_aspect_ratios"] == [[list(model.prior_aspect_ratios)]] * 5
    assert published["fpn"]["num_features"] == model.fpn_channels
    assert published["mask_proto_net"][0][0] == model.proto_channels
    assert published["mask_proto_net"][-1][0] == published["mask_dim"] == model.num_prototypes
    assert published["extra_head_net"][0][0] == model.head_channels


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "loss",
            {
                "positive_iou": "positive_iou_threshold",
                "negative_iou": "negative_iou_threshold",
                "crowd_iou": "crowd_iou_threshold",
                "negatives_per_positive": "ohem_negpos_ratio",
                "box_weight": "bbox_alpha",
                "class_weight": "conf_alpha",
                "mask_weight": "mask_alpha",
                "semantic_weight": "semantic_segmentation_alpha",
                "masks_to_train": "masks_to_train",
            },
        ),
        (
            "detect",
            {
                "score_threshold": "nms_conf_thresh",
                "nms_iou": "nms_thresh",
                "top_k": "nms_top_k",
                "max_detections": "max_num_detections",
            },
        ),
        (
            "augment",
            {
                "photometric": "augment_photometric_distort",
                "expand": "augment_expand",
                "crop": "augment_random_sample_crop",
                "mirror": "augment_random_mirror",
            },
        ),
        (
            "optim",
            {
                "lr": "lr",
                "momentum": "momentum",
                "weight_decay": "decay",
                "gamma": "gamma",
                "max_iter": "max_iter",
                "lr_steps": "lr_steps",
                "warmup_init": "lr_warmup_init",
                "warmup_until": "lr_warmup_until",
            },
        ),
    ],
)
def test_settings_have_the_published_values(
    golden: GoldenSet, part: str, names: dict[str, str]
) -> None:
    published = golden.json("config.json")["config"]
    ours = yolact_darknet53().to_dict()[part]
    for name, theirs in names.items():
        value = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
        assert value == published[theirs], name


def test_class_names_and_ids_are_those_of_coco(golden: GoldenSet) -> None:
    content = golden.json("config.json")
    assert list(COCO_CLASSES.names) == content["class_names"]
    labels = {int(k): v for k, v in content["label_map"].items() if k != "note"}
    assert {category: index + 1 for category, index in COCO_CLASSES.index_of.items()} == labels


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name: str) -> None:
    config = named_config(name)
    assert YolactConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_changed_config_survives_json() -> None:
    config = named_config("yolact_darknet53").with_model(image_size=320, num_classes=3)
    config = replace(config, name="mine", optim=OptimConfig(lr=0.5, lr_steps=(1, 2)))
    again = YolactConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.model.num_classes == 3


def test_a_config_from_an_older_file_gets_defaults_for_what_it_lacks() -> None:
    config = YolactConfig.from_dict({"model": {"num_classes": 3}})
    assert config == YolactConfig().with_model(num_classes=3)


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"image_sise": 550}}, "image_sise", "image_size"),
        ({"optim": {"momentun": 0.9}}, "momentun", "momentum"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(
    values: dict[str, Any], key: str, near: str
) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'") as error:
        YolactConfig.from_dict(values)
    assert error.value.hint == f"try: {near}"


def test_names_work_with_and_without_their_ending() -> None:
    assert named_config("yolact_darknet53") == named_config("yolact_darknet53_config")
    with pytest.raises(ConfigError, match="unknown config 'yolact_darknet35'") as error:
        named_config("yolact_darknet35")
    assert error.value.hint == "try: yolact_darknet53_config, or timm: and a name of timm's"


def test_config_names_are_the_first_part_of_checkpoint_names() -> None:
    for name in CONFIGS:
        assert f"{named_config(name).name}_config" == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(image_size=32), "image size 32 is too small"),
        (lambda: ModelConfig(num_classes=0), "at least one class"),
        (lambda: BackboneConfig(stage_blocks=(1, 2)), "5 stages, not 5 widths and 2 depths"),
        (lambda: BackboneConfig(name="vgg"), "no backbone is called 'vgg'"),
        (lambda: BackboneConfig(std=(1, 1, 0)), "not all above 0"),
        (lambda: ModelConfig(prior_scales=(24,)), "one prior scale each"),
        (lambda: ModelConfig(prior_aspect_ratios=()), "at least one aspect ratio"),
        (lambda: LossConfig(negative_iou=0.6), "got 0.6 and 0.5"),
        (lambda: OptimConfig(lr=0), "learning rate must be above 0, got 0"),
        (lambda: OptimConfig(lr=math.nan), "learning rate must be above 0, got nan"),
        (lambda: OptimConfig(lr=math.inf), "learning rate must be above 0, got inf"),
        (lambda: OptimConfig(momentum=1), "momentum must be at least 0 and below 1, got 1"),
        (lambda: OptimConfig(weight_decay=-1), "weight decay must be at least 0, got -1"),
        (lambda: OptimConfig(backbone_lr=0), "backbone's learning rate must be above 0, got 0"),
        (lambda: OptimConfig(ema_decay=1), "at least 0 and below 1, got 1"),
        (lambda: OptimConfig(ema_decay=math.nan), "at least 0 and below 1, got nan"),
        (lambda: OptimConfig(optimizer=cast(Any, "adam")), "no optimizer is called 'adam'"),
        (lambda: OptimConfig(schedule=cast(Any, "linear")), "no schedule is called 'linear'"),
        (lambda: OptimConfig(gamma=0), "gamma must be above 0, got 0"),
        (lambda: OptimConfig(max_grad_norm=0), "gradient norm must be above 0, got 0"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)
    assert error.value.hint


def test_no_average_is_spelled_as_zero_too() -> None:
    assert OptimConfig(ema_decay=0) == OptimConfig()


def test_configs_cannot_be_changed_in_place() -> None:
    def check(config: Any) -> None:
        for each in fields(config):
            value = getattr(config, each.name)
            assert not isinstance(value, list | dict | set)
            with pytest.raises(AttributeError):
                setattr(config, each.name, value)
            if is_dataclass(value):
                check(value)

    check(YolactConfig())
    assert hash(YolactConfig()) == hash(YolactConfig(detect=DetectConfig()))


def test_settings_stored_before_there_were_other_backbones_are_read() -> None:
    stored = yolact_darknet_small().to_dict()
    backbone = stored["model"].pop("backbone")
    for key in ("stem_channels", "stage_channels", "stage_blocks"):
        stored["model"][key] = backbone[key]
    stored = json.loads(json.dumps(stored))
    assert YolactConfig.from_dict(stored) == yolact_darknet_small()
