"""Pictures of textured, lit, overlapping shapes, with the exact mask of each.

All lengths are pixels. Coordinates are continuous: pixel (0, 0) covers x 0..1 and y 0..1, as in
COCO's polygons. Colours are RGB in 0..1 until the picture is finished.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
"""[n, 2] (x, y)."""
Rng = np.random.Generator

SHAPES = ("disc", "ring", "triangle", "square", "star", "cross")
_TEXTURES = ("plain", "rings", "stripes", "checks", "dots", "grain")
"""The favourite texture of each of SHAPES, at the same place."""
_HUES = (0.02, 0.13, 0.33, 0.58, 0.78, 0.92)
"""Likewise the favourite hue."""
_FAVOURITE = 0.75
"""How often a shape wears its favourite texture or hue rather than any."""

_OVERSAMPLING = 4
_SUBPIXEL_BITS = 4
_TRIES = 30


@dataclass(frozen=True)
class Shape:
    """One shape at its place."""

    kind: int
    """Index into SHAPES."""
    outline: tuple[Points, ...]
    """The rim; a second polygon is a hole."""
    center: tuple[float, float]
    radius: float
    angle: float


@dataclass(frozen=True)
class Thing:
    """What one annotation describes: a shape, or many small ones that stand close together."""

    shapes: tuple[Shape, ...]
    coverage: Floats
    """[height, width] in 0..1: how much of each pixel the shapes cover, seen alone."""
    visible: NDArray[np.bool_]
    """[height, width]: the pixels that nothing in front of it hides."""
    crowd: bool = False

    @property
    def kind(self) -> int:
        """Index into SHAPES."""
        return self.shapes[0].kind

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[height, width]: all of its pixels, hidden or not."""
        return np.asarray(self.coverage > 0.5)

    @property
    def whole(self) -> bool:
        """Whether nothing hides any of it."""
        return bool((self.visible == self.mask).all())


def draw_scene(rng: Rng, height: int, width: int) -> tuple[NDArray[np.uint8], list[Thing]]:
    """A picture [height, width, 3] uint8 RGB and its things, from the back to the front."""
    things = arrange(rng, height, width)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.cos(angle), np.sin(angle)
    picture = _background(rng, height, width)
    for thing in things:
        _cast_shadow(picture, thing, light, strength=rng.uniform(0.35, 0.6))
        paint = _paint(rng, thing.kind)
        for shape in thing.shapes:
            _draw_shape(rng, picture, shape, paint, light)
    return _photograph(rng, picture), things


def arrange(rng: Rng, height: int, width: int) -> list[Thing]:
    """Place 1 to 5 objects so that each keeps half of itself in sight; sometimes none, or a crowd.

    Sizes are relative to the shorter side: objects are 0.26 to 0.64 of it.
    """
    things: list[Thing] = []
    if rng.random() < 0.05:
        return things
    if rng.random() < 0.06:
        things.append(_cluster(rng, height, width))
    for _ in range(rng.choice(5, p=(0.2, 0.3, 0.25, 0.15, 0.1)) + 1):
        for _ in range(_TRIES):
            placed = _place(things, _somewhere(rng, things, height, width))
            if placed is not None:
                things = placed
                break
    return things


def _place(behind: Sequence[Thing], new: Thing) -> list[Thing] | None:
    """Put a thing in front of others, or None when too little of one of them would remain."""
    mask = new.mask
    hidden = [replace(thing, visible=thing.visible & ~mask) for thing in behind]
    for thing in hidden:
        if thing.visible.sum() < 0.5 * thing.mask.sum():
            return None
    inside = mask.sum() / max(_area(new.shapes), 1.0)
    return [*hidden, new] if inside > 0.7 else None


def _somewhere(rng: Rng, things: Sequence[Thing], height: int, width: int) -> Thing:
    """A random object, often close enough to another to overlap it."""
    side = min(height, width)
    radius = side * np.exp(rng.uniform(np.log(0.13), np.log(0.32)))
    center = rng.uniform(0.15, 0.85, 2) * (width, height)
    if things and rng.random() < 0.5:
        other = things[int(rng.integers(len(things)))].shapes[0]
        angle = rng.uniform(0, 2 * np.pi)
        distance = (radius + other.radius) * rng.uniform(0.5, 0.95)
        center = np.array(other.center) + distance * np.array([np.cos(angle), np.sin(angle)])
    shape = _shape(rng, int(rng.integers(len(SHAPES))), (center[0], center[1]), radius)
    return _thing((shape,), height, width)


def _cluster(rng: Rng, height: int, width: int) -> Thing:
    """Many small shapes of one kind, too close together to be told apart: a crowd."""
    kind, side = int(rng.integers(len(SHAPES))), min(height, width)
    radius = side * rng.uniform(0.035, 0.05)
    columns, rows = rng.integers(3, 6), rng.integers(2, 5)
    left = rng.uniform(0, width - 2 * radius * columns)
    top = rng.uniform(0, height - 2 * radius * rows)
    cells = np.array(list(np.ndindex(columns, rows)))
    places = (2 * cells + 1) * radius + (left, top)
    jitter = rng.uniform(-0.5, 0.5, (len(places), 2)) * radius
    shapes = [
        _shape(rng, kind, (x + dx, y + dy), radius * rng.uniform(0.9, 1.2))
        for (x, y), (dx, dy) in zip(places, jitter, strict=True)
    ]
    return replace(_thing(tuple(shapes), height, width), crowd=True)


