"""The validation command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import yolact
from conftest import OWN_GOLDEN
from oracle import ANNOTATIONS, Oracle, write_dataset
from videos import delay, ticks
from yolact import engines
from yolact.cli.inputs import split_pair, validation_paths
from yolact.cli.validation import validation
from yolact.data.coco import CocoInstances, evaluation_order
from yolact.data.images import RgbImage
from yolact.data.labels import Classes
from yolact.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DownloadError,
    StorageError,
    TargetMissedError,
)
from yolact.predict import media
from yolact.predict.results import STATS


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CocoInstances:
    """A small data set, in a working folder of its own; no model file and no display."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return write_dataset(tmp_path / "data", ANNOTATIONS)


@pytest.fixture
def engine(dataset: CocoInstances, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Every model file is the oracle."""
    oracle = Oracle(dataset)
    monkeypatch.setattr(engines, "load_engine", lambda *args, **kwargs: oracle)
    return oracle


def run(*arguments: str) -> Result:
    if "--trained_model" not in arguments:
        arguments = ("--trained_model", "model.pth", *arguments)
    return CliRunner().invoke(validation, [*arguments, "--dataset", "data"])


def fails(result: Result, error: type[Exception], message: str) -> None:
    assert result.exit_code == error.exit_code, result.output  # type: ignore[attr-defined]
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(lines) == 2 and lines[1].startswith("hint: ")
    assert message in lines[0]


def test_every_option_of_upstream_exists_with_its_default() -> None:
    spec = json.loads((OWN_GOLDEN / "cli_options.json").read_text())
    names = {name: str(option.name) for option in validation.params for name in option.opts}
    defaults = validation.make_context("validation", []).params
    for option in spec["sparseml.yolact.validation"]["options"]:
        (name,) = option["flags"]
        assert name in names
        # upstream's default model is a file of a service that has ended
        if name != "--trained_model" and "action" not in option:
            assert plain(defaults[names[name]]) == plain(option["default"]), name


def plain(default: Any) -> str:
    """A default in one spelling, whether click's or that of the table of options."""
    text = "" if default is None else str(default)
    return text.replace("None", "").strip("'").rstrip("/").removesuffix(".0")


def test_help_lists_every_option_with_a_text() -> None:
    result = CliRunner().invoke(validation, ["--help"])
    assert result.exit_code == 0
    assert all(getattr(parameter, "help", "x") for parameter in validation.params)


def test_the_table_and_cocos_numbers_go_to_stdout(engine: Oracle) -> None:
    result = run("--per_class")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].startswith("       |  all  |  .50  |")
    assert lines[3].startswith("   box | 100.0 |")
    assert lines[4].startswith("  mask |")
    assert result.stdout.count("Average Precision") == 2 * 6
    assert result.stdout.count("Average Recall") == 2 * 6
    assert "box (3 images)" in result.stdout
    assert " owl " in result.stdout
    assert sum(engine.calls) == 3


def test_dashes_and_underscores_are_the_same(engine: Oracle) -> None:
    result = run("--max-images", "1", "--batch-size", "2")
    assert "box (1 images)" in result.stdout


def test_a_limit_takes_images_in_the_order_of_their_hash(
    engine: Oracle, dataset: CocoInstances
) -> None:
    run("--max_images", "2")
    saved = json.loads(Path("results/ap_data.json").read_text())
    assert saved["images"] == evaluation_order(dataset.image_ids)[:2]
    run("--max_images", "2", "--no_sort")
    assert json.loads(Path("results/ap_data.json").read_text())["images"] == [3, 9]
    orders = set()
    for _ in range(2):
        run("--shuffle", "--seed", "3")
        orders.add(tuple(json.loads(Path("results/ap_data.json").read_text())["images"]))
    assert len(orders) == 1 and sorted(orders.pop()) == [3, 9, 11]


def test_result_files_are_cocos(engine: Oracle) -> None:
    result = run("--output_coco_json", "--bbox_det_file", "a/box.json")
    assert result.exit_code == 0, result.output
    boxes = json.loads(Path("a/box.json").read_text())
    masks = json.loads(Path("results/mask_detections.json").read_text())
    assert len(boxes) == len(masks) and len(confident(boxes)) == 3
    assert set(boxes[0]) == {"image_id", "category_id", "score", "bbox"}
    assert set(masks[0]) == {"image_id", "category_id", "score", "segmentation"}
    assert {box["image_id"] for box in boxes} == {9, 11}
    assert "   box | 100.0" in result.stdout


