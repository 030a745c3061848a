"""A COCO-format dataset of images and instance masks."""

from __future__ import annotations

import io
import logging
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from yolact.config import OnBadImage
from yolact.data.annotations import (
    boxes_xyxy,
    has_area,
    read_annotations,
)
from yolact.data.entries import Record, to_rle
from yolact.data.image_files import ImageFiles, find_images
from yolact.data.images import RgbImage, read_rgb
from yolact.data.labels import classes_of
from yolact.data.mixing import MixingTransform, Scene, Size
from yolact.data.plausibility import check_plausible
from yolact.data.transforms import Objects, Transform
from yolact.errors import DataError
from yolact.types import Sample, Target

log = logging.getLogger(__name__)


class CocoInstances(Dataset[Sample]):
    """The images of a COCO annotation file, in image-id order, with or without objects.

    All checks run here, before any long work: see :mod:`yolact.data.annotations`. Crowds are the
    last objects of a target; objects without area are left out of it.

    The random part of a sample depends on ``(seed, epoch, index)`` only, so that neither the number
    of workers nor a resumed run changes what comes out. It is torch's default generator that is
    seeded (and restored), so any torchvision transform is covered.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        transform: Transform | MixingTransform,
        *,
        seed: int = 0,
        annotated: bool = True,
        on_bad_image: OnBadImage = "stop",
        strict: bool = False,
    ) -> None:
        """Read and check the annotation file, and check that every image is there and whole.

        Args:
            images: Folder that the file names are relative to.
            annotations: COCO instances JSON.
            transform: Turns ``(image, objects)`` into the network's input, for instance
                :class:`~yolact.data.transforms.TrainTransform`; or several images into one.
            seed: Of the random transforms.
            annotated: False accepts a file without ground truth.
            on_bad_image: ``skip`` leaves out images that are damaged or of another size than
                listed. One whose damage shows only when it is decoded is replaced, as a sample, by
                the next.
            strict: Refuse an annotation file with an entry that cannot be used, or without all of
                its images.

        Raises:
            DataError: Something is missing, contradictory or, for most objects, implausible; the
                message names it.
        """
        images, annotations = images.expanduser(), annotations.expanduser()
        found: list[ImageFiles] = []

        def find(records: list[Record]) -> list[Record]:
            found.append(
                find_images(images, annotations, records, strict=strict, on_bad_image=on_bad_image)
            )
            return found[0].records

        data = read_annotations(annotations, annotated=annotated, strict=strict, find=find)
        self.bad_images: int = found[0].bad
        """Images left out because they are damaged or of another size than listed."""
        self._bits = found[0].bits
        self.images, self.info = images, annotations
        self.transform, self.seed = transform, seed
        self.skips = on_bad_image == "skip"
        self.classes = classes_of(data["categories"])
        listed = sorted(data["images"], key=lambda image: int(image["id"]))
        self.image_ids: list[int] = [image["id"] for image in listed]
        self.original_ids = _original_ids(listed)
        self.original_category_ids = _original_ids(data["categories"])
        self._categories = data["categories"]
        self._images = _Packed(listed)
        self._objects = _Packed(_grouped(data["annotations"], self.image_ids))
        self.contents = Contents.of(data["images"], data["annotations"])
        _report(annotations, data["annotations"])
        if annotated:
            input_size = getattr(transform, "image_size", None)
            check_plausible(annotations, listed, data["annotations"], input_size)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The transformed sample at an index, as in epoch 0, or at (epoch, index).

        Raises:
            DataError: The image or one of its masks cannot be decoded.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels, index = self._image_from(index)
        record, scene = self._images[index], self._scene(pixels, index)
        with _seeded(self.seed, epoch, index):
            if isinstance(self.transform, MixingTransform):
                image, objects = self.transform(scene, len(self), self.scene)
            else:
                image, objects = self.transform(*scene.picture().tensors())
        return Sample(
            image.as_subclass(torch.Tensor),
            _to_target(objects),
            record["id"],
            (record["height"], record["width"]),
        )

    def name(self, index: int) -> str:
        """Path of the image file at ``index``."""
        return str(self.images / self._images[index]["file_name"])

    def image(self, index: int) -> RgbImage:
        """The image at ``index``, [height, width, 3] uint8 RGB, without decoding any mask.

        Raises:
            DataError: The file cannot be decoded, or is not of the annotated size.
        """
        record = self._images[index]
        path, size = self.images / record["file_name"], (record["height"], record["width"])
        try:
            return read_rgb(path, size, self._bits)
        except DataError as error:
            hint = f"{error.hint}, or leave it out with --on_bad_image skip"
            raise DataError(str(error), hint=None if self.skips else hint) from error

    def scene(self, index: int) -> Scene:
        """The image at ``index`` with objects to draw; if bad images are skipped, perhaps the next.

        Raises:
            DataError: The image cannot be decoded.
        """
        return self._scene(*self._image_from(index))

    @cached_property
    def coco(self) -> COCO:
        """The pycocotools index of the same annotations, for the evaluation.

        Made on first use: it is several times larger than what training needs.
        """
        coco = COCO()
        coco.dataset = {
            "images": list(self._images),
            "annotations": [annotation for objects in self._objects for annotation in objects],
            "categories": self._categories,
        }
        with redirect_stdout(io.StringIO()):  # stdout carries results only
            coco.createIndex()
        return coco

    def __getstate__(self) -> dict[str, Any]:
        """Workers that start by pickling do without the evaluation index."""
        return {key: value for key, value in self.__dict__.items() if key != "coco"}

    def _image_from(self, first: int) -> tuple[RgbImage, int]:
        """The image at an index and that index, or, if bad images are skipped, the next ones."""
        for index in (*range(first, len(self)), *range(first)):
            try:
                return self.image(index), index
            except DataError as error:
                if not self.skips:
                    raise
                log.warning("skipped: %s", error)
        raise DataError("no image of the data set can be read", hint="check the folder of images")

    def _scene(self, pixels: RgbImage, index: int) -> Scene:
        objects = [annotation for annotation in self._objects[index] if has_area(annotation)]
        objects.sort(key=lambda annotation: int(annotation["iscrowd"]))
        class_of = self.classes.index_of
        segmentations = [annotation["segmentation"] for annotation in objects]
        return Scene(
            pixels,
            boxes_xyxy(objects),
            np.array([class_of[o["category_id"]] for o in objects], np.int64),
            np.array([bool(o["iscrowd"]) for o in objects], np.bool_),
            partial(_masks, segmentations, (pixels.shape[0], pixels.shape[1])),
        )


@dataclass(frozen=True)
class Contents:
    """How much an annotation file holds."""

    images: int
    bare: int
    """Images without any object or crowd."""
    objects: int
    """Those with an area; crowds are not among them."""
    crowds: int
    of_category: Mapping[int, int]
    """Objects of each category, by its id."""

    def __str__(self) -> str:
        """All of it in words."""
        return (
            f"{self.images} images, {self.bare} of them without objects; "
            f"{self.objects} objects and {self.crowds} crowds"
        )

    @property
    def remarkable(self) -> bool:
        """Whether there is more than images with objects."""
        return bool(self.objects and (self.bare or self.crowds))

    @classmethod
    def of(cls, images: Sequence[Record], annotations: Sequence[Record]) -> Contents:
        """Count."""
        solid = [annotation for annotation in annotations if has_area(annotation)]
        single = [annotation["category_id"] for annotation in solid if not annotation["iscrowd"]]
        full = {annotation["image_id"] for annotation in solid}
        crowds = len(solid) - len(single)
        return cls(len(images), len(images) - len(full), len(single), crowds, Counter(single))


def evaluation_order(image_ids: Iterable[int]) -> list[int]:
    """Image ids in the order that a limited evaluation takes them: by a 32-bit hash of the id.

    A prefix of it is a fixed and unbiased choice of images, the one of upstream's ``--max_images``.
    """
    return sorted(image_ids, key=_hash)


def _hash(number: int) -> int:
    number &= 0xFFFFFFFF
    for _ in range(2):
        number = (((number >> 16) ^ number) * 0x045D9F3B) & 0xFFFFFFFF
    return (number >> 16) ^ number


class _Packed(Sequence[Any]):
    """A list of plain records in two arrays.

    Reading a Python object writes its reference count, so a forked worker that walks through
    millions of small objects ends up with its own copy of them all. Two arrays stay shared.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        blobs = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(blobs), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].data)


