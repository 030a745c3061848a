"""Every common kind of image file becomes uint8 RGB; damaged ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import GoldenSet
from yolact.data.images import read_rgb
from yolact.errors import DataError

ORIENTATION = 0x0112


def picture(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Red on the left, blue on the right, darker towards the bottom."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 240
    image[:, width // 2 :, 2] = 240
    image[height // 2 :] //= 2
    return image


def test_a_jpeg_decodes_as_the_reference_decoded_it(golden: GoldenSet, tmp_path: Path) -> None:
    forward = golden.npz("forward.npz")
    path = tmp_path / "image.jpg"
    path.write_bytes(forward["image.jpg"].tobytes())
    bgr = cv2.imdecode(forward["image.png"], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read_rgb(path), bgr[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16"])
def test_every_png_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    if mode == "I;16":
        grey = np.full((4, 5), 0x99FF, np.uint16)
        Image.fromarray(grey).save(path)
    else:
        Image.new("RGB", (5, 4), (153, 153, 153)).convert(mode).save(path)
    image = read_rgb(path)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
    if mode != "1":
        assert abs(int(image[0, 0, 0]) - 153) <= 1


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGBA", (3, 3), (10, 20, 30, 0)).save(path)
    assert read_rgb(path)[0, 0].tolist() == [10, 20, 30]


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(picture()).convert("CMYK").save(path, quality=95)
    difference = np.abs(read_rgb(path).astype(int) - picture())
    assert np.median(difference) <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_one_pixel_is_an_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (1, 1), (200, 0, 0)).save(path)
    assert read_rgb(path).shape == (1, 1, 3)


def rotated(path: Path) -> None:
    """Stored 60 x 40; its EXIF orientation makes it 40 x 60."""
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("size", [None, (60, 40)])
def test_an_exif_rotated_image_is_turned(tmp_path: Path, size: Any) -> None:
    rotated(tmp_path / "image.jpg")
    image = read_rgb(tmp_path / "image.jpg", size)
    assert image.shape == (60, 40, 3)
    assert image[5, 30, 0] > 200, "red, the left half, is above now"


def test_an_image_annotated_before_its_rotation_stays_as_stored(tmp_path: Path) -> None:
    rotated(tmp_path / "image.jpg")
    image = read_rgb(tmp_path / "image.jpg", (40, 60))
    assert image.shape == (40, 60, 3)
    assert image[5, 5, 0] > 200, "red is on the left"


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"image .*image.png is 60 x 40, but .* say 30 x 20"):
        read_rgb(tmp_path / "image.png", (20, 30))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"image.{suffix}") as error:
        read_rgb(path)
    assert error.value.hint


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    assert read_rgb(path).shape == (40, 60, 3)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image .*image.jpg|cannot decode image .*image.jpg"):
        read_rgb(path)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image at .*nothing.jpg"):
        read_rgb(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"is a folder, not an image"):
        read_rgb(tmp_path)
