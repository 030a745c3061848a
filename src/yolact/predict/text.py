"""Text for pictures, in any script: a font that has its letters, and the letters as pixels.

The usual font is DejaVu Sans, which comes with matplotlib. Letters that it lacks, such as Chinese
ones, are looked for in the fonts of the machine; where none has them, a class goes by its number.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

log = logging.getLogger(__name__)

_CAPITAL = 0.73
"""Height of capitals and digits of DejaVu Sans, as a share of the font's size."""
_TAIL = 0.24
"""What reaches below the line, likewise."""
_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
)
_WIDE = (
    *("cjk", "sourcehan", "wqy", "msyh", "simhei", "pingfang", "hiragino", "fallback", "unicode"),
    *("unifont", "gothic", "malgun", "arial", "nirmala", "freesans", "noto", "segoe"),
)
"""Parts of the names of fonts with letters of many languages; these are tried first."""
_MOST_FONTS = 400
"""Opening one takes about a millisecond."""
_SIZE = 16
"""Pixels; any size that fonts can be tried at."""
_NO_LETTERS = ("\uffff", "\U000effff")
"""Code points that are never assigned."""
_INVISIBLE = ("Cf", "Mn", "Me", "Zs")
"""Categories of characters that may have no shape of their own."""


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """What pictures call the classes: their names in one line each, or "class 7".

    The latter, with its index, where no font has the name's letters; a warning says so once.
    """
    return _labels(tuple(names))


@lru_cache(maxsize=8)
def _labels(names: tuple[str, ...]) -> tuple[str, ...]:
    lines = lines_of(names)
    drawn = [_font_path(text) is not None for text in lines]
    lacking = [index for index, is_drawn in enumerate(drawn) if not is_drawn]
    if lacking:
        shown = ", ".join(f"class {index} is {names[index]!r}" for index in lacking[:3])
        log.warning(
            "%d of %d class names have letters that no font of this machine has, pictures show "
            "their numbers; a font such as Noto Sans CJK helps (first: %s)",
            *(len(lacking), len(names), shown),
        )
    return tuple(
        text if is_drawn else f"class {index}"
        for index, (text, is_drawn) in enumerate(zip(lines, drawn, strict=True))
    )


def lines_of(names: Sequence[str]) -> tuple[str, ...]:
    """What consoles call the classes: their names in one line each; "class 7" of an empty one."""
    return tuple(one_line(name) or f"class {index}" for index, name in enumerate(names))


def one_line(text: str) -> str:
    """The text with one blank for line breaks, tabs and what else is no letter."""
    kept = (" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text)
    return " ".join("".join(kept).split())


@lru_cache(maxsize=1024)
def letters(text: str, height: int) -> NDArray[np.uint8]:
    """Draw one line of text; letters that no font has become boxes.

    Args:
        text: Without line breaks.
        height: Of capitals, in pixels.

    Returns:
        [height, width], from 0 (nothing) to 255 (letter), as large as the text with its tails.
    """
    size = max(1, round(height / _CAPITAL))
    font = _opened(_font_path(text) or _usual_font(), size)
    text = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs cannot be drawn
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    above = max(height, -round(top))
    below = max(round(size * _TAIL), round(bottom))
    picture = Image.new("L", (max(1, round(right - left)), above + below))
    ImageDraw.Draw(picture).text((-left, above), text, 255, font, anchor="ls")
    return np.asarray(picture, np.uint8)


def _font_path(text: str) -> Path | None:
    """A font that has every letter: the usual one, else one of the machine; None without any."""
    wanted = {one for one in text if unicodedata.category(one) not in _INVISIBLE}
    for path in _fonts_in_turn():
        if all(_has(path, one) for one in wanted):
            return path
    return None


def _fonts_in_turn() -> Iterator[Path]:
    yield _usual_font()
    yield from _machine_fonts()


@cache
def _usual_font() -> Path:
    """Found without importing matplotlib, which takes a while."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None  # a dependency of this package
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _machine_fonts() -> tuple[Path, ...]:
    """Installed fonts, those with many languages first."""
    paths = [
        Path(folder, name)
        for start in _FOLDERS
        for folder, _, names in os.walk(os.path.expanduser(start))
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf", ".otc"))
    ]
    found = sorted(paths, key=lambda path: (_rank(path.name.lower()), path.name))
    return tuple(found[:_MOST_FONTS])


def _rank(name: str) -> int:
    """Place among the fonts to try; bold, narrow and slanted ones come last of their kind."""
    wide = next((place for place, part in enumerate(_WIDE) if part in name), len(_WIDE))
    plain = not any(part in name for part in ("bold", "italic", "oblique", "condensed", "black"))
    return 2 * wide + (not plain)


@cache
def _has(path: Path, letter: str) -> bool:
    """Whether a font can be used and has a letter: those it lacks all look alike."""
    try:
        font = _opened(path, _SIZE)
        return _shape(font, letter) not in [_shape(font, one) for one in _NO_LETTERS]
    except (OSError, ValueError):  # not a font, or one of pictures in a single size
        return False


def _shape(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, ...], bytes]:
    box = tuple(map(round, font.getbbox(letter, anchor="ls")))
    picture = Image.new("L", (max(1, box[2] - box[0]), max(1, box[3] - box[1])))
    ImageDraw.Draw(picture).text((-box[0], -box[1]), letter, 255, font, anchor="ls")
    return box, picture.tobytes()


@lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