def _original_ids(entries: Iterable[Record]) -> dict[int, str]:
    """What the file has in place of the integers that entries are known by here."""
    return {e["id"]: e["original_id"] for e in entries if "original_id" in e}


def _grouped(annotations: Sequence[Record], image_ids: Sequence[int]) -> Iterator[list[Record]]:
    """Each image's annotations in the order of the file; images may have none."""
    of_image: defaultdict[int, list[Record]] = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    return (of_image[image_id] for image_id in image_ids)


def _report(path: Path, annotations: Sequence[Record]) -> None:
    empty = [annotation["id"] for annotation in annotations if not has_area(annotation)]
    if empty:
        log.warning(
            "%s: %d of %d objects have no area and are left out (first: annotation %d)",
            *(path, len(empty), len(annotations), empty[0]),
        )


def _masks(
    segmentations: Sequence[Any], listed: Size, which: Sequence[int], size: Size
) -> NDArray[np.uint8]:
    """[n, height, width] in {0, 1}: those at the indices ``which`` of an image stretched to a size.

    ``listed`` is the (height, width) that they were made for. Polygons are drawn at the new size.
    """
    height, width = size
    masks = np.empty((len(which), height, width), np.uint8)
    for index, result in zip(which, masks, strict=True):
        segmentation = segmentations[index]
        if size != listed and isinstance(segmentation, list):
            factors = np.array([width / listed[1], height / listed[0]])
            scaled = [np.reshape(polygon, (-1, 2)) * factors for polygon in segmentation]
            mask = rle.decode(to_rle([polygon.ravel().tolist() for polygon in scaled], *size))
        else:
            mask = rle.decode(to_rle(segmentation, *listed))
        # decode fills columns: mask.T is the memory it wrote
        if mask.shape == size:
            cv2.transpose(mask.T, dst=result)
        else:
            cv2.resize(np.ascontiguousarray(mask), (width, height), dst=result)
    return masks


def _to_target(objects: Objects) -> Target:
    boxes = objects["boxes"]
    height, width = boxes.canvas_size  # type: ignore[attr-defined]
    return Target(
        boxes=boxes.as_subclass(torch.Tensor) / torch.tensor([width, height, width, height]),
        labels=objects["labels"],
        masks=objects["masks"].as_subclass(torch.Tensor),
        crowd=objects["crowd"],
    )


@contextmanager
def _seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(state[0]))
        yield
