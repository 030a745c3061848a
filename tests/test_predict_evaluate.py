"""Evaluation: pycocotools' numbers over all images, for any engine."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import pytest
from pycocotools.coco import COCO

from conftest import GoldenSet
from oracle import ANNOTATIONS, Oracle, open_dataset, rectangle, write_dataset
from yolact.data.coco import CocoInstances
from yolact.data.labels import Classes
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.predict.evaluate import (
    Evaluation,
    EvaluationOptions,
    collect,
    evaluate,
    match_classes,
    run_evaluation,
    score,
)
from yolact.predict.pipeline import Selection
from yolact.predict.results import (
    THRESHOLDS,
    UNDEFINED,
    AveragePrecision,
    CocoResults,
    DetectionFile,
    average_precision,
)

CORNER = (0.0, 0.0, 0.2, 0.2)
Kind = Literal["bbox", "segm"]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoInstances:
    return write_dataset(tmp_path / "data", ANNOTATIONS)


@pytest.fixture(scope="module")
def truth(golden: GoldenSet) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(str(golden.folder / "ap_gt.json"))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_numbers_equal_golden(golden: GoldenSet, truth: COCO, kind: Kind) -> None:
    stored = golden.json("ap.json")
    entries = golden.json(f"ap_{kind}_results.json")
    measured = average_precision(truth, entries, kind, truth.getImgIds())
    assert list(measured.stats) == stored["coco"]["names"]
    assert list(measured.stats.values()) == pytest.approx(stored["coco"][kind], abs=1e-6)
    assert measured.table["all"] == pytest.approx(100 * stored["coco"][kind][0], abs=1e-6)
    assert measured.table[50] == pytest.approx(100 * stored["coco"][kind][1], abs=1e-6)
    assert measured.table[75] == pytest.approx(100 * stored["coco"][kind][2], abs=1e-6)
    assert list(measured.table) == ["all", *THRESHOLDS]
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    for category, (ap, ap50) in stored["coco"][f"per_category_AP_AP50_{kind}"].items():
        if ap != UNDEFINED:
            expected = (100 * ap, 100 * ap50)
            assert measured.per_class[names[int(category)]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_table_is_the_references_without_its_deviations(
    golden: GoldenSet, truth: COCO, kind: Kind
) -> None:
    breakdown = golden.json("ap.json")["deviation_breakdown"]
    rows = [row for key, row in breakdown.items() if key != "note"]
    entries = golden.json(f"ap_{kind}_results.json")
    measured = average_precision(truth, entries, kind, truth.getImgIds()).table
    row = rows[-1]["box" if kind == "bbox" else "mask"]
    for key, expected in row.items():
        assert measured[key if key == "all" else int(key)] == pytest.approx(expected, abs=0.05)


def test_entries_are_not_modified(golden: GoldenSet, truth: COCO) -> None:
    entries = golden.json("ap_segm_results.json")
    average_precision(truth, entries, "segm", truth.getImgIds())
    assert entries == golden.json("ap_segm_results.json")


def test_a_model_that_knows_the_truth_is_perfect(dataset: CocoInstances) -> None:
    found = evaluate(Oracle(dataset), dataset, progress=False)
    assert found.images == 3
    assert found.box["all"] == pytest.approx(100)
    assert found.mask[75] == pytest.approx(100)
    assert set(found.box_ap.per_class) == {"cat", "dog", "owl"}


@pytest.mark.parametrize(("batch_size", "fixed"), [(2, None), (3, None), (1, 2), (1, 4)])
def test_the_batch_size_changes_nothing(
    dataset: CocoInstances, batch_size: int, fixed: int | None
) -> None:
    one_by_one = collect(Oracle(dataset), dataset, progress=False)
    engine = Oracle(dataset, batch_size=fixed)
    batched = collect(engine, dataset, batch_size=batch_size, progress=False)
    assert batched == one_by_one
    if fixed:
        assert set(engine.calls) == {fixed}


def test_every_image_is_seen_once_and_a_limit_is_kept(dataset: CocoInstances) -> None:
    engine = Oracle(dataset)
    evaluate(engine, dataset, progress=False)
    assert sum(engine.calls) == 3
    engine = Oracle(dataset)
    found = evaluate(engine, dataset, image_ids=[11], progress=False)
    assert sum(engine.calls) == found.images == 1
    assert set(found.box_ap.per_class) == {"owl"}


def test_detections_on_images_without_annotations_are_wrong(dataset: CocoInstances) -> None:
    engine = Oracle(dataset, extra=[(2, CORNER)])
    (owls,) = (
        evaluate(engine, dataset, image_ids=ids, progress=False).box["all"] for ids in ([3, 11],)
    )
    assert owls < 75  # the one on image 3 outranks the true one of image 11


def test_classes_without_ground_truth_do_not_count(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", ANNOTATIONS[:1])
    engine = Oracle(data, extra=[(2, CORNER)])
    found = evaluate(engine, data, progress=False)
    assert found.box["all"] == pytest.approx(100)
    assert set(found.box_ap.per_class) == {"cat"}


def test_crowds_absorb_detections(tmp_path: Path) -> None:
    crowd = rectangle(4, 11, 21, (0, 0, 64, 64), iscrowd=1)
    crowd["segmentation"] = {"size": [64, 64], "counts": [0, 64 * 64]}
    owl = rectangle(3, 11, 21, (20, 30, 40, 24))
    data = write_dataset(tmp_path / "crowd", [owl, crowd])
    inside = [(2, (0.0, 0.0, 0.2, 0.2)), (2, (0.0, 0.3, 0.2, 0.5))]
    engine = Oracle(data, extra=inside)
    with_crowd = evaluate(engine, data, image_ids=[11], progress=False)
    assert with_crowd.mask[50] == pytest.approx(100)


def test_no_detections_cost_everything_but_do_not_crash(dataset: CocoInstances) -> None:
    found = evaluate(Oracle(dataset), dataset, Selection(score_threshold=0.99), progress=False)
    assert (found.box["all"], found.mask["all"], found.images) == (0, 0, 3)


def test_a_data_set_without_objects_has_no_ap(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "empty", [])
    found = evaluate(Oracle(data), data, progress=False)
    assert found.box["all"] == found.mask_ap.stats["AP"] == UNDEFINED  # type: ignore[union-attr]
    assert "   box |     - |" in found.table()


def test_an_object_without_a_mask_is_left_out(tmp_path: Path) -> None:
    hollow = rectangle(4, 11, 7, (0, 0, 10, 10), segmentation=[])
    data = write_dataset(tmp_path / "hollow", [*ANNOTATIONS, hollow])
    found = evaluate(Oracle(data), data, progress=False)
    assert found.mask[50] == pytest.approx(100)


def test_measuring_twice_gives_the_same_and_prints_nothing(
    dataset: CocoInstances, capsys: pytest.CaptureFixture[str]
) -> None:
    results = collect(Oracle(dataset), dataset, progress=False)
    first = score(dataset, results)
    assert score(dataset, results) == first
    assert capsys.readouterr().out == ""


def test_boxes_alone_can_be_measured(dataset: CocoInstances) -> None:
    results = collect(Oracle(dataset), dataset, Selection(masks=False), progress=False)
    found = score(dataset, results, masks=False)
    assert results.segm == [] and found.mask == {} and found.mask_ap is None
    assert "mask" not in found.table()
    assert found.per_class_table().count("\n") == 3


def test_top_k_keeps_the_best(dataset: CocoInstances) -> None:
    results = collect(Oracle(dataset), dataset, Selection(top_k=1), image_ids=[9], progress=False)
    assert [entry["category_id"] for entry in results.bbox] == [7]


def test_classes_are_matched_by_name_not_by_order(dataset: CocoInstances) -> None:
    shuffled = Classes(("owl", "horse", "dog", "cat"), (1, 2, 3, 4))
    found = evaluate(Oracle(dataset, shuffled), dataset, progress=False)
    assert found.box["all"] == pytest.approx(100)
    assert match_classes(shuffled, dataset.classes) == [21, None, 20, 7]


def test_classes_the_data_set_does_not_know_are_dropped(dataset: CocoInstances) -> None:
    more = Classes(("owl", "horse", "dog", "cat"), (1, 2, 3, 4))
    engine = Oracle(dataset, more, extra=[(1, CORNER)])
    results = collect(engine, dataset, progress=False)
    assert {entry["category_id"] for entry in results.bbox} == {7, 20, 21}


def test_a_model_of_other_classes_is_refused(dataset: CocoInstances) -> None:
    with pytest.raises(CheckpointError) as caught:
        evaluate(Oracle(dataset, Classes(("cat", "car"), (1, 2))), dataset, progress=False)
    assert str(caught.value) == (
        "the model knows 2 classes ('cat', 'car'), but not 2 of the data set's 3: 'dog', 'owl'"
    )
    assert "checkpoint of other classes" in (caught.value.hint or "")


def test_names_written_in_another_way_are_matched(dataset: CocoInstances) -> None:
    other = Classes(("Owl", "dog ", "CAT", "cow"), (1, 2, 3, 4))
    assert match_classes(other, dataset.classes) == [21, 20, 7, None]


def test_a_category_without_objects_need_not_be_known(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", ANNOTATIONS[:2])
    model = Classes(("dog", "cat"), (1, 2))
    assert evaluate(Oracle(data, model), data, progress=False).box["all"] == pytest.approx(100)
    with pytest.raises(CheckpointError, match="'owl'"):
        match_classes(model, data.classes)


def test_result_files_have_the_ids_of_the_annotation_file(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", ANNOTATIONS)
    info = tmp_path / "d" / "annotations" / "instances_val2017.json"
    content = json.loads(info.read_text())
    for image in content["images"]:
        image["id"] = f"img-{image['id']}"
    for category in content["categories"]:
        category["id"] = category["name"].upper()
    names = {7: "CAT", 20: "DOG", 21: "OWL"}
    for entry in content["annotations"]:
        entry["image_id"] = f"img-{entry['image_id']}"
        entry["category_id"] = names[entry["category_id"]]
    info.write_text(json.dumps(content))
    data = open_dataset(tmp_path / "d")
    kept, boxes, masks = (tmp_path / name for name in ("kept.json", "boxes.json", "masks.json"))
    options = EvaluationOptions(
        selection=Selection(), detections=kept, bbox_file=boxes, mask_file=masks, progress=False
    )
    report = run_evaluation(lambda: Oracle(data), data, options)
    assert report.evaluation is not None
    assert report.evaluation.mask[75] == pytest.approx(100)
    found = {("img-9", "CAT"), ("img-9", "DOG"), ("img-11", "OWL")}
    for path in (boxes, masks):
        entries = [e for e in json.loads(path.read_text()) if e["score"] > 0.5]
        assert {(e["image_id"], e["category_id"]) for e in entries} == found


def test_a_model_without_names_fits_a_data_set_of_its_size() -> None:
    data = Classes(("cat", "dog"), (5, 9))
    assert match_classes(Classes.numbered(2), data) == [5, 9]
    with pytest.raises(CheckpointError):
        match_classes(Classes.numbered(3), data)


def test_classes_that_share_a_name_keep_their_ids() -> None:
    twins = Classes(("cat", "cat"), (5, 9))
    assert match_classes(twins, twins) == [5, 9]


def test_unknown_images_are_refused(dataset: CocoInstances) -> None:
    with pytest.raises(ConfigError, match="no image 4 in the data set"):
        evaluate(Oracle(dataset), dataset, image_ids=[4], progress=False)


def test_the_table_has_the_references_layout(dataset: CocoInstances) -> None:
    results = collect(Oracle(dataset), dataset, progress=False)
    table = score(dataset, results).table().splitlines()
    assert table[0] == (
        "       |  all  |  .50  |  .55  |  .60  |  .65  |  .70  |  .75  |  .80  |  .85  |"
        "  .90  |  .95  |"
    )
    assert table[1] == table[4] == "-------+" * 12
    assert table[2].startswith("   box | 100.0 | 100.0 |")
    assert table[3].startswith("  mask |")


def test_saved_results_come_back(dataset: CocoInstances, tmp_path: Path) -> None:
    results = collect(Oracle(dataset), dataset, progress=False)
    results.save(tmp_path / "new" / "ap.json")
    assert CocoResults.load(tmp_path / "new" / "ap.json") == results


@pytest.mark.parametrize("text", [None, "not json", "[]", '{"bbox": []}'])
def test_other_files_are_no_saved_results(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ap.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="saved detections") as caught:
        CocoResults.load(path)
    assert caught.value.hint == "run once without --resume"


def test_an_annotation_file_of_detections_is_coco(dataset: CocoInstances, tmp_path: Path) -> None:
    results = collect(Oracle(dataset), dataset, progress=False)
    path = tmp_path / "detections.json"
    DetectionFile(dataset.classes, dataset.coco.dataset["images"], results).save(path)
    with redirect_stdout(io.StringIO()):
        index = COCO(str(path))
    assert {category["name"] for category in index.cats.values()} == {"cat", "dog", "owl"}
    for annotation in index.loadAnns(index.getAnnIds()):
        assert index.annToMask(annotation).sum() == annotation["area"] > 0


def precision() -> AveragePrecision:
    table: dict[str | int, float] = {"all": 41.264, **dict.fromkeys(THRESHOLDS, 5.0), 95: UNDEFINED}
    per_class = {"cat": (100.0, 99.999), "a long name": (7.126, UNDEFINED)}
    return AveragePrecision(table, {}, per_class, "")


def test_the_printed_tables_to_the_letter() -> None:
    both = Evaluation(precision(), precision(), 3)
    assert both.table() == (
        "       |  all  |  .50  |  .55  |  .60  |  .65  |  .70  |  .75  |  .80  |  .85  |"
        "  .90  |  .95  |\n"
        "-------+-------+-------+-------+-------+-------+-------+-------+-------+-------+"
        "-------+-------+\n"
        "   box | 41.26 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |"
        "  5.00 |     - |\n"
        "  mask | 41.26 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |  5.00 |"
        "  5.00 |     - |\n"
        "-------+-------+-------+-------+-------+-------+-------+-------+-------+-------+"
        "-------+-------+"
    )
    assert both.per_class_table() == (
        " class       | box AP    .50 | mask AP   .50\n"
        " cat         |  100.0  100.0 |   100.0 100.0\n"
        " a long name |   7.13      - |    7.13     -"
    )
    boxes = Evaluation(precision(), None, 3)
    assert boxes.per_class_table().splitlines()[1] == (
        " cat         |  100.0  100.0 |       -     -"
    )
