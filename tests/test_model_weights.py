"""Loading weights: what is accepted, and what a user reads when a file does not fit."""

from __future__ import annotations

import copy
import logging
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import GoldenSet
from yolact.config import ModelConfig
from yolact.errors import CheckpointError
from yolact.model.weights import init_weights, load_backbone, load_weights, num_classes_of
from yolact.model.yolact import Yolact
from yolact.presets import named_config

CONFIG = named_config("yolact_darknet_small").model
State = dict[str, Tensor]


@pytest.fixture
def model() -> Yolact:
    torch.manual_seed(1)
    return Yolact(CONFIG)


@pytest.fixture
def weights() -> State:
    """Weights of the small network; no tensor equals that of a new model."""
    torch.manual_seed(2)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 7
        for name, value in Yolact(CONFIG).state_dict().items()
    }


def published(config: ModelConfig) -> State:
    """Names and shapes of a network, without memory for its weights."""
    with torch.device("meta"):
        return Yolact(config).state_dict()


def assert_loaded(model: Yolact, weights: State) -> None:
    for name, value in model.state_dict().items():
        if name in weights:
            assert torch.equal(value, weights[name]), name


def refusal(model: Yolact, weights: State) -> tuple[str, str]:
    """Message and hint with which ``weights`` are refused; the model must not change."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_weights(model, weights)
    assert_loaded(model, before)
    return str(error.value), error.value.hint or ""


def test_convolutions_start_xavier_uniform_without_bias(model: Yolact) -> None:
    norms = {n: v.clone() for n, v in model.state_dict().items() if ".1." in n and v.ndim == 1}
    init_weights(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            bound = math.sqrt(6 / (area * (module.in_channels + module.out_channels)))
            assert float(module.weight.detach().abs().max()) <= bound, name
            if module.weight.numel() > 5000:
                spread = float(module.weight.detach().std()) * math.sqrt(3)
                assert spread == pytest.approx(bound, rel=0.05), name
            assert module.bias is None or not module.bias.detach().any(), name
    for name, value in norms.items():
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d):
            assert torch.equal(model.state_dict()[name], value), name


def test_initial_weights_follow_the_random_seed() -> None:
    first, second = Yolact(CONFIG), Yolact(CONFIG)
    for network in (first, second):
        torch.manual_seed(3)
        init_weights(network)
    assert_loaded(first, second.state_dict())


def changed(golden: GoldenSet, case: str, weights: State) -> State:
    """``weights`` with the keys added or removed that a case of the golden file names."""
    cases = golden.json("state_dict.json")["loading_cases"]
    matching = [each for each in cases if each["name"].startswith(case)]
    state = dict(weights)
    changes = matching[0]["keys_changed"]
    for name in changes.get("added", []):
        state[name.replace("*", "weight")] = torch.ones(1)
    for name in changes.get("removed", []):
        for key in [key for key in state if key.endswith(name.removeprefix("*"))]:
            del state[key]
    assert matching[0]["outcome"] == ("rejected" if case.endswith("_key") else "loaded")
    return state


@pytest.mark.parametrize(
    "case",
    ["flat", "old_backbone_alias", "v1_downsample", "no_num_batches_tracked"],
)
def test_files_the_reference_loads_are_loaded(
    golden: GoldenSet, case: str, model: Yolact, weights: State
) -> None:
    load_weights(model, changed(golden, case, weights))
    assert_loaded(model, changed(golden, case, weights))


def test_absent_counters_are_tolerated_with_and_without_torchs_version_marks(
    model: Yolact, weights: State
) -> None:
    marked = Yolact(CONFIG).state_dict()
    assert marked._metadata  # type: ignore[attr-defined]
    for name in [name for name in marked if name.endswith("num_batches_tracked")]:
        del marked[name]
    load_weights(model, marked)
    assert_loaded(model, marked)


def test_the_callers_mapping_is_left_alone(
    golden: GoldenSet, model: Yolact, weights: State
) -> None:
    given = changed(golden, "old_backbone_alias", weights)
    names = list(given)
    load_weights(model, given)
    assert list(given) == names


def test_observers_of_upstreams_empty_heads_are_ignored_but_not_a_second_head(
    model: Yolact, weights: State
) -> None:
    """SparseML quantizes the inputs of the four empty heads of the reference, too."""
    observer = "prediction_layers.4.quant.activation_post_process.scale"
    load_weights(model, {**weights, observer: torch.ones(1)})
    assert_loaded(model, weights)
    second = "prediction_layers.1.bbox_layer.weight"
    message, _ = refusal(model, {**weights, second: torch.ones(1)})
    assert message == f"the weights do not fit the model: 1 unexpected ({second})"


def test_an_unknown_name_is_refused(golden: GoldenSet, model: Yolact, weights: State) -> None:
    message, hint = refusal(model, changed(golden, "unknown_key", weights))
    assert message == "the weights do not fit the model: 1 unexpected (maskiou_net.0.weight)"
    assert hint == (
        "the file is incomplete or of a modified network; take the file as training saved it"
    )


def test_a_missing_name_is_refused(golden: GoldenSet, model: Yolact, weights: State) -> None:
    message, _ = refusal(model, changed(golden, "missing_key", weights))
    assert message == "the weights do not fit the model: 1 missing (proto_net.10.bias)"


def test_a_name_that_only_resembles_an_obsolete_one_is_refused(
    model: Yolact, weights: State
) -> None:
    for name in ("backbone.layers.9.0.0.weight", "fpn.downsample_layers.1.extra"):
        message, _ = refusal(model, {**weights, name: torch.ones(1)})
        assert message == f"the weights do not fit the model: 1 unexpected ({name})"


def test_all_kinds_of_misfit_are_counted_and_the_first_three_shown(
    model: Yolact, weights: State
) -> None:
    for name in [name for name in weights if name.startswith("fpn.")]:
        del weights[name]
    weights["extra.weight"] = torch.ones(1)
    weights["proto_net.10.bias"] = torch.ones(99)
    weights["backbone._preconv.1.running_mean"] = torch.ones(3)
    message, hint = refusal(model, weights)
    assert message == (
        "the weights do not fit the model: "
        "16 missing (fpn.lat_layers.0.weight, fpn.lat_layers.0.bias, fpn.lat_layers.1.weight, ...)"
        "; 1 unexpected (extra.weight)"
        "; 2 of another shape (backbone._preconv.1.running_mean [3] for "
        f"[{CONFIG.backbone.stem_channels}], "
        "proto_net.10.bias [99] for [16])"
    )
    assert hint == "they are of other widths or depths: use the --config they were trained with"


def test_another_number_of_classes_is_named(model: Yolact) -> None:
    message, hint = refusal(model, Yolact(replace(CONFIG, num_classes=3)).state_dict())
    assert "4 of another shape" in message
    assert "prediction_layers.0.conf_layer.weight [12, 64, 3, 3] for [243, 64, 3, 3]" in message
    assert hint == (
        "they are for 3 classes and the model for 80: "
        "build the model with the number of classes of the weights"
    )


@pytest.mark.parametrize("small_file", [True, False])
def test_weights_of_another_config_say_so(small_file: bool) -> None:
    full, small = Yolact(ModelConfig()), Yolact(CONFIG)
    network, other = (full, small) if small_file else (small, full)
    with pytest.raises(CheckpointError) as error:
        load_weights(network, other.state_dict())
    assert error.value.hint == (
        "they are of other widths or depths: use the --config they were trained with"
    )


def test_another_network_is_recognised(model: Yolact, weights: State) -> None:
    resnet = {
        **{f"backbone.layers.{i}.0.conv{j}.weight": torch.ones(1) for i in range(4) for j in "123"},
        **{name: value for name, value in weights.items() if not name.startswith("backbone")},
        **{f"backbone.bn{i}.weight": torch.ones(1) for i in range(60)},
    }
    message, hint = refusal(model, resnet)
    assert re.search(r"\d+ missing \(backbone\.layers\.0\.0\.0\.weight, .+; 72 unexpected", message)
    assert hint == "they belong to another network: use the --config they were trained with"


def test_names_that_almost_fit_are_shown_beside_those_of_the_model(
    model: Yolact, weights: State
) -> None:
    """One letter less, another number, a part with another name."""
    names = {
        "proto_net.10.bias": "protonet.10.bias",
        "fpn.lat_layers.0.bias": "fpn.lateral_layers.0.bias",
        "backbone.layers.4.1.conv2.0.weight": "backbone.layers.4.1.conv_2.0.weight",
    }
    for name, other in names.items():
        _, hint = refusal(model, {other if n == name else n: v for n, v in weights.items()})
        assert hint.endswith(f"{name} for {other}"), hint
    _, hint = refusal(model, {names.get(n, n): v for n, v in weights.items()})
    assert all(f"{name} for {other}" in hint for name, other in names.items())


def test_quantized_weights_are_refused_by_a_model_that_is_not(
    model: Yolact, weights: State
) -> None:
    observers = {"proto_net.0.quant.activation_post_process.zero_point": torch.zeros(1)}
    _, hint = refusal(model, {**weights, **observers})
    assert hint == (
        "the weights are of a quantized model: apply the recipe they were trained with first"
    )


def test_a_backbone_file_is_not_a_model(model: Yolact) -> None:
    backbone = dict(model.backbone.state_dict())
    _, hint = refusal(model, backbone)
    assert "a backbone alone" in hint and "--backbone" in hint
    with pytest.raises(CheckpointError) as error:
        num_classes_of(backbone)
    assert error.value.hint == hint


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_the_number_of_classes_is_read_from_the_weights(classes: int) -> None:
    for ratios in ((1.0,), (1.0, 0.5, 2.0)):
        config = ModelConfig(num_classes=classes, prior_aspect_ratios=ratios)
        assert num_classes_of(published(config)) == classes


def test_a_file_without_a_class_head_has_no_number_of_classes() -> None:
    with pytest.raises(CheckpointError) as error:
        num_classes_of({"fc.weight": torch.ones(1)})
    assert str(error.value) == (
        "not the weights of a YOLACT model: prediction_layers.0.conf_layer.weight is missing"
    )
    assert error.value.hint == "give a checkpoint that YOLACT training saved"


def test_the_backbone_file_has_the_names_of_the_published_one(golden: GoldenSet) -> None:
    rows = golden.json("state_dict.json")["backbone_file"]["keys"]
    own = published(ModelConfig())
    assert {row["model_key"]: row["shape"] for row in rows} == {
        name: list(value.shape) for name, value in own.items() if name.startswith("backbone.")
    }
    assert all(row["model_key"] == f"backbone.{row['key']}" for row in rows)


def test_a_backbone_is_loaded_and_the_rest_left_alone(
    model: Yolact, weights: State, caplog: pytest.LogCaptureFixture
) -> None:
    before = copy.deepcopy(model.state_dict())
    prefix = "backbone."
    file = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    load_backbone(model, {**file, "fc.weight": torch.ones(1000, 1024)})
    for name, value in model.state_dict().items():
        assert torch.equal(value, (weights if name.startswith(prefix) else before)[name]), name
    assert caplog.records == []


def test_a_partial_backbone_warns_of_what_it_lacks(
    model: Yolact, caplog: pytest.LogCaptureFixture
) -> None:
    file = {n: v + 1 for n, v in model.backbone.state_dict().items() if n.startswith("layers.")}
    with caplog.at_level(logging.WARNING):
        load_backbone(model, file)
    assert caplog.messages == [
        "the backbone file lacks 5 names "
        "(_preconv.0.weight, _preconv.1.weight, _preconv.1.bias, ...); they keep their values"
    ]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["conv1.weight", "fc.bias"], "give a file with names like layers.0.0.0.weight"),
        (["prediction_layers.0.conf_layer.weight"], "it is a whole model: load it without "),
    ],
)
def test_a_file_without_the_backbone_is_refused(names: list[str], hint: str, model: Yolact) -> None:
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, {name: torch.ones(1) for name in names})
    assert str(error.value) == (f"no DarkNet-23 in the file; its names are {', '.join(names)}")
    assert (error.value.hint or "").startswith(hint)


def test_a_backbone_of_other_widths_is_refused_and_changes_nothing(model: Yolact) -> None:
    before = copy.deepcopy(model.state_dict())
    stem, stage = CONFIG.backbone.stem_channels, CONFIG.backbone.stage_channels[0]
    file = Yolact(
        replace(CONFIG, backbone=replace(CONFIG.backbone, stem_channels=24))
    ).backbone.state_dict()
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, file)
    assert str(error.value).startswith(
        "the backbone does not fit the model: 6 of another shape "
        f"(layers.0.0.0.weight [{stage}, 24, 3, 3] for [{stage}, {stem}, 3, 3], "
    )
    assert error.value.hint == "use the config that the backbone was trained for"
    assert_loaded(model, before)
