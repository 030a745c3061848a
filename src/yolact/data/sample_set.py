"""A generated COCO-format sample set: something to train on with no download."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from tqdm import tqdm

from yolact.data.entries import uncompressed_rle
from yolact.data.labels import Classes
from yolact.data.sample_scenes import SHAPES, Thing, draw_scene
from yolact.errors import ConfigError, StorageError
from yolact.files import atomic_folder

SHAPE_CLASSES = Classes(SHAPES, (1, 3, 4, 7, 9, 12))
"""The classes of the set; ids have gaps, as COCO's have."""
SPLITS = ("train", "val")

_VERSION = 1
"""Raise it whenever the same settings would give other pictures."""
_ASPECTS = ((1.0, 1.0), (0.9, 1.1), (1.1, 0.9))
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class _Settings:
    train: int
    val: int
    image_size: int
    seed: int
    version: int = _VERSION


def generate_shapes(
    folder: Path, *, train: int = 2000, val: int = 200, image_size: int = 160, seed: int = 0
) -> bool:
    """Write ``annotations/instances_{train,val}.json`` and ``images/`` into ``folder``.

    Textured shapes of six classes that overlap and hide one another, on cluttered and unevenly lit
    backgrounds. Whole objects have polygons; rings, and objects that are partly hidden or outside,
    have RLE; some images hold a crowd and some hold nothing. The same settings give the same files,
    and a larger set starts with the images of a smaller one. ``folder`` appears in one step.

    Args:
        folder: Where to put the set; its parents are made.
        train: Number of training images.
        val: Number of held-out images.
        image_size: Side of a square image in pixels; others have the same area or so.
        seed: Of all random choices.

    Returns:
        False when ``folder`` already holds exactly this set.

    Raises:
        ConfigError: A count or size is too small.
        StorageError: ``folder`` holds something else, or cannot be written.
    """
    if train < 1 or val < 1 or image_size < 32:
        raise ConfigError(
            "the sample set needs at least one image per part, of 32 pixels or more",
            hint="raise --train_size, --val_size or the image size",
        )
    settings = _Settings(train, val, image_size, seed)
    if _holds(folder, settings):
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(
            f"{folder} already holds something else than this sample set",
            hint="choose another --data_dir, or remove the folder",
        )
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        (temporary / "annotations").mkdir()
        with tqdm(total=train + val, desc="drawing", unit="image", disable=None) as progress:
            for split, count in zip(SPLITS, (train, val), strict=True):
                _write_split(temporary, split, count, settings, progress)
    return True


def annotation_of(thing: Thing) -> dict[str, Any]:
    """A COCO entry without ids: plain RLE of a crowd, compressed of what is cut, or a polygon."""
    height, width = thing.visible.shape
    outline = thing.shapes[0].outline
    inside = all(((polygon >= 0) & (polygon <= (width, height))).all() for polygon in outline)
    segmentation: Any
    if thing.crowd or not thing.whole or not inside or len(outline) > 1:
        encoded = rle.encode(np.asfortranarray(thing.visible.astype(np.uint8)))
        compressed = {"size": [height, width], "counts": encoded["counts"].decode()}
        segmentation = uncompressed_rle(thing.visible) if thing.crowd else compressed
    else:
        segmentation = [np.round(outline[0], 2).reshape(-1).tolist()]
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    return {
        "category_id": SHAPE_CLASSES.ids[thing.kind],
        "segmentation": segmentation,
        "area": float(rle.area(encoded)),
        "bbox": rle.toBbox(encoded).tolist(),
        "iscrowd": int(thing.crowd),
    }


def _write_split(
    folder: Path, split: str, count: int, settings: _Settings, progress: tqdm[Any]
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    part = SPLITS.index(split)
    for number in range(count):
        rng = np.random.Generator(np.random.PCG64((settings.seed, part, number)))
        aspect = _ASPECTS[rng.integers(len(_ASPECTS))]
        height, width = (round(settings.image_size * factor) for factor in aspect)
        picture, things = draw_scene(rng, height, width)
        image_id = 1 + number + part * 500_000
        name = f"{split}_{number:06}.jpg"
        _write_jpeg(folder / "images" / name, picture)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in things:
            annotation = {"id": len(annotations) + 1 + part * 5_000_000, "image_id": image_id}
            annotations.append({**annotation, **annotation_of(thing)})
        progress.update()
    names = zip(SHAPE_CLASSES.ids, SHAPE_CLASSES.names, strict=True)
    content = {
        "info": {"description": "generated shapes", "settings": asdict(settings)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in names],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_jpeg(path: Path, picture: NDArray[np.uint8]) -> None:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(data.tobytes())


def _holds(folder: Path, settings: _Settings) -> bool:
    """Whether ``folder`` is complete and was made with these settings."""
    for split in SPLITS:
        try:
            content = json.loads((folder / "annotations" / f"instances_{split}.json").read_bytes())
            made_with = content["info"]["settings"]
            names = {image["file_name"] for image in content["images"]}
            present = set(os.listdir(folder / "images"))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if made_with != asdict(settings) or not names <= present:
            return False
    return True
