"""Files of a data set are found under names that almost fit, and looked at before they are used."""

from __future__ import annotations

import json
import logging
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from yolact.data.image_checks import Look, common_bits, look_at
from yolact.data.image_files import ImageFiles, find_images
from yolact.data.sources import Images, find_source
from yolact.errors import DataError

INFO = Path("train.json")


def put(folder: Path, *names: str, size: tuple[int, int] = (6, 4)) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = None if path.suffix in (".png", ".jpg", ".bmp") else "PNG"
        Image.new("RGB", size, (9, 9, 9)).save(path, kind)
    return folder


def listed(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": i, "file_name": n, "width": 6, "height": 4, **fields} for i, n in enumerate(names)
    ]


def find(folder: Path, *names: str, **options: Any) -> list[str]:
    return [r["file_name"] for r in find_images(folder, INFO, listed(*names), **options).records]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "yolact")
    return caplog


NFC = unicodedata.normalize("NFC", "größe.png")
NFD = unicodedata.normalize("NFD", "größe.png")


@pytest.mark.parametrize(
    ("name", "there", "kinds"),
    [
        ("..\\images\\a.png", "a.png", "separators, folders"),
        ("C:\\Users\\me\\images\\a.png", "a.png", "separators, folders"),
        ("\\\\server\\share\\a.png", "a.png", "separators, folders"),
        ("sub\\a.png", "sub/a.png", "separators"),
        ("images\\/a.png", "a.png", "folders"),
        ("images/a.png", "a.png", "folders"),
        ("/home/me/data/a.png", "a.png", "folders"),
        ("a.png", "deep/down/a.png", "folders"),
        ("x/down/a.png", "deep/down/a.png", "folders"),
        ("a%20(0).png", "a (0).png", "percent-encoding"),
        ("gr%C3%B6%C3%9Fe.png", NFC, "percent-encoding"),
        ("a%2520b.png", "a b.png", "percent-encoding"),
        ("a &amp; b.png", "a & b.png", "HTML entities"),
        ("https://host.org/bucket/a.png", "a.png", "address"),
        ("https://host.org/b/a%20b.png?X-Sig=a/b.png&x=1#top", "a b.png", "address"),
        ("/data/local-files/?d=images%2Fa.png", "a.png", "address"),
        ("s3://bucket/set/a.png", "a.png", "address"),
        ("file:///C:/set/a.png", "a.png", "address"),
        ("A.PNG", "a.png", "letter case"),
        (NFD, NFC, "Unicode form"),
        (NFC, NFD, "Unicode form"),
        ("a.jpg", "a.png", "ending"),
        ("a.JPEG", "a.jpg", "ending"),
        ("a", "a.png", "ending"),
        (" a.png", "a.png", "letter case"),
    ],
)
def test_a_name_that_almost_fits_is_found_and_said(
    tmp_path: Path, said: pytest.LogCaptureFixture, name: str, there: str, kinds: str
) -> None:
    put(tmp_path, there, "other.png", "._a.png")
    assert find(tmp_path, name, "other.png") == [there, "other.png"]
    [line] = said.messages
    assert line.startswith(f"{INFO}: 1 of 2 file names differ from the files")
    for kind in kinds.split(", "):
        assert f"1 by {kind}" in line
    assert f"{name!a} is {there!a}" in line


