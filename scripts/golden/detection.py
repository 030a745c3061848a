"""box_ops.npz and detect.npz: boxes, their overlaps, and which detections survive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from golden.network import SMALL, evaluating, filled, forget_priors, small_input
from golden.pictures import choose
from golden.reference import Reference
from golden.store import Array, Arrays, generator

CLASSES, COEFFICIENTS = 81, 32
MODES = ("fast", "cross_class", "traditional")
Floats = NDArray[np.float32]


def write_box_ops(reference: Reference, folder: Path) -> None:
    """Write box_ops.npz."""
    arrays, boxes = Arrays(), reference.boxes
    rng = generator("box_ops")
    a, b = (torch.from_numpy(random_boxes(rng, count)) for count in (17, 23))
    arrays.put("boxes_a", a)
    arrays.put("boxes_b", b)
    arrays.put("iou", boxes.jaccard(a, b))
    arrays.put("iou_crowd_b", boxes.jaccard(a, b, iscrowd=True))
    arrays.put("intersection", boxes.intersect(a[None], b[None])[0])
    center = boxes.center_size(a)
    arrays.put("center_size_a", center)
    arrays.put("point_form_of_center_size_a", boxes.point_form(center))
    sides = rng.uniform(0.03, 0.9, (64, 2))
    priors = torch.from_numpy(np.concatenate([rng.uniform(0, 1, (64, 2)), sides], 1)).float()
    loc = torch.from_numpy(rng.normal(0, 1.5, (64, 4))).float()
    truth = torch.from_numpy(random_boxes(rng, 64))
    arrays.put("priors", priors)
    arrays.put("loc", loc)
    arrays.put("decoded", boxes.decode(loc, priors))
    arrays.put("gt", truth)
    arrays.put("encoded", boxes.encode(truth, priors))
    put_spans(reference, arrays, rng)
    put_masks(reference, arrays, rng)
    arrays.save(folder / "box_ops.npz", reference, {})


def random_boxes(rng: np.random.Generator, count: int) -> Floats:
    """[count, 4] relative corners of boxes with an area."""
    sides = rng.uniform(0.05, 0.6, (count, 2))
    corner = rng.uniform(-0.05, 1.05 - sides)
    return np.asarray(np.concatenate([corner, corner + sides], axis=1), np.float32)


def put_spans(reference: Reference, arrays: Arrays, rng: np.random.Generator) -> None:
    """Pixel spans: also swapped, outside the image, and on whole pixels."""
    ends = rng.uniform(-0.2, 1.2, (2, 40)).astype(np.float32)
    ends[:, :4] = [[0.5, 0.25, 0, 1], [0.5, 0.75, 1, 0]]
    first, second = torch.from_numpy(ends)
    arrays.put("san.x1", first)
    arrays.put("san.x2", second)
    for size, padding, cast in ((640, 0, False), (138, 1, False), (427, 0, True)):
        low, high = reference.boxes.sanitize_coordinates(
            first.clone(), second.clone(), size, padding, cast=cast
        )
        case = f"san.size{size}_pad{padding}_cast{int(cast)}"
        arrays.put(f"{case}.x1", low.float())
        arrays.put(f"{case}.x2", high.float())


def put_masks(reference: Reference, arrays: Arrays, rng: np.random.Generator) -> None:
    """Cropped masks, and overlaps of masks."""
    values = torch.from_numpy(rng.integers(0, 256, (23, 31, 6)) / 256).float()
    boxes = torch.from_numpy(random_boxes(rng, 6))
    arrays.put("crop.masks_hwn", values)
    arrays.put("crop.boxes", boxes)
    arrays.put("crop.out", reference.boxes.crop(values, boxes))
    first, second = (torch.from_numpy(rng.integers(0, 2, (n, 20, 30))).float() for n in (5, 4))
    arrays.put("maskiou.a", first.byte())
    arrays.put("maskiou.b", second.byte())
    arrays.put("maskiou.out", reference.boxes.mask_iou(first, second))
    arrays.put("maskiou.crowd_b", reference.boxes.mask_iou(first, second, iscrowd=True))


class Placing(NamedTuple):
    """Where boxes are."""

    priors: Floats
    loc: Floats
    """[images, priors, 4]."""


@dataclass(frozen=True)
class Case:
    """Raw outputs of a network, made up, and the settings they are detected with."""

    note: str
    placing: Placing
    conf: Floats
    """[images, priors, 81], a softmax's."""
    modes: tuple[str, ...] = MODES
    conf_thresh: float = 0.05
    nms_thresh: float = 0.5
    top_k: int = 200

    @property
    def params(self) -> dict[str, float]:
        """As the meta entry lists them."""
        return {
            "conf_thresh": self.conf_thresh,
            "nms_thresh": self.nms_thresh,
            "top_k": self.top_k,
            "max_num_detections": 100,
            "traditional_pixel_scale": 550,
        }