def confident(entries: list[Any]) -> list[Any]:
    """Without the entries of all other classes, in which a candidate competes too."""
    return [entry for entry in entries if entry["score"] > 0.5]


def test_a_set_without_ground_truth_gives_result_files_only(
    engine: Oracle, dataset: CocoInstances
) -> None:
    info = Path("data/annotations/instances_val2017.json")
    content = json.loads(info.read_text())
    del content["annotations"]
    info.write_text(json.dumps(content))
    result = run("--output_coco_json")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "there is no AP to measure" in result.stderr
    assert len(confident(json.loads(Path("results/bbox_detections.json").read_text()))) == 3
    fails(run(), DataError, "no list of annotations")


def test_the_viewer_file_names_classes(engine: Oracle) -> None:
    assert run("--output_web_json").exit_code == 0
    viewer = json.loads(Path("web/dets/yolact_darknet53.json").read_text())
    assert [image["image_id"] for image in viewer["images"]] == [9, 11]
    assert viewer["images"][1]["dets"][0]["category"] == "owl"
    assert set(viewer["images"][0]["dets"][0]) == {"score", "bbox", "category", "mask"}


def test_resume_measures_what_was_saved_without_a_model(engine: Oracle) -> None:
    first = run()
    calls = len(engine.calls)
    again = run("--resume", "--trained_model", "latest")
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert len(engine.calls) == calls


def test_nothing_is_pickled(engine: Oracle) -> None:
    run("--ap_data_file", "mine/detections.pkl")
    assert [path.name for path in Path("mine").iterdir()] == ["detections.json"]
    fails(run("--resume"), DataError, "no saved detections at results/ap_data.json")


def test_boxes_alone(engine: Oracle) -> None:
    result = run("--detect", "--output_coco_json")
    assert result.exit_code == 0
    assert "box" in result.stdout and "mask" not in result.stdout
    assert not Path("results/mask_detections.json").exists()


def test_a_missed_target_ends_with_its_exit_code(engine: Oracle) -> None:
    fails(
        run("--min_map", "50", "--score_threshold", "0.99"),
        TargetMissedError,
        "mask AP is 0.00 %, below --min_map 50",
    )
    assert run("--min_map", "50").exit_code == 0


