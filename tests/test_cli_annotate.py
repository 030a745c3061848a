"""The annotate command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pycocotools import mask as rle

import yolact.engines
from conftest import PUBLISHED
from oracle import ANNOTATIONS, Oracle, write_dataset
from videos import write_video
from yolact.cli.annotate import JSON_NAME, annotate
from yolact.config import YolactConfig
from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.data.video import Frame
from yolact.errors import CheckpointError, ConfigError, DataError, DownloadError
from yolact.files import distinct_names
from yolact.predict.media import Annotator, ObjectFiles, counts, free_folder
from yolact.predict.pipeline import Found
from yolact.predict.video import sampled
from yolact.presets import yolact_darknet_small
from yolact.types import Detections


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CocoInstances:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return write_dataset(tmp_path / "data", ANNOTATIONS)


@pytest.fixture
def engine(dataset: CocoInstances, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    oracle = Oracle(dataset)
    monkeypatch.setattr(yolact.engines, "load_engine", lambda *args, **kwargs: oracle)
    return oracle


def run(source: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        annotate, ["--model_filepath", "m.onnx", "--source", source, *arguments]
    )


def fails(result: Result, error: type[Exception], message: str) -> None:
    assert result.exit_code == error.exit_code, result.output  # type: ignore[attr-defined]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "\nhint: " in "\n" + result.stderr


def test_every_option_of_upstream_exists() -> None:
    spec = json.loads((PUBLISHED / "commands.json").read_text())
    ours = {name for option in annotate.params for name in option.opts}
    for option in spec["deepsparse.instance_segmentation.annotate"]["options"]:
        assert option["flags"][0] in ours


def test_one_image_is_drawn_and_named(engine: Oracle) -> None:
    result = run("data/images/0009.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "data/images/0009.png: 1 cat, 1 dog\nresults in annotation-results/oracle-annotations\n"
    )
    picture = np.asarray(cv2.imread("annotation-results/oracle-annotations/0009.jpg"))
    assert picture.shape == (120, 80, 3)


def test_each_run_has_its_own_folder(engine: Oracle) -> None:
    for _ in range(3):
        run("data/images/0009.png", "--name", "mine", "--save-dir", "all")
    assert sorted(path.name for path in Path("all").iterdir()) == ["mine", "mine-001", "mine-002"]


@pytest.mark.parametrize("source", ["data/images", "data/images/00*.png"])
def test_results_of_folders_are_named_after_their_images(engine: Oracle, source: str) -> None:
    result = run(source, "--name", "x")
    assert [line.split(": ")[1] for line in result.stdout.splitlines()[:-1]] == [
        *("nothing", "1 cat, 1 dog", "1 owl"),
    ]
    folder = Path("annotation-results/x")
    assert sorted(p.name for p in folder.iterdir()) == ["0003.jpg", "0009.jpg", "0011.jpg"]


def test_the_json_file_is_a_coco_data_set(engine: Oracle) -> None:
    assert run("data/images", "--save_json", "--no_save", "--name", "x").exit_code == 0
    content = json.loads(Path("annotation-results/x/detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        *("data/images/0003.png", "data/images/0009.png", "data/images/0011.png"),
    ]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [
        *((7, "cat"), (20, "dog"), (21, "owl")),
    ]
    cat = content["annotations"][0]
    assert (cat["image_id"], cat["category_id"], cat["bbox"]) == (2, 7, [10, 20, 40, 60])
    assert rle.decode(cat["segmentation"]).shape == (120, 80)
    assert rle.decode(cat["segmentation"]).sum() == pytest.approx(40 * 60, rel=0.1)
    assert cat["score"] == pytest.approx(0.9)
    assert [path.name for path in Path("annotation-results/x").iterdir()] == ["detections.json"]


def test_nothing_is_written_when_nothing_is_asked_for(engine: Oracle) -> None:
    result = run("data/images/0009.png", "--no-save")
    assert result.stdout == "data/images/0009.png: 1 cat, 1 dog\n"
    assert not Path("annotation-results").exists()


def test_threshold_and_limit(engine: Oracle) -> None:
    assert "0009.png: 1 cat\n" in run("data/images/0009.png", "--score_threshold", "0.895").stdout
    assert "0009.png: 1 cat\n" in run("data/images/0009.png", "--top_k", "1").stdout
    assert "0009.png: nothing\n" in run("data/images/0009.png", "--score-threshold", "1").stdout


def test_a_damaged_image_among_others_is_skipped_and_reported(engine: Oracle) -> None:
    Path("data/images/0005.png").write_bytes(b"no image")
    result = run("data/images", "--name", "x")
    fails(result, DataError, "1 of 4 images could not be read")
    assert "skipped: cannot decode image data/images/0005.png" in result.stderr
    assert len(list(Path("annotation-results/x").iterdir())) == 3
    fails(run("data/images/0005.png"), DataError, "cannot decode image")


def test_videos_can_be_thinned_out(blind: None) -> None:
    writer = cv2.VideoWriter("in.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 20, (64, 48))
    for shade in range(12):
        writer.write(np.full((48, 64, 3), shade * 20, np.uint8))
    writer.release()
    result = run("in.mp4", "--target_fps", "5", "--name", "x")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("in.mp4: 3 frames\n")
    capture = cv2.VideoCapture("annotation-results/x/results.mp4")
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.fixture
def blind(engine: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that finds nothing, in whatever it is shown."""
    nothing = (torch.zeros(12, 4), torch.zeros(12, 4), torch.zeros(12, 2), torch.zeros(9, 9, 2))
    monkeypatch.setattr(Oracle, "_image", lambda self, pixels, priors: nothing)


