"""ap.json and its data: average precision of made-up detections on generated ground truth."""

from __future__ import annotations

import io
import json
import shutil
from collections import defaultdict
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from golden.pictures import mask_of, sample_folder
from golden.reference import Reference
from golden.store import generator, origin, save_json

IMAGES, SIZE = 30, 300
NEVER_DRAWN = ("hexagon", "arrow")
"""Classes without ground truth, which the original counts as AP 0 where they are detected."""
COCO_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
KINDS = {"bbox": "box", "segm": "mask"}
Entry = dict[str, Any]


def write_ap(reference: Reference, folder: Path) -> None:
    """Write ap.json, ap_gt.json, ap_bbox_results.json and ap_segm_results.json."""
    truth = ground_truth()
    found = detections(truth)
    save_json(folder / "ap_gt.json", {"info": origin(reference), **truth})
    for kind in KINDS:
        save_json(folder / f"ap_{kind}_results.json", [entry_of(each, kind) for each in found])
    ids = [image["id"] for image in truth["images"]]
    table = Table(reference, folder / "ap_gt.json", found)
    badhash = reference.evaluation.badhash
    with classes_of(reference, truth), redirect_stdout(io.StringIO()):
        plain, counts = table.measure()
        breakdown = {
            "as_is": plain,
            "no_gt_classes_excluded": table.measure(only_with_truth=True)[0],
            "and_small_gt_kept": table.measure(only_with_truth=True, small=True)[0],
            "and_crowd_class_fixed": table.measure(only_with_truth=True, small=True, crowds=True)[
                0
            ],
        }
    content = {
        **origin(reference),
        "image_ids": ids,
        "hash": {str(image): badhash(image) for image in ids},
        "evaluation_order_by_hash": sorted(ids, key=badhash),
        "coco": coco_numbers(folder),
        "reference_table_unrounded": plain,
        "reference_counts_at_50": counts,
        "deviation_breakdown": breakdown,
        "num_detections": len(found),
        "ap_from_points": points(reference),
    }
    save_json(folder / "ap.json", content)


def classes_of(reference: Reference, truth: dict[str, Any]) -> AbstractContextManager[None]:
    """Let the original know the classes of this data."""
    names = [category["name"] for category in truth["categories"]]
    labels = {category["id"]: i + 1 for i, category in enumerate(truth["categories"])}
    changes = {"class_names": names, "label_map": labels}
    return reference.settings(dataset=reference.cfg.dataset.copy(changes))


def ground_truth() -> dict[str, Any]:
    """Annotations of generated images, with a few very small ones added."""
    folder = sample_folder(SIZE, IMAGES)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    taken = max(category["id"] for category in content["categories"])
    for number, name in enumerate(NEVER_DRAWN):
        content["categories"].append({"id": taken + 1 + number, "name": name})
    rng = generator("ap.specks")
    for number in range(12):
        image = content["images"][number * 2]
        side, x, y = (int(rng.integers(*ends)) for ends in ((1, 6), (5, 200), (5, 200)))
        content["annotations"].append(
            {
                "id": 9_000_000 + number,
                "image_id": image["id"],
                "category_id": content["categories"][number % 6]["id"],
                "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                "area": float(side * side),
                "bbox": [float(x), float(y), float(side), float(side)],
                "iscrowd": 0,
            }
        )
    if not any(entry["iscrowd"] for entry in content["annotations"]):
        raise LookupError("the generated images hold no crowd: take more of them")
    content["annotations"] = thinned(content["annotations"])
    # the original passes over images without annotations
    shown = {entry["image_id"] for entry in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in shown]
    return {key: content[key] for key in ("images", "annotations", "categories")}


def thinned(annotations: list[Entry]) -> list[Entry]:
    """Fewer objects, so that no recall is a whole percentage.

    There the original and COCO disagree: 7 of 20 is not quite the 35th of COCO's hundredths.
    """
    removed: set[int] = set()
    for category in {entry["category_id"] for entry in annotations}:
        of_class = [e for e in annotations if e["category_id"] == category and not e["iscrowd"]]
        while gcd(len(of_class), 100) > 1:
            removed.add(of_class.pop()["id"])
    return [entry for entry in annotations if entry["id"] not in removed]


@dataclass(frozen=True)
class Found:
    """One detection: integer corners and a mask of the image's size."""

    image: int
    category: int
    score: float
    box: tuple[int, int, int, int]
    mask: NDArray[np.uint8]