def write_detect(reference: Reference, folder: Path) -> None:
    """Write detect.npz."""
    arrays = Arrays()
    meta: dict[str, dict[str, Any]] = {}
    for name, case in cases().items():
        rng = generator(f"detect.{name}.mask")
        images, count = case.conf.shape[:2]
        mask = rng.integers(-64, 65, (images, count, COEFFICIENTS)).astype(np.float32) / 64
        mask[..., 0] = np.arange(count, dtype=np.float32) / 1024  # tells priors apart
        arrays.update(
            f"{name}.in",
            {**case.placing._asdict(), "conf": case.conf, "mask": mask},
        )
        meta[name] = {"note": case.note, "params": case.params}
        for mode in case.modes:
            found = detect(reference, case, mode, mask)
            counts = [put_detections(arrays, f"{name}.{mode}.{i}", f) for i, f in enumerate(found)]
            meta[name][f"{mode}_n"] = counts
    for mode in ("fast", "cross_class"):
        arrays.update(f"e2e_small.{mode}", whole_chain(reference, mode))
    arrays.save(folder / "detect.npz", reference, {"cases": meta})


def detect(
    reference: Reference, case: Case, mode: str, mask: Array
) -> list[dict[str, torch.Tensor] | None]:
    """The original's detection layer, image by image."""
    layer = reference.detection.Detect(
        CLASSES, 0, case.top_k, conf_thresh=case.conf_thresh, nms_thresh=case.nms_thresh
    )
    layer.use_fast_nms = mode != "traditional"
    layer.use_cross_class_nms = mode == "cross_class"
    predictions = {**case.placing._asdict(), "conf": case.conf, "mask": mask}
    tensors = {name: torch.from_numpy(value) for name, value in predictions.items()}
    return [entry["detection"] for entry in layer(tensors, None)]


def put_detections(arrays: Arrays, key: str, found: dict[str, torch.Tensor] | None) -> int | None:
    """Store the detections of an image; -1 stands for none at all."""
    count = None if found is None else len(found["score"])
    arrays.put(f"{key}.n", np.array(-1 if count is None else count))
    if found is not None:
        index = (found["mask"][:, 0] * 1024).round().long()
        arrays.update(
            key,
            {
                "class": found["class"],
                "score": found["score"],
                "box": found["box"],
                "prior_index": index,
            },
        )
    return count


def whole_chain(reference: Reference, mode: str) -> dict[str, torch.Tensor]:
    """Detections of the small network on the picture; float64 must find the same ones."""
    picture = choose(560, objects=3, count=12).picture
    found = []
    for dtype in (torch.float32, torch.float64):
        with reference.settings(max_size=SMALL), torch.no_grad():
            network: Any = evaluating(filled(reference)).to(dtype)
            forget_priors(network)
            vars(network)["export"] = False
            network.detect.use_fast_nms = True
            network.detect.use_cross_class_nms = mode == "cross_class"
            (entry,) = network(small_input(reference, picture).to(dtype))
        found.append({name: entry["detection"][name] for name in ("class", "score", "box", "mask")})
    single, double = found
    assert torch.equal(single["class"], double["class"]), "the order hangs on rounding"
    torch.testing.assert_close(single["box"].double(), double["box"], atol=1e-5, rtol=0)
    return single


