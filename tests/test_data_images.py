"""Every common kind of image file becomes uint8 RGB; damaged ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
    bgr = np.asarray(cv2.imdecode(forward["image.png"], cv2.IMREAD_COLOR))
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


KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_orientation_is_applied_in_every_format_that_has_one(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"image.{kind}"
    image.save(path, KINDS[kind], exif=exif, **({"lossless": True} if kind == "webp" else {}))
    shown = np.asarray(ImageOps.exif_transpose(image_with(orientation)))
    assert np.abs(read_rgb(path, (shown.shape[0], shown.shape[1])).astype(int) - shown).mean() < 3
    if orientation >= 5:
        assert np.abs(read_rgb(path, (40, 60)).astype(int) - picture()).mean() < 3


def image_with(orientation: int) -> Image.Image:
    image = Image.fromarray(picture())
    image.getexif()[ORIENTATION] = orientation
    return image


@pytest.mark.parametrize("kind", ["gif", "ico", "tga", "jp2", "ppm"])
def test_kinds_that_few_libraries_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"image.{kind}"
    Image.new("RGB", (16, 16), (200, 100, 0)).save(path, "JPEG2000" if kind == "jp2" else None)
    assert read_rgb(path).shape == (16, 16, 3)
    assert np.abs(read_rgb(path)[8, 8].astype(int) - (200, 100, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (60, 120, 250)]
    path = tmp_path / f"image.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.abs(read_rgb(path).astype(int) - 60).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize(
    ("most", "bits", "seen"),
    [(1000, None, 250), (4000, None, 250), (16000, None, 250), (64000, None, 250)]
    + [(1000, 12, 62), (4000, 16, 15), (64000, 12, 255), (0, None, 0)],
)
def test_16_bit_files_are_scaled_by_what_they_hold(
    tmp_path: Path, suffix: str, most: int, bits: int | None, seen: int
) -> None:
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), np.full((4, 5), most, np.uint16))
    assert read_rgb(path, bits=bits).max() == seen


@pytest.mark.parametrize("most", [1, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_in_0_to_1_or_0_to_255(tmp_path: Path, most: int, channels: int) -> None:
    path = tmp_path / "image.tif"
    values = np.linspace(0, most, 256, dtype=np.float32).reshape(16, 16)
    cv2.imwrite(
        str(path),
        np.repeat(values[..., None], channels, 2),
        [cv2.IMWRITE_TIFF_COMPRESSION, 1],  # the default for three channels loses digits
    )
    assert read_rgb(path)[..., 0].reshape(-1).tolist() == list(range(256))


@pytest.mark.parametrize("value", [-1, 300, float("nan")])
def test_floats_of_other_ranges_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "image.tif"
    cv2.imwrite(str(path), np.full((4, 5), value, np.float32))
    with pytest.raises(DataError, match=f"image.tif holds values from {value:g} to"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'<?xml version="1.0"?><svg/>', "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "an AVIF image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"%PDF-1.4", "a PDF document"),
        (b"\0\5\x16\7\0\2", "a file of macOS"),
    ],
)
def test_what_cannot_be_decoded_is_called_what_it_is(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"cannot decode image .*image.jpg, {said}"):
        read_rgb(path)


def test_nothing_is_written_to_stderr_about_a_damaged_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for suffix in ("png", "tif", "webp", "bmp", "jpg"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(noise).save(path)
        data = bytearray(path.read_bytes())
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError):
            read_rgb(path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image at .*nothing.jpg"):
        read_rgb(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"is a folder, not an image"):
        read_rgb(tmp_path)