@pytest.mark.parametrize("damage", ["cut", "inside", "size"])
def test_bad_images_are_skipped_on_request_and_the_command_says_so_after_the_table(
    engine: Oracle, damage: str
) -> None:
    path = Path("data/images/0003.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if damage == "size":
        cv2.imwrite(str(path), np.zeros((5, 7, 3), np.uint8))
    else:
        path.write_bytes(content if damage == "inside" else content[:200])
    stopped = run("--no_bar")
    assert stopped.exit_code == 3 and "box" not in stopped.stdout
    assert "0003.png" in stopped.stderr and "--on_bad_image skip" in stopped.stderr
    result = run("--no_bar", "--on_bad_image", "skip", "--json", "measured.json")
    fails(result, DataError, "1 of 3 images were skipped")
    assert "mask (2 images)" in result.stdout and "0003.png" in result.stderr
    measured = json.loads(Path("measured.json").read_text())
    assert (measured["images"], measured["bad_images"]) == (2, 1)
    assert measured["mask"]["ap"]["all"] == pytest.approx(100)


def test_top_k_limits_an_evaluation_only_when_given(engine: Oracle) -> None:
    run("--top_k", "1")
    assert len(json.loads(Path("results/ap_data.json").read_text())["bbox"]) == 2


def measured(*arguments: str) -> tuple[Result, Any]:
    """What the command says, and the JSON it writes."""
    result = run(*arguments, "--json", "new/measured.json")
    return result, json.loads(Path("new/measured.json").read_text())


def test_all_that_is_measured_is_written_as_json(engine: Oracle) -> None:
    result, content = measured("--no_bar")
    assert result.exit_code == 0, result.output
    assert result.stdout == run().stdout
    assert (content["schema"], content["model"], content["engine"]) == (1, "model.pth", "oracle")
    assert (content["version"], content["images"]) == (yolact.__version__, 3)
    assert list(content["box"]["ap"]) == ["all", *map(str, range(50, 100, 5))]
    assert content["box"]["ap"]["all"] == pytest.approx(100)
    assert list(content["mask"]["coco"]) == list(STATS)
    assert content["mask"]["coco"]["AP50"] == pytest.approx(1)
    assert content["box"]["coco"]["AP_large"] is None, "nothing is large"
    assert content["mask"]["per_class"]["owl"]["ap50"] == pytest.approx(100)
    assert list(content["seconds"]) == ["preprocess", "network", "detect", "encode"]
    assert all(seconds > 0 for seconds in content["seconds"].values())


def test_the_json_says_null_where_nothing_was_measured(engine: Oracle) -> None:
    _, boxes = measured("--detect")
    assert boxes["mask"] is None and boxes["box"]["ap"]["50"] == pytest.approx(100)
    _, saved = measured("--detect", "--resume")
    assert (saved["model"], saved["engine"], saved["seconds"]) == (None, None, {})
    assert saved["box"] == boxes["box"]
    info = Path("data/annotations/instances_val2017.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "annotations": []}))
    _, without = measured("--output_coco_json")
    assert (without["box"], without["mask"], without["images"]) == (None, None, 3)


def test_the_json_is_written_when_a_target_is_missed(engine: Oracle) -> None:
    result, content = measured("--min_map", "50", "--score_threshold", "0.99")
    assert result.exit_code == TargetMissedError.exit_code
    assert content["mask"]["ap"]["all"] == 0


def test_a_benchmark_is_written_as_json(engine: Oracle) -> None:
    result, content = measured("--benchmark", "--num_iterations", "4", "--batch_size", "2")
    assert result.exit_code == 0, result.output
    assert (content["engine"], content["batches"], content["batch_size"]) == ("oracle", 4, 2)
    times = content["milliseconds"]
    assert list(times) == ["preprocess", "network", "detect", "postprocess", "total"]
    assert sum(times.values()) == pytest.approx(2 * times["total"])
    assert content["images_per_second"] == pytest.approx(2000 / times["total"])


def test_a_json_file_that_cannot_be_written_is_said_first(engine: Oracle) -> None:
    result = run("--json", "data/images/0009.png/in_a_file.json")
    assert result.exit_code == StorageError.exit_code and not engine.calls


def test_benchmark_prints_each_stage(engine: Oracle) -> None:
    result = run("--benchmark", "--warm_up_iterations", "1", "--num_iterations", "4")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("engine oracle\nmedian of 4 batches of 1\n")
    for stage in ("preprocess", "network", "detect", "postprocess", "total"):
        assert stage in result.stdout
    assert "img/s" in result.stdout
    assert len(engine.calls) == 5


def test_benchmark_works_without_a_data_set(
    engine: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Oracle, "_image", lambda self, pixels, priors: empty(priors))
    arguments = ["--trained_model", "m.pth", "--benchmark", "--num_iterations", "2"]
    result = CliRunner().invoke(validation, [*arguments, "--batch_size", "2"])
    assert result.exit_code == 0, result.output
    assert "random images are measured" in result.stderr
    assert "median of 2 batches of 2" in result.stdout


def empty(priors: Any) -> Any:
    n = len(priors)
    conf = priors.new_zeros(n, 4)
    return priors.new_zeros(n, 4), conf, priors.new_zeros(n, 2), priors.new_zeros(9, 9, 2)


def test_one_image_is_annotated(engine: Oracle) -> None:
    result = run("--image", "data/images/0009.png:out/new.png", "--score_threshold", "0.3")
    assert result.exit_code == 0, result.output
    assert result.stdout == "data/images/0009.png -> out/new.png: 1 cat, 1 dog\n"
    picture = np.asarray(cv2.imread("out/new.png"))
    image = np.asarray(cv2.imread("data/images/0009.png"))
    assert picture.shape == image.shape and (picture != image).any()


def test_prototypes_and_their_combination_are_pictured(engine: Oracle) -> None:
    arguments = ("--image", "data/images/0009.png:out/new.png")
    assert run(*arguments, "--display_lincomb", "True", "--mask_proto_debug").exit_code == 0
    assert {path.name for path in Path("out").iterdir()} == {
        *("new.png", "new_lincomb.png", "new_prototypes.png", "new_prototypes.npy"),
    }
    assert np.load("out/new_prototypes.npy").shape == (96, 96, 13)


@pytest.mark.parametrize("option", ["masks", "bboxes", "text"])
def test_parts_of_the_drawing_can_be_switched_off(engine: Oracle, option: str) -> None:
    run("--image", "data/images/0009.png:all.png")
    run("--image", "data/images/0009.png:less.png", f"--display_{option}", "False")
    image = np.asarray(cv2.imread("data/images/0009.png"))
    drawn = [np.asarray(cv2.imread(name)) for name in ("all.png", "less.png")]
    changed = [(picture != image).any(2).sum() for picture in drawn]
    assert changed[1] < changed[0]


def test_a_folder_is_annotated(engine: Oracle) -> None:
    result = run("--images", "data/images:out", "--batch_size", "2")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("0003.png", "0009.png", "0011.png"),
    ]
    assert "data/images/0003.png -> out/0003.png: nothing" in result.stdout


def test_pictures_of_one_name_get_two(engine: Oracle) -> None:
    Path("more").mkdir()
    image = np.asarray(cv2.imread("data/images/0009.png"))
    for name in ("more/0009.png", "more/0009.webp"):
        cv2.imwrite(name, image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    result = run("--images", "more:out")
    assert result.exit_code == 0, result.output
    assert "more/0009.webp -> out/0009_webp.png: " in result.stdout
    assert len(list(Path("out").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "data/images:data/images"], "would replace a file that is read"),
        (["--images", "data/images/:data/../data/images"], "would replace a file that is read"),
        (["--images", "data/images:link"], "would replace a file that is read"),
        (["--images", "data/images/*3.png:data/images"], "would replace a file that is read"),
        (["--images", "mixed/*.bmp:mixed"], "1 results would replace pictures in a folder"),
        (["--image", "data/images/0009.png:link/0009.png"], "would replace a file that is read"),
        (["--video", "in.mp4:./in.mp4"], "would replace a file that is read"),
        (["--video", "in.mp4:hard.mp4"], "would replace a file that is read"),
        (["--json", "data/annotations/instances_val2017.json"], "would replace a file that is"),
        (["--ap_data_file", "data/annotations/instances_val2017.pkl"], "would replace a file"),
        (["--output_coco_json", "--mask_det_file", "results/bbox_detections.json"], "two results"),
        (["--json", "results/ap_data.json"], "two results would go to results/ap_data.json"),
    ],
)
def test_nothing_that_is_read_is_written_over(
    engine: Oracle, video: Path, arguments: list[str], message: str
) -> None:
    Path("link").symlink_to("data/images")
    Path("hard.mp4").hardlink_to(video)
    Path("mixed").mkdir()
    for name in ("mixed/a.bmp", "mixed/a.png"):
        cv2.imwrite(name, np.zeros((8, 8, 3), np.uint8))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    fails(run(*arguments), ConfigError, message)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> list[RgbImage]:
    """What a window showed; the user presses q at the second picture."""
    shown: list[RgbImage] = []

    def show(image: RgbImage, wait_ms: int = 0) -> bool:
        shown.append(image)
        return len(shown) < 2

    monkeypatch.setattr(media, "has_display", lambda: True)
    monkeypatch.setattr(media, "show", show)
    monkeypatch.setattr(media, "close", lambda: None)
    return shown


