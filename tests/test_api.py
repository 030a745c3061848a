"""From Python: ``yolact.load`` any model, ``predict`` any image, results in every form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

import yolact
from onnx_models import CLASSES, small_model
from onnx_models import save as save_model
from oracle import ANNOTATIONS, CATEGORIES, Oracle, write_dataset
from yolact.cli.annotate import annotate
from yolact.cli.export_onnx import export_onnx
from yolact.data.coco import CocoInstances
from yolact.data.images import read_rgb
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError, DataError, StorageError
from yolact.exporter.trace import generated_picture as card
from yolact.predict.draw import Style
from yolact.predict.results import outlines

Mask = NDArray[np.bool_]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoInstances:
    return write_dataset(tmp_path / "data", ANNOTATIONS)


@pytest.fixture
def model(dataset: CocoInstances) -> yolact.Model:
    """Finds the annotated objects of the data set."""
    return yolact.Model(Oracle(dataset))


@pytest.fixture
def result(model: yolact.Model, dataset: CocoInstances) -> yolact.Result:
    return model.predict(dataset.images / "0009.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network as every kind of file: m.pth, m.onnx, m.onnx.*, deployment/, inside.onnx."""
    folder = tmp_path_factory.mktemp("files")
    save_model(small_model(), folder / "m.pth")
    Image.fromarray(card(90, 120)).save(folder / "card.png")
    packed = [word for kind in ("gz", "xz", "zst") for word in ("--compress", kind)]
    for name, options in (
        ("m.onnx", ["--deployment", *packed]),
        ("inside.onnx", ["--with-nms"]),
    ):
        arguments = ["--checkpoint", folder / "m.pth", "--name", folder / name, *options]
        done = CliRunner().invoke(export_onnx, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("m.pth", "torch"),
        *((f"m.onnx{ending}", "onnxruntime") for ending in ("", ".gz", ".xz", ".zst")),
        ("deployment", "onnxruntime"),
        ("inside.onnx", "onnxruntime"),
    ],
)
def test_every_kind_of_file_finds_the_same(files: Path, name: str, engine: str) -> None:
    model = yolact.load(files / name)
    assert (model.engine.name, model.image_size, model.classes) == (engine, (96, 96), CLASSES)
    found = model.predict(files / "card.png")
    reference = yolact.load(str(files / "m.onnx")).predict(files / "card.png")
    assert len(found) > 3
    np.testing.assert_allclose(found.scores[:3], reference.scores[:3], atol=1e-4)
    assert found.names[0] == reference.names[0]
    assert found.masks.shape == (len(found), 90, 120)