def _thing(shapes: tuple[Shape, ...], height: int, width: int) -> Thing:
    coverage = np.zeros((height, width), np.float32)
    for shape in shapes:
        np.maximum(coverage, _coverage(shape, height, width), out=coverage)
    return Thing(shapes, coverage, np.asarray(coverage > 0.5))


def _shape(rng: Rng, kind: int, center: tuple[float, float], radius: float) -> Shape:
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = tuple(
        (polygon * (squeeze, 1 / squeeze)) @ turn * radius + center
        for polygon in _outline(rng, SHAPES[kind])
    )
    return Shape(kind, outline, center, radius, angle)


def _outline(rng: Rng, kind: str) -> list[Points]:
    """Polygons of a shape that fits a circle of radius 1."""
    if kind == "disc":
        return [_regular(40)]
    if kind == "ring":
        return [_regular(40), _regular(40) * rng.uniform(0.45, 0.62)]
    if kind == "triangle":
        return [_regular(3) + rng.uniform(-0.12, 0.12, (3, 2))]
    if kind == "square":
        x = rng.uniform(0.55, 0.85)
        y = np.sqrt(1 - x**2)
        return [np.array([(x, y), (-x, y), (-x, -y), (x, -y)])]
    if kind == "star":
        radii = np.tile((1.0, rng.uniform(0.42, 0.52)), 5)
        return [_regular(10) * radii[:, None]]
    arm = rng.uniform(0.26, 0.38)
    quarter = np.array([(arm, -0.93), (arm, -arm), (0.93, -arm)])
    turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])]


def _regular(corners: int) -> Points:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _area(shapes: Sequence[Shape]) -> float:
    """Pixels that the shapes would cover on an endless canvas (shoelace formula)."""
    total = 0.0
    for shape in shapes:
        for sign, polygon in zip((1, -1), shape.outline, strict=False):
            x, y = polygon.T
            total += sign * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return total