def test_images_of_the_data_set_are_shown_until_q(
    engine: Oracle, dataset: CocoInstances, screen: list[RgbImage]
) -> None:
    result = run("--display", "--score_threshold", "0.3")
    assert result.exit_code == 0, result.output
    order = evaluation_order(dataset.image_ids)
    assert [int(line.split(":")[0]) for line in result.stdout.splitlines()] == order[:2]
    assert len(screen) == 2


def test_an_image_without_an_output_is_shown(engine: Oracle, screen: list[RgbImage]) -> None:
    result = run("--image", "data/images/0009.png", "--detect", "--score_threshold", "0.3")
    assert result.stdout == "data/images/0009.png: 1 cat, 1 dog\n"
    assert [picture.shape for picture in screen] == [(120, 80, 3)]


def test_a_video_without_an_output_is_shown_until_q(
    engine: Oracle, video: Path, screen: list[RgbImage]
) -> None:
    assert run("--video", "in.mp4").stdout == "in.mp4: 2 frames\n"
    assert len(screen) == 2


@pytest.fixture
def video(dataset: CocoInstances, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten frames; the oracle finds nothing in them."""
    monkeypatch.setattr(Oracle, "_image", lambda self, pixels, priors: empty(priors))
    path = Path("in.mp4")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for shade in range(10):
        writer.write(np.full((48, 64, 3), shade * 20, np.uint8))
    writer.release()
    return path


def frames_of(path: str) -> int:
    capture, count = cv2.VideoCapture(path), 0
    while capture.read()[0]:
        count += 1
    return count


def test_a_video_is_annotated_several_frames_at_a_time(engine: Oracle, video: Path) -> None:
    result = run("--video", "in.mp4:out/new.mp4", "--video_multiframe", "4", "--display_fps")
    assert result.exit_code == 0, result.output
    assert result.stdout == "in.mp4 -> out/new.mp4: 10 frames\n"
    assert engine.calls == [4, 4, 2]
    assert frames_of("out/new.mp4") == 10


def test_a_video_of_uneven_times_keeps_its_length(
    engine: Oracle, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = ticks(video)
    seconds = (0.1, 0.1, 1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    delay(video, [round(tick * length) for length in seconds])
    result = run("--video", "in.mp4:out.mp4")
    assert result.stdout == "in.mp4 -> out.mp4: 10 frames\n"
    capture = cv2.VideoCapture("out.mp4")
    fps = capture.get(cv2.CAP_PROP_FPS)
    assert frames_of("out.mp4") / fps == pytest.approx(sum(seconds), abs=0.1)
    still = [capture.read()[1].mean() for _ in range(round(1.15 * fps))]
    assert np.ptp(still[round(0.25 * fps) :]) < 1 < np.ptp(still)


@pytest.mark.parametrize("ending", ["webm", "gif", "txt", "ogv"])
def test_a_video_that_cannot_be_written_is_refused_at_once(
    engine: Oracle, video: Path, ending: str
) -> None:
    result = run("--video", f"in.mp4:out.{ending}")
    assert result.exit_code == 8, result.output
    assert f"cannot write a video as out.{ending}" in result.stderr
    assert not engine.calls and not Path(f"out.{ending}").exists()


def test_frames_that_came_too_quickly_are_counted(engine: Oracle, video: Path) -> None:
    tick = ticks(video)
    usual, short = round(tick * 0.1), round(tick * 0.01)
    delay(video, [*[usual] * 4, short, *[usual] * 4, tick])
    result = run("--video", "in.mp4:out.mp4")
    assert result.stdout == "in.mp4 -> out.mp4: 10 frames\n"
    assert "in.mp4: 1 of 10 frames follow another within 1/" in result.stderr


def test_an_address_is_refused_offline(engine: Oracle) -> None:
    result = run("--video", "rtsp://me:secret@127.0.0.1:9/1:out.mp4", "--offline")
    assert result.exit_code == DownloadError.exit_code
    assert "rtsp://...@127.0.0.1:9/1" in result.stderr and "secret" not in result.output


def test_emulated_playback_keeps_the_length(engine: Oracle, video: Path) -> None:
    assert run("--video", "in.mp4:out.mp4", "--emulate_playback").exit_code == 0
    assert frames_of("out.mp4") == 10


def test_a_file_that_is_no_video(engine: Oracle) -> None:
    Path("bad.mp4").write_text("no")
    fails(run("--video", "bad.mp4:out.mp4"), DataError, "cannot open video bad.mp4")
    assert not Path("out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--engine", "deepsparse"], ConfigError, "the engine deepsparse is not available"),
        (["--config", "yolact_darknet54"], ConfigError, "unknown config"),
        (["--max_images", "0"], ConfigError, "--max_images is 0"),
        (["--display"], ConfigError, "--display needs a display"),
        (["--image", "data/images/0009.png"], ConfigError, "--image without an output needs"),
        (["--video", "in.mp4"], ConfigError, "--video without an output needs"),
        (["--images", "data/images"], ConfigError, "names no output"),
        (["--image", "no.png:x.png"], DataError, "no image at no.png"),
        (["--images", "no:out"], DataError, "no image, video or folder at no"),
        (["--image", "a:b", "--benchmark"], ConfigError, "--image and --benchmark exclude"),
        (["--video_multiframe", "2"], ConfigError, "--video_multiframe has no effect in an eval"),
        (["--json", "a.json", "--image", "a:b"], ConfigError, "--json has no effect with --image"),
        (["--json", "a.json", "--display"], ConfigError, "--json has no effect with --display"),
        (["--benchmark", "--resume"], ConfigError, "--resume has no effect with --benchmark"),
        (["--trained_model", "zoo:cv/x/base-none"], CheckpointError, "is not a model that"),
        (
            ["--trained_model", "latest"],
            CheckpointError,
            "no latest checkpoint of yolact_darknet53",
        ),
        (["--device", "gpu"], ConfigError, "unknown device 'gpu'"),
        (["--device", "cuda:99"], ConfigError, "device cuda:99 is not available here"),
    ],
)
def test_mistakes_read_as_an_error_and_a_hint(
    dataset: CocoInstances, arguments: list[str], error: type[Exception], message: str
) -> None:
    fails(run(*arguments), error, message)
    assert not Path("results").exists()


def test_a_missing_model_and_missing_data(dataset: CocoInstances) -> None:
    fails(run(), CheckpointError, "checkpoint not found: model.pth")
    arguments = ["--trained_model", "m.pth", "--validation_info", "no.json"]
    fails(CliRunner().invoke(validation, arguments), DataError, "no annotation file at no.json")
    result = CliRunner().invoke(validation, ["--trained_model", "m.pth", "--dataset", "coco3000"])
    fails(result, ConfigError, "no data set called coco3000")


def test_a_checkpoint_of_other_classes_is_refused(engine: Oracle) -> None:
    engine.classes = Classes(("car", "cat"), (1, 2))
    fails(run(), CheckpointError, "but not 2 of the data set's 3: 'dog', 'owl'")


def test_a_single_picture_format_is_unknown(engine: Oracle) -> None:
    result = run("--image", "data/images/0009.png:out/new.xyz")
    assert result.exit_code == 8
    assert "cannot write an image as new.xyz" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg:b.png", ("a.jpg", "b.png")),
        ("a.jpg", ("a.jpg", None)),
        ("a.jpg:", ("a.jpg", None)),
        ("/a/b.jpg:/c/d.png", ("/a/b.jpg", "/c/d.png")),
        (r"C:\a.jpg:D:\b.png", (r"C:\a.jpg", r"D:\b.png")),
        ("rtsp://me:x@cam:554/1:out.mp4", ("rtsp://me:x@cam:554/1", "out.mp4")),
        ("rtsp://me:x@cam:554/Streaming:101", ("rtsp://me:x@cam:554/Streaming:101", None)),
        ("http://cam:80/v.mp4", ("http://cam:80/v.mp4", None)),
    ],
)
def test_pairs_of_files(text: str, expected: tuple[str, str | None]) -> None:
    assert split_pair(text) == expected


def test_a_file_with_a_colon_in_its_name_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.png").touch()
    assert split_pair("a:b.png") == ("a:b.png", None)
    assert split_pair("a:b.png:c.png") == ("a:b.png", "c.png")


def test_where_the_validation_set_is() -> None:
    default = validation_paths(None, None, None)
    assert default.info == Path("data/coco/annotations/instances_val2017.json")
    assert default.images == Path("data/coco/images")
    test_dev = validation_paths("coco2017_testdev_dataset", None, Path("elsewhere"))
    assert test_dev.info.name == "image_info_test-dev2017.json"
    assert test_dev.images == Path("elsewhere")