def test_names_that_fit_exactly_are_taken_without_a_word(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    names = ["a.png", "A.png", "sub/a.png", "a%20b.png", "./c.png", "b\\c.png"]
    put(tmp_path, *names)
    absolute = str(put(tmp_path / "elsewhere", "d.png") / "d.png")
    assert find(tmp_path, *names, absolute, on_bad_image="skip") == [*names, absolute]
    assert not said.messages


def test_an_address_is_a_name_where_there_is_no_other(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    records = [
        {"id": 1, "coco_url": "http://images.org/val/1.png", "width": 6, "height": 4},
        {
            "id": 2,
            "file_name": "lost",
            "coco_url": "http://images.org/2.png",
            "width": 6,
            "height": 4,
        },
    ]
    found = find_images(tmp_path, INFO, records)
    assert [record["file_name"] for record in found.records] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("there", "names", "hint"),
    [
        (["x/a.png", "y/a.png"], ["a.png"], "'a.png' may be 'x/a.png' or 'y/a.png'"),
        (["A.png", "a.PNG"], ["a.png"], "'a.png' may be"),
        (["a.jpg", "a.png"], ["a.bmp"], "'a.bmp' may be"),
        (["1.png"], ["cam0/1.png", "cam1/1.png"], "'1.png' is the nearest, but another name"),
        (["1.png", "2.png"], ["1.png", "x/1.png", "y/2.png"], "'1.png' is the nearest, but"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, there: list[str], names: list[str], hint: str) -> None:
    put(tmp_path, *there)
    with pytest.raises(DataError, match=r"images are not in") as error:
        find(tmp_path, *names, strict=True)
    assert str(error.value.hint).startswith(hint)


def test_a_file_listed_twice_is_found_twice(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    assert find(tmp_path, "x\\a.png", "x\\a.png") == ["a.png", "a.png"]


@pytest.mark.parametrize(
    ("there", "name", "hint"),
    [
        (["train_(0).png"], "train_[0].png", "the nearest of 1 names there is 'train_(0).png'"),
        (["im\u0430ge.png"], "image.png", r"names there is 'im\u0430ge.png'"),
        (["a\u00a0b.png"], "a b.png", r"names there is 'a\xa0b.png'"),
        (["7.png"], "https://host/photo.png", "the names are addresses: download the images to"),
        (["7.png"], "photograph.png", "holds 1 files such as '7.png'"),
        ([], "photograph.png", "holds no files"),
    ],
)
def test_what_is_there_instead_is_shown(
    tmp_path: Path, there: list[str], name: str, hint: str
) -> None:
    put(tmp_path, *there)
    with pytest.raises(DataError) as error:
        find(tmp_path, name)
    assert str(error.value) == f"{INFO}: 1 of 1 images are not in {tmp_path} (first: {name!a})"
    assert hint in str(error.value.hint)


def test_missing_photos_are_left_out_unless_strict_or_most(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, *(f"photo{i}.png" for i in range(4)))
    lost = [f"lost{i}.png" for i in range(5)]
    here = [f"photo{i}.png" for i in range(4)]
    assert find(tmp_path, *here, *lost[:4]) == here
    assert said.messages == [
        f"{INFO}: 4 of 8 images are not in {tmp_path}, left out with their objects "
        "(first: 'lost0.png', 'lost1.png', 'lost2.png')"
    ]
    with pytest.raises(DataError, match=r"train.json: 1 of 5 images are not in"):
        find(tmp_path, *here, lost[0], strict=True)
    with pytest.raises(DataError, match=r"train.json: 5 of 9 images are not in"):
        find(tmp_path, *here, *lost)


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [
        ("train/2.png", "val/2.png"),
        ("images/2.png", "masks/2.png"),
        ("images\\2.jpg", "masks/2.png"),
        ("2.jpg", "masks/2.png"),
    ],
)
def test_a_namesake_elsewhere_is_no_photo_that_is_missing_among_others(
    tmp_path: Path, name: str, elsewhere: str
) -> None:
    here = name.replace("\\", "/").replace("2", "1")
    put(tmp_path, here, elsewhere)
    assert find(tmp_path, here, name) == [here]


def test_links_that_go_round_do_not_hang_the_search(tmp_path: Path) -> None:
    put(tmp_path, "deep/a.png")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert find(tmp_path, "a.png") == ["deep/a.png"]


def test_files_of_a_folder_that_are_passed_over_are_counted_by_kind(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a.png", "b.HEIC", "c.gif", "._a.png", ".DS_Store", "Thumbs.db", "sub/d.png")
    (tmp_path / "notes.txt").write_text("")
    found = find_source(str(tmp_path))
    assert isinstance(found, Images)
    assert [path.name for path in found.paths] == ["a.png", "b.HEIC", "c.gif"]
    assert not said.messages
    for name in ("e.zip", "f.ZIP", "g"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "h.png")
    assert find_source(str(tmp_path)) == found
    [line] = said.messages
    assert "4 of 7 files are no images by their endings (2 .zip, 1 without ending, 1 pipes" in line
    assert "(first: e.zip, f.ZIP, g)" in line
    with pytest.raises(DataError, match=r"no images in .*: it holds 1 .zip"):
        find_source(str(tmp_path / "*.zip"))


def sized(folder: Path, sizes: Sequence[Any], **options: Any) -> ImageFiles:
    """The search for images that are all 6 x 4, and listed as (width, height)."""
    names = [f"{i}.png" for i in range(len(sizes))]
    records = [
        {"id": i, "file_name": name, "width": size and size[0], "height": size and size[1]}
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    return find_images(put(folder, *names), INFO, records, **options)


@pytest.mark.parametrize(
    ("sizes", "swapped"),
    [([(4, 6)] * 4, 3), ([(6, 4), (4, 6)], 1), ([(6, 4), (12, 8), (4, 6)], 1), ([(3, 2)], 0)],
)
def test_other_sizes_than_listed_are_refused(
    tmp_path: Path, sizes: list[Any], swapped: int
) -> None:
    wrong = [size for size in sizes if size != (6, 4)]
    with pytest.raises(DataError) as error:
        sized(tmp_path, sizes)
    start = f"{INFO}: {len(wrong)} of {len(sizes)} images are of another size than listed (first: "
    assert str(error.value).startswith(start)
    for width, height in wrong[:3]:
        assert f"is 6 x 4, but its annotations say {width} x {height}" in str(error.value)
    assert str(error.value).count("(swapped)") == swapped
    assert ("--on_bad_image" in str(error.value.hint)) == (len(wrong) < len(sizes))


def test_bad_images_are_left_out_on_request(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "b.png").write_text("<html>404</html>")
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 4 images cannot be used .first: .*b.png, an HTML"):
        find(tmp_path, "a.png", "b.png", "c.png", "a.png")
    found = find_images(tmp_path, INFO, listed("a.png", "b.png", "c.png"), on_bad_image="skip")
    assert [record["file_name"] for record in found.records] == ["a.png"] and found.bad == 2
    [line] = said.messages
    assert line.startswith(f"{INFO}: 2 of 3 images cannot be used, left out (first: cannot decode")
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        find(tmp_path, "b.png", on_bad_image="skip")


@pytest.mark.parametrize("absent", [{"width": None, "height": None}, {"width": None}])
def test_sizes_that_are_null_are_read_from_the_file(
    tmp_path: Path, said: pytest.LogCaptureFixture, absent: dict[str, None]
) -> None:
    put(tmp_path, "a.png")
    found = find_images(tmp_path, INFO, listed("a.png", **absent))
    assert (found.records[0]["width"], found.records[0]["height"]) == (6, 4)
    assert "1 of 1 images have no width or height, read from the files" in said.text


def test_a_data_set_of_16_bit_files_has_one_depth(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    for name, most in (("a.png", 3000), ("b.png", 200), ("c.tif", 1500)):
        cv2.imwrite(str(tmp_path / name), np.full((4, 6), most, np.uint16))
    put(tmp_path, "d.png")
    found = find_images(tmp_path, INFO, listed("a.png", "b.png", "c.tif", "d.png"))
    assert found.bits == 12
    assert "3 of 4 images are 16-bit files whose values fit in 12 bits, scaled to 8" in said.text
    assert common_bits([tmp_path / "b.png", tmp_path / "d.png"]) == 10
    assert common_bits([tmp_path / "d.png", tmp_path / "missing.png"]) is None


KINDS = {
    **{"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"},
    **{"jp2": "JPEG2000", "ppm": "PPM"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_sees_what_decoding_would(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    path = tmp_path / f"image.{kind}"
    Image.fromarray(noise).save(path, KINDS[kind])
    assert look_at(["image." + kind], tmp_path) == [Look(40, 60, 40, 60, 8)]
    data = path.read_bytes()
    for tenths in (0, 1, 5, 9):
        path.write_bytes(data[: len(data) * tenths // 10])
        [seen] = look_at([str(path)], Path())
        assert isinstance(seen, DataError) and str(path) in str(seen), tenths


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_look_sees_both_sizes_of_a_turned_image(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{kind}", exif=exif)
    shown = (60, 40) if orientation == 6 else (40, 60)
    assert look_at([f"a.{kind}"], tmp_path) == [Look(*shown, 40, 60, 8)]


@pytest.mark.parametrize("what", ["folder", "pipe", "loop", "broken link"])
def test_what_is_no_file_is_named_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
        assert stat.S_ISFIFO(path.stat().st_mode)
    else:
        path.symlink_to("a.png" if what == "loop" else "nothing")
    [seen] = look_at(["a.png"], tmp_path)
    assert isinstance(seen, DataError) and str(path) in str(seen)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """So many images that looking at them is worth remembering, and an own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = put(tmp_path / "images", "0.bmp")
    names = [f"{number}.bmp" for number in range(1000)]
    for name in names[1:]:
        os.link(folder / "0.bmp", folder / name)
    return folder, names


def test_looks_are_remembered_until_a_file_changes(many: tuple[Path, list[str]]) -> None:
    folder, names = many
    look_at(names, folder)
    before = (folder / "0.bmp").stat()
    (folder / "0.bmp").write_bytes(bytes(before.st_size))
    os.utime(folder / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert isinstance(look_at(names[:1], folder)[0], DataError), "its entry has another time"
    assert sorted(path.name for path in folder.iterdir()) == sorted(names), "nothing is left there"


def test_what_is_remembered_is_not_read_again(
    many: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = many
    first = look_at(names, folder)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image is opened"))
    assert look_at(names, folder) == first


@pytest.mark.parametrize("spoil", ["file in the way", "[1]", "null"])
def test_what_cannot_be_remembered_is_seen_again(many: tuple[Path, list[str]], spoil: str) -> None:
    folder, names = many
    cache = folder.parent / "cache"
    if spoil == "file in the way":
        cache.write_text("")
    else:
        look_at(names, folder)
        [memory] = cache.rglob("*.json")
        files = {**json.loads(memory.read_text()), "files": {"0.bmp": json.loads(spoil)}}
        memory.write_text(json.dumps(files))
    assert look_at(names, folder) == [Look(4, 6, 4, 6, 8)] * len(names)