def scored(rows: list[dict[int, float]], low: float = 0.0) -> Floats:
    """[1, n, 81]: foreground scores of each prior, the background taking the rest.

    Classes that are not named get up to ``low``, all different.
    """
    rng = generator(f"scores {len(rows)} {low}")
    conf = np.zeros((len(rows), CLASSES), np.float64)
    conf[:, 1:] = rng.uniform(0.2, 1, (len(rows), CLASSES - 1)) * low
    for row, scores in zip(conf, rows, strict=True):
        for label, score in scores.items():
            row[1 + label] = score
    conf[:, 0] = np.maximum(0, 1 - conf[:, 1:].sum(1))
    return conf.astype(np.float32)[None]


def placed(corners: list[tuple[float, float, float, float]]) -> Placing:
    """Priors that are exactly these boxes: zero offsets."""
    rows = np.array(corners, np.float32)
    priors = np.concatenate([(rows[:, :2] + rows[:, 2:]) / 2, rows[:, 2:] - rows[:, :2]], axis=1)
    return Placing(priors, np.zeros((1, len(rows), 4), np.float32))


def cases() -> dict[str, Case]:
    """All cases of detect.npz."""
    return {
        "chain": chain(),
        "exact_iou": exact_iou(),
        "exact_score": exact_score(),
        "many": many(),
        "none_and_some": none_and_some(),
        "params": params(),
        "single": single(),
        "ties_disjoint": ties_disjoint(),
        "ties_overlap": ties_overlap(),
        "typical": typical(),
    }


def chain() -> Case:
    """Four boxes in a row; neighbours overlap by 2/3."""
    boxes = [(0.1 + 0.05 * i, 0.25, 0.35 + 0.05 * i, 0.5) for i in range(4)]
    scores = [{5: 0.8 - 0.15 * i} for i in range(4)]
    note = "a chain: greedy keeps the 1st and 3rd, fast only the 1st (suppressed boxes suppress)"
    return Case(note, placed(boxes), scored(scores, low=1e-3))


def exact_iou() -> Case:
    """Pairs whose overlap is exactly, just below and just above the threshold of 1/2."""
    boxes, scores = [], []
    for pair, side in enumerate((0.125, 0.125 - 2**-9, 0.125 + 2**-9, 0.0625)):
        left, top = 0.25 * pair, 0.25
        boxes += [(left, top, left + 0.25, top + 0.25), (left, top, left + 0.25, top + side)]
        scores += [{9: 0.9 - 0.0625 * 2 * pair}, {9: 0.9 - 0.0625 * (2 * pair + 1)}]
    note = "IoU equal to nms_thresh: kept in the fast modes; traditional NMS measures pixels + 1"
    return Case(note, placed(boxes), scored(scores, low=1e-3))


def exact_score() -> Case:
    """Seven separate boxes; one prior's best score is the threshold itself."""
    boxes = [(0.125 * i, 0.5, 0.125 * i + 0.0625, 0.75) for i in range(7)]
    scores = [{i: 0.25 + 0.0625 * (i - 1)} for i in range(1, 8)]
    note = "a best score equal to conf_thresh is dropped"
    return Case(note, placed(boxes), scored(scores, low=1e-3), conf_thresh=0.25)


def noisy(rng: np.random.Generator, count: int, images: int = 1, smallest: float = 0.03) -> Placing:
    """Random priors and small offsets."""
    sides = rng.uniform(smallest, 0.35, (count, 1)).repeat(2, axis=1)
    priors = np.concatenate([rng.uniform(0, 1, (count, 2)), sides], axis=1)
    loc = rng.integers(-128, 129, (images, count, 4)) / 128
    return Placing(priors.astype(np.float32), loc.astype(np.float32))


def softmaxed(rng: np.random.Generator, images: int, count: int, background: float) -> Floats:
    """[images, count, 81] softmax of random logits."""
    logits = rng.normal(0, 1.5, (images, count, CLASSES))
    logits[..., 0] += background
    values = np.exp(logits)
    return np.asarray(values / values.sum(-1, keepdims=True), np.float32)