def _coverage(shape: Shape, height: int, width: int) -> Floats:
    fine = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING), np.uint8)
    # OpenCV puts integers at pixel centres and takes fixed-point numbers
    corners = [
        np.round((polygon * _OVERSAMPLING - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
        for polygon in shape.outline
    ]
    cv2.fillPoly(fine, corners, (255,), shift=_SUBPIXEL_BITS)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(coarse, np.float32) / np.float32(255)


@dataclass(frozen=True)
class _Paint:
    texture: str
    frequency: float
    light: Floats
    dark: Floats


def _paint(rng: Rng, kind: int) -> _Paint:
    texture = _TEXTURES[kind if rng.random() < _FAVOURITE else rng.integers(len(_TEXTURES))]
    hue = _HUES[kind] + rng.normal(0, 0.04) if rng.random() < _FAVOURITE else rng.random()
    saturation, value = rng.uniform(0.5, 0.95), rng.uniform(0.6, 1.0)
    light = _rgb(hue, saturation, value)
    dark = _rgb(hue + rng.normal(0, 0.06), saturation * 0.9, value * rng.uniform(0.4, 0.75))
    return _Paint(texture, rng.uniform(4, 9), light, dark)


def _draw_shape(
    rng: Rng, picture: Floats, shape: Shape, paint: _Paint, light: tuple[float, float]
) -> None:
    height, width = picture.shape[:2]
    coverage = _coverage(shape, height, width)
    x, y = _grid(height, width)
    x, y = (x - shape.center[0]) / shape.radius, (y - shape.center[1]) / shape.radius
    across = x * np.cos(shape.angle) + y * np.sin(shape.angle)
    along = y * np.cos(shape.angle) - x * np.sin(shape.angle)
    share = _texture(rng, paint, across, along)[..., None]
    color = paint.light * share + paint.dark * (1 - share)
    color = color * (1 + 0.22 * (x * light[0] + y * light[1]))[..., None]
    color = color + _relief(coverage, shape.radius, light)[..., None]
    if SHAPES[shape.kind] == "disc" and paint.texture == "plain":
        glint = (x - 0.4 * light[0]) ** 2 + (y - 0.4 * light[1]) ** 2
        color = color + 0.4 * np.exp(-glint / 0.06)[..., None]
    picture += coverage[..., None] * (color - picture)


def _texture(rng: Rng, paint: _Paint, x: Floats, y: Floats) -> Floats:
    """[height, width] in 0..1: the share of the paint's light colour."""
    f, (height, width) = paint.frequency, x.shape
    if paint.texture == "stripes":
        wave = np.sin(f * 1.6 * x)
    elif paint.texture == "checks":
        wave = np.sin(f * x) * np.sin(f * y) * 4
    elif paint.texture == "rings":
        wave = np.sin(f * 2 * np.hypot(x, y))
    elif paint.texture == "dots":
        wave = np.cos(f * 1.3 * x) + np.cos(f * 1.3 * y) - 0.6
    elif paint.texture == "grain":
        wave = 1.5 * np.sin(
            2 * y + 3 * _noise(rng, height, width, cells=5) + 0.5 * np.sin(f * 2 * x)
        )
    else:
        wave = 0.6 + 0.5 * _noise(rng, height, width, cells=8)
    return np.asarray(np.clip(0.5 + 1.2 * wave, 0, 1), np.float32)


def _relief(coverage: Floats, radius: float, light: tuple[float, float]) -> Floats:
    """Bright rims towards the light and dark ones away from it, as if the shape were thick."""
    soft = cv2.GaussianBlur(coverage, (0, 0), max(0.09 * radius, 0.8))
    dx, dy = (cv2.Sobel(soft, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    towards = -(dx * light[0] + dy * light[1])
    return np.asarray(0.09 * max(0.09 * radius, 0.8) * towards, np.float32)


def _cast_shadow(
    picture: Floats, thing: Thing, light: tuple[float, float], strength: float
) -> None:
    reach = max(2.0, 0.14 * thing.shapes[0].radius)
    move = np.array([[1, 0, -light[0] * reach], [0, 1, -light[1] * reach]], np.float32)
    height, width = thing.coverage.shape
    moved = cv2.warpAffine(thing.coverage, move, (width, height))
    picture *= 1 - strength * cv2.GaussianBlur(moved, (0, 0), 0.6 * reach)[..., None]


def _background(rng: Rng, height: int, width: int) -> Floats:
    """A muted texture with strokes and patches that are no object."""
    hue = rng.random()
    first = _rgb(hue, rng.uniform(0.05, 0.4), rng.uniform(0.35, 0.85))
    second = _rgb(hue + rng.normal(0, 0.15), rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.75))
    share = np.clip(0.5 + 0.45 * _surface(rng, height, width), 0, 1)[..., None]
    picture = np.asarray(first * share + second * (1 - share), np.float32)
    for _ in range(rng.integers(0, 4)):
        patch = np.clip(6 * (_noise(rng, height, width, cells=int(rng.integers(3, 7))) - 1.1), 0, 1)
        picture += 0.7 * patch[..., None] * (_rgb(rng.random(), 0.4, rng.random()) - picture)
    for _ in range(rng.integers(0, 7)):
        _stroke(rng, picture)
    return picture


def _surface(rng: Rng, height: int, width: int) -> Floats:
    """[height, width], about -1..1: cloud, planks, tiles or weave, none of them regular."""
    x, y = _grid(height, width)
    cloud = _noise(rng, height, width, cells=4) + 0.5 * _noise(rng, height, width, cells=12)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.12, 0.35) * min(height, width)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(4)
    if kind == 0:
        pattern = cloud
    elif kind == 1:  # planks
        pattern = 0.6 * cloud - 1.2 * (np.cos(along) > 0.96)
    elif kind == 2:  # tiles
        pattern = 0.4 * cloud - 1.2 * (np.maximum(np.cos(along), np.cos(across)) > 0.97)
    else:  # weave
        pattern = 0.5 * cloud + 0.35 * np.sin(5 * along) * np.sin(5 * across)
    return np.asarray(pattern, np.float32)


def _stroke(rng: Rng, picture: Floats) -> None:
    """A bent line over the background."""
    height, width = picture.shape[:2]
    start, bend = rng.uniform(0, 1, 2), rng.normal(0, 0.35, (4, 2))
    points = (start + np.cumsum(bend, axis=0)) * (width, height)
    color = _rgb(rng.random(), 0.5, rng.random()).tolist()
    corners = [np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)]
    thickness = int(rng.integers(1, 4))
    cv2.polylines(picture, corners, False, color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _photograph(rng: Rng, picture: Floats) -> NDArray[np.uint8]:
    """Uneven light, a lens that is not quite sharp, sensor noise, 8 bits."""
    height, width = picture.shape[:2]
    x, y = _grid(height, width)
    x, y = 2 * x / width - 1, 2 * y / height - 1
    slope = rng.uniform(-0.22, 0.22, 2)
    lit = picture * (rng.uniform(0.8, 1.1) + slope[0] * x + slope[1] * y)[..., None]
    blurred = cv2.GaussianBlur(lit.astype(np.float32), (0, 0), rng.uniform(0.3, 0.7))
    noisy = blurred + rng.normal(0, rng.uniform(0.006, 0.025), blurred.shape)
    return np.asarray(np.clip(np.round(noisy * 255), 0, 255), np.uint8)


def _noise(rng: Rng, height: int, width: int, cells: int) -> Floats:
    """[height, width] smooth noise of deviation about 1, with bumps about side / cells wide."""
    coarse = rng.normal(0, 1.2, (cells, cells)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32)


def _grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Coordinates x and y of every pixel's centre, each [height, width]."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return x, y


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)