def detections(truth: dict[str, Any]) -> list[Found]:
    """True objects that moved, or got another class, and things that are not there."""
    rng = generator("ap.detections")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    raw: list[tuple[int, int, tuple[int, int, int, int], NDArray[np.uint8]]] = []
    for entry in truth["annotations"]:
        height, width = sizes[entry["image_id"]]
        mask = mask_of(entry, height, width)
        for _ in range(rng.integers(0, 4) + 3 * entry["iscrowd"]):
            reach = max(1, min(entry["bbox"][2:]) * rng.choice([0.02, 0.08, 0.25]))
            shift = rng.uniform(-reach, reach, 2)
            move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
            moved = np.asarray(
                cv2.warpAffine(mask, move, (width, height), flags=cv2.INTER_NEAREST), np.uint8
            )
            if moved.any():
                wrong = rng.random() < 0.2
                category = int(rng.choice(categories)) if wrong else entry["category_id"]
                raw.append((entry["image_id"], category, box_around(moved), moved))
    for image, (height, width) in sizes.items():
        for _ in range(rng.integers(1, 5)):
            x, y = rng.integers(0, width - 40), rng.integers(0, height - 40)
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + rng.integers(8, 40), x : x + rng.integers(8, 40)] = 1
            raw.append((image, int(rng.choice(categories)), box_around(mask), mask))
    by_image: dict[int, list[Entry]] = defaultdict(list)
    for entry in truth["annotations"]:
        by_image[entry["image_id"]].append(entry)
    raw = [each for each in raw if not borderline(by_image[each[0]], each[2], each[3])]
    # all different, and exact in float32
    scores = (1 + rng.permutation(len(raw))) / 1024
    return [
        Found(image, category, float(score), box, mask)
        for (image, category, box, mask), score in zip(raw, scores, strict=True)
    ]


def borderline(truth: list[Entry], box: tuple[int, int, int, int], mask: NDArray[np.uint8]) -> bool:
    """Whether an overlap equals a threshold, which the original counts as a miss and COCO a hit."""
    if not truth:
        return False
    crowds = [entry["iscrowd"] for entry in truth]
    masks = [np.asfortranarray(mask_of(entry, *mask.shape)) for entry in truth]
    x1, y1, x2, y2 = box
    rows = np.array([[x1, y1, x2 - x1, y2 - y1]], np.float64)
    overlaps = [
        rle.iou(rows, np.array([entry["bbox"] for entry in truth]), crowds),
        rle.iou([rle.encode(np.asfortranarray(mask))], [rle.encode(m) for m in masks], crowds),
    ]
    steps = np.concatenate([np.asarray(values).reshape(-1) for values in overlaps]) * 20
    return bool(((np.abs(steps - np.round(steps)) < 1e-3) & (steps > 9) & (steps < 19.5)).any())


def box_around(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Corners of the pixels that are set, the far ones outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def entry_of(found: Found, kind: str) -> Entry:
    """A detection in COCO's result format."""
    entry: Entry = {"image_id": found.image, "category_id": found.category, "score": found.score}
    x1, y1, x2, y2 = found.box
    if kind == "bbox":
        return {**entry, "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]}
    code = rle.encode(np.asfortranarray(found.mask))
    return {**entry, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}}


def coco_numbers(folder: Path) -> dict[str, Any]:
    """What COCOeval says, over all classes and for each."""
    numbers: dict[str, Any] = {"names": COCO_NAMES}
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "ap_gt.json"))
        for kind in KINDS:
            evaluation = COCOeval(
                truth, truth.loadRes(str(folder / f"ap_{kind}_results.json")), kind
            )
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers[kind] = evaluation.stats.tolist()
            # [threshold, recall, class, area, limit of detections]
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            numbers[f"per_category_AP_AP50_{kind}"] = {
                str(category): [
                    float(values[values > -1].mean()) if (values > -1).any() else -1.0
                    for values in (precision[:, :, i], precision[0, :, i])
                ]
                for i, category in enumerate(evaluation.params.catIds)
            }
    return numbers


