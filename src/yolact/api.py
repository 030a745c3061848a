"""Models from Python: ``yolact.load(file)`` gives a :class:`Model`, ``predict`` its results.

Pixels are counted from the top left corner; the one in column x and row y is the square from (x, y)
to (x + 1, y + 1), so a box from 10 to 40 covers 30 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from yolact.config import YolactConfig
from yolact.data.images import RgbImage, read_rgb
from yolact.data.labels import Classes
from yolact.download.stubs import is_stub
from yolact.engines import load_detector
from yolact.engines.base import DetectingEngine, Engine
from yolact.engines.onnx_file import DEPLOYED
from yolact.errors import CheckpointError, ConfigError, DataError
from yolact.host import resolve_device
from yolact.model_files import model_kinds, stub_file
from yolact.predict.draw import Style, draw_instances, write_image
from yolact.predict.pipeline import Selection, groups
from yolact.predict.results import coco_box, encode_masks, outlines
from yolact.sizes import ImageSize
from yolact.types import Instances

if TYPE_CHECKING:
    import supervision

ImageLike = str | PathLike[str] | Image.Image | NDArray[Any]
"""An image: its file, a Pillow image, or RGB pixels as uint8 array [height, width, 3]."""
_Kind = TypeVar("_Kind", bound=ImageLike)


def load(
    model: str | PathLike[str],
    *,
    engine: str | None = None,
    device: str = "cpu",
    num_cores: int | None = None,
    config: YolactConfig | None = None,
    image_size: ImageSize | None = None,
) -> Model:
    """Load a model, ready to predict.

    Args:
        model: An .onnx file (also .onnx.gz, .onnx.xz, .onnx.zst, and one that detects inside its
            graph), a .pth checkpoint, a folder that ``export_onnx --deployment`` has written, or a
            ``zoo:`` stub of SparseZoo.
        engine: ``onnxruntime``, ``openvino`` or ``torch``; None lets the file's ending decide.
        device: Where PyTorch runs: cpu, cuda, cuda:N or auto. The other engines use the CPU.
        num_cores: Threads of one prediction; None leaves the choice to the engine.
        config: Configuration of a checkpoint that carries none.
        image_size: What a checkpoint is to see: the side of a square in pixels, or (height,
            width); None for the size of its training. An ONNX file has the one of its export.

    Raises:
        CheckpointError: The file is missing, unreadable or not a YOLACT model.
        ConfigError: The engine, the device or the size is unknown, or does not fit the file.
    """
    loaded = load_detector(
        _model_file(str(model), engine),
        engine=engine,
        device=str(resolve_device(device)),
        num_cores=num_cores,
        config=config,
        image_size=image_size,
    )
    return Model(loaded)


def _model_file(model: str, engine: str | None) -> Path:
    if is_stub(model):
        return stub_file(model, *model_kinds(engine))
    path = Path(model).expanduser()
    if not path.is_dir():
        return path
    if not (path / DEPLOYED).is_file():
        raise CheckpointError(
            f"the folder {path} holds no {DEPLOYED}",
            hint="name a model file, or a folder that export_onnx --deployment has written",
        )
    return path / DEPLOYED


@dataclass(frozen=True)
class Model:
    """A loaded model. Predictions from several threads are safe."""

    engine: Engine | DetectingEngine
    """What runs the network; ``engine.name`` is its short name."""

    @property
    def classes(self) -> Classes:
        """Names of the classes, and the ids that COCO files know them by."""
        return self.engine.classes

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the network sees; images of any size are resized to it."""
        return self.engine.image_size

    @overload
    def predict(
        self, image: ImageLike, *, score_threshold: float = 0.3, top_k: int | None = None
    ) -> Result: ...

    @overload
    def predict(
        self,
        image: list[_Kind] | tuple[_Kind, ...],
        *,
        score_threshold: float = 0.3,
        top_k: int | None = None,
    ) -> list[Result]: ...

    def predict(
        self,
        image: ImageLike | list[_Kind] | tuple[_Kind, ...],
        *,
        score_threshold: float = 0.3,
        top_k: int | None = None,
    ) -> Result | list[Result]:
        """Find the objects of an image, or of each image of a list.

        Args:
            image: Path, Pillow image or RGB array; or a list of these. A file is turned as its
                EXIF data says; pixels are taken as they are.
            score_threshold: Only objects with a higher score, 0..1.
            top_k: At most so many objects per image, the best ones.

        Returns:
            A result; for a list, one per image in the same order.

        Raises:
            DataError: An image cannot be read, or is nothing that can be one.
            ConfigError: An option is out of range.
        """
        selection = Selection(score_threshold=score_threshold, top_k=top_k)
        if not isinstance(image, list | tuple):
            return self._batch([image], selection)[0]
        batches = groups(image, self.engine.batch_size or 1)
        return [result for batch in batches for result in self._batch(batch, selection)]

    def _batch(self, images: Sequence[ImageLike], selection: Selection) -> list[Result]:
        pixels = [_rgb(image) for image in images]
        found = selection.find(self.engine, pixels)
        return [
            Result.of(image, one.instances(), self.classes)
            for image, one in zip(pixels, found, strict=True)
        ]