def test_a_stub_is_found_like_those_of_the_commands(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = "zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco/pruned90-none"
    mirrors = tmp_path / "mirrors.yaml"
    mirrors.write_text(f"{stub}:\n  onnx: {files / 'm.onnx'}\n  checkpoint: {files / 'm.pth'}\n")
    monkeypatch.setenv("YOLACT_ZOO_MIRRORS", str(mirrors))
    monkeypatch.setenv("YOLACT_OFFLINE", "1")
    assert yolact.load(stub).engine.name == "onnxruntime"
    assert yolact.load(stub, engine="torch").engine.name == "torch"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("none.onnx", {}, CheckpointError, "model not found"),
        ("card.png", {}, CheckpointError, "not a model file"),
        (".", {}, CheckpointError, "holds no model.onnx"),
        ("m.onnx", {"engine": "tensorrt"}, ConfigError, "unknown engine 'tensorrt'"),
        ("m.pth", {"device": "gpu"}, ConfigError, "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_loaded_is_an_error_with_a_hint(
    files: Path, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        yolact.load(files / name, **options)
    assert getattr(caught.value, "hint", None)


def test_a_model_says_what_it_is(model: yolact.Model, dataset: CocoInstances) -> None:
    assert model.classes.names == ("cat", "dog", "owl")
    assert model.image_size == (96, 96)
    assert model.engine.name == "oracle"


def test_a_result_is_typed_arrays(result: yolact.Result) -> None:
    assert result.names == ["cat", "dog"] and result.size == (120, 80)
    assert result.scores.tolist() == pytest.approx([0.9, 0.89])
    np.testing.assert_allclose(result.boxes, [[10, 20, 50, 80], [30, 70, 74, 114]], atol=1)
    assert result.labels.tolist() == [0, 1]
    assert result.masks.shape == (2, 120, 80)
    kinds = (result.scores, result.boxes, result.labels, result.masks, result.image)
    assert [str(values.dtype) for values in kinds] == ["float32", "int64", "int64", "bool", "uint8"]


def test_iterating_gives_the_instances(result: yolact.Result) -> None:
    cat, dog = result
    assert (cat.name, cat.box, cat.label) == ("cat", (10, 20, 50, 80), 0)
    assert dog.score == pytest.approx(0.89)
    assert (cat.mask == result.masks[0]).all()
    assert len(result) == 2
    assert repr(result) == "<Result: cat 0.90, dog 0.89>"


def test_paths_pillow_images_and_arrays_are_the_same_image(
    model: yolact.Model, dataset: CocoInstances
) -> None:
    path = dataset.images / "0009.png"
    pixels = read_rgb(path)
    bgr = cv2.imread(str(path))
    assert bgr is not None
    for image in (str(path), path, Image.open(path), pixels, bgr[..., ::-1]):
        assert model.predict(image).names == ["cat", "dog"]


def test_pillow_images_of_other_modes_become_rgb(
    model: yolact.Model, dataset: CocoInstances
) -> None:
    image = Image.open(dataset.images / "0009.png")
    assert model.predict(image.convert("RGBA")).names == ["cat", "dog"]
    grey = _predicts_nothing(model).predict(image.convert("L"))
    assert grey.image.shape == (120, 80, 3)


def _predicts_nothing(model: yolact.Model) -> yolact.Model:
    class Blind(Oracle):
        def _image(self, pixels: bytes, priors: Any) -> Any:
            n = len(priors)
            shapes = ((n, 4), (n, 4), (n, 2), (9, 9, 2))
            return tuple(priors.new_zeros(*shape) for shape in shapes)

    assert isinstance(model.engine, Oracle)
    return yolact.Model(Blind(model.engine.dataset))


def test_a_list_gives_a_list(model: yolact.Model, dataset: CocoInstances) -> None:
    paths = sorted(dataset.images.iterdir())
    assert [found.names for found in model.predict(paths)] == [[], ["cat", "dog"], ["owl"]]
    assert [found.size for found in model.predict(tuple(paths))] == [(90, 120), (120, 80), (64, 64)]
    assert model.predict([]) == []


def test_a_model_of_a_fixed_batch_size_takes_any_list(dataset: CocoInstances) -> None:
    engine = Oracle(dataset, batch_size=2)
    found = yolact.Model(engine).predict(sorted(dataset.images.iterdir()))
    assert [one.names for one in found] == [[], ["cat", "dog"], ["owl"]]
    assert engine.calls == [2, 2]


def test_threshold_and_limit(model: yolact.Model, dataset: CocoInstances) -> None:
    path = dataset.images / "0009.png"
    assert model.predict(path, score_threshold=0.895).names == ["cat"]
    assert model.predict(path, top_k=1).names == ["cat"]
    assert len(model.predict(path, score_threshold=1)) == 0


def test_the_callers_pixels_are_copied(model: yolact.Model, dataset: CocoInstances) -> None:
    frame = read_rgb(dataset.images / "0009.png")
    result = model.predict(frame)
    frame[:] = 0
    assert result.image.any()


@pytest.mark.parametrize(
    ("image", "message", "hint"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 values", "255"),
        (np.zeros((4, 4, 3), bool), "bool values", "uint8"),
        (np.zeros((4, 4), np.uint8), r"shape \[4, 4\]", "height, width, 3"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \[4, 4, 4\]", "height, width, 3"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \[2, 4, 4, 3\]", "several images as a list"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]", "height, width, 3"),
        (Image.new("I;16", (4, 4)), "mode I;16", "convert"),
        (Image.new("F", (4, 4)), "mode F", "convert"),
        (b"bytes", "a bytes is no image", "give a path"),
        (None, "a NoneType is no image", "give a path"),
        ("nowhere.jpg", "no image at nowhere.jpg", "check the path"),
    ],
)
def test_what_is_no_image_is_an_error_that_says_what_to_do(
    model: yolact.Model, image: Any, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        model.predict(image)
    assert hint in str(caught.value.hint)


def test_a_damaged_pillow_image(model: yolact.Model, tmp_path: Path) -> None:
    Image.fromarray(card(90, 120)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        model.predict(Image.open(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "options", [{"score_threshold": 30}, {"score_threshold": -1}, {"top_k": 0}]
)
def test_options_out_of_range_are_refused(
    model: yolact.Model, dataset: CocoInstances, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
        model.predict(dataset.images / "0009.png", **options)


def result_of(*masks: Mask) -> yolact.Result:
    """A result with these masks."""
    count, (height, width) = len(masks), masks[0].shape
    labels = np.zeros(count, np.int64)
    boxes = np.tile(np.array([0, 0, width, height]), (count, 1))
    image = np.zeros((height, width, 3), np.uint8)
    scores = np.full(count, 0.5, np.float32)
    return yolact.Result(image, Classes(("a",), (1,)), labels, scores, boxes, np.stack(masks))


def drawn(*rows: str) -> Mask:
    return np.array([[letter == "#" for letter in row] for row in rows])


def signed_area(polygon: NDArray[np.int32]) -> float:
    """Positive where it runs counter-clockwise on the screen."""
    x, y = polygon.T.astype(float)
    return float(np.sum(np.roll(x, -1) * y - x * np.roll(y, -1)) / 2)


def test_the_polygon_of_a_rectangle_is_its_box() -> None:
    ((polygon,),) = result_of(drawn("....", ".##.", ".##.", ".##.")).polygons()
    assert sorted(polygon.tolist()) == [[1, 1], [1, 4], [3, 1], [3, 4]]
    assert polygon.dtype == np.int32


def test_parts_come_first_and_then_holes() -> None:
    mask = drawn("####..#", "#..#..#", "####..#")
    (polygons,) = result_of(mask).polygons()
    assert [signed_area(polygon) for polygon in polygons] in ([12, 3, -2], [3, 12, -2])


def test_an_empty_mask_has_no_polygon() -> None:
    assert result_of(drawn("..", "..")).polygons() == [[]]


@pytest.mark.parametrize("axes", [(2, 1), (5, 1), (9, 3), (25, 2), (20, 20)])
def test_simpler_polygons_keep_the_area_of_thin_objects(axes: tuple[int, int]) -> None:
    mask = np.zeros((60, 60), np.uint8)
    cv2.ellipse(mask, (30, 30), axes, 35, 0, 360, (1,), -1)
    area = sum(map(signed_area, outlines(mask.view(np.bool_), 1.0)))
    assert area == pytest.approx(mask.sum(), rel=0.12)


@settings(deadline=None, max_examples=150)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_are_the_mask_exactly(mask: Mask) -> None:
    (polygons,) = result_of(mask).polygons()
    assert sum(map(signed_area, polygons)) == mask.sum()
    for y, x in np.ndindex(mask.shape):
        around = [
            cv2.pointPolygonTest(polygon.astype(np.float32), (x + 0.5, y + 0.5), False) > 0
            for polygon in polygons
        ]
        assert sum(around) % 2 == mask[y, x]


def test_a_tolerance_saves_points_and_stays_near() -> None:
    y, x = np.mgrid[:100, :120]
    disc = np.hypot(x - 60, y - 50) < 40
    ((exact,),), ((simple,),) = (result_of(disc).polygons(value) for value in (0, 1.5))
    assert len(simple) < len(exact) / 4
    assert np.abs(np.hypot(*(simple - [60.5, 50.5]).T) - 40).max() < 3
    assert signed_area(simple) == pytest.approx(disc.sum(), rel=0.05)
    ((point,),) = result_of(drawn("...", ".#.", "...")).polygons(tolerance=10)
    assert signed_area(point) == 1  # too small to be simplified


def test_coco_entries_can_be_measured(result: yolact.Result) -> None:
    cat, dog = entries = json.loads(json.dumps(result.to_coco(image_id=9)))
    assert (cat["image_id"], cat["category_id"], cat["bbox"]) == (9, 7, [10, 20, 40, 60])
    assert dog["score"] == pytest.approx(0.89)
    for entry, mask in zip(entries, result.masks, strict=True):
        assert (rle.decode(entry["segmentation"]) == mask).all()
    truth = COCO()
    truth.dataset = {"images": [{"id": 9, "height": 120, "width": 80}], "categories": CATEGORIES}
    truth.createIndex()
    assert len(truth.loadRes(entries).anns) == 2


def test_supervision_gets_everything(result: yolact.Result) -> None:
    supervision = pytest.importorskip("supervision")
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, result.boxes)
    np.testing.assert_array_equal(detections.mask, result.masks)
    np.testing.assert_array_equal(detections.confidence, result.scores)
    np.testing.assert_array_equal(detections.class_id, result.labels)
    assert detections["class_name"].tolist() == ["cat", "dog"]
    picture = supervision.MaskAnnotator().annotate(result.image.copy(), detections)
    assert (picture != result.image).any()


def test_supervision_gets_nothing_where_nothing_was_found(
    model: yolact.Model, dataset: CocoInstances
) -> None:
    pytest.importorskip("supervision")
    assert len(model.predict(dataset.images / "0003.png").to_supervision()) == 0


def test_without_supervision_the_error_says_how_to_install_it(
    result: yolact.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="supervision is not installed") as caught:
        result.to_supervision()
    assert caught.value.hint == "pip install supervision"


def test_a_plot_is_the_picture_of_the_annotate_command(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model_filepath", files / "m.onnx", "--source", files / "card.png"]
    done = CliRunner().invoke(annotate, [*map(str, arguments), "--name", "x"])
    assert done.exit_code == 0, done.output
    result = yolact.load(files / "m.onnx").predict(files / "card.png")
    picture = result.plot("out/mine.jpg")
    theirs = (tmp_path / "annotation-results" / "x" / "card.jpg").read_bytes()
    assert Path("out/mine.jpg").read_bytes() == theirs
    assert picture.shape == (90, 120, 3) and picture.dtype == np.uint8
    assert (picture != result.image).any()


def test_a_plot_draws_what_is_asked_for(result: yolact.Result) -> None:
    nothing = result.plot(style=Style(masks=False, boxes=False, text=False))
    assert (nothing == result.image).all() and nothing is not result.image
    with pytest.raises(StorageError, match="cannot write an image as a.xyz"):
        result.plot("a.xyz")


@pytest.mark.slow
def test_an_onnx_file_is_used_without_sparseml(files: Path) -> None:
    code = (
        "import sys, yolact\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "found = yolact.load(sys.argv[1]).predict(sys.argv[2])\n"
        "found.plot(), found.polygons(), found.to_coco()\n"
        "print(len(found), 'sparseml' in sys.modules)"
    )
    arguments = [str(files / name) for name in ("m.onnx", "card.png")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, sparseml = done.stdout.split()
    assert int(count) > 3 and sparseml == "False"


def test_paths_may_begin_at_home(
    files: Path, model: yolact.Model, dataset: CocoInstances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(files))
    monkeypatch.setenv("USERPROFILE", str(files))
    assert len(yolact.load("~/m.onnx").classes) and yolact.load_engine(Path("~/m.onnx"))
    assert yolact.load_checkpoint(Path("~/m.pth")).model_state
    monkeypatch.setenv("HOME", str(dataset.images))
    monkeypatch.setenv("USERPROFILE", str(dataset.images))
    assert len(model.predict("~/0009.png")) == len(model.predict(dataset.images / "0009.png"))