class Table:
    """The original's own table over the same detections."""

    def __init__(self, reference: Reference, annotations: Path, found: list[Found]) -> None:
        """Remember what to measure."""
        self.reference, self.annotations = reference, annotations
        self.found: dict[int, list[Found]] = defaultdict(list)
        for each in found:
            self.found[each.image].append(each)

    def measure(
        self, *, only_with_truth: bool = False, small: bool = False, crowds: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The table in percent, and counts per class at IoU 0.5.

        Args:
            only_with_truth: Leave out classes that have no ground truth.
            small: Keep ground truth of less than 4/550 of the image.
            crowds: Let a crowd absorb detections of its class; its label is lost otherwise.
        """
        evaluation, count = self.reference.evaluation, len(self.reference.cfg.dataset.class_names)
        objects: dict[str, list[list[Any]]] = {
            kind: [[evaluation.APDataObject() for _ in range(count)] for _ in range(10)]
            for kind in KINDS.values()
        }
        with TemporaryDirectory() as temporary:
            limits = {"discard_box_width": -1, "discard_box_height": -1} if small else {}
            with self.reference.settings(**limits):
                dataset = blank_dataset(self.reference, self.annotations, Path(temporary))
                for index, image in enumerate(dataset.ids):
                    labels = [crowd["category_id"] for crowd in crowds_of(dataset, image)]
                    _, rows, masks, height, width, number = dataset.pull_item(index)
                    if crowds and number:
                        known = self.reference.cfg.dataset.label_map
                        rows[-number:, 4] = [known[label] - 1 for label in labels]
                    self._add(objects, image, (rows, masks, height, width, number))
        counts = {kind: counted(objects[kind][0]) for kind in objects}
        if only_with_truth:
            for rows_of in objects.values():
                for row in rows_of:
                    for each in row:
                        if not each.num_gt_positives:
                            each.data_points.clear()
        return percent(self.reference, objects), counts

    def _add(self, objects: dict[str, Any], image: int, truth: tuple[Any, ...]) -> None:
        rows, masks, height, width, number = truth
        found, label_map = self.found[image], self.reference.cfg.dataset.label_map
        assert found, "the original forgets the objects of an image without detections"
        stacked = torch.from_numpy(np.stack([each.mask for each in found])).float()
        output = (
            torch.tensor([label_map[each.category] - 1 for each in found]),
            torch.tensor([each.score for each in found]),
            torch.tensor([each.box for each in found]),
            stacked,
        )
        evaluation = self.reference.evaluation
        # detections are given, so there is no output of a network to turn into some
        with patch.object(evaluation, "postprocess", lambda *_, **__: output):
            evaluation.prep_metrics(objects, None, None, rows, masks, height, width, number, image)


def blank_dataset(reference: Reference, annotations: Path, folder: Path) -> Any:
    """The original's data set with its transform for evaluation; it reads images for their size."""
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        blank = np.zeros((image["height"], image["width"], 3), np.uint8)
        cv2.imwrite(str(folder / image["file_name"]), blank)
    shutil.copy(annotations, folder / "annotations.json")
    return reference.data.COCODetection(
        str(folder), str(folder / "annotations.json"), reference.augmentations.BaseTransform()
    )


def crowds_of(dataset: Any, image: int) -> list[Entry]:
    """Annotations of crowds, before the data set overwrites their class."""
    entries: list[Entry] = dataset.coco.loadAnns(dataset.coco.getAnnIds(imgIds=image))
    return [dict(entry) for entry in entries if entry["iscrowd"]]


def counted(row: list[Any]) -> dict[str, list[int]]:
    """Ground truths, true positives and counted detections of each class."""
    return {
        str(index): [
            each.num_gt_positives,
            sum(bool(true) for _, true in each.data_points),
            len(each.data_points),
        ]
        for index, each in enumerate(row)
        if not each.is_empty()
    }


def percent(reference: Reference, objects: dict[str, Any]) -> dict[str, Any]:
    """The original's table before it rounds."""
    kept: list[Any] = []
    with patch.object(reference.evaluation, "print_maps", kept.append):
        reference.evaluation.calc_map(objects)
    return {kind: {str(k): v for k, v in table.items()} for kind, table in kept[0].items()}


def points(reference: Reference) -> list[dict[str, Any]]:
    """The bare step from a list of hits and misses to AP."""
    rng = generator("ap.points")
    rows = []
    for count, truths in ((2, 11), (15, 17), (9, 10), (32, 0), (0, 5), (0, 0), (40, 25)):
        scores = (1 + rng.permutation(count)) / 64
        hits = rng.random(count) < (0.4 if truths else 0)
        drawn = [(float(s), bool(hit)) for s, hit in zip(scores, hits, strict=True)]
        data = reference.evaluation.APDataObject()
        data.add_gt_positives(truths)
        for score, hit in drawn:
            data.push(score, hit)
        empty = data.is_empty()
        rows.append(
            {"points": drawn, "num_gt": truths, "ap": float(data.get_ap()), "is_empty": empty}
        )
    return rows


def pulled(reference: Reference) -> list[dict[str, Any]]:
    """Ground truth of some images as the original's data set delivers it for evaluation."""
    truth, found = ground_truth(), []
    with TemporaryDirectory() as temporary, redirect_stdout(io.StringIO()):
        path = Path(temporary) / "truth.json"
        save_json(path, truth)
        with classes_of(reference, truth):
            dataset = blank_dataset(reference, path, Path(temporary))
            crowded = [bool(crowds_of(dataset, image)) for image in dataset.ids]
            for index in (0, 1, crowded.index(True)):
                _, rows, masks, height, width, number = dataset.pull_item(index)
                values = {
                    "target": rows,
                    "hw": np.array([height, width]),
                    "num_crowds": np.array(number),
                    "mask_area": np.asarray(masks).sum((1, 2)).astype(np.int64),
                }
                found.append({"image_id": dataset.ids[index], "arrays": values})
    return found