def _rgb(image: ImageLike) -> RgbImage:
    """The pixels of an image, as a copy that nobody else changes."""
    if isinstance(image, str | PathLike):
        return read_rgb(Path(image).expanduser())
    if isinstance(image, Image.Image):
        return _rgb_of_pillow(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"a {type(image).__name__} is no image",
            hint="give a path, a Pillow image or an RGB array [height, width, 3] of uint8",
        )
    if image.dtype != np.uint8:
        raise DataError(
            f"an image of {image.dtype} values is not understood",
            hint="give uint8, 0 to 255: of values from 0 to 1, (255 * image).astype('uint8')",
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"an array of shape {list(image.shape)} is no image",
            hint="give RGB pixels [height, width, 3]; several images as a list",
        )
    return np.array(image, order="C")


def _rgb_of_pillow(image: Image.Image) -> RgbImage:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"a Pillow image of mode {image.mode} has more than 8 bits a pixel",
            hint="give its path, or convert its values to 0 to 255 first",
        )
    try:
        return np.array(image.convert("RGB"))
    except OSError as error:  # Pillow decodes late
        raise DataError(
            f"an image cannot be decoded: {error}", hint="replace the file; it is damaged"
        ) from error


class Instance(NamedTuple):
    """One object of an image."""

    name: str
    """Of its class."""
    score: float
    """0..1."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels."""
    mask: NDArray[np.bool_]
    """[height, width]."""
    label: int
    """Index of its class, from 0."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The n objects that were found in one image, in descending score.

    Iterating yields an :class:`Instance` for each.
    """

    image: RgbImage
    """The image, RGB [height, width, 3]."""
    classes: Classes
    """What the labels mean."""
    labels: NDArray[np.int64]
    """[n] class indices, from 0."""
    scores: NDArray[np.float32]
    """[n], 0..1."""
    boxes: NDArray[np.int64]
    """[n, 4] x1, y1, x2, y2 in pixels, inside the image."""
    masks: NDArray[np.bool_]
    """[n, height, width]."""

    @classmethod
    def of(cls, image: RgbImage, instances: Instances, classes: Classes) -> Result:
        """The same objects as arrays."""
        boxes, scores, labels, masks = (values.cpu().numpy() for values in instances)
        return cls(image, classes, labels, scores, boxes, masks)

    @property
    def names(self) -> list[str]:
        """Class name of each object."""
        return [self.classes.names[label] for label in self.labels.tolist()]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def __repr__(self) -> str:
        """Names and scores."""
        found = ", ".join(f"{one.name} {one.score:.2f}" for one in self) or "nothing"
        return f"<Result: {found}>"

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.labels)

    def __iter__(self) -> Iterator[Instance]:
        """The objects, best first."""
        scores, labels = self.scores.tolist(), self.labels.tolist()
        boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in self.boxes.tolist()]
        return map(Instance, self.names, scores, boxes, self.masks, labels)

    def polygons(self, tolerance: float = 0) -> list[list[NDArray[np.int32]]]:
        """The outline of every object.

        An object may have several parts, and parts may have holes: each is a polygon of its own,
        first the parts, which run counter-clockwise on the screen, then the holes, which run
        clockwise. A point belongs to the object if an odd number of its polygons surrounds it; the
        signed areas add up to the mask's pixels.

        Args:
            tolerance: How far in pixels an outline may pass from the mask's edge, for fewer points;
                0 follows every step from pixel to pixel.

        Returns:
            A list of polygons [m, 2] per object, x and y in pixels.
        """
        return [outlines(mask, tolerance) for mask in self.masks]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The objects as COCO result entries, ready for JSON.

        Args:
            image_id: Of the image in the annotation file.

        Returns:
            One entry per object: image_id, category_id, score, bbox (x, y, width, height) and
            segmentation (run-length encoded).
        """
        return [
            {
                "image_id": image_id,
                "category_id": self.classes.ids[found.label],
                "score": found.score,
                "bbox": coco_box(found.box),
                "segmentation": code,
            }
            for found, code in zip(self, encode_masks(torch.from_numpy(self.masks)), strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """The objects for the tools of the package supervision, with names as ``class_name``.

        Raises:
            ConfigError: The package is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ConfigError(
                "the package supervision is not installed", hint="pip install supervision"
            ) from error
        return Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, path: str | PathLike[str] | None = None, style: Style | None = None) -> RgbImage:
        """The image with its objects drawn on.

        Args:
            path: Where to write it too, as the kind of file that the name's ending says.
            style: What to draw; everything by default.

        Returns:
            RGB [height, width, 3]; a new array.

        Raises:
            StorageError: The file cannot be written.
        """
        arrays = (self.boxes, self.scores, self.labels, self.masks)
        instances = Instances(*map(torch.from_numpy, arrays))
        picture = draw_instances(self.image, instances, self.classes.names, style)
        if path is not None:
            write_image(Path(path).expanduser(), picture)
        return picture