def many() -> Case:
    """More candidates of a class than top_k, and more survivors than the limit."""
    rng = generator("detect.many")
    count = 450
    columns = np.arange(count)
    sides = np.full((count, 2), 0.05)
    centers = np.stack([(columns % 25 + 0.5) / 25, (columns // 25 + 0.5) / 18], axis=1)
    conf = np.zeros((1, count, CLASSES), np.float32)
    best = 0.06 + 0.9 * rng.permutation(count) / count
    conf[0, columns, 1 + (columns % 3 == 0) * 17] = best
    conf[0, :, 40] = 0.01 * rng.permutation(count) / count
    conf[..., 0] = 1 - conf[..., 1:].sum(-1)
    priors = np.concatenate([centers, sides], axis=1).astype(np.float32)
    loc = (rng.integers(-64, 65, (1, count, 4)) / 128).astype(np.float32)
    return Case(
        "more than top_k candidates and more than 100 survivors", Placing(priors, loc), conf
    )


def none_and_some() -> Case:
    """Nothing in the first image, something in the second."""
    rng = generator("detect.none_and_some")
    conf = softmaxed(rng, 2, 60, background=9)
    conf[0] = np.maximum(conf[0] * 0.1, 0)
    conf[0, :, 0] = 1 - conf[0, :, 1:].sum(-1)
    conf[1, [4, 17, 33], [12, 12, 70]] = 0.6, 0.55, 0.4
    note = "image 0 has no foreground score above conf_thresh: n = -1"
    return Case(note, noisy(rng, 60, images=2), conf)


def params() -> Case:
    """Every setting differs from its default."""
    rng = generator("detect.params")
    conf = softmaxed(rng, 1, 40, background=2)
    conf[0, np.arange(30), 1 + np.arange(30) % 4] = 0.25 + 0.7 * rng.permutation(30) / 30
    note = "conf_thresh, nms_thresh and top_k other than usual"
    case = Case(note, noisy(rng, 40, smallest=0.2), conf)
    return replace(case, conf_thresh=0.3, nms_thresh=0.3, top_k=10)


def single() -> Case:
    """One prior above the threshold, which competes in all classes."""
    rng = generator("detect.single")
    conf = softmaxed(rng, 1, 20, background=12)
    conf[0, 7, 1 + 33] = 0.7
    return Case("one prior; per-class NMS returns its low scores too", noisy(rng, 20), conf)


def ties_disjoint() -> Case:
    """Four equal scores far apart, and two lower ones."""
    boxes = [(0.2 * i, 0.1, 0.2 * i + 0.125, 0.3) for i in range(4)]
    conf = scored([{3: 0.75} for _ in range(4)], low=1e-3)
    return Case("equal scores: the order of the first four is open", placed(boxes), conf)


def ties_overlap() -> Case:
    """Two pairs of overlapping boxes with equal scores."""
    boxes = [(0.1, 0.1, 0.4, 0.4), (0.12, 0.1, 0.42, 0.4)]
    boxes += [(0.5, 0.5, 0.8, 0.8), (0.52, 0.5, 0.82, 0.8)]
    conf = scored([{3: 0.75}, {3: 0.75}, {3: 0.5}, {3: 0.5}], low=1e-3)
    note = "one of each pair survives; the lower index, with a stable sort"
    return Case(note, placed(boxes), conf, modes=("fast", "cross_class"))


def typical() -> Case:
    """Seven objects, each found by several priors; the second image is busier."""
    rng = generator("detect.typical")
    objects = random_boxes(rng, 7).clip(0, 1)
    truth = objects[np.arange(120) % 7] + rng.normal(0, 0.012, (120, 4))
    placing = noisy(rng, 120, images=2)
    priors = placing.priors.copy()
    corner, far = truth[:, :2], truth[:, 2:]
    near = np.concatenate([(corner + far) / 2, far - corner], axis=1)
    priors[:60] = near[:60].astype(np.float32)
    conf = softmaxed(rng, 2, 120, background=7)
    labels = 1 + (np.arange(60) % 7) * 11
    conf[0, np.arange(60), labels] = 0.1 + 0.85 * rng.permutation(60) / 60
    conf[1, np.arange(60), labels] = 0.1 + 0.85 * rng.permutation(60) / 60
    conf[1, 60:] = softmaxed(rng, 1, 60, background=2)[0]
    note = "7 objects with several priors each; two images share the priors"
    return Case(note, Placing(priors, placing.loc * np.float32(0.25)), conf)
