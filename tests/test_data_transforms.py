"""Each transform reproduces the golden augmentation; random classes only draw their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from conftest import Golden, GoldenSet
from yolact.config import AugmentConfig
from yolact.data import transforms as T
from yolact.data.transforms import (
    Canvas,
    Dice,
    EvalTransform,
    Objects,
    PhotometricDistort,
    RandomCrop,
    RandomExpand,
    Rectangle,
    ToUnitRange,
    TrainTransform,
)

Case = tuple[Tensor, Objects]


class Replay(Dice):
    """Returns the recorded draws of a golden case instead of new ones."""

    def __init__(self, calls: list[list[Any]]) -> None:
        super().__init__()
        self.calls = list(calls)

    def uniform(self, low: float, high: float) -> float:
        name, bounds, value = self.calls.pop(0)
        assert name == "uniform"
        # numpy's uniform(x) draws between x and 1
        assert [low, high] == pytest.approx([*bounds, 1.0][:2])
        return float(value)

    def below(self, count: int) -> int:
        name, _, value = self.calls.pop(0)
        if name == "choice":
            return 0 if value is None else 1
        assert name == "randint"
        return int(value)


@pytest.fixture(scope="module")
def data(golden: GoldenSet) -> Golden:
    return golden.npz("augmentation.npz")


def unpack(data: Golden, key: str) -> np.ndarray[Any, Any]:
    n, h, w = data[f"{key}_shape"]
    return np.unpackbits(data[f"{key}_packed"], axis=1)[:, : h * w].reshape(n, h, w)


def case_input(data: Golden, dtype: torch.dtype = torch.float32) -> Case:
    bgr = np.asarray(cv2.imdecode(data["image.png"], cv2.IMREAD_COLOR))
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    height, width = rgb.shape[:2]
    image = tv_tensors.Image(torch.from_numpy(rgb).permute(2, 0, 1).to(dtype))
    boxes = data["in.boxes_rel"] * [width, height, width, height]
    labels = torch.from_numpy(data["in.labels"]).long()
    return image, {
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes).float(), format="XYXY", canvas_size=(height, width)
        ),
        "masks": tv_tensors.Mask(torch.from_numpy(unpack(data, "in.masks"))),
        "labels": labels,
        "crowd": torch.zeros(len(labels), dtype=torch.bool),
    }


def check(
    data: Golden, name: str, case: Case, *, atol: float, resized: bool = False, final: bool = False
) -> None:
    """Compare; ``final`` output is RGB with relative boxes, else BGR with boxes in pixels."""
    image, objects = case
    array = image.permute(1, 2, 0).numpy()
    data.check(f"{name}.image", array if final else array[..., ::-1], atol=atol, rtol=0)
    boxes = objects["boxes"].numpy() / (image.shape[1] if final else 1)
    tolerance = 1e-6 if final else 1e-4
    np.testing.assert_allclose(boxes, data[f"{name}.boxes"], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(objects["labels"], data[f"{name}.labels"])
    masks = unpack(data, f"{name}.masks")
    assert objects["masks"].shape == masks.shape
    wrong = (objects["masks"].numpy() != masks).sum((1, 2))
    allowed = np.maximum(8, masks.sum((1, 2)) / 1000) if resized else 0
    assert (wrong <= allowed).all(), wrong


def calls(data: Golden, name: str) -> list[list[Any]]:
    found: list[list[Any]] = data.meta["cases"][name]["random_calls"]
    return found


RANDOM: dict[str, Callable[[Dice], Any]] = {
    "photometric_contrast_first": PhotometricDistort,
    "photometric_contrast_last": PhotometricDistort,
    "expand": RandomExpand,
    "expand_off": RandomExpand,
    "crop": RandomCrop,
    "crop_none": RandomCrop,
    "crop_retry": RandomCrop,
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_transform_given_the_golden_draws_gives_the_golden_result(
    data: Golden, name: str
) -> None:
    dice = Replay(calls(data, name))
    image, objects = RANDOM[name](dice)(*case_input(data))
    assert not dice.calls, "upstream drew more numbers"
    check(data, name, (image, objects), atol=2e-2 if "photometric" in name else 1e-3)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("mirror", v2.RandomHorizontalFlip(p=1)),
        ("mirror_off", v2.RandomHorizontalFlip(p=0)),
        ("flip", v2.RandomVerticalFlip(p=1)),
    ],
)
def test_torchvision_mirrors_as_upstream_does(data: Golden, name: str, transform: Any) -> None:
    check(data, name, transform(*case_input(data)), atol=1e-3)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_a_single_distortion_equals_golden(data: Golden, name: str) -> None:
    image, objects = case_input(data)
    _coin, (_, _, strength) = calls(data, name)
    array = T.distort(image.permute(1, 2, 0).numpy(), T.Distortion(**{name: strength}))
    check(data, name, (torch.from_numpy(array).permute(2, 0, 1), objects), atol=1e-3)


def test_stretch_equals_golden_in_training(data: Golden) -> None:
    case = T.Stretch(550)(*case_input(data))
    check(data, "resize_train", case, atol=1e-3, resized=True)


def test_preprocess_equals_the_golden_evaluation_input(golden: GoldenSet) -> None:
    forward = golden.npz("forward.npz")
    bgr = np.asarray(cv2.imdecode(forward["image.png"], cv2.IMREAD_COLOR))
    tensor = T.preprocess(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), 550)
    assert tensor.is_contiguous()
    forward.check("pre550.base", tensor[None], atol=1e-5, rtol=0)
    # upstream's second path, for single images and video, differs by 1/100 of a grey level
    forward.check("pre550.fast", tensor[None], atol=5e-5, rtol=0)


def test_the_evaluation_transform_equals_golden(data: Golden) -> None:
    image, _ = EvalTransform(550)(*case_input(data, torch.uint8))
    data.check("base_transform.image", image.permute(1, 2, 0), atol=1e-5, rtol=0)


def test_unit_range_is_rgb_over_255(data: Golden) -> None:
    image, objects = ToUnitRange()(*case_input(data))
    data.check("backbone_transform.image", image.permute(1, 2, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "augment", "mirror"),
    [
        ("full_train", {}, 1.0),
        ("full_train_crop", {}, 0.0),
        ("full_train_noaug", dict.fromkeys(("photometric", "expand", "crop", "mirror"), False), 0),
    ],
)
def test_the_whole_training_pipeline_equals_golden(
    data: Golden, name: str, augment: dict[str, bool], mirror: float
) -> None:
    recorded = calls(data, name)
    dice = Replay(recorded)
    pipeline = TrainTransform(550, AugmentConfig(**augment), dice)
    for step in pipeline.transforms:
        if isinstance(step, v2.RandomHorizontalFlip):
            step.p = mirror
    case = pipeline(*case_input(data, torch.uint8))
    assert len(dice.calls) == (1 if recorded else 0), "only the mirror's coin is left"
    check(data, name, case, atol=1e-4, resized=True, final=True)


@pytest.mark.parametrize("name", ["discard_abs", "discard_rel"])
def test_objects_too_thin_to_learn_are_the_golden_ones(data: Golden, name: str) -> None:
    boxes = torch.from_numpy(data[f"{name}.in.boxes"])
    if name == "discard_abs":  # after the resize
        _, height, width = data["in.masks_shape"].tolist()
        boxes = boxes * 550 / torch.tensor([width, height, width, height])
    keep = T.longer_than(boxes)
    np.testing.assert_allclose(boxes[keep], data[f"{name}.out.boxes"], atol=1e-6)
    np.testing.assert_array_equal(data[f"{name}.in.labels"][keep], data[f"{name}.out.labels"])


def sample(height: int, width: int, boxes: list[list[float]], crowd: list[bool]) -> Case:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return tv_tensors.Image(torch.full((3, height, width), 100, dtype=torch.uint8)), {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes).float().reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(len(boxes)),
        "crowd": torch.tensor(crowd, dtype=torch.bool),
    }


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    count=st.integers(0, 4),
    crowds=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_any_image_comes_out_square_with_its_objects_inside(
    size: tuple[int, int], count: int, crowds: int, seed: int
) -> None:
    height, width = size
    numbers = np.random.default_rng(seed)
    corners = np.sort(numbers.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    case = sample(
        height, width, corners.reshape(-1, 4).tolist(), [i < crowds for i in range(count)]
    )
    dice = Dice(torch.Generator().manual_seed(seed))
    image, objects = TrainTransform(64, AugmentConfig(), dice)(*case)
    n = len(objects["labels"])
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and image.is_contiguous()
    assert objects["boxes"].shape == (n, 4) and objects["masks"].shape == (n, 64, 64)
    assert len(objects["crowd"]) == n <= count
    assert objects["masks"].dtype == torch.uint8
    assert set(objects["masks"].unique().tolist()) <= {0, 1}
    assert objects["boxes"].numel() == 0 or (-1e-4 <= objects["boxes"].min())
    assert objects["boxes"].numel() == 0 or (objects["boxes"].max() <= 64 + 1e-4)
    assert objects["boxes"].canvas_size == (64, 64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_mask_stays_inside_its_box(seed: int) -> None:
    case = sample(90, 120, [[10, 20, 50, 70], [60, 5, 115, 40]], [False, False])
    dice = Dice(torch.Generator().manual_seed(seed))
    _, objects = TrainTransform(80, AugmentConfig(), dice)(*case)
    for box, mask in zip(objects["boxes"], objects["masks"], strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0] - 1 and columns.max() + 1 <= box[2] + 1
            assert rows.min() >= box[1] - 1 and rows.max() + 1 <= box[3] + 1


def test_a_crop_holds_the_centre_of_an_object_that_is_no_crowd() -> None:
    image, objects = sample(100, 100, [[0, 0, 20, 20], [40, 40, 90, 90]], [False, True])
    draw = RandomCrop(Dice(torch.Generator().manual_seed(1))).draw
    rectangles = [draw((100, 100), objects["boxes"], objects["crowd"]) for _ in range(40)]
    drawn = [rectangle for rectangle in rectangles if rectangle is not None]
    assert 20 < len(drawn) < 40
    assert all(rectangle.contains(objects["boxes"])[0] for rectangle in drawn)


def test_one_draw_in_six_does_not_crop() -> None:
    crop = RandomCrop(Dice(torch.Generator().manual_seed(3)))
    none = torch.zeros(0, dtype=torch.bool)
    whole = [crop.draw((50, 50), torch.zeros(0, 4), none) is None for _ in range(600)]
    assert sum(whole) / 600 == pytest.approx(1 / 6, abs=0.05)


def test_an_object_on_the_rim_of_a_crop_is_outside() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]])  # centre (10, 10)
    assert not Rectangle(10, 0, 50, 50).contains(boxes)[0]
    assert not Rectangle(0, 0, 50, 10).contains(boxes)[0]
    assert Rectangle(9, 9, 11, 11).contains(boxes)[0]


def test_a_canvas_keeps_every_pixel_and_fills_with_the_mean_colour() -> None:
    image, objects = sample(8, 6, [[1, 2, 3, 4]], [False])
    image = functional.to_dtype(image, torch.float32)
    canvas = Canvas(height=20, width=15, top=5, left=4)
    bigger = T.expand(image, canvas)
    assert bigger.shape == (3, 20, 15)
    assert torch.equal(bigger[:, 5:13, 4:10], image)
    torch.testing.assert_close(bigger[:, 0, 0], torch.tensor(T.MEAN_COLOR))
    assert T.expand(objects["boxes"], canvas).tolist() == [[5, 7, 7, 9]]
    assert T.expand(objects["masks"], canvas).sum() == objects["masks"].sum()


def test_our_transforms_compose_with_torchvision_ones() -> None:
    pipeline = v2.Compose([v2.ToDtype(torch.float32), v2.RandomGrayscale(p=1), RandomCrop()])
    image, objects = pipeline(*sample(40, 40, [[5, 5, 30, 30]], [False]))
    assert image.shape[1:] == objects["masks"].shape[1:]


def test_the_inputs_are_left_as_they_were() -> None:
    image, objects = sample(40, 50, [[5, 5, 30, 30]], [False])
    before = image.clone(), {key: value.clone() for key, value in objects.items()}
    for seed in range(5):
        TrainTransform(64, AugmentConfig(), Dice(torch.Generator().manual_seed(seed)))(
            image, objects
        )
    assert torch.equal(image, before[0])
    assert all(torch.equal(objects[key], before[1][key]) for key in objects)


def test_a_thousand_masks_are_resized() -> None:
    """OpenCV cannot resize more than 512 channels in one call."""
    masks = tv_tensors.Mask(torch.ones(1000, 4, 4, dtype=torch.uint8))
    assert T.stretch(masks, 8).shape == (1000, 8, 8)