@pytest.mark.parametrize(
    ("fps", "rate", "expected"),
    [(10, 4, [0, 3, 5, 8]), (10, 10, [*range(10)]), (10, 99, [*range(10)]), (10, 1, [0])],
)
def test_frames_are_sampled_evenly(fps: float, rate: float, expected: list[int]) -> None:
    frames = [Frame(np.full((1, 1, 3), n, np.uint8), 1000 * n / fps) for n in range(10)]
    assert [int(frame.image[0, 0, 0]) for frame in sampled(frames, fps, rate)] == expected


def test_a_folder_of_videos_is_annotated_one_by_one(blind: None) -> None:
    Path("clips").mkdir()
    for name in ("a.mp4", "b.mkv"):
        write_video(Path("clips") / name)
    Path("clips/c.mp4").write_bytes(b"no video")
    result = run("clips", "--save_json", "--name", "x")
    fails(result, DataError, "1 of 3 videos could not be read")
    assert "clips/a.mp4: 6 frames\nclips/b.mkv: 6 frames\n" in result.stdout
    assert sorted(path.name for path in Path("annotation-results/x").iterdir()) == [
        *("a.json", "a.mp4", "b.json", "b.mp4"),
    ]
    images = json.loads(Path("annotation-results/x/a.json").read_text())["images"]
    assert [image["time_ms"] for image in images] == [0, 100, 200, 300, 400, 500]
    assert [image["file_name"] for image in images[:2]] == ["frame 0", "frame 1"]


def test_objects_become_masks_cut_outs_and_polygons(engine: Oracle) -> None:
    arguments = ("--save_masks", "--save_cutouts", "--save_json", "--no_save", "--name", "x")
    result = run("data/images", *arguments)
    assert result.exit_code == 0, result.output
    folder = Path("annotation-results/x")
    objects = ("0009_001_cat", "0009_002_dog", "0011_001_owl")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}_{kind}.png" for name in objects for kind in ("mask", "cutout")), JSON_NAME]
    )
    annotations = json.loads((folder / JSON_NAME).read_text())["annotations"]
    for name, one in zip(objects, annotations, strict=True):
        mask = np.asarray(cv2.imread(str(folder / f"{name}_mask.png"), -1))  # unchanged
        code = rle.decode(one["segmentation"])
        assert (mask == 255 * code).all() and mask.any()
        cutout = np.asarray(cv2.imread(str(folder / f"{name}_cutout.png"), -1))
        x, y, width, height = map(int, one["bbox"])
        photo = np.asarray(cv2.imread(f"data/images/{name[:4]}.png"))
        assert (cutout[..., :3] == photo[y : y + height, x : x + width]).all()
        assert (cutout[..., 3] == mask[y : y + height, x : x + width]).all()
        drawn = np.zeros(mask.shape, np.uint8)
        for polygon in one["polygons"]:
            cv2.fillPoly(drawn, [np.array(polygon, np.int32).reshape(-1, 2)], (255,))
        assert (drawn != mask).mean() < 0.05


def test_class_names_make_safe_file_names(tmp_path: Path) -> None:
    names = ("../up", "Größe 1", "a" * 300)
    boxes = torch.tensor([[0.0, 0, 0.5, 0.5]] * 3)
    found = Found(
        Detections(boxes, torch.ones(3), torch.arange(3), torch.ones(3, 1), torch.arange(3)),
        torch.ones(8, 8, 1),
        (16, 16),
    )
    files = ObjectFiles(folder=tmp_path, classes=names, masks=True)
    files.write("p", np.zeros((16, 16, 3), np.uint8), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("p_001_up_mask.png", "p_002_Größe_1_mask.png", f"p_003_{'a' * 32}_mask.png"),
    ]


