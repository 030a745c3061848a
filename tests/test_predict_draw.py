"""Pictures of instances, prototypes and mask assembly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolact.data.images import RgbImage
from yolact.predict.draw import (
    Style,
    class_color,
    draw_caption,
    draw_instances,
    lincomb_sheet,
    prototype_sheet,
    write_image,
)
from yolact.types import Detections, Instances

NAMES = ("cat", "dog", "a class with a rather long name")
ONLY_MASKS = Style(boxes=False, text=False)


def grey(height: int = 120, width: int = 160) -> RgbImage:
    return np.full((height, width, 3), 100, np.uint8)


def instances(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Instances:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    count = len(boxes)
    corners = torch.tensor(boxes).reshape(-1, 4).long()
    return Instances(corners, torch.linspace(0.9, 0.4, count), torch.arange(count) % 3, masks)


def test_the_given_image_is_left_alone() -> None:
    image = grey()
    draw_instances(image, instances((120, 160), (20, 30, 90, 100)), NAMES)
    draw_caption(image, "10 fps")
    assert (image == 100).all()


def test_nothing_found_is_the_image_itself() -> None:
    assert (draw_instances(grey(), instances((120, 160)), NAMES) == 100).all()


def test_a_mask_is_mixed_with_its_classes_colour() -> None:
    picture = draw_instances(
        grey(), instances((120, 160), (20, 30, 90, 100)), NAMES, Style(boxes=False, text=False)
    )
    expected = np.round(100 * 0.55 + np.array(class_color(0)) * 0.45)
    np.testing.assert_array_equal(picture[60, 50], expected)
    assert (picture[:28] == 100).all() and (picture[:, 92:] == 100).all()


def test_the_better_instance_lies_on_top() -> None:
    both = instances((120, 160), (20, 20, 80, 80), (20, 20, 80, 80))
    picture = draw_instances(grey(), both, NAMES, Style(boxes=False, text=False, alpha=1.0))
    np.testing.assert_array_equal(picture[50, 50], class_color(0))


@pytest.mark.parametrize(
    "style",
    [
        Style(masks=False, text=False),
        Style(masks=False, boxes=False),
        Style(masks=False, boxes=False, scores=False),
        Style(masks=False, boxes=False, text=False),
    ],
)
def test_each_part_can_be_left_out(style: Style) -> None:
    picture = draw_instances(grey(), instances((120, 160), (20, 30, 90, 100)), NAMES, style)
    assert (picture[50:90, 30:80] == 100).all()  # inside the box: no mask
    assert (picture != 100).any() == (style.boxes or style.text)


def test_scores_make_labels_longer() -> None:
    box = instances((120, 160), (20, 30, 90, 100))
    with_scores, without = (
        draw_instances(grey(), box, NAMES, Style(masks=False, boxes=False, scores=scores))
        for scores in (True, False)
    )
    assert (with_scores != 100).sum() > (without != 100).sum()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.tuples(*[st.integers(0, 90)] * 4), max_size=6),
)
def test_any_box_in_any_image_can_be_drawn(
    height: int, width: int, corners: list[tuple[int, int, int, int]]
) -> None:
    boxes = [
        (
            *(min(a, c, width), min(b, d, height)),
            *(min(max(a, c), width), min(max(b, d), height)),
        )
        for a, b, c, d in corners
    ]
    found = instances((height, width), *boxes)
    assert draw_instances(grey(height, width), found, NAMES).shape == (height, width, 3)


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    style = Style(masks=False, boxes=False, scores=False)
    apart = [
        draw_instances(grey(), instances((120, 160), box), NAMES[:1], style) != 100
        for box in ((20, 60, 90, 110),)
    ]
    same_class = instances((120, 160), (20, 60, 90, 110), (22, 62, 90, 110))
    same_class = same_class._replace(labels=torch.zeros(2).long())
    both = draw_instances(grey(), same_class, NAMES, style) != 100
    assert both.sum() >= 1.9 * apart[0].sum()


def test_eighty_classes_have_eighty_colours() -> None:
    colors = {class_color(label) for label in range(80)}
    assert len(colors) == 80
    assert all(max(color) >= 150 for color in colors)


def test_prototypes_fill_a_sheet() -> None:
    proto = torch.rand(10, 12, 9)
    sheet = prototype_sheet(proto, columns=4)
    assert sheet.shape == (3 * 12 + 2, 4 * 14 + 2, 3)
    assert sheet[2:12, 2:14].min() == 0 and sheet[2:12, 2:14].max() == 255
    assert prototype_sheet(torch.zeros(10, 12, 1)).shape == (14, 16, 3)


def test_a_combination_shows_what_adds_and_what_takes_away() -> None:
    proto = torch.ones(6, 6, 2)
    detections = Detections(
        torch.zeros(1, 4),
        torch.ones(1),
        torch.zeros(1).long(),
        torch.tensor([[1.0, -2.0]]),
        torch.zeros(1).long(),
    )
    sheet = lincomb_sheet(proto, detections)
    strongest, weaker, mask = (sheet[4, 4 + 8 * tile].tolist() for tile in range(3))
    assert strongest == [255, 0, 0]  # -2 takes away most
    assert weaker == [0, 128, 0]
    assert mask[0] == round(255 / (1 + np.e))


def labelled(name: str) -> RgbImage:
    """A picture with one label and nothing else."""
    style = Style(masks=False, boxes=False, scores=False)
    return draw_instances(grey(200, 400), instances((200, 400), (20, 90, 90, 150)), [name], style)


@pytest.mark.parametrize(
    ("name", "looks_like"),
    [("Größe", "Gr????e"), ("кошка", "?????"), ("قط", "??"), ("Łódź", "L?d?"), ("😀", "?")],
)
def test_names_of_many_scripts_are_drawn_as_they_are(name: str, looks_like: str) -> None:
    picture = labelled(name)
    assert (picture != labelled(looks_like)).any() and (picture != labelled("class 0")).any()
    assert len(np.unique(picture[:, :, 1])) > 3, "there are letters on the label"


@pytest.mark.parametrize("name", ["\U0001f98a", "螺\n母", "ไทย-\U000f1234"])
def test_names_that_no_font_has_are_drawn_as_numbers_and_said_once(
    name: str, package_log: pytest.LogCaptureFixture
) -> None:
    picture = labelled(name)
    if (picture == labelled("class 0")).all():  # else this machine has such a font
        assert "1 of 1 class names have letters that no font" in package_log.text
        assert repr(name) in package_log.text
    package_log.clear()
    assert (labelled(name) == picture).all() and not package_log.records


@pytest.mark.parametrize("name", ["left\nhand", "left\r\nhand ", "left\thand", "left\u2028hand"])
def test_a_name_of_two_lines_is_drawn_in_one(name: str) -> None:
    np.testing.assert_array_equal(labelled(name), labelled("left hand"))


@pytest.mark.parametrize("name", ["", " ", "\n", "\x00", "x\ud800y", "a" * 500, "a\u0301\u200d"])
def test_odd_names_are_drawn_somehow(name: str) -> None:
    assert labelled(name).shape == (200, 400, 3)
    assert draw_caption(grey(30, 40), name).shape == (30, 40, 3)


def test_fonts_of_the_machine_are_tried(tmp_path: Path) -> None:
    usual = Path(str(matplotlib.__file__)).parent / "mpl-data" / "fonts" / "ttf"
    letter = "\ue00a"  # in STIX, not in DejaVu: both come with matplotlib
    program = (
        "from yolact.predict.text import labels_of\n"
        f"print(labels_of([{letter!r}]) == ({letter!r},))"
    )
    (tmp_path / ".fonts").mkdir()
    (tmp_path / ".fonts" / "broken.ttf").write_bytes(b"no font")
    home = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    for expected in ("False", "True"):
        said = subprocess.run(
            [sys.executable, "-c", program], env=home, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == expected
        shutil.copy(usual / "STIXNonUni.ttf", tmp_path / ".fonts" / "one.ttf")


@pytest.mark.parametrize(("ending", "side"), [(".jpg", 65_501), (".webp", 16_384)])
def test_a_picture_too_long_for_its_type_is_written_as_png(
    tmp_path: Path, ending: str, side: int
) -> None:
    written = write_image(tmp_path / f"a{ending}", np.zeros((2, side, 3), np.uint8))
    assert written == tmp_path / f"a{ending}.png"
    with Image.open(written) as image:
        assert image.size == (side, 2)