def test_object_files_bear_the_longest_names(tmp_path: Path) -> None:
    instances = Detections(
        *(torch.tensor([[0, 0, 1, 1.0]] * 2), torch.ones(2), torch.tensor([0, 1])),
        *(torch.ones(2, 1), torch.tensor([0, 1])),
    )
    found = Found(instances, torch.ones(4, 4, 1), (8, 8))
    files = ObjectFiles(folder=tmp_path, classes=["字" * 90, "!"], masks=True)
    name = distinct_names([Path("x" * 250)])[0]
    files.write(f"{name}_000001", np.zeros((8, 8, 3), np.uint8), found)
    assert len(list(tmp_path.glob("*_mask.png"))) == 2
    assert list(tmp_path.glob("*_class_1_mask.png"))
    assert counts(found, ["a\nb", " "]) == "1 a b, 1 class 1"


@pytest.mark.parametrize("size", [(1, 3), (4, 9000)])
def test_frames_that_fit_no_video_are_an_error_that_says_so(
    tmp_path: Path, blind: None, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Frame(np.zeros((*size, 3), np.uint8), 0.0)]
    monkeypatch.setattr(yolact.data.video.VideoReader, "__iter__", lambda _: iter(frames))
    write_video(tmp_path / "a.mp4")
    fails(run(str(tmp_path / "a.mp4")), DataError, f"{size[1]} x {size[0]} pixels")


def test_streams_and_offline(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    result = run("http://me:secret@127.0.0.1:9/v.mp4")
    fails(result, DownloadError, "http://...@127.0.0.1:9/v.mp4 is not on this machine")
    monkeypatch.delenv("YOLACT_OFFLINE")
    result = run("http://me:secret@127.0.0.1:9/v.mp4", "--save_json")
    fails(result, DataError, "cannot open http://...@127.0.0.1:9/v.mp4")
    assert "secret" not in result.output
    assert not list(Path("annotation-results").iterdir())


def test_counts_name_the_most_frequent_first(engine: Oracle, dataset: CocoInstances) -> None:
    annotated = Annotator(engine=engine)([dataset.image(1)])[0]
    assert counts(annotated.found, dataset.classes.names) == "1 cat, 1 dog"


def test_a_fixed_batch_size_takes_any_number_of_images(dataset: CocoInstances) -> None:
    engine = Oracle(dataset, batch_size=2)
    images = [dataset.image(index) for index in range(3)]
    found = [counts(a.found, dataset.classes.names) for a in Annotator(engine=engine)(images)]
    assert found == ["nothing", "1 cat, 1 dog", "1 owl"]
    assert engine.calls == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["nowhere.jpg"], DataError, "no image, video or folder at nowhere.jpg"),
        (["*.gif"], DataError, "no images in *.gif"),
        (["data"], DataError, "no images in data"),
        (["data/images", "--engine", "deepsparse"], ConfigError, "deepsparse is not available"),
        (["data/images", "--target_fps", "0"], ConfigError, "--target_fps is 0"),
        (["data/images", "--config", "resnet"], ConfigError, "unknown config 'resnet'"),
        (["data/images"], CheckpointError, "m.onnx"),
    ],
)
def test_mistakes_read_as_an_error_and_a_hint(
    dataset: CocoInstances, arguments: list[str], error: type[Exception], message: str
) -> None:
    fails(run(*arguments), error, message)
    assert not Path("annotation-results").exists()


def test_a_stub_of_the_zoo_is_explained(dataset: CocoInstances) -> None:
    arguments = ["--model_filepath", "zoo:cv/segmentation/yolact-darknet53/pytorch"]
    result = CliRunner().invoke(annotate, [*arguments, "--source", "data/images"])
    fails(result, CheckpointError, "is not a model that SparseZoo had for YOLACT")
    assert "did you mean zoo:" in result.stderr


def test_a_checkpoint_runs_at_another_size_with_its_own_names(dataset: CocoInstances) -> None:
    from yolact.checkpoint import Checkpoint, save_checkpoint
    from yolact.model.weights import init_weights
    from yolact.model.yolact import Yolact

    small: YolactConfig = yolact_darknet_small().with_model(num_classes=2)
    model = Yolact(small.model)
    init_weights(model)
    names = Classes(("hat", "coat"), (4, 8))
    state = model.state_dict()
    checkpoint = Checkpoint(model_state=state, epoch=0, iteration=1, classes=names, config=small)
    save_checkpoint(Path("m.pth"), checkpoint)
    arguments = ["--model_filepath", "m.pth", "--model_input_image_shape", "64", "96"]
    result = CliRunner().invoke(
        annotate,
        [*arguments, "--source", "data/images/0009.png", "--score_threshold", "0", "--save_json"],
    )
    assert result.exit_code == 0, result.output
    content = json.loads(Path("annotation-results/torch-annotations/detections.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["hat", "coat"]


def test_free_folders_count_up(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-001").mkdir()
    assert free_folder(tmp_path, "a") == tmp_path / "a-002"
